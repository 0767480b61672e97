"""``dadl demo self-tuning``: which radical is a character filed under? Few labels, and what unlabelled data add."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from dadl_ext import ClassQueue

from ..data.rows import tensor_loader
from ..networks.views import View
from ..options import Device
from ..output import Cells, JobProgress
from ..self_tuning.method import UNLABELLED, FineTuning, FixMatch, SelfTuning, paired_loader
from ..training.fabric import make_fabric
from ..training.loop import fit, predict
from . import kanji
from .characters import ENCODER, FEATURES, IMAGE_SIZE, DemoReport, DemoSettings, character_encoder, load_characters
from .figures.self_tuning import Drawing, draw_self_tuning
from .jobs import TrainingPool
from .splits import IntArray, choose_labelled, split_stratified

PURITY_POINTS_PER_EPOCH = 2
FULL = 100

FINE_TUNING, FIXMATCH, SELF_TUNING = ARMS = ("Fine-tuning", "FixMatch", "Self-Tuning")

# The hyper-parameters of an arm besides the learning rate: learning rates are tried with the first value, and then the
# other value at the best learning rate.
OWN: dict[str, tuple[dict[str, float], ...]] = {
    FINE_TUNING: ({},),
    FIXMATCH: ({"threshold": 0.95}, {"threshold": 0.8}),
    SELF_TUNING: ({"momentum": 0.99}, {"momentum": 0.999}),
}


@dataclass(frozen=True)
class Setting:
    """An arm's hyper-parameters, chosen on validation; ``threshold`` is FixMatch's, ``momentum`` Self-Tuning's."""

    lr: float
    threshold: float | None = None
    momentum: float | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in asdict(self).items() if value is not None)


@dataclass(frozen=True)
class Settings(DemoSettings):
    """Everything that the results depend on besides the data."""

    seeds: int = 3
    epochs: int = 7
    learning_rates: tuple[float, ...] = (0.015, 0.03, 0.06, 0.12)
    percentages: tuple[int, ...] = (15, 30, 50, FULL)
    least_characters: int = 20

    @property
    def trial_epochs(self) -> int:
        """Epochs of the runs that choose hyper-parameters: half as many, rounded up."""
        return (self.epochs + 1) // 2


QUICK = Settings(
    seeds=1, epochs=1, learning_rates=(0.03,), percentages=(15, FULL), least_characters=8, every_nth_character=12
)


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    setting: Setting
    percentage: int
    seed: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.arm}, {self.percentage} % labels, {self.setting}, seed {self.seed}, epochs {self.epochs}"


@dataclass(frozen=True)
class Result:
    """Accuracies in %, and for Self-Tuning the purity of the queue after the steps ``purity_steps``."""

    validation_accuracy: float
    test_accuracy: float
    purity_steps: list[int]
    purity: list[float]


class WatchedSelfTuning(SelfTuning):
    """Self-Tuning that also gets the true classes, only to count how many keys are queued under a wrong class.

    A batch is ``(images, target, truth)``.
    """

    def watch(self, num_classes: int, slots: int = 32) -> None:
        self.truths = ClassQueue(num_classes, 1, slots, gather_distributed=True)

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        loss = super().forward(batch)
        # The same classes in the same order: a true class has the slot of its key.
        self.truths.enqueue(batch[2].unsqueeze(1).float(), self.assigned)
        return loss

    def purity(self) -> float:
        """The fraction of the written slots whose key is of the slot's class."""
        truths = self.truths.keys[..., 0].round()
        written = torch.arange(truths.shape[1], device=truths.device) < self.truths.slot_count.unsqueeze(1)
        right = truths == torch.arange(len(truths), device=truths.device).unsqueeze(1)
        return float((right & written).sum() / written.sum())


