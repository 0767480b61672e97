"""Self-Tuning and its baselines: classification with few labels."""

from ..lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, __file__)
