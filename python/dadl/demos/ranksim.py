"""``dadl demo ranksim``: how many strokes does a character have? Imbalanced regression with and without RankSim."""

from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from dadl_ext import RankSimLoss

from ..data.rows import tensor_loader
from ..metrics import REGIONS, ErrorMetrics, Region, shot_metrics
from ..options import Device
from ..output import Cells, JobProgress
from ..ranksim.method import Regression
from ..ranksim.reweighting import LabelDistributionSmoothing, bin_weights
from ..training.fabric import make_fabric
from ..training.loop import fit, predict
from . import kanji
from .characters import DemoReport, DemoSettings, character_encoder, load_characters
from .figures.ranksim import draw_ranksim
from .jobs import TrainingPool
from .splits import IntArray, split_balanced

FEATURES = 64
# Small enough for seconds per run on two CPU cores.
ENCODER = ((16, 5, 2, 2), (32, 3, 1, 2), (FEATURES, 3, 1, 1))


@dataclass(frozen=True)
class Arm:
    """One of the compared training methods."""

    name: str
    smoothing: bool
    ranksim: bool


@dataclass(frozen=True)
class RankSimSetting:
    """RankSim's hyper-parameters, chosen on validation."""

    weight: float
    interp_strength: float

    def __str__(self) -> str:
        return f"γ = {self.weight:g}, λ = {self.interp_strength:g}"


@dataclass(frozen=True)
class Settings(DemoSettings):
    """Everything that the results depend on besides the data."""

    seeds: int = 5
    epochs: int = 8
    batch_size: int = 64
    selection_seeds: int = 2
    weights: tuple[float, ...] = (0.1, 0.3)
    interp_strengths: tuple[float, ...] = (1.0, 2.0)


QUICK = Settings(seeds=1, epochs=1, selection_seeds=1, weights=(0.1,), interp_strengths=(2.0,), every_nth_character=20)

L1 = Arm("L1", smoothing=False, ranksim=False)
L1_RANKSIM = Arm("L1 + RankSim", smoothing=False, ranksim=True)
LDS = Arm("LDS", smoothing=True, ranksim=False)
LDS_RANKSIM = Arm("LDS + RankSim", smoothing=True, ranksim=True)
ARMS = (L1, L1_RANKSIM, LDS, LDS_RANKSIM)


@dataclass(frozen=True)
class Run:
    """One training run: an arm, RankSim's setting if the arm uses it, and a seed."""

    arm: Arm
    setting: RankSimSetting | None
    seed: int

    def __str__(self) -> str:
        return ", ".join(str(part) for part in (self.arm.name, self.setting, f"seed {self.seed}") if part is not None)


class Experiment:
    """The data, and one training run on them."""

    def __init__(self, fabric: Fabric, data: kanji.Kanji, settings: Settings) -> None:
        self.fabric, self.settings = fabric, settings
        self.split = split_balanced(data.strokes)
        self.images = torch.from_numpy(data.images).float().div(255).unsqueeze(1)
        self.strokes = torch.from_numpy(data.strokes)
        # Stroke counts are the label bins; bin 0 stays empty.
        self.counts = torch.bincount(self.strokes[self.split.train], minlength=int(self.strokes.max()) + 1)
        smoothed = bin_weights(self.counts[1:], "sqrt_inv", smoothing=LabelDistributionSmoothing("gaussian", 5, 2.0))
        self.smoothed_weights = torch.cat([torch.zeros(1), smoothed])

    def train(self, run: Run) -> Regression:
        self.fabric.seed_everything(run.seed, verbose=False)
        encoder, head = character_encoder(*ENCODER), nn.Linear(FEATURES, 1)
        target = self.strokes[self.split.train]
        # Starting at the mean saves the first epoch from learning an offset.
        nn.init.constant_(head.bias, target.float().mean().item())
        ranksim = None if run.setting is None else RankSimLoss(**asdict(run.setting))
        method = Regression(encoder, head, ranksim)
        weight = self.smoothed_weights[target] if run.arm.smoothing else torch.ones(len(target))
        images = self.images[self.split.train]
        loader = tensor_loader(images, target, weight, batch_size=self.settings.batch_size, shuffle=True)
        fit(self.fabric, method, loader, epochs=self.settings.epochs, seed=run.seed)
        return method.cpu()

    def predict(self, method: Regression, samples: IntArray) -> Tensor:
        return predict(self.fabric, method, tensor_loader(self.images[samples], batch_size=512))

    def validation_mae(self, method: Regression) -> float:
        samples = self.split.validation
        return float((self.predict(method, samples) - self.strokes[samples]).abs().mean())

    def test_metrics(self, prediction: Tensor) -> dict[Region, ErrorMetrics]:
        target = self.strokes[self.split.test]
        return shot_metrics(prediction, target, bins=target, counts=self.counts)

    def feature_similarity(self, method: Regression) -> Tensor:
        """Cosine similarities of the mean test features of each label, ``[labels, labels]`` in label order."""
        samples = self.split.test
        loader = tensor_loader(self.images[samples], batch_size=512)
        features = predict(self.fabric, method, loader, method.encoder)
        labels, group = torch.unique(self.strokes[samples], return_inverse=True)
        unit = nn.functional.normalize(
            torch.zeros(len(labels), features.shape[1]).index_add_(0, group, features), dim=1
        )
        return unit @ unit.T


@dataclass(frozen=True)
class Comparison:
    """The trained methods of every arm, one per seed, and how RankSim's settings were chosen."""

    methods: dict[Arm, list[Regression]]
    chosen: dict[Arm, RankSimSetting | None]
    validation_mae: dict[Run, float]


