"""``dadl demo cmw-net``: noisy and imbalanced labels, with sample weights learnt on a few clean samples."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from ..cmw_net.method import CrossEntropy, LearntWeights
from ..data.arrays.idx_cifar import read_image_files
from ..data.labels import balanced_subset, flip_noise, long_tail, symmetric_noise
from ..data.rows import tensor_loader
from ..networks.views import View
from ..options import Device
from ..output import Cells, JobProgress
from ..training.fabric import make_fabric
from ..training.loop import fit, predict
from . import kanji
from .characters import ENCODER, FEATURES, IMAGE_SIZE, DemoReport, DemoSettings, character_encoder, load_characters
from .figures.cmw_net import HISTOGRAM_BINS, Curves, Histograms, draw_cmw_net
from .jobs import TrainingPool
from .splits import split_stratified

CE, CE_META, MW_NET, CMW_NET, CMW_NET_SL, ORACLE = ARMS = (
    "CE",
    "CE, meta data too",
    "MW-Net",
    "CMW-Net",
    "CMW-Net-SL",
    "oracle: CE on clean labels",
)
FAMILIES = {MW_NET: 1, CMW_NET: 3, CMW_NET_SL: 3}
LONG_TAIL, FLIP, SYMMETRIC = SCENARIOS = ("long tail", "40 % flipped", "60 % symmetric")
CURVE_LOSSES = torch.linspace(0, 10, 101)


@dataclass(frozen=True)
class Settings(DemoSettings):
    """Everything that the results depend on besides the data; learning rates are chosen on validation."""

    seeds: int = 3
    epochs: int = 12
    batch_size: int = 64
    lrs: tuple[float, ...] = (0.02, 0.05)
    meta_lr: float = 3e-3
    least_characters: int = 20
    training_images: int = 8000
    imbalance: float = 100.0


QUICK = Settings(
    seeds=1, epochs=1, lrs=(0.02,), least_characters=8, every_nth_character=12, training_images=300, imbalance=5.0
)


@dataclass(frozen=True)
class Run:
    """One training run."""

    scenario: str
    arm: str
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.scenario}, {self.arm}, lr {self.lr:g}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """Accuracies in %, of samples and averaged over classes; the weighting network's curves and weights, if any.

    ``curves`` ``[families, 101]`` are weights of losses from 0 to 10, ``clean`` and ``corrupted`` histograms of the
    training samples' weights on [0, 1].
    """

    validation_accuracy: float
    test_accuracy: float
    test_class_accuracy: float
    curves: list[list[float]]
    clean: list[int]
    corrupted: list[int]


@dataclass(frozen=True)
class SplitImages:
    """Images ``[N, C, H, W]``, uint8, their classes, and the indices for training, validation and test."""

    images: Tensor
    target: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor


def radicals(data: kanji.Kanji, least_characters: int) -> SplitImages:
    """The characters of every radical with enough of them; the class sizes have a natural long tail."""
    counts = Counter(data.radicals)
    names = [radical for radical, n in counts.most_common() if n >= least_characters]
    chosen = [i for i, radical in enumerate(data.radicals) if radical in names]
    target = torch.tensor([names.index(data.radicals[i]) for i in chosen])
    split = split_stratified(target.numpy())
    parts = (torch.from_numpy(part) for part in (split.train, split.validation, split.test))
    return SplitImages(torch.from_numpy(data.images[chosen]).unsqueeze(1), target, *parts)


def image_files(folder: Path, training_images: int) -> SplitImages:
    """The test images of a data set, a random part of its training images, and a quarter as many for validation."""
    data = read_image_files(folder)
    n = len(data.train_target)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    size = min(training_images, n * 4 // 5)
    return SplitImages(
        torch.cat([data.train_images, data.test_images]),
        torch.cat([data.train_target, data.test_target]),
        order[:size],
        order[size : size + size // 4],
        torch.arange(n, n + len(data.test_target)),
    )


class Experiment:
    """A data set under three kinds of labels, and one training run on it."""

    def __init__(self, fabric: Fabric, samples: SplitImages, settings: Settings) -> None:
        self.fabric, self.settings = fabric, settings
        self.images, self.target, self.test, self.validation = (
            samples.images,
            samples.target,
            samples.test,
            samples.validation,
        )
        self.num_classes = int(samples.target.max()) + 1
        self.size = min(samples.images.shape[-2:])
        truth = samples.target[samples.train]
        # Clean and balanced: a quarter of the smallest class's samples of each class, of the whole at most a sixteenth.
        smallest = int(torch.bincount(truth)[truth.unique()].min())
        per_class = max(1, min(smallest // 4, len(truth) // 16 // self.num_classes))
        chosen = torch.zeros(len(truth), dtype=torch.bool)
        chosen[balanced_subset(truth, per_class)] = True
        self.meta, self.train_rows = samples.train[chosen], samples.train[~chosen]

    def labels(self, scenario: str, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the training samples, and their given labels."""
        rows = self.train_rows
        truth = self.target[rows]
        if scenario == FLIP:
            return rows, flip_noise(truth, 0.4, num_classes=self.num_classes, seed=seed)
        if scenario == SYMMETRIC:
            return rows, symmetric_noise(truth, 0.6, num_classes=self.num_classes, seed=seed)
        counts = torch.bincount(truth)
        if counts.max() < 2 * counts.min():  # without a natural tail
            largest = int(counts.min())
            rows = rows[long_tail(truth, self.settings.imbalance, largest=largest, seed=seed)]
        return rows, self.target[rows]

    def train(self, run: Run) -> Result:
        self.fabric.seed_everything(run.seed, verbose=False)
        rows, labels = self.labels(run.scenario, run.seed)
        corrupted = labels != self.target[rows]
        method = self.make_method(run, labels)
        batches = math.ceil(len(rows) / self.settings.batch_size)
        trained, given = rows, labels
        if run.arm == ORACLE:
            trained, given = rows[~corrupted], labels[~corrupted]
        elif run.arm == CE_META:
            trained, given = torch.cat([rows, self.meta]), torch.cat([labels, self.target[self.meta]])
        loader = tensor_loader(self.images[trained], given, batch_size=self.settings.batch_size, shuffle=True)
        epochs = round(self.settings.epochs * batches / len(loader))  # as many steps for every arm
        fit(self.fabric, method, loader, epochs=max(epochs, 1), seed=run.seed)
        validation, _ = self.accuracy(method, self.validation)
        test, by_class = self.accuracy(method, self.test)
        return Result(validation, test, by_class, *self.weights(method, rows, labels, corrupted))

    def make_method(self, run: Run, labels: Tensor) -> CrossEntropy:
        view = View(self.size, crop_area=0.8, operations=1)
        encoder = character_encoder(*ENCODER)
        if self.images.shape[1] != 1:
            encoder[0] = nn.Conv2d(self.images.shape[1], 32, 5, 2, padding=2, bias=False)
        network = nn.Sequential(encoder, nn.Linear(FEATURES, self.num_classes))
        if run.arm not in FAMILIES:
            return CrossEntropy(network, view, lr=run.lr)
        return LearntWeights(
            network,
            view,
            torch.bincount(labels, minlength=self.num_classes),
            self.images[self.meta],
            self.target[self.meta],
            lr=run.lr,
            families=FAMILIES[run.arm],
            soft_labels=run.arm == CMW_NET_SL,
            normalize="sum" if run.scenario == LONG_TAIL and run.arm != CMW_NET_SL else "mean",
            meta_lr=self.settings.meta_lr,
        )

    def logits(self, method: CrossEntropy, rows: Tensor) -> Tensor:
        return predict(self.fabric, method, tensor_loader(self.images[rows], batch_size=256))

    def accuracy(self, method: CrossEntropy, rows: Tensor) -> tuple[float, float]:
        """Accuracy in %, over the samples and averaged over the classes."""
        target = self.target[rows]
        right = (self.logits(method, rows).argmax(dim=1) == target).double()
        counts = torch.bincount(target, minlength=self.num_classes)
        by_class = torch.bincount(target, right, minlength=self.num_classes)[counts > 0] / counts[counts > 0]
        return 100 * float(right.mean()), 100 * float(by_class.mean())

    def weights(
        self, method: CrossEntropy, rows: Tensor, labels: Tensor, corrupted: Tensor
    ) -> tuple[list[list[float]], list[int], list[int]]:
        if not isinstance(method, LearntWeights):
            return [], [], []
        net = method.weight_net.cpu()
        losses = nn.functional.cross_entropy(self.logits(method, rows), labels, reduction="none")
        weights = net(losses, labels).detach()
        histograms = [
            torch.histc(part, HISTOGRAM_BINS, 0, 1).int().tolist() for part in (weights[~corrupted], weights[corrupted])
        ]
        return net.curves(CURVE_LOSSES).T.tolist(), histograms[0], histograms[1]


