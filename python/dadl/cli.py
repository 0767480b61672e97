"""The ``dadl`` command."""

import importlib.metadata
import json
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Deep learning from imbalanced and scarce labels.")

TRAIN_PACKAGES = {"kanjivg", "lightning_fabric", "matplotlib", "PIL", "platformdirs", "resvg_py", "rich"}


class Demo(str, Enum):
    ranksim = "ranksim"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command()
def info() -> None:
    """Show versions and how the compiled operators were built."""
    from dadl_ext import build_info

    typer.echo(json.dumps(build_info(), indent=2, default=str))


@app.command()
def demo(
    name: Annotated[Demo, typer.Argument(help="Which comparison to run.")] = Demo.ranksim,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings per arm. [default: 5, quick: 1]")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data. [default: 8, quick: 1]")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the results. [default: dadl-demo-NAME]")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    quick: Annotated[
        bool, typer.Option("--quick", help="See that everything works; the numbers mean nothing.")
    ] = False,
) -> None:
    """Compare a method with its baselines on a small data set; writes a table, results as JSON and a figure."""
    try:
        from rich.console import Console

        importlib.metadata.distribution("kanjivg")  # drawings only, nothing to import
        from .ranksim_demo import QUICK, Settings, run_demo
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in TRAIN_PACKAGES:
            raise
        typer.echo(f"dadl demo needs {error.name}, which is not installed: pip install 'dadl[train]'", err=True)
        raise typer.Exit(1) from None
    base = QUICK if quick else Settings()
    settings = replace(base, seeds=seeds or base.seeds, epochs=epochs or base.epochs)
    folder = Path(f"dadl-demo-{name.value}") if output is None else output
    run_demo(settings, folder, device.value, Console())


def main() -> None:
    """Entry point of the ``dadl`` command."""
    app()
