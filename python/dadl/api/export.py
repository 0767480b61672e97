"""Trained networks as files that run without dadl: torch.export's and ONNX."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from ..errors import SettingsError
from ..files import check_output_file, write_file

SUFFIXES = (".pt2", ".onnx")
SAMPLES, CHECKED = 3, 5  # of the export and of the comparison, which differ so that a fixed number would show
TOLERANCE = 1e-4
"""Of the comparison, relative to the largest output: another order of sums in float32."""


def export(module: nn.Module, example: Callable[[int], Tensor], output: Path) -> None:
    """Write a module with one input to a file, by its suffix, if the file computes what the module does.

    ``example`` makes that many random inputs. See :meth:`.Run.export`.
    """
    if output.suffix not in SUFFIXES:
        raise SettingsError(f"{output}: the suffix says the format; it is {' or '.join(SUFFIXES)}")
    check_output_file(output)
    if output.suffix == ".onnx":
        _check_packages()
    inputs, others = example(SAMPLES), example(CHECKED)
    with torch.no_grad():
        expected = module(others)

    def write(place: Path) -> None:
        try:
            with _quiet():
                shapes: Any = ({0: Dim("samples")},)
                program = torch.export.export(module, (inputs,), dynamic_shapes=shapes)
                save = _saved_onnx if output.suffix == ".onnx" else _saved
                found = save(program, place, others)
        except Exception as error:  # whatever a network does that cannot be traced
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise SettingsError(f"this network cannot be exported as {output.suffix}: {reason[:300]}") from error
        difference = float((found - expected).abs().max())
        if found.shape != expected.shape or not difference <= TOLERANCE * max(float(expected.abs().max()), 1.0):
            raise SettingsError(f"what was exported differs from the network by {difference:.3g}; nothing is written")

    write_file(output, write)


def _saved(program: torch.export.ExportedProgram, place: Path, inputs: Tensor) -> Tensor:
    """Write the program, read it again, and return what it computes."""
    with place.open("wb") as file:
        torch.export.save(program, file)
    with place.open("rb") as file, torch.no_grad():
        found: Tensor = torch.export.load(file).module()(inputs)
    return found


def _saved_onnx(program: torch.export.ExportedProgram, place: Path, inputs: Tensor) -> Tensor:
    """Likewise as ONNX, computed by ONNX Runtime, or by ONNX's reference without it."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    model = converted.model_proto
    place.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    feed: Any = {model.graph.input[0].name: inputs.numpy()}
    with suppress(ImportError):
        from onnxruntime import InferenceSession

        return torch.from_numpy(np.asarray(InferenceSession(str(place)).run(None, feed)[0]))
    outputs: Any = ReferenceEvaluator(model).run(None, feed)
    return torch.from_numpy(np.asarray(outputs[0]))


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SettingsError(f"ONNX needs the package {error.name}: pip install 'dadl[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of the exporters about their own insides."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