def load_samples(data: Path | None, characters: Sequence[str], settings: Settings) -> SplitImages:
    """The data set in a folder, or the radicals of characters, which are already in the cache."""
    if data is not None:
        return image_files(data, settings.training_images)
    return radicals(kanji.load_kanji(IMAGE_SIZE, list(characters)), settings.least_characters)


def make_experiment(fabric: Fabric, data: Path | None, characters: list[str], settings: Settings) -> Experiment:
    """The experiment for a process of the pool."""
    return Experiment(fabric, load_samples(data, characters, settings), settings)


def compare(
    settings: Settings, pool: TrainingPool[Run, Result], progress: JobProgress
) -> tuple[dict[Run, Result], dict[Run, Result]]:
    """Select learning rates with one seed, and train with all seeds at the chosen ones.

    All labels of the long tail are correct, so there the oracle equals cross-entropy and is not run.
    """
    pairs = [(s, a) for s in SCENARIOS for a in ARMS if not (s == LONG_TAIL and a == ORACLE)]
    candidates = [Run(scenario, arm, lr, 0) for scenario, arm in pairs for lr in settings.lrs]
    progress.start("Training", total=len(candidates) + len(pairs) * (settings.seeds - 1))
    selection = pool.train(candidates, progress)
    kept = []
    for pair in pairs:
        of_pair = [run for run in candidates if (run.scenario, run.arm) == pair]
        best = max(of_pair, key=lambda run: selection[run].validation_accuracy)
        kept += [replace(best, seed=seed) for seed in range(settings.seeds)]
    trained = selection | pool.train([run for run in kept if run not in selection], progress)
    return selection, {run: trained[run] for run in kept}


