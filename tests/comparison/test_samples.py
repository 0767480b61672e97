"""What a comparison reads of the test samples of a run."""

from pathlib import Path

import pytest
import torch
from dadl.comparison.samples import read_predictions
from dadl.files import write_csv
from dadl.runs.folder import PREDICTIONS
from dadl.runs.scores import class_columns


@pytest.mark.parametrize("names", [(), ("口", "2")])
def test_predictions_of_classes_with_and_without_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    columns = class_columns(torch.tensor([[0.0, 5.0], [5.0, 0.0], [5.0, 0.0]]), names)
    rows = zip("abc", (1, 0, 1), *columns.values(), strict=True)
    write_csv(tmp_path / PREDICTIONS, [dict(zip(("name", "target", *columns), row, strict=True)) for row in rows])
    predictions = read_predictions(tmp_path)
    assert predictions is not None
    assert list(predictions.names) == ["a", "b", "c"]
    assert set(predictions.columns) == {"target", "label", "confidence"}
    errors = predictions.errors("all", "error %")
    assert errors is not None
    assert errors.tolist() == [0, 0, 100]
