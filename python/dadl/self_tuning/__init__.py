"""Self-Tuning and its baselines: classification with few labels."""

from .method import UNLABELLED, WARM_UP, FineTuning, FixMatch, PairedRows, SelfTuning, paired_loader

__all__ = ["UNLABELLED", "WARM_UP", "FineTuning", "FixMatch", "PairedRows", "SelfTuning", "paired_loader"]
