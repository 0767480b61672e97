"""A comparison carried out: what is to be trained, in which folders, and in which order."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ..checks import short_repr
from ..errors import SettingsError
from ..files import check_output_folder, locked, write_text
from ..output import JobProgress, rich_table
from ..runs.folder import PATHS, RESULTS, as_json
from ..runs.recipe import Recipe, RecipeData, build_method
from ..runs.train import check_criterion, check_data, settings_of
from ..training.fabric import make_fabric
from .arms import Arm, check_arms, factors_of, plain_arms, read_arms
from .jobs import FAILED, Job, Workers, most_workers
from .judgement import judge
from .options import CompareOptions
from .results import COMPARE, Comparison, read_plan, table_cells, trial_of, write_results


class Study:
    """A recipe, the arms, and the folder."""

    def __init__(
        self, base: Recipe, plain: Mapping[str, Any], options: CompareOptions, source: object = "arms"
    ) -> None:
        self.base, self.options = base, options
        self._scales: dict[str, dict[str, dict[str, float]]] = {}
        self.folder = Path(f"dadl-compare-{base.name}") if options.output is None else options.output
        if (base.seed, base.split_seed) != (0, 0):
            raise SettingsError("a comparison sets seed and split-seed itself: leave them out; see seeds and splits")
        if options.splits > 1 and not base.draws_test:
            raise SettingsError(f"{base.data} says itself which samples are for the test: leave out splits")
        given = [field.name for field in fields(base) if getattr(base, field.name) != field.default]
        try:
            self.arms, self.reference = read_arms(plain, type(base), given)
            check_arms(self.arms, base, trust_code=options.trust_code)
        except SettingsError as error:
            raise SettingsError(f"{source}: {error}") from None

    def run(self, console: Console) -> Comparison:
        """Train what is missing, and write the results."""
        check_output_folder(self.folder)
        self._check_plan()
        with locked(self.folder):
            self._check_plan()  # once more, now that no other process can write to it
            with JobProgress(console) as progress:
                self._train(progress, console)
            comparison = Comparison.load(self.folder)
            judgement = judge(comparison)
            write_results(comparison, judgement.verdict.text, [asdict(found) for found in judgement.differences])
        for failure in comparison.failures:
            console.print(f"Diverged: {failure.folder}: {failure.reason}", soft_wrap=True)
        if comparison.units:
            column = comparison.criterion_cell[1]
            console.print(rich_table(f"Test of {self.base.name}, {column}", table_cells(comparison, column)))
        for sentence in judgement.verdict.text:
            console.print(sentence, soft_wrap=True, markup=False, highlight=False)
        console.print(f"Wrote tables and results to {self.folder}", soft_wrap=True)
        return comparison

    def _train(self, progress: JobProgress, console: Console) -> None:
        tests = self._tests({})
        complete = all(self._is_done(job) for job in tests)
        if not complete:
            self._check_data(progress, console)
        write_text(self.folder / COMPARE, yaml.safe_dump(self._plan, sort_keys=False, allow_unicode=True))
        if complete:
            return
        trials = [
            self._job(arm, split, f"trial-{i}", values, seed=0)
            for split, arm in self._cells
            for i, values in enumerate(arm.trials(self.options.trials, split, self._scales.get(str(split), {})))
        ]
        done = {job.name: job.epochs for job in [*trials, *tests] if self._is_done(job)}
        progress.start("Comparing", total=sum(job.epochs for job in [*trials, *tests]))
        progress.begin_at(sum(done.values()))

        def on_epoch(job: Job, epochs: int) -> None:
            progress.advance(steps=epochs - done.get(job.name, 0))
            done[job.name] = epochs

        def on_end(job: Job, failure: str | None) -> None:
            on_epoch(job, job.epochs)  # it may have ended early
            progress.describe(f"{job.name}: {'trained' if failure is None else failure}")

        left = lambda jobs: [job for job in jobs if not self._is_done(job)]
        with Workers(self.options.jobs or most_workers(self.options.device), self.options.device) as workers:
            workers.run(left(trials), on_epoch, on_end)
            workers.run(left(self._tests(self._chosen())), on_epoch, on_end)

    @property
    def _cells(self) -> list[tuple[int, Arm]]:
        return [(split, arm) for split in range(self.options.splits) for arm in self.arms]

    def _tests(self, chosen: Mapping[tuple[int, str], Mapping[str, Any]]) -> list[Job]:
        return [
            self._job(arm, split, f"seed-{seed}", chosen.get((split, arm.name), {}), seed=seed)
            for seed in range(1, 1 + self.options.seeds)
            for split, arm in self._cells
        ]

    def _job(self, arm: Arm, split: int, name: str, values: Mapping[str, Any], seed: int) -> Job:
        folder = self.folder / arm.folder / f"split-{split}" / name
        stages = arm.recipes(self.base, values, folder, split=split, seed=seed)
        return Job(f"{arm.name}, split {split}, {name.replace('-', ' ')}", stages, test=seed > 0)

    def _is_done(self, job: Job) -> bool:
        if job.test:
            return (job.folder / RESULTS).exists() or (job.folder / FAILED).exists()
        return trial_of(job.folder, {}, settings_of(job.stages[-1][0])) is not None

    def _chosen(self) -> dict[tuple[int, str], Mapping[str, Any]]:
        """The best trial's settings, by split and arm."""
        comparison = Comparison.load(self.folder)
        for arm in comparison.arms:
            for split in range(self.options.splits):
                if split not in arm.chosen:
                    raise SettingsError(
                        f"arm {arm.name}: every trial of split {split} has diverged; what is tuned, "
                        f"{', '.join(arm.tuned)}, needs other values"
                    )
        return {(split, arm.name): values for arm in comparison.arms for split, values in arm.chosen.items()}

    def _check_data(self, progress: JobProgress, console: Console) -> None:
        """Read the data as each arm does, and make its method, so that what is wrong shows now."""
        for split, arm in self._cells:
            if split and arm is not self.arms[0]:
                continue  # its data differ from the first arm's as they do in the first split
            recipe, _ = arm.recipes(self.base, {}, self.folder, split=split, seed=0)[0]
            task = recipe.read(progress)
            check_criterion(recipe, task)
            if arm.space and task.validation is None:
                raise SettingsError(f"arm {arm.name} tunes {', '.join(arm.space)}, but {recipe.data} has no validation")
            facts = as_json(task.facts)
            build_method(recipe.resolved(facts), facts)
            for folder in (self.folder / arm.folder / f"split-{split}").glob("*-*"):
                check_data(recipe, task, folder)
            if arm is self.arms[0]:
                self._scale(split, recipe, task)
                parts = ", ".join(f"{count} {part}" for part, count in task.sizes.items())
                console.print(f"{recipe.data}: {parts}", soft_wrap=True)
                for note in task.notes:
                    console.print(note, soft_wrap=True)

    def _scale(self, split: int, recipe: Recipe, task: RecipeData) -> None:
        """Find out what relative values are on this split, unless that is known from earlier."""
        scales = self._scales.setdefault(str(split), {})
        device = make_fabric(self.options.device).device
        for name, factors in factors_of(self.arms).items():
            own = scales.setdefault(name, {})
            new = {text: factor for text, factor in factors.items() if text not in own}
            if new:
                values = recipe.relative_values(name, list(new.values()), task, device)
                own |= dict(zip(new, values, strict=True))

    @property
    def _plan(self) -> dict[str, Any]:
        options = self.options
        counts = {"trials": options.trials, "seeds": options.seeds, "splits": options.splits}
        plan = {"recipe": self.base.name, "settings": settings_of(self.base), **counts}
        return plan | {"reference": self.reference, "arms": plain_arms(self.arms), "scales": self._scales}

    def _check_plan(self) -> None:
        """Refuse a folder that holds another comparison, or this one if it is not to be resumed."""
        if not (self.folder / COMPARE).exists():
            return
        if not self.options.resume:
            raise SettingsError(
                f"{self.folder} holds a comparison: --resume continues it, or choose another folder with --output"
            )
        before, _ = read_plan(self.folder)
        self._scales = {
            split: {name: dict(values) for name, values in scales.items()} for split, scales in before["scales"].items()
        }
        now = self._plan
        defaults = {field.name: field.default for field in fields(self.base) if field.default is not MISSING}
        settings = lambda plan: {**defaults, **{k: v for k, v in plan["settings"].items() if k not in PATHS}}
        changed = [f"{key} was {short_repr(before[key])}" for key in ("recipe", "trials") if before[key] != now[key]]  # type: ignore[literal-required]
        old, new = settings(before), settings(now)
        changed += [f"{key} was {short_repr(old.get(key))}" for key in new if _plain(old.get(key)) != _plain(new[key])]
        changed += [
            f"arm {name} was {short_repr(arm)}" for name, arm in before["arms"].items() if now["arms"].get(name) != arm
        ]
        changed += [f"{key} were {before[key]}" for key in ("seeds", "splits") if before[key] > now[key]]  # type: ignore[literal-required]
        if changed:
            raise SettingsError(
                f"{self.folder} holds another comparison: {'; '.join(changed)}. Seeds, splits and arms can be added; "
                "for anything else, choose another folder with --output"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
