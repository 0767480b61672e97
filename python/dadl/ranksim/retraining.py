"""Regressor retraining (RRT): freeze a trained encoder and train the last linear layer from scratch.

Sources: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression", ICML 2021; for classes Kang et al.,
"Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FrozenEncoder(nn.Module):
    """An encoder that training does not change: its parameters take no gradient, ``forward`` builds no graph.

    It stays in evaluation mode even if the model around it is put into training mode, so that batch-normalisation
    statistics do not change and dropout is off.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.train(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        features: Tensor = self.encoder(*args, **kwargs)
        return features

    def train(self, mode: bool = True) -> "FrozenEncoder":
        super().train(False)
        return self


def retrain_head(encoder: nn.Module, head: nn.Linear) -> tuple[FrozenEncoder, list[nn.Parameter]]:
    """Freeze ``encoder`` in place, reset ``head``, and return the frozen encoder and the parameters to train.

    >>> encoder, parameters = retrain_head(model.encoder, model.head)
    >>> optimizer = torch.optim.Adam(parameters, lr=1e-3)
    >>> loss = weighted_l1_loss(model.head(encoder(images)).squeeze(-1), ages, weights)

    Args:
        encoder: trained; everything before the last linear layer.
        head: the last linear layer.

    Raises:
        ValueError: the encoder contains the head, which would be frozen with it.
        TypeError: the head is not a linear layer.
    """
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head must be the last nn.Linear of the model, got {type(head).__name__}")
    own = {id(parameter) for parameter in head.parameters()}
    if any(id(parameter) in own for parameter in encoder.parameters()):
        raise ValueError("the encoder contains the head: give what comes before the last linear layer")
    head.requires_grad_(True).reset_parameters()
    return FrozenEncoder(encoder), list(head.parameters())