def run_demo(settings: Settings, output: Path, device: Device, console: Console, data: Path | None = None) -> None:
    """Train and compare; print the table and write it, the results and the figure to ``output``.

    ``data`` is a folder with idx files or CIFAR's pickles; by default the radicals of characters are learnt. Raises
    :class:`.ImageFileError` before training if the folder holds neither.
    """
    fabric = make_fabric(device)
    source = kanji.ATTRIBUTION if data is None else f"Images: {data.resolve().name}"
    report = DemoReport("cmw-net", settings, fabric, output, console, source)
    with JobProgress(console) as progress:
        characters = [] if data is not None else load_characters(settings, progress).characters
        experiment = make_experiment(fabric, data, characters, settings)
        sizes = {
            "train": len(experiment.train_rows),
            "meta": len(experiment.meta),
            "validation": len(experiment.validation),
            "test": len(experiment.test),
        }
        counted = ", ".join(f"{size} {part}" for part, size in sizes.items())
        console.print(f"{experiment.num_classes} classes; images: {counted}", soft_wrap=True)
        make = partial(make_experiment, data=data, characters=characters, settings=settings)
        with TrainingPool[Run, Result](fabric, make) as pool:
            selection, results = compare(settings, pool, progress)

    nothing = [math.nan]
    cells: Cells = {
        arm: {
            column: [value(result) for run, result in results.items() if (run.scenario, run.arm) == (scenario, arm)]
            or nothing
            for column, scenario, value in (
                ("long tail", LONG_TAIL, lambda result: result.test_accuracy),
                ("long tail, mean of classes", LONG_TAIL, lambda result: result.test_class_accuracy),
                (FLIP, FLIP, lambda result: result.test_accuracy),
                (SYMMETRIC, SYMMETRIC, lambda result: result.test_accuracy),
            )
        }
        for arm in ARMS
    }
    chosen = {f"{run.scenario}, {run.arm}": run.lr for run in results}
    notes = [
        f"Test, mean ± standard error, seeds: {settings.seeds}; each seed draws its own noise. The learning rate of "
        f"every arm is chosen on validation out of {', '.join(f'{lr:g}' for lr in settings.lrs)}; every arm makes "
        "about as many steps.",
        f"{experiment.num_classes} classes; images: {counted}. The meta images are clean and equally many of each "
        "class; only the arms with learnt weights and the second one see them.",
    ]
    shown = {run.scenario: result for run, result in results.items() if run.arm == CMW_NET and run.seed == 0}
    curves: Curves = {scenario: np.array(result.curves) for scenario, result in shown.items()}
    histograms: Histograms = {
        scenario: (np.array(result.clean), np.array(result.corrupted))
        for scenario, result in shown.items()
        if scenario != LONG_TAIL
    }
    bars = {name: cells[name] for name in ARMS}
    figure = draw_cmw_net(bars, CURVE_LOSSES.numpy(), curves, histograms, source)
    results_file = {
        "classes": experiment.num_classes,
        "samples": sizes,
        "selection": [asdict(run) | {"validation_accuracy": r.validation_accuracy} for run, r in selection.items()],
        "selected": chosen,
        "runs": [asdict(run) | asdict(result) for run, result in results.items()],
    }
    report.write({"Test accuracy in %": cells}, notes, figure, results_file)
