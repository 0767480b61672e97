"""Losses for imbalanced regression besides weighted L1 and squared errors."""

from .balanced_mse import BalancedMSE, GaussianMixture
from .pointwise import focal_l1_loss, focal_mse_loss, weighted_huber_loss

__all__ = ["BalancedMSE", "GaussianMixture", "focal_l1_loss", "focal_mse_loss", "weighted_huber_loss"]
