"""The figures of the demos."""
