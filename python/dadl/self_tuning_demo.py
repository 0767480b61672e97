"""``dadl demo self-tuning``: under which radical is a character filed? Few labels, and what unlabelled data add."""

import importlib.metadata
import time
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

from dadl_ext import ClassQueue, build_info

from . import kanji
from .augmentation import View
from .jobs import TrainingPool
from .report import Cells, JobProgress, environment, markdown_table, rich_table, save_figure, write_json
from .self_tuning import UNLABELLED, FineTuning, FixMatch, SelfTuning, paired_loader
from .self_tuning_figure import Drawing, draw_self_tuning
from .training import fit, predict, tensor_loader

IMAGE_SIZE = 48
FEATURES = 256
PURITY_POINTS_PER_EPOCH = 2
FULL = 100

FINE_TUNING, FIXMATCH, SELF_TUNING = ARMS = ("Fine-tuning", "FixMatch", "Self-Tuning")


@dataclass(frozen=True)
class Setting:
    """An arm's hyper-parameters, chosen on validation; ``threshold`` is FixMatch's, ``momentum`` Self-Tuning's."""

    lr: float
    threshold: float | None = None
    momentum: float | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in asdict(self).items() if value is not None)


@dataclass(frozen=True)
class Settings:
    """Everything that the results depend on besides the data; every arm has two candidate settings."""

    seeds: int = 3
    epochs: int = 9
    batch_size: int = 32
    percentages: tuple[int, ...] = (15, 30, 50, FULL)
    least_characters: int = 20
    every_nth_character: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.epochs < 1:
            raise ValueError(f"expected at least one seed and one epoch, got seeds={self.seeds}, epochs={self.epochs}")


QUICK = Settings(seeds=1, epochs=1, percentages=(15, FULL), least_characters=8, every_nth_character=12)

CANDIDATES: dict[str, tuple[Setting, ...]] = {
    FINE_TUNING: (Setting(0.015), Setting(0.03)),
    FIXMATCH: (Setting(0.03, threshold=0.8), Setting(0.03, threshold=0.95)),
    SELF_TUNING: (Setting(0.03, momentum=0.99), Setting(0.03, momentum=0.999)),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    arm: str
    setting: Setting
    percentage: int
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, {self.percentage} % labels, {self.setting}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """Accuracies in %, and for Self-Tuning the purity of the queue after the steps ``purity_steps``."""

    validation_accuracy: float
    test_accuracy: float
    purity_steps: list[int]
    purity: list[float]


def character_encoder() -> nn.Sequential:
    """Characters ``[B, 1, 48, 48]`` to features ``[B, 256]``."""
    layers: list[nn.Module] = []
    channels = 1
    for width, kernel, stride, pool in ((32, 5, 2, 2), (64, 3, 1, 2), (128, 3, 1, 2), (FEATURES, 3, 1, 1)):
        layers.append(nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False))
        layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(memory_format=torch.channels_last)  # type: ignore


class WatchedSelfTuning(SelfTuning):
    """Self-Tuning that knows the true classes, to tell how many keys stand in the wrong class; it learns nothing of it.

    A batch is ``(images, target, truth)``.
    """

    def watch(self, num_classes: int, slots: int = 32) -> None:
        self.truths = ClassQueue(num_classes, 1, slots, gather_distributed=True)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        loss = super().forward(batch)
        # The same classes in the same order: the true class stands in the slot of its key.
        self.truths.enqueue(batch[2].unsqueeze(1).float(), self.assigned)
        return loss

    def purity(self) -> float:
        """The fraction of the written slots whose key is of the slot's class."""
        truths = self.truths.keys[..., 0].round()
        written = torch.arange(truths.shape[1], device=truths.device) < self.truths.slot_count.unsqueeze(1)
        right = truths == torch.arange(len(truths), device=truths.device).unsqueeze(1)
        return float((right & written).sum() / written.sum())


