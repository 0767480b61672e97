"""Runs: what `dadl train`, `dadl evaluate` and `dadl predict` do, whatever the method."""
