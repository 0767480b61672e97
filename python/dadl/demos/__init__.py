"""``dadl demo``: each method compared with its baselines on a small data set."""
