"""The training layer for notebooks: train, load a run, predict, evaluate, export. The commands call the same code."""
