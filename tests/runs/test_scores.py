"""Scores of classes, worked out by hand, and the rows of ``predictions.csv``."""

import math

import pytest
import torch
from dadl.runs.recipe import Evaluation
from dadl.runs.scores import class_columns, class_scores, class_truth, prediction_rows, score_cells, unscored
from torch import Tensor


def logits(labels: list[int], classes: int = 4) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).float()


def test_classes_count_alike_whatever_their_size_and_absent_ones_not_at_all() -> None:
    target = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 3, 3])  # of class 2 there is none
    table = class_scores(logits([0, 0, 0, 0, 0, 1, 1, 0, 3, 2]), target)
    by_class = (5 / 6 + 1 / 2 + 1 / 2) / 3
    assert table == {
        "all": {
            "error %": pytest.approx(30),
            "accuracy %": pytest.approx(70),
            "class accuracy %": pytest.approx(100 * by_class),
        }
    }
    assert class_truth(target) == {"targets": {"target": target.tolist()}, "region_sizes": {"all": 10}}
    assert score_cells(table)["all"]["error %"] == [table["all"]["error %"]]


def test_the_predicted_class_has_its_name_and_its_probability() -> None:
    predicted = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    columns = class_columns(predicted, names=("cat", "dog"))
    assert columns["label"] == [1, 0]
    assert columns["class"] == ["dog", "cat"]
    assert columns["confidence"] == pytest.approx([1 / (1 + math.e**-2), 1 / (1 + math.e**-3)])
    assert "class" not in class_columns(predicted)


def test_each_sample_has_a_row_with_its_name() -> None:
    part = Evaluation(["a", "b"], [], unscored)  # type: ignore[arg-type]
    assert prediction_rows(part, {"x": [1, 2], "y": [3, 4]}) == [
        {"name": "a", "x": 1, "y": 3},
        {"name": "b", "x": 2, "y": 4},
    ]
    with pytest.raises(ValueError, match="shorter"):
        prediction_rows(part, {"x": [1]})
    with pytest.raises(ValueError, match="no target"):
        unscored(torch.zeros(2))
