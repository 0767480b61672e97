"""``dadl demo chi-model``: numbers, positions and classes from few labels, and what unlabelled samples add."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from dadl_ext import DisagreementLoss

from ..chi_model.key_points import from_heatmaps
from ..chi_model.method import MCD, ChiModel, FewLabels, LabelsOnly, MeanTeacher, PiModel, RDrop, uneven_loader
from ..data import sprites
from ..data.rows import tensor_loader
from ..options import Device
from ..output import Cells, JobProgress
from ..training.fabric import make_fabric
from ..training.loop import fit, predict
from . import kanji
from .characters import IMAGE_SIZE, DemoReport, DemoSettings, load_characters
from .chi_model_tasks import Data, Task, key_point_task, radical_task, sprite_task, stroke_task
from .figures.chi_model import Duel, Glyph, draw_chi_model
from .jobs import TrainingPool
from .splits import IntArray, choose_labelled, split_stratified

LABELS_ONLY, CHI_MODEL = "Labels only", "χ-Model"
ARMS: dict[str, type[FewLabels]] = {
    LABELS_ONLY: LabelsOnly,
    "Π-model": PiModel,
    "R-Drop": RDrop,
    "Mean Teacher": MeanTeacher,
    "MCD": MCD,
    CHI_MODEL: ChiModel,
}
STROKES, STROKE_ENDS, SPRITES, RADICALS = TASKS = ("strokes", "stroke ends", "sprites", "radicals")
ERRORS = {
    STROKES: "How many strokes? MAE",
    STROKE_ENDS: "Where do strokes end? missed, %",
    SPRITES: "How large is a sprite, where? MAE, % of range",
    RADICALS: "Which radical? wrong, %",
}
EXAMPLES = 8
PROBE, PROBES_PER_EPOCH = 128, 8


@dataclass(frozen=True)
class Setting:
    """An arm's hyper-parameters, chosen on validation; labels alone need no η."""

    lr: float
    eta: float = 0.0

    def __str__(self) -> str:
        return f"lr {self.lr:g}" + (f", η {self.eta:g}" if self.eta else "")


@dataclass(frozen=True)
class Settings(DemoSettings):
    """Everything that the results depend on besides the data."""

    seeds: int = 3
    epochs: int = 3
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (0.003, 0.01)
    etas: tuple[float, ...] = (0.1, 0.3)
    percent: int = 5
    radical_percent: int = 15
    least_characters: int = 20
    sprites: int = 5000

    @property
    def trial_epochs(self) -> int:
        """Epochs of the runs that choose hyper-parameters: a third as many, rounded up."""
        return (self.epochs + 2) // 3

    def labels(self, task: str) -> int:
        """Percentage of the training samples that keep their label; for radicals 5 % would be too few."""
        return self.radical_percent if task == RADICALS else self.percent


QUICK = Settings(
    seeds=1,
    epochs=1,
    learning_rates=(0.01,),
    etas=(0.3,),
    percent=10,
    least_characters=8,
    sprites=300,
    every_nth_character=24,
)


@dataclass(frozen=True)
class Run:
    """One training run."""

    task: str
    arm: str
    setting: Setting
    seed: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.task}, {self.arm}, {self.setting}, seed {self.seed}, epochs {self.epochs}"


@dataclass(frozen=True)
class Result:
    """Errors, see :data:`ERRORS`; key points of the examples, ``[EXAMPLES, 4, 2]``, and the χ-Model's game."""

    validation_error: float
    test_error: float
    points: list[list[list[float]]]
    duel: Duel | None


class GameProbe:
    """What changes the disagreement of two views under two heads: the heads or the features?

    Between two measurements both have moved. The change with new heads on old features is the heads' part; the rest is
    the features' part. The views stay the same and dropout is off, so that nothing else changes it.
    """

    def __init__(self, method: ChiModel, inputs: Tensor) -> None:
        self.method = method.train()
        self.views = [method.view(inputs) for _ in range(2)]
        self.distance = DisagreementLoss(method.chi.measure)
        method.eval()
        self.features = self._encode()
        self.duel = Duel([0], [self._disagreement()], [0.0], [0.0])

    def measure(self, step: int) -> None:
        """Add a measurement."""
        duel = self.duel
        self.method.eval()
        by_heads = self._disagreement()
        self.features = self._encode()
        both = self._disagreement()
        self.method.train()
        duel.steps.append(step)
        duel.heads.append(duel.heads[-1] + by_heads - duel.disagreement[-1])
        duel.features.append(duel.features[-1] + both - by_heads)
        duel.disagreement.append(both)

    @torch.no_grad()
    def _encode(self) -> list[Tensor]:
        return [self.method.encoder(view) for view in self.views]

    @torch.no_grad()
    def _disagreement(self) -> float:
        chi = self.method.chi
        outputs = [head(features) for head, features in zip((chi.head_a, chi.head_b), self.features, strict=True)]
        return float(self.distance(torch.stack(outputs)))