def compare(experiment: Experiment, pool: TrainingPool[Run, Regression], progress: JobProgress) -> Comparison:
    """Choose each arm's setting on validation and train every arm with every seed, without using test samples."""
    settings = experiment.settings
    grid = [RankSimSetting(*values) for values in product(settings.weights, settings.interp_strengths)]
    candidates: dict[Arm, list[RankSimSetting | None]] = {arm: [*grid] if arm.ranksim else [None] for arm in ARMS}
    selection_seeds = range(min(settings.selection_seeds, settings.seeds))
    selection = [Run(arm, s, seed) for arm in ARMS for s in candidates[arm] for seed in selection_seeds]
    remaining_seeds = range(len(selection_seeds), settings.seeds)
    progress.start("Training", total=len(selection) + len(ARMS) * len(remaining_seeds))

    trained = pool.train(selection, progress)
    validation_mae = {run: experiment.validation_mae(trained[run]) for run in selection}
    chosen = {
        arm: min(candidates[arm], key=lambda s: sum(validation_mae[Run(arm, s, seed)] for seed in selection_seeds))
        for arm in ARMS
    }
    trained |= pool.train([Run(arm, chosen[arm], seed) for arm in ARMS for seed in remaining_seeds], progress)
    methods = {arm: [trained[Run(arm, chosen[arm], seed)] for seed in range(settings.seeds)] for arm in ARMS}
    return Comparison(methods, chosen, validation_mae)


def run_demo(settings: Settings, output: Path, device: Device, console: Console) -> None:
    """Render, train and compare; print the tables and write them, the results and the figure to ``output``."""
    fabric = make_fabric(device)
    report = DemoReport("ranksim", settings, fabric, output, console)
    with JobProgress(console) as progress:
        data = load_characters(settings, progress)
        experiment = Experiment(fabric, data, settings)
        sizes = {part: len(samples) for part, samples in vars(experiment.split).items()}
        console.print(f"{len(data)} characters: " + ", ".join(f"{size} {part}" for part, size in sizes.items()))
        with TrainingPool[Run, Regression](fabric, partial(Experiment, data=data, settings=settings)) as pool:
            comparison = compare(experiment, pool, progress)

    predictions = {
        arm: torch.stack([experiment.predict(method, experiment.split.test) for method in methods])
        for arm, methods in comparison.methods.items()
    }
    metrics = {arm: [experiment.test_metrics(p) for p in by_seed] for arm, by_seed in predictions.items()}
    tables = make_tables(metrics)
    chosen = {arm.name: setting for arm, setting in comparison.chosen.items() if setting is not None}
    notes = [
        "Chosen on validation: " + "; ".join(f"{name} {setting}" for name, setting in chosen.items()) + ".",
        f"Test, mean ± standard error, seeds: {settings.seeds}. Lower is better. Many: labels with more than 100 "
        "training samples, few: fewer than 20, medium: between.",
    ]

    labels, group = torch.unique(experiment.strokes[experiment.split.test], return_inverse=True)
    label_mae = {
        arm.name: torch.bincount(group, (p - labels[group]).abs().mean(0)) / torch.bincount(group)
        for arm, p in predictions.items()
    }
    similarities = {"labels": -(labels[:, None] - labels).abs().float()}
    for arm in (L1, L1_RANKSIM):
        similarities[f"features, {arm.name}"] = experiment.feature_similarity(comparison.methods[arm][0])
    figure = draw_ranksim(
        experiment.counts.numpy(),
        labels.numpy(),
        torch.bincount(group).numpy(),
        {name: values.numpy() for name, values in label_mae.items()},
        {name: values.numpy() for name, values in similarities.items()},
        settings.seeds,
        kanji.ATTRIBUTION,
    )
    results = {
        "samples": sizes,
        "training_samples": experiment.counts.tolist(),
        "selection": [
            asdict(run) | {"arm": run.arm.name, "validation_mae": mae} for run, mae in comparison.validation_mae.items()
        ],
        "selected": {name: asdict(setting) for name, setting in chosen.items()},
        "metrics": {
            arm.name: [{r: asdict(m) for r, m in by_region.items()} for by_region in by_seed]
            for arm, by_seed in metrics.items()
        },
        "label_mae": {
            name: dict(zip(labels.tolist(), values.tolist(), strict=True)) for name, values in label_mae.items()
        },
    }
    report.write(tables, notes, figure, results)


def make_tables(metrics: dict[Arm, list[dict[Region, ErrorMetrics]]]) -> dict[str, Cells]:
    """Tables by title, from the test metrics of every arm and seed."""

    def cells(columns: dict[str, tuple[str, Region]]) -> Cells:
        return {
            arm.name: {
                column: [getattr(by_region[region], metric) for by_region in by_seed]
                for column, (metric, region) in columns.items()
            }
            for arm, by_seed in metrics.items()
        }

    mae = cells({region.capitalize(): ("mae", region) for region in REGIONS})
    # For each seed the arms share initial weights and batches, so differences are more certain than means.
    change = {
        f"on {base.name}": {
            column: [a - b for a, b in zip(values, mae[base.name][column], strict=True)]
            for column, values in mae[arm.name].items()
        }
        for arm, base in ((L1_RANKSIM, L1), (LDS_RANKSIM, LDS))
    }
    others = cells(
        {"GM All": ("gm", "all"), "GM Few": ("gm", "few"), "bMAE All": ("bmae", "all"), "bMAE Few": ("bmae", "few")}
    )
    return {
        "MAE in strokes": mae,
        "RankSim's change of the MAE, paired by seed": change,
        "Geometric mean of the errors (GM) and MAE averaged over labels (bMAE)": others,
    }
