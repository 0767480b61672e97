"""The χ-Model and its baselines: few labels for any target, be it numbers, positions or classes."""

from ..lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, __file__)
