"""Few labels for any target, be it numbers, positions or classes: the χ-Model and related methods as baselines.

All of them minimise ℓ on labelled samples and, weighted by η, a disagreement of predictions on unlabelled ones. They
differ in which predictions disagree, and in which parts of the model minimise the disagreement.

Sources: Wang, Chen, Wang, Long, "X-model: Improving Data Efficiency in Deep Learning with a Minimax Model", ICLR 2022.
Π-model: Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017. R-Drop: Liang et al., "R-Drop:
Regularized Dropout for Neural Networks", NeurIPS 2021. MCD: Saito et al., "Maximum Classifier Discrepancy for
Unsupervised Domain Adaptation", CVPR 2018. Mean Teacher: Tarvainen and Valpola, "Mean teachers are better role models",
NeurIPS 2017.

A batch is ``(inputs, target, unlabelled inputs)``.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset

from dadl_ext import ChiModelLoss, DisagreementLoss

from ..data.rows import Rows, TensorRows, as_fetched, side_by_side
from ..networks.momentum_encoder import MomentumEncoder
from ..networks.views import View
from ..training.method import Method
from .key_points import heatmap_cross_entropy


@dataclass(frozen=True)
class Objective:
    """ℓ and d for one kind of target.

    ``loss`` is ℓ, of a head's outputs and targets. ``measure`` is d and ``dropout_measure`` is R-Drop's, both measures
    of :func:`dadl_ext.functional.disagreement`. ``activation`` turns a head's outputs into predictions.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    measure: str
    dropout_measure: str
    activation: Callable[[Tensor], Tensor]


def _identity(outputs: Tensor) -> Tensor:
    return outputs


def _class_softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def _cell_softmax(logits: Tensor) -> Tensor:
    return logits.flatten(-2).softmax(dim=-1).view_as(logits)


# All measures are bounded: heads that maximise an unbounded one diverge. L1 is bounded if heads end in a sigmoid.
REGRESSION = Objective(F.l1_loss, "l1", "mse", _identity)
CLASSIFICATION = Objective(F.cross_entropy, "js", "symmetric_kl", _class_softmax)
KEY_POINTS = Objective(heatmap_cross_entropy, "js", "symmetric_kl", _cell_softmax)


def mlp_head(features: int, hidden: int, outputs: int, *, bounded: bool, dropout: float = 0.5) -> nn.Module:
    """Two layers with dropout: features ``[B, features]`` to outputs ``[B, outputs]``, in [0, 1] if ``bounded``."""
    layers = [nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs), *[nn.Sigmoid()] * bounded)