class Experiment:
    """The characters of every radical with enough of them, and training runs on them."""

    def __init__(self, fabric: Fabric, data: kanji.Kanji, settings: Settings) -> None:
        self.fabric, self.settings = fabric, settings
        counts = Counter(data.radicals)
        self.radicals = [radical for radical, n in counts.most_common() if n >= settings.least_characters]
        chosen = [i for i, radical in enumerate(data.radicals) if radical in self.radicals]
        self.images = torch.from_numpy(data.images[chosen]).unsqueeze(1)
        self.target = torch.tensor([self.radicals.index(data.radicals[i]) for i in chosen])
        self.split = split_stratified(self.target.numpy())

    def train(self, run: Run) -> Result:
        self.fabric.seed_everything(run.seed, verbose=False)
        method = self.make_method(run)
        samples = self.split.train
        truth = self.target[samples]
        target = torch.full_like(truth, UNLABELLED)
        labelled = choose_labelled(truth.numpy(), run.percentage / 100, run.seed)
        target[labelled] = truth[labelled]
        images = self.images[samples]
        if run.arm == FINE_TUNING:  # as many steps, on the labelled characters only
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

        fit(self.fabric, method, loader, epochs=run.epochs, seed=run.seed, on_step=watch)
        validation, test = (self.accuracy(method, part) for part in (self.split.validation, self.split.test))
        return Result(validation, test, steps, purity)

    def make_method(self, run: Run) -> FineTuning:
        view = View(IMAGE_SIZE, crop_area=0.8, operations=1)
        parts = (character_encoder(*ENCODER), FEATURES, len(self.radicals), view)
        if run.setting.threshold is not None:
            weak_view = View(IMAGE_SIZE, crop_area=0.9)
            return FixMatch(*parts, lr=run.setting.lr, weak_view=weak_view, threshold=run.setting.threshold)
        if run.setting.momentum is not None:
            method = WatchedSelfTuning(*parts, lr=run.setting.lr, projection_size=128, momentum=run.setting.momentum)
            method.watch(len(self.radicals))
            return method
        return FineTuning(*parts, lr=run.setting.lr)

    def accuracy(self, method: FineTuning, samples: IntArray) -> float:
        predicted = predict(self.fabric, method, tensor_loader(self.images[samples], batch_size=256)).argmax(dim=1)
        return 100 * float((predicted == self.target[samples]).float().mean())

    def examples(self, count: int, per_radical: int) -> list[tuple[Drawing, list[Drawing]]]:
        """Drawings of the most common radicals and of some characters of each."""
        found = []
        for label, radical in enumerate(self.radicals[:count]):
            members = self.images[self.target == label, 0]
            chosen = members[torch.linspace(0, len(members) - 1, per_radical).long()]
            found.append((kanji.render_strokes(kanji.read_strokes(radical), IMAGE_SIZE), list(chosen.numpy())))
        return found


@dataclass(frozen=True)
class Comparison:
    """The trials that chose each arm's setting, and all runs with it."""

    trials: dict[Run, Result]
    chosen: dict[str, Setting]
    results: dict[Run, Result]


def compare(settings: Settings, pool: TrainingPool[Run, Result], progress: JobProgress) -> Comparison:
    """Choose each arm's setting on validation, with the fewest labels and one seed, and train every arm with it.

    With all labels FixMatch is the same as fine-tuning, so it is not run.
    """
    wanted = [
        (arm, percentage, seed)
        for percentage in settings.percentages
        for arm in ARMS
        for seed in range(settings.seeds)
        if not (arm == FIXMATCH and percentage == FULL)
    ]
    rates = settings.learning_rates
    progress.start("Training", total=sum(len(rates) + len(own) - 1 for own in OWN.values()) + len(wanted))

    def trial(arm: str, setting: Setting) -> Run:
        return Run(arm, setting, min(settings.percentages), seed=0, epochs=settings.trial_epochs)

    def best(arm: str) -> Setting:
        return max((run for run in trials if run.arm == arm), key=lambda run: trials[run].validation_accuracy).setting

    trials = pool.train([trial(arm, Setting(lr, **OWN[arm][0])) for arm in ARMS for lr in rates], progress)
    trials |= pool.train([trial(arm, replace(best(arm), **own)) for arm in ARMS for own in OWN[arm][1:]], progress)
    chosen = {arm: best(arm) for arm in ARMS}
    runs = [Run(arm, chosen[arm], percentage, seed, settings.epochs) for arm, percentage, seed in wanted]
    return Comparison(trials, chosen, pool.train(runs, progress))


