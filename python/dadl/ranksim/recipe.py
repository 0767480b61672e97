"""``dadl train ranksim``: imbalanced regression on numbers, texts or images, with RankSim and related methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dadl_ext import RankSimLoss

from ..checks import check
from ..data.columns.arrow import as_path
from ..data.columns.source import positions, read_source
from ..data.rows import tensor_loader
from ..errors import ProblemsError, SettingsError
from ..metrics import FEW, MANY, shot_regions
from ..output import JobProgress
from ..runs.folder import as_json, read_run, trained_state
from ..runs.pictures import OpenedRun
from ..runs.recipe import Evaluation, Recipe, RecipeData
from ..runs.scores import unscored
from .data_kinds import KINDS
from .feature_smoothing import FeatureDistributionSmoothing
from .gradient_share import weights_of_shares
from .inputs import sample_names
from .labels.bins import LabelBins
from .labels.transform import known_transform
from .losses import BalancedMSE, GaussianMixture, focal_l1_loss, focal_mse_loss, weighted_huber_loss
from .method import SHARE, ContrastedEncoder, Regression, RegressionLoss, Retraining
from .pictures import draw_similarities
from .reading import SCORES, RankSimFacts, read_task
from .reweighting import weighted_l1_loss, weighted_mse_loss
from .settings import RankSimSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES: dict[str, RegressionLoss] = {
    "l1": weighted_l1_loss,
    "mse": weighted_mse_loss,
    "huber": weighted_huber_loss,
    "focal-l1": focal_l1_loss,
    "focal-mse": focal_mse_loss,
}
SEARCHED_SHARES = (0.01, 1.0)
"""A search looks for γ where RankSim's gradient is about so many times the task's at the features."""


@dataclass(frozen=True, kw_only=True)
class RankSimRecipe(RankSimSettings, Recipe):
    """Imbalanced regression on numbers, texts or images."""

    shape_facts: ClassVar[tuple[str, ...]] = ("kind", "inputs", "categories")
    facts_kind: ClassVar[Any] = RankSimFacts
    score_columns: ClassVar[tuple[str, ...]] = SCORES
    search_space: ClassVar[Mapping[str, tuple[float, float]]] = {
        "ranksim": (1e-4, 1e3),
        "interp_strength": (0.1, 10.0),
    }

    _trained: ClassVar[Mapping[str, Any] | None] = None
    """The facts of the run whose recipe this is; set by :meth:`as_trained`."""

    def resolved(self, facts: Mapping[str, Any]) -> "RankSimRecipe":
        kind = KINDS[facts["kind"]]
        return replace(
            self,
            lr=self.lr or (1e-3 if facts["inputs"] in ("numbers", "words") else 1e-4),
            loss=self.loss_for(kind),
            ranksim=self.ranksim_for(kind, facts),
            many=self.many or facts.get("limits", (MANY, FEW))[0],
            few=self.few or facts.get("limits", (MANY, FEW))[1],
        )

    def read(self, progress: JobProgress) -> RecipeData:
        return read_task(self, self._trained, progress)

    def make_method(self, facts: Mapping[str, Any]) -> Regression:
        kind = KINDS[facts["kind"]]
        encoder, width = self.inputs.encoder(facts)
        head = nn.Linear(width, 1)
        nn.init.zeros_(head.weight)  # predicts the mean target at first
        nn.init.zeros_(head.bias)
        smoothing = None
        if self.fds:
            smoothing = FeatureDistributionSmoothing(
                width,
                *facts["buckets"],
                kernel=self.kernel,
                ks=self.ks,
                sigma=self.kernel_width,
                clip=kind.smoothing_clip,
            )
        options: dict[str, Any] = {
            "lr": self.resolved(facts).lr,
            "loss": self._make_loss(facts),
            "smoothing": smoothing,
            "bins": LabelBins.known(facts["bins"], facts["edges"]) if "edges" in facts else None,
            "transform": known_transform(facts),
            "centre": facts["target_mean"],
            "scale": facts["target_scale"],
        }
        if self.retrain_from is not None:
            return Retraining(partial(_restore_encoder, self.retrain_from, facts), encoder, head, **options)
        if self.rnc_encoder:
            return ContrastedEncoder(encoder, head, None, **options)
        weight = self.ranksim_for(kind, facts)
        ranksim = RankSimLoss(
            weight=weight, interp_strength=self.interp_strength, gather_distributed=True, averaged_gradients=True
        )
        return Regression(encoder, head, ranksim if weight > 0 else None, rnc=self.rnc, **options)

    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        data = as_path(data)
        samples = KINDS[facts["kind"]].read_unseen(data, self.as_trained(facts).columns, facts["categories"])
        (inputs,) = self.inputs.read([samples], data.parent, progress, facts).rows
        return Evaluation(sample_names(samples), tensor_loader(inputs, batch_size=self.batch_size), unscored)

    def as_trained(self, facts: Mapping[str, Any]) -> "RankSimRecipe":
        """With names in place of patterns, and points that are decimal signs, because the training has settled that."""
        columns: dict[str, Any] = {role: tuple(names) for role, names in facts.get("columns", {}).items()}
        decimal = self.decimal if self.target is None else self.form.sign
        recipe = replace(self, **columns, decimal=decimal)
        object.__setattr__(recipe, "_trained", facts)
        return recipe

    def search_ranges(self, task: RecipeData, device: torch.device) -> Mapping[str, tuple[float, float]]:
        """Of γ, relative to the task's gradient on these data: from a hundredth of it to all of it."""
        if self.retrain_from is not None:
            return self.search_space
        low, high = self._weights_of_shares(task, device, *SEARCHED_SHARES) or (0.0, 0.0)
        if low >= high:
            low, high = self.search_space["ranksim"]
        if self.ranksim:  # one's own γ is tried first
            low, high = min(low, self.ranksim), max(high, self.ranksim)
        return {**self.search_space, "ranksim": (low, high)}

    def relative_values(
        self, setting: str, factors: Sequence[float], task: RecipeData, device: torch.device
    ) -> list[float]:
        """Of γ: those at which RankSim's gradient at the features is about so many times the task's."""
        if setting != "ranksim":
            return super().relative_values(setting, factors, task, device)
        found = self._weights_of_shares(task, device, *factors)
        return [factor * KINDS[task.facts["kind"]].ranksim for factor in factors] if found is None else found

    def _weights_of_shares(self, task: RecipeData, device: torch.device, *shares: float) -> list[float] | None:
        torch.manual_seed(self.seed)
        method = replace(self, ranksim=0.0).make_method(as_json(task.facts))
        ranksim = RankSimLoss(interp_strength=self.interp_strength)
        return weights_of_shares(method, ranksim, task.loader, self.epochs, device, *shares)

    def region_facts(self, facts: Mapping[str, Any], test: Evaluation) -> Mapping[str, Mapping[str, Any]]:
        """The number of test and training samples of each region, and the ranges of its labels."""
        if "limits" not in facts:  # of an earlier version
            return super().region_facts(facts, test)
        bins = LabelBins.known(facts["bins"], facts.get("edges"))
        counts = torch.tensor(facts["counts"])
        regions = shot_regions(counts, many=facts["limits"][0], few=facts["limits"][1])
        return {
            region: {
                "test": test.region_sizes[region],
                "train": int(counts[mask].sum()),
                "labels": bins.ranges(mask),
            }
            for region, mask in regions.items()
        }

    def remarks(self, history: Sequence[Mapping[str, float]]) -> Sequence[str]:
        """Say so once if RankSim's gradient exceeds the task's.

        In the first of several epochs it always may: the head starts at zero, and with it the task's gradient.
        """
        shares = [row.get(SHARE, 0.0) for row in history][min(1, self.epochs - 1) :]
        if not shares or not shares[-1] > 1 or any(share > 1 for share in shares[:-1]):
            return ()
        return (
            f"Warning: RankSim's gradient at the features is {shares[-1]:.3g} times the task's, so that it rules the "
            "training; a smaller --ranksim lessens it",
        )

    @classmethod
    def pictures(cls, run: Path) -> "list[tuple[str, Figure]]":
        """For the page of a comparison: do the features order the test samples as their labels do?"""
        if (opened := OpenedRun.of(cls, run)) is None:
            return []
        target = torch.tensor(opened.task.test.targets["target"], dtype=torch.float64)
        bins = LabelBins.known(opened.facts["bins"], opened.facts.get("edges")).numbers(target)
        figure = draw_similarities(opened.predicted(output=opened.method.encoder), target, bins)
        return [] if figure is None else [("similarity of labels and of features, ranks", figure)]

    def read_columns(self, data: Path, names: Sequence[str], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        problems: list[str] = []
        source = read_source(as_path(data), problems, **KINDS[facts["kind"]].unseen_format)
        at = {} if source is None else positions(source, list(names), problems)
        if source is None or problems:
            raise ProblemsError(problems)
        return {name: source.texts(column) for name, column in at.items()}

    def input_names(self, facts: Mapping[str, Any]) -> Sequence[str]:
        if facts["inputs"] != "numbers":
            return ()
        columns = self.as_trained(facts).columns.roles.ordered
        features = [[f"{name}={value}" for value in facts["categories"].get(name, ())] or [name] for name in columns]
        names = [name for group in features for name in group]
        return (*names, *(f"text feature {i}" for i in range(facts["width"] - len(names))))

    def example(self, facts: Mapping[str, Any], count: int) -> Tensor:
        return self.inputs.example(facts, count)

    def prediction_columns(self, predicted: Tensor, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return {"prediction": predicted.tolist()}

    def _make_loss(self, facts: Mapping[str, Any]) -> RegressionLoss:
        name = self.loss_for(KINDS[facts["kind"]])
        if name in LOSSES:
            return LOSSES[name]
        mixture = GaussianMixture(*map(torch.tensor, facts["mixture"])) if name == "gai" else None
        if "target_deviation" in facts:  # of an earlier version, which learnt σ from here on
            return BalancedMSE(facts["target_deviation"] / facts["target_scale"] / 2, learn=True, mixture=mixture)
        return BalancedMSE(mixture=mixture)


def _restore_encoder(run: Path, facts: Mapping[str, Any], encoder: nn.Module) -> None:
    """Load the encoder of the run in that folder, after its best epoch if it was validated."""
    name, _, earlier = read_run(run)
    if name == RankSimRecipe.name:
        check(earlier, RankSimFacts, f"{run}: facts")
    if name != RankSimRecipe.name or any(earlier.get(key) != facts[key] for key in ("inputs", "target_mean")):
        raise SettingsError(f"{run} was not trained on these data: retrain on the same file, with the same split-seed")
    try:
        encoder.load_state_dict(trained_state(run, "encoder"))
    except RuntimeError:
        raise SettingsError(f"{run} has another encoder: retrain with its hidden, backbone, fine-tune ...") from None