class Experiment:
    """The characters of every radical that has enough of them, and one training run on them."""

    def __init__(self, fabric: Fabric, data: kanji.Kanji, settings: Settings) -> None:
        self.fabric, self.settings = fabric, settings
        counts = Counter(data.radicals)
        self.radicals = [radical for radical, n in counts.most_common() if n >= settings.least_characters]
        chosen = [i for i, radical in enumerate(data.radicals) if radical in self.radicals]
        self.images = torch.from_numpy(data.images[chosen]).unsqueeze(1)
        self.target = torch.tensor([self.radicals.index(data.radicals[i]) for i in chosen])
        self.split = kanji.split_stratified(self.target.numpy())

    def train(self, run: Run) -> Result:
        self.fabric.seed_everything(run.seed, verbose=False)
        method = self.make_method(run)
        samples = self.split.train
        truth = self.target[samples]
        target = torch.full_like(truth, UNLABELLED)
        labelled = kanji.choose_labelled(truth.numpy(), run.percentage / 100, run.seed)
        target[labelled] = truth[labelled]
        images = self.images[samples]
        if run.arm == FINE_TUNING:  # as many steps, on the labelled characters alone
            images, target, truth = images[labelled], target[labelled], truth[labelled]
        loader = paired_loader(images, target, truth, batch_size=self.settings.batch_size, pairs=len(samples))
        every = max(len(loader) // PURITY_POINTS_PER_EPOCH, 1)
        step, steps, purity = 0, [], []

        def watch() -> None:
            nonlocal step
            step += 1
            if isinstance(method, WatchedSelfTuning) and (step == 5 or step % every == 0):
                steps.append(step)
                purity.append(method.purity())

        fit(self.fabric, method, loader, epochs=self.settings.epochs, seed=run.seed, on_step=watch)
        validation, test = (self.accuracy(method, part) for part in (self.split.validation, self.split.test))
        return Result(validation, test, steps, purity)

    def make_method(self, run: Run) -> FineTuning:
        view = View(IMAGE_SIZE, crop_area=0.8, operations=1)
        parts = (character_encoder(), FEATURES, len(self.radicals), view)
        if run.setting.threshold is not None:
            weak_view = View(IMAGE_SIZE, crop_area=0.9)
            return FixMatch(*parts, lr=run.setting.lr, weak_view=weak_view, threshold=run.setting.threshold)
        if run.setting.momentum is not None:
            method = WatchedSelfTuning(*parts, lr=run.setting.lr, projection_size=128, momentum=run.setting.momentum)
            method.watch(len(self.radicals))
            return method
        return FineTuning(*parts, lr=run.setting.lr)

    def accuracy(self, method: FineTuning, samples: kanji.IntArray) -> float:
        predicted = predict(self.fabric, method, tensor_loader(self.images[samples], batch_size=256)).argmax(dim=1)
        return 100 * float((predicted == self.target[samples]).float().mean())

    def examples(self, count: int, per_radical: int) -> list[tuple[Drawing, list[Drawing]]]:
        """Drawings of the commonest radicals and of some characters of each."""
        found = []
        for label, radical in enumerate(self.radicals[:count]):
            members = self.images[self.target == label, 0]
            chosen = members[torch.linspace(0, len(members) - 1, per_radical).long()]
            found.append((kanji.render_strokes(kanji.read_strokes(radical), IMAGE_SIZE), list(chosen.numpy())))
        return found


def make_experiment(fabric: Fabric, characters: list[str], settings: Settings) -> Experiment:
    """The experiment of a process of the pool; the characters are in the cache by now."""
    return Experiment(fabric, kanji.load_kanji(IMAGE_SIZE, characters), settings)


def compare(
    settings: Settings, pool: TrainingPool[Run, Result], progress: JobProgress
) -> tuple[dict[Run, Result], dict[Run, Result]]:
    """The selection, with the fewest labels and one seed, and all runs with the settings that it chose.

    With all labels there is nothing unlabelled, and FixMatch is fine-tuning: it is not run.
    """
    fewest = min(settings.percentages)
    candidates = [Run(arm, setting, fewest, 0) for arm in ARMS for setting in CANDIDATES[arm]]
    kept = [
        Run(arm, CANDIDATES[arm][0], percentage, seed)
        for percentage in settings.percentages
        for arm in ARMS
        for seed in range(settings.seeds)
        if not (arm == FIXMATCH and percentage == FULL)
    ]
    repeated = sum(run.percentage == fewest and run.seed == 0 for run in kept)  # trained by the selection
    progress.start("Training", total=len(candidates) + len(kept) - repeated)
    selection = pool.train(candidates, progress)
    chosen = {
        arm: max((run for run in candidates if run.arm == arm), key=lambda run: selection[run].validation_accuracy)
        for arm in ARMS
    }
    kept = [replace(run, setting=chosen[run.arm].setting) for run in kept]
    trained = selection | pool.train([run for run in kept if run not in selection], progress)
    return selection, {run: trained[run] for run in kept}


def run_demo(settings: Settings, output: Path, device: str, console: Console) -> None:
    """Render, train and compare; print the table and write it, the results and the figure to ``output``."""
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(accelerator=device, devices=1)
    console.print(kanji.ATTRIBUTION, soft_wrap=True)
    with JobProgress(console) as progress:
        characters = kanji.list_kanji()[:: settings.every_nth_character]
        progress.start("Rendering characters", total=len(characters))
        data = kanji.load_kanji(IMAGE_SIZE, characters, on_rendered=progress.advance)
        experiment = Experiment(fabric, data, settings)
        sizes = {part: len(samples) for part, samples in vars(experiment.split).items()}
        console.print(
            f"{len(experiment.target)} characters with {len(experiment.radicals)} radicals: "
            + ", ".join(f"{size} {part}" for part, size in sizes.items())
        )
        make = partial(make_experiment, characters=characters, settings=settings)
        with TrainingPool[Run, Result](fabric, make) as pool:
            selection, results = compare(settings, pool, progress)

    accuracy: dict[str, dict[int, list[float]]] = {arm: {} for arm in ARMS}
    for run, result in results.items():
        accuracy[run.arm].setdefault(run.percentage, []).append(result.test_accuracy)
    cells: Cells = {
        arm: {f"{p} % labels": by_percentage.get(p, [float("nan")]) for p in settings.percentages}
        for arm, by_percentage in accuracy.items()
    }
    chosen = {run.arm: run.setting for run in results}
    notes = [
        f"Chosen on validation with {min(settings.percentages)} % of the labels and one seed, each arm between two: "
        + "; ".join(f"{arm} {setting}" for arm, setting in chosen.items())
        + ".",
        f"Test, mean ± standard error, seeds: {settings.seeds}; each seed draws its own labelled characters. Every arm "
        f"starts from the same random weights and makes the same number of steps. {len(experiment.radicals)} radicals "
        f"with at least {settings.least_characters} characters each; "
        + ", ".join(f"{size} {part}" for part, size in sizes.items())
        + " characters.",
    ]
    title = "Test accuracy in %"
    for note in notes:
        console.print(note, soft_wrap=True)
    console.print(rich_table(title, cells))
    markdown = [f"**{title}**\n\n{markdown_table(cells)}", *notes, kanji.ATTRIBUTION]
    (output / "table.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")

    watched = [(run.percentage, result) for run, result in results.items() if run.arm == SELF_TUNING]
    purity = {
        percentage: np.array([result.purity for p, result in watched if p == percentage])
        for percentage in settings.percentages
    }
    steps = np.array(watched[0][1].purity_steps)
    figure = draw_self_tuning(accuracy, purity, steps, experiment.examples(12, 4), kanji.ATTRIBUTION)
    save_figure(figure, output / "figure")

    seconds = time.perf_counter() - started
    write_json(
        output / "results.json",
        {
            "demo": "self-tuning",
            "attribution": kanji.ATTRIBUTION,
            "kanjivg": importlib.metadata.version("kanjivg"),
            "environment": environment(fabric.device),
            "dadl_ext": build_info(),
            "settings": asdict(settings),
            "radicals": experiment.radicals,
            "samples": sizes,
            "selection": [asdict(run) | {"validation_accuracy": r.validation_accuracy} for run, r in selection.items()],
            "selected": {arm: asdict(setting) for arm, setting in chosen.items()},
            "runs": [asdict(run) | asdict(result) for run, result in results.items()],
            "seconds": seconds,
        },
    )
    console.print(f"Wrote table.md, results.json, figure.png and .svg to {output} ({seconds:.0f} s)", soft_wrap=True)