class FewLabels(Method):
    """The base of all methods: parts, views and the optimiser.

    Args:
        encoder: inputs to features, ψ.
        make_head: makes a new head φ from features to outputs, with its own dropout; for regression it must end in a
            sigmoid.
        view: random strong views of inputs.
        objective: ℓ and d.
        lr: peak learning rate of AdamW, which follows one cycle.
        eta: η, the weight of the disagreement.
    """

    def __init__(
        self,
        encoder: nn.Module,
        make_head: Callable[[], nn.Module],
        view: View,
        objective: Objective,
        *,
        lr: float,
        eta: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.view, self.objective, self.lr, self.eta = encoder, view, objective, lr, eta
        self.make_heads(make_head)

    @abstractmethod
    def make_heads(self, make_head: Callable[[], nn.Module]) -> None:
        """Register the head or heads."""

    def encode(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Features of a view of each input, in one pass, so that batch normalisation sees all of them together."""
        features: Tensor = self.encoder(torch.cat([self.view(part) for part in inputs]))
        return torch.split(features, [len(part) for part in inputs])

    def predict(self, inputs: Tensor) -> Tensor:
        """Values, class probabilities or heatmaps."""
        predictions: Tensor = self.module()(inputs)
        return predictions

    def configure_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        optimizer = AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)
        return optimizer, OneCycleLR(optimizer, max_lr=self.lr, total_steps=total_steps)


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class _MeanOfHeads(nn.Module):
    """The mean of the predictions of the χ-Model's heads."""

    def __init__(self, chi: ChiModelLoss) -> None:
        super().__init__()
        self.chi = chi

    def forward(self, features: Tensor) -> Tensor:
        return self.chi.predict(features)


class LabelsOnly(FewLabels):
    """ℓ(φψ(Tx), y): supervised learning on the labelled samples alone."""

    def make_heads(self, make_head: Callable[[], nn.Module]) -> None:
        self.head = make_head()

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        inputs, target, _ = batch
        outputs: Tensor = self.head(self.encoder(self.view(inputs)))
        return self.objective.loss(outputs, target)

    def module(self) -> nn.Module:
        return nn.Sequential(self.view, self.encoder, self.head, _Called(self.objective.activation))


class PiModel(LabelsOnly):
    """Adds η d(φψ(T₁u), φψ(T₂u)): data stochasticity, two views under one head."""

    def make_heads(self, make_head: Callable[[], nn.Module]) -> None:
        super().make_heads(make_head)
        self.distance = DisagreementLoss(self.objective.measure)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        inputs, target, unlabelled = batch
        features, *views = self.encode(inputs, unlabelled, unlabelled)
        outputs = torch.stack([self.head(view) for view in views])
        loss: Tensor = self.objective.loss(self.head(features), target) + self.eta * self.distance(outputs)
        return loss


class RDrop(LabelsOnly):
    """Model stochasticity: ℓ of two dropout passes over one view, plus η times their disagreement on all samples.

    The paper uses only labelled samples. The disagreement needs no label, so here it includes unlabelled samples.
    """

    def make_heads(self, make_head: Callable[[], nn.Module]) -> None:
        super().make_heads(make_head)
        self.distance = DisagreementLoss(self.objective.dropout_measure)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        inputs, target, unlabelled = batch
        features = torch.cat(list(self.encode(inputs, unlabelled)))
        outputs = torch.stack([self.head(features), self.head(features)])
        supervised = self.objective.loss(outputs[0, : len(inputs)], target)
        supervised = supervised + self.objective.loss(outputs[1, : len(inputs)], target)
        loss: Tensor = supervised + self.eta * self.distance(outputs)
        return loss


class MeanTeacher(PiModel):
    """Adds η d(φψ(T₁u), φ̄ψ̄(T₂u)): the teacher, a moving average of the student, makes the predictions.

    At first it is the plain average of all students so far, so that it does not stay near its start.
    """

    momentum = 0.99
    steps: Tensor

    def make_heads(self, make_head: Callable[[], nn.Module]) -> None:
        super().make_heads(make_head)
        self.teacher = MomentumEncoder(self.student, self.momentum)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def student(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.head)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        inputs, target, unlabelled = batch
        features, view = self.encode(inputs, unlabelled)
        outputs = torch.stack([self.head(view), self.teacher(self.view(unlabelled))])
        loss: Tensor = self.objective.loss(self.head(features), target) + self.eta * self.distance(outputs)
        return loss

    def module(self) -> nn.Module:
        """The teacher."""
        return nn.Sequential(self.view, self.teacher.network, _Called(self.objective.activation))

    def after_step(self) -> None:
        self.steps += 1
        self.teacher.momentum = min(self.momentum, 1 - 1 / int(self.steps))
        self.teacher.update(self.student)


class ChiModel(FewLabels):
    """Data and model stochasticity at once, as a minimax game of features and two heads: :class:`.ChiModelLoss`.

    After each batch, ``disagreement`` holds that of the batch.
    """

    pairing = "cross"
    disagreement: Tensor

    def make_heads(self, make_head: Callable[[], nn.Module]) -> None:
        self.chi = ChiModelLoss(
            make_head(),
            make_head(),
            self.objective.loss,
            measure=self.objective.measure,
            eta=self.eta,
            pairing=self.pairing,
        )

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        inputs, target, unlabelled = batch
        features, view_1, view_2 = self.encode(inputs, unlabelled, unlabelled)
        terms = self.chi.terms(features, target, view_1, view_2)
        self.disagreement = terms.disagreement
        return terms.loss

    def module(self) -> nn.Module:
        """The mean of the two heads' predictions."""
        return nn.Sequential(self.view, self.encoder, _MeanOfHeads(self.chi))


class MCD(ChiModel):
    """Maximum classifier discrepancy, its steps in one pass: the game over model stochasticity alone, on each view."""

    pairing = "same_view"


class UnevenRows(Dataset[tuple[Tensor, ...]]):
    """Few labelled and many unlabelled samples; within an epoch the fewer repeat.

    A batch is ``(inputs, target, unlabelled inputs)``, equally many of each. Without unlabelled samples, the labelled
    inputs take their place: the disagreement needs no label.
    """

    def __init__(self, inputs: Rows, target: Tensor, unlabelled: Rows) -> None:
        self.labelled = TensorRows(inputs, target)
        self.unlabelled = TensorRows(unlabelled if len(unlabelled) else inputs)
        if len(inputs) == 0:
            raise ValueError("no sample has a label")

    def __len__(self) -> int:
        return max(len(self.labelled), len(self.unlabelled))

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        labelled, unlabelled = side_by_side(indices, len(self.labelled), len(self.unlabelled))
        return self.labelled.__getitems__(labelled) + self.unlabelled.__getitems__(unlabelled)  # type: ignore[arg-type]


def uneven_loader(inputs: Rows, target: Tensor, unlabelled: Rows, *, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of ``batch_size`` labelled and as many unlabelled samples, see :class:`UnevenRows`."""
    rows = UnevenRows(inputs, target, unlabelled)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=as_fetched)