def run_demo(settings: Settings, output: Path, device: Device, console: Console) -> None:
    """Render, train and compare; print the table and write it, the results and the figure to ``output``."""
    fabric = make_fabric(device)
    report = DemoReport("self-tuning", settings, fabric, output, console)
    with JobProgress(console) as progress:
        data = load_characters(settings, progress)
        experiment = Experiment(fabric, data, settings)
        sizes = {part: len(samples) for part, samples in vars(experiment.split).items()}
        console.print(
            f"{len(experiment.target)} characters with {len(experiment.radicals)} radicals: "
            + ", ".join(f"{size} {part}" for part, size in sizes.items())
        )
        with TrainingPool[Run, Result](fabric, partial(Experiment, data=data, settings=settings)) as pool:
            comparison = compare(settings, pool, progress)

    accuracy: dict[str, dict[int, list[float]]] = {arm: {} for arm in ARMS}
    for run, result in comparison.results.items():
        accuracy[run.arm].setdefault(run.percentage, []).append(result.test_accuracy)
    cells: Cells = {
        arm: {f"{p} % labels": by_percentage.get(p, [float("nan")]) for p in settings.percentages}
        for arm, by_percentage in accuracy.items()
    }
    trials = Counter(run.arm for run in comparison.trials)
    rates = ", ".join(f"{lr:g}" for lr in settings.learning_rates)
    own = " and ".join(
        f"{arm} its {name} ({' or '.join(f'{values[name]:g}' for values in OWN[arm])})"
        for arm in ARMS
        for name in OWN[arm][0]
    )
    notes = [
        f"Chosen on validation with {min(settings.percentages)} % of the labels, one seed and {settings.trial_epochs} "
        f"of the {settings.epochs} epochs: every arm the learning rate out of {rates}; then, at that rate, {own}. "
        f"Trials: {', '.join(f'{arm} {count}' for arm, count in trials.items())}. "
        f"Chosen: {'; '.join(f'{arm} {setting}' for arm, setting in comparison.chosen.items())}.",
        f"Test, mean ± standard error, seeds: {settings.seeds}, for every arm and column; each seed draws its own "
        "labelled characters. Every arm starts from the same random weights and makes the same number of steps. With "
        f"all labels FixMatch is fine-tuning. {len(experiment.radicals)} radicals with at least "
        f"{settings.least_characters} characters each; "
        + ", ".join(f"{size} {part}" for part, size in sizes.items())
        + " characters.",
    ]

    watched = [(run.percentage, result) for run, result in comparison.results.items() if run.arm == SELF_TUNING]
    purity = {
        percentage: np.array([result.purity for p, result in watched if p == percentage])
        for percentage in settings.percentages
    }
    steps = np.array(watched[0][1].purity_steps)
    figure = draw_self_tuning(accuracy, purity, steps, experiment.examples(12, 4), kanji.ATTRIBUTION)
    results = {
        "radicals": experiment.radicals,
        "samples": sizes,
        "selection": [
            asdict(run) | {"validation_accuracy": result.validation_accuracy}
            for run, result in comparison.trials.items()
        ],
        "selected": {arm: asdict(setting) for arm, setting in comparison.chosen.items()},
        "runs": [asdict(run) | asdict(result) for run, result in comparison.results.items()],
    }
    report.write({"Test accuracy in %": cells}, notes, figure, results)
