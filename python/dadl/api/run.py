"""A trained run: its scores, and what it predicts."""

import csv
import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from torch import Tensor, nn

from ..checks import check, short_repr
from ..data.columns.arrays import TARGET, is_arrays, is_pair
from ..data.columns.arrow import as_path
from ..documents import read_json
from ..errors import SettingsError
from ..files import check_output_file, write_csv
from ..networks.user_code import refuse_code, user_code
from ..options import Device
from ..output import JobProgress, format_cell
from ..processes.sums import process_rank
from ..recipes import make_recipe
from ..runs.folder import CONFIG, JOURNAL, RESULTS, RUN, as_json, check_unchanged, read_run
from ..runs.recipe import Evaluation, Recipe, Scores, trained_method
from ..runs.scores import prediction_rows
from ..runs.train import settings_of
from ..training.fabric import make_fabric
from ..training.loop import LOG, EpochLog, predict
from ..training.method import Method
from .export import export


class Run:
    """A trained run and its folder; see :func:`dadl.train` and :meth:`load`.

    Attributes:
        folder: where it is.
        recipe: its settings and what is done with them.
        facts: what is known of its training data.
    """

    def __init__(self, folder: Path, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        self.folder, self.recipe, self.facts = folder, recipe, facts

    @classmethod
    def load(cls, folder: Path | str, data: Any = None, *, trust_code: bool = False) -> "Run":
        """The run in that folder; of a search the best trial.

        Args:
            folder: of the run.
            data: replaces the run's own data, which may be moved; a frame or arrays are not kept with a run.
            trust_code: a folder of someone else's may name code, as its ``backbone`` or ``augment``: it is executed
                only if you say so.

        Raises:
            SettingsError: the folder is not one of a run, was changed, or names code.
        """
        folder = Path(folder)
        if (folder / JOURNAL).exists():
            from ..runs.search import best_trial  # importing it takes long

            folder = best_trial(folder)
        name, settings, facts = read_run(folder)
        try:
            recipe = make_recipe(name, settings)
        except SettingsError as error:
            raise SettingsError(f"{folder / CONFIG}: {error}") from None
        if not trust_code:
            refuse_code(user_code(settings), folder / CONFIG)
        check(facts, recipe.facts_kind, f"{folder / RUN}: facts")
        check_unchanged(folder)
        run = cls(folder, recipe.as_trained(facts), facts)
        return run if data is None else run.on(data)

    def on(self, data: Any) -> "Run":
        """The same run on other data of the same kind, see :meth:`evaluate`."""
        recipe = replace(self.recipe, data=self._named(data))
        return Run(self.folder, recipe.as_trained(self.facts), self.facts)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, defaults included, as plain values."""
        return settings_of(self.recipe.resolved(self.facts))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns of the input matrix of :attr:`module`, in order; empty for images and for texts by tokens.

        A category is a column ``name=category`` of 0 or 1, a date the days since 1970-01-01, and texts are columns of
        MiniLM's features after all others.
        """
        return tuple(self.recipe.input_names(self.facts))

    @cached_property
    def history(self) -> list[EpochLog]:
        """The log of every epoch, as in ``log.csv``."""
        with (self.folder / LOG).open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    @cached_property
    def scores(self) -> Scores:
        """Scores of the test as the training made it, ``scores[row][column]``.

        Raises a :class:`.SettingsError` for a run that was not tested, such as one that was interrupted.
        """
        if not (self.folder / RESULTS).exists():
            raise SettingsError(f"{self.folder} was not tested: continue its training with --resume")
        table = read_json(self.folder / RESULTS)["test"]
        return {
            row: {column: np.nan if value is None else value for column, value in columns.items()}
            for row, columns in table.items()
        }

    @property
    def module(self) -> nn.Module:
        """The trained network as a plain module in evaluation mode, a new one each time.

        With what comes before and after it inside: for tables from the feature matrix ``[B, len(inputs)]``, as in the
        file, to predictions ``[B]`` in the target's unit; for images from ``[B, C, H, W]`` in [0, 1], of the size that
        the run stores them in, to values or logits.
        """
        return self._method().eval().module().eval()

    def _method(self) -> Method:
        return trained_method(self.folder, self.recipe, self.facts)

    def evaluate(
        self,
        data: Any = None,
        part: Literal["test", "val"] = "test",
        *,
        device: Device = "auto",
        progress: bool = True,
    ) -> Scores:
        """The scores on the run's own data, or on other data with targets.

        Args:
            data: as for :func:`dadl.train`, of the same kind as the run's; a matrix has the columns :attr:`inputs`.
            part: which samples to use.
            device: where to compute.
            progress: show the progress of reading images and texts.

        Raises:
            UserError: the run cannot be loaded, its data cannot be used, or a prediction is not finite.
        """
        if data is not None:
            return self.on(data).evaluate(part=part, device=device, progress=progress)
        recipe = self.recipe
        fabric = make_fabric(device, recipe.precision)
        with JobProgress(Console(quiet=not (progress and fabric.is_global_zero))) as bar:
            task = recipe.read(bar)
        own = as_json(task.facts)
        for name in recipe.shape_facts:
            found, known = own.get(name), self.facts.get(name)
            if found != known and None not in (found, known):  # not all data name their classes
                differ = f"{short_repr(found)} and not {short_repr(known)}"
                raise SettingsError(f"{recipe.data} has other {name} than the run: {differ}")
        evaluation = task.test if part == "test" else task.validation
        if evaluation is None:
            raise SettingsError(f"{recipe.data} has no validation samples")
        return evaluation.score(predict(fabric, self._method(), evaluation.loader))

    def predict(
        self, data: Any, *, columns: bool = False, device: Device = "auto", progress: bool = True
    ) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]]:
        """What is predicted for samples without a target.

        Args:
            data: as for :meth:`evaluate`, without a target; for images a folder, or a text file that names them.
            columns: return all columns of ``predictions.csv`` by name, among them the samples' names and, for classes,
                the confidence.
            device: where to compute.
            progress: show the progress of reading images and texts.

        Returns:
            An array with a row for each sample, in order: numbers in the target's unit ``[n]``, values ``[n, V]``, or
            classes ``[n]``.

        Raises:
            UserError: as :meth:`evaluate`.
        """
        unseen, predicted = self._predicted(data, device, progress)
        if not columns:
            answers: npt.NDArray[Any] = self.recipe.answers(predicted).numpy()
            return answers
        named = {"name": unseen.names, **self.recipe.prediction_columns(predicted, self.facts)}
        return {name: np.asarray(column) for name, column in named.items()}

    def write_predictions(
        self,
        data: Any,
        output: Path | str,
        keep: Sequence[str] = (),
        *,
        device: Device = "auto",
        progress: bool = True,
    ) -> int:
        """Write what :meth:`predict` predicts to a CSV file, and return the number of samples.

        ``keep`` names columns of a table to copy beside the predictions. Raises as :meth:`predict`, and then nothing is
        written.
        """
        output = Path(output)
        check_output_file(output)
        kept = self.recipe.read_columns(data, keep, self.facts) if keep else {}
        unseen, predicted = self._predicted(data, device, progress)
        columns = self.recipe.prediction_columns(predicted, self.facts)
        if repeated := [name for name in kept if name in ("name", *columns)]:
            raise SettingsError(
                f"keep: the predictions have a column {repeated[0]!r} of their own; rename the one in {data}"
            )
        if process_rank() == 0:
            write_csv(output, prediction_rows(unseen, {**kept, **columns}))
        return len(unseen.names)

    def export(self, output: Path | str) -> Path:
        """Write :attr:`module` to a file, by its suffix: ``.pt2`` for ``torch.export.load``, or ``.onnx``.

        The first dimension, of samples, may have any size. What the file computes is compared with the module on random
        inputs before the file is put in its place.

        Raises:
            SettingsError: another suffix, a network that cannot be exported or computes something else then, or
                packages that are missing (``pip install 'dadl[export]'`` for ONNX).
        """
        output = Path(output)
        export(self.module, lambda count: self.recipe.example(self.facts, count), output)
        return output

    def _predicted(self, data: Any, device: Device, progress: bool) -> tuple[Evaluation, Tensor]:
        fabric = make_fabric(device, self.recipe.precision)
        with JobProgress(Console(quiet=not (progress and fabric.is_global_zero))) as bar:
            unseen = self.recipe.read_unseen(self._named(data), self.facts, bar)
        return unseen, predict(fabric, self._method(), unseen.loader)

    def _named(self, data: Any) -> Any:
        """A text as a path, and a matrix with as many columns as :attr:`inputs` by their names."""
        if isinstance(data, str):
            return Path(data)
        if not is_arrays(data):
            return data
        shape = np.shape(data[0] if is_pair(data) else data)
        names = self.inputs if shape[1:] == (len(self.inputs),) else None
        return as_path(data, names, getattr(self.recipe, "target", None) or TARGET)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.recipe.name})"

    def _repr_html_(self) -> str:
        title = f"<b>{html.escape(self.recipe.name)}</b> in <code>{html.escape(str(self.folder))}</code>"
        if not (self.folder / RESULTS).exists():
            return f"{title}, not tested"
        head = "".join(f"<th>{html.escape(column)}</th>" for column in next(iter(self.scores.values())))
        rows = "".join(
            f"<tr><th>{html.escape(row)}</th>"
            + "".join(f"<td>{format_cell([value])}</td>" for value in columns.values())
            + "</tr>"
            for row, columns in self.scores.items()
        )
        return f"{title}<table><tr><th></th>{head}</tr>{rows}</table>"