class Experiment:
    """The tasks, and one training run on one of them."""

    def __init__(self, fabric: Fabric, data: Data, settings: Settings) -> None:
        self.fabric, self.settings = fabric, settings
        self.tasks = {
            STROKES: stroke_task(data),
            STROKE_ENDS: key_point_task(data),
            SPRITES: sprite_task(data),
            RADICALS: radical_task(data, settings.least_characters),
        }
        self.splits = {name: split_stratified(task.strata) for name, task in self.tasks.items()}

    def labelled(self, task: str, seed: int) -> IntArray:
        """The training samples that keep their label."""
        train = self.splits[task].train
        chosen = choose_labelled(self.tasks[task].strata[train], self.settings.labels(task) / 100, seed)
        return train[chosen]

    def train(self, run: Run) -> Result:
        self.fabric.seed_everything(run.seed, verbose=False)
        task, split = self.tasks[run.task], self.splits[run.task]
        method = ARMS[run.arm](
            task.make_encoder(), task.make_head, task.view, task.objective, lr=run.setting.lr, eta=run.setting.eta
        )
        labelled = self.labelled(run.task, run.seed)
        unlabelled = task.images[np.setdiff1d(split.train, labelled)]
        loader = uneven_loader(
            task.images[labelled], task.target[labelled], unlabelled, batch_size=self.settings.batch_size
        )
        probe = None
        if isinstance(method, ChiModel) and run.arm == CHI_MODEL:
            probe = GameProbe(method.to(self.fabric.device), unlabelled[:PROBE].to(self.fabric.device))
        fit(self.fabric, method, loader, epochs=run.epochs, seed=run.seed, on_step=self.watcher(probe, len(loader)))
        validation, test = (self.error(method, task, samples) for samples in (split.validation, split.test))
        points = self.example_points(method) if run.task == STROKE_ENDS else []
        return Result(validation, test, points, None if probe is None else probe.duel)

    def watcher(self, probe: GameProbe | None, steps_per_epoch: int) -> Callable[[], None] | None:
        """The function to call after each step."""
        if probe is None:
            return None
        every, step = max(steps_per_epoch // PROBES_PER_EPOCH, 1), 0

        def watch() -> None:
            nonlocal step
            step += 1
            if step % every == 0:
                probe.measure(step)

        return watch

    def predict(self, method: FewLabels, images: Tensor) -> Tensor:
        return predict(self.fabric, method, tensor_loader(images, batch_size=256))

    def error(self, method: FewLabels, task: Task, samples: IntArray) -> float:
        return task.error(self.predict(method, task.images[samples]), task.truth[samples])

    def examples(self) -> IntArray:
        """The test characters whose key points are drawn."""
        test = self.splits[STROKE_ENDS].test
        return test[np.linspace(0, len(test) - 1, EXAMPLES).astype(np.int64)]

    def example_points(self, method: FewLabels) -> list[list[list[float]]]:
        points: list[list[list[float]]] = from_heatmaps(
            self.predict(method, self.tasks[STROKE_ENDS].images[self.examples()])
        ).tolist()
        return points


@dataclass(frozen=True)
class Comparison:
    """The trials that chose the setting of each arm on each task, and all runs with it."""

    trials: dict[Run, Result]
    chosen: dict[tuple[str, str], Setting]
    results: dict[Run, Result]


def compare(settings: Settings, pool: TrainingPool[Run, Result], progress: JobProgress) -> Comparison:
    """Choose each arm's setting on the validation samples of each task with one seed, and train every arm with it."""
    cells = [(task, arm) for task in TASKS for arm in ARMS]
    first_eta, *other_etas = settings.etas
    tuned = [cell for cell in cells if cell[1] != LABELS_ONLY]
    total = len(cells) * (len(settings.learning_rates) + settings.seeds) + len(tuned) * len(other_etas)
    progress.start("Training", total)

    def trial(cell: tuple[str, str], setting: Setting) -> Run:
        return Run(*cell, setting, seed=0, epochs=settings.trial_epochs)

    def best(cell: tuple[str, str]) -> Setting:
        tried = [run for run in trials if (run.task, run.arm) == cell]
        return min(tried, key=lambda run: trials[run].validation_error).setting

    rates = [
        trial(cell, Setting(lr, first_eta if cell in tuned else 0.0))
        for cell in cells
        for lr in settings.learning_rates
    ]
    trials = pool.train(rates, progress)
    trials |= pool.train([trial(cell, replace(best(cell), eta=eta)) for cell in tuned for eta in other_etas], progress)
    chosen = {cell: best(cell) for cell in cells}
    runs = [Run(*cell, chosen[cell], seed, settings.epochs) for cell in cells for seed in range(settings.seeds)]
    return Comparison(trials, chosen, pool.train(runs, progress))


def run_demo(settings: Settings, output: Path, device: Device, console: Console, data: Path | None = None) -> None:
    """Render, train and compare; print the table and write it, the results and the figure to ``output``.

    With ``data`` the sprites are those of the published file in this folder, see :func:`.read_sprites`.
    """
    fabric = make_fabric(device)
    if data is None:
        pictures = sprites.generate_sprites(settings.sprites, IMAGE_SIZE)
    else:
        pictures = sprites.read_sprites(data, settings.sprites)
    source = f"{kanji.ATTRIBUTION}\n{pictures.source}"
    report = DemoReport("chi-model", settings, fabric, output, console, source=source)
    with JobProgress(console) as progress:
        characters = load_characters(settings, progress)
        key_points = np.array([kanji.read_key_points(character) for character in characters.characters])
        parts = Data(characters, key_points, pictures)
        experiment = Experiment(fabric, parts, settings)
        sizes = {
            task: {"labelled": len(experiment.labelled(task, seed=0))}
            | {part: len(samples) for part, samples in vars(split).items()}
            for task, split in experiment.splits.items()
        }
        for task, counts in sizes.items():
            console.print(f"{task}: " + ", ".join(f"{n} {part}" for part, n in counts.items()), soft_wrap=True)
        with TrainingPool[Run, Result](fabric, partial(Experiment, data=parts, settings=settings)) as pool:
            comparison = compare(settings, pool, progress)

    errors: Cells = {
        arm: {
            title: [
                result.test_error for run, result in comparison.results.items() if (run.task, run.arm) == (task, arm)
            ]
            for task, title in ERRORS.items()
        }
        for arm in ARMS
    }
    figure = draw_chi_model(errors, make_glyphs(experiment, comparison), duels(comparison), report.source)
    results = {
        "samples": sizes,
        "selection": [
            asdict(run) | {"validation_error": result.validation_error} for run, result in comparison.trials.items()
        ],
        "selected": {task: {arm: asdict(comparison.chosen[task, arm]) for arm in ARMS} for task in TASKS},
        "runs": [asdict(run) | asdict(result) for run, result in comparison.results.items()],
    }
    report.write(
        {"Test errors, lower is better": errors},
        make_notes(settings, comparison, sizes, pictures.names),
        figure,
        results,
    )


def duels(comparison: Comparison) -> dict[str, list[Duel]]:
    """The χ-Model's game on each task, one per seed."""
    found: dict[str, list[Duel]] = {task: [] for task in TASKS}
    for run, result in comparison.results.items():
        found[run.task] += [] if result.duel is None else [result.duel]
    return found


def make_glyphs(experiment: Experiment, comparison: Comparison) -> list[Glyph]:
    """The examples with what labels alone and the χ-Model predict for them, with the first seed."""
    task, chosen = experiment.tasks[STROKE_ENDS], experiment.examples()
    points = {
        run.arm: np.array(result.points)
        for run, result in comparison.results.items()
        if run.task == STROKE_ENDS and run.arm in (LABELS_ONLY, CHI_MODEL) and run.seed == 0
    }
    return [
        Glyph(task.images[i, 0].numpy(), task.truth[i].numpy(), {arm: found[k] for arm, found in points.items()})
        for k, i in enumerate(chosen.tolist())
    ]


def make_notes(
    settings: Settings, comparison: Comparison, sizes: dict[str, dict[str, int]], factors: Sequence[str]
) -> list[str]:
    """How the numbers were obtained."""
    rates, etas = (", ".join(f"{value:g}" for value in values) for values in (settings.learning_rates, settings.etas))
    chosen = "; ".join(
        f"{task}: " + ", ".join(f"{arm} {comparison.chosen[task, arm]}" for arm in ARMS) for task in TASKS
    )
    samples = "; ".join(
        f"{task}: {parts['labelled']} of {parts['train']} training images have labels ({settings.labels(task)} % of "
        f"every stratum, rounded up), {parts['validation']} validation, {parts['test']} test"
        for task, parts in sizes.items()
    )
    return [
        f"Chosen on validation, for each task with one seed and {settings.trial_epochs} of the {settings.epochs} "
        f"epochs: every arm the learning rate out of {rates}, with η = {settings.etas[0]:g}; then, at that rate, every "
        f"arm but labels only its η out of {etas}. Chosen: {chosen}.",
        f"Test, mean ± standard error, seeds: {settings.seeds}; each seed draws its own labelled images. All arms "
        f"share networks, views and the number of steps; MCD and χ-Model have two heads, the others one. {samples}.",
        "Stroke ends: where the first and the last stroke start and end; missed is a point more than 5 % of the "
        "image's width off, 100 − PCK@.05. Sprites: " + ", ".join(factors) + ".",
    ]
