"""Self-Tuning and its baselines: classification with few labels."""

from .method import UNLABELLED, FineTuning, FixMatch, PairedRows, SelfTuning, paired_loader

__all__ = ["UNLABELLED", "FineTuning", "FixMatch", "PairedRows", "SelfTuning", "paired_loader"]
