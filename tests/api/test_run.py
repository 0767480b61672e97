"""``dadl.train`` and ``Run``: the same results as the commands, from paths, frames and arrays."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dadl import Run, train
from dadl.api import export as exporting
from dadl.errors import SettingsError
from support.cli import dadl, predictions_of, results_of

SMALL = {"epochs": 2, "hidden": 8, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(120, 3)) * [1, 10, 100] + [0, 5, -3]
    return matrix, 1000 + matrix @ [3, 2, 1]


@pytest.fixture(scope="module")
def run(arrays: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("ranksim", data=arrays, output=tmp_path_factory.mktemp("runs") / "run", **SMALL)


def test_a_run_says_what_came_out(run: Run) -> None:
    assert run.scores == results_of(run.folder)["test"] | {"many": run.scores["many"], "medium": run.scores["medium"]}
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert run.history[-1]["loss"] == pytest.approx(results_of(run.folder)["history"][-1]["loss"])
    assert run.settings["hidden"] == 8
    assert run.settings["lr"] == 1e-3  # a default that depends on the data
    assert run.inputs == ("x0", "x1", "x2")
    assert repr(run) == f"Run('{run.folder}', ranksim)"
    assert re.search(r"<tr><th>few</th>(<td>\S+</td>){6}", run._repr_html_())
    assert "<td>–</td>" in run._repr_html_()  # a region without samples


def test_the_command_writes_what_python_returns(run: Run, arrays: Any, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    rows = np.column_stack(arrays).tolist()
    file.write_text("x0,x1,x2,y\n" + "".join(",".join(map(repr, row)) + "\n" for row in rows))
    options = ["--data", str(file), "--target", "y", "--features", "*", "--epochs", "2", "--hidden", "8"]
    result = dadl("train", "ranksim", *options, "--device", "cpu", "--output", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    loaded = Run.load(tmp_path / "run")
    assert loaded.scores["all"] == run.scores["all"]
    result = dadl("predict", str(run.folder), "--data", str(file), "--output", str(tmp_path / "out.csv"))
    assert result.returncode == 0, result.stderr
    named = run.predict(file, columns=True, progress=False)
    assert [float(row["prediction"]) for row in predictions_of(tmp_path / "out.csv")] == named["prediction"].tolist()
    assert named["name"][0] == "data.csv:2"
    assert run.evaluate(file, device="cpu")["all"] == run.scores["all"]


def test_every_kind_of_table_is_the_same_data(run: Run, arrays: Any) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    columns = dict(zip(("x0", "x1", "x2", "y"), np.column_stack(arrays).T, strict=True))
    expected = run.predict(arrays[0], progress=False)
    assert expected.shape == (120,)
    for data in (columns, pandas.DataFrame(columns), polars.DataFrame(columns)):
        assert np.array_equal(run.predict(data, progress=False), expected)
        assert run.evaluate(data, progress=False)["all"] == run.scores["all"]
    assert run.evaluate(arrays, progress=False)["all"] == run.scores["all"]


def test_arrays_hold_numbers_texts_and_dates(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    days = np.datetime64("2024-01-01") + generator.integers(0, 90, 60)
    days[3] = np.datetime64("NaT")
    data = {
        "town": generator.choice(["Ely", "Diss"], 60),
        "sold": days,
        "rooms": generator.integers(1, 5, 60),
        "price": generator.normal(size=60),
    }
    named = {"target": "price", "features": ["rooms", "sold"], "one_hot": ["town"], "missing": "mean"}
    run = train("ranksim", data=data, output=tmp_path / "run", **named, **SMALL)
    assert run.inputs == ("rooms", "sold", "town=Diss", "town=Ely")
    matrix = [[2, float((np.datetime64("2024-02-01") - np.datetime64("1970-01-01")).astype(int)), 0, 1]]
    one = {"town": np.array(["Ely"]), "sold": np.array(["2024-02-01"], "datetime64[D]"), "rooms": np.array([2])}
    with torch.no_grad():
        assert run.module(torch.tensor(matrix)).numpy() == pytest.approx(run.predict(one, progress=False))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), r"a matrix with a row for each sample, got an array of shape \(3,\)"),
        (np.zeros((2, 2)), r"no column 'x2'; there are 'x0', 'x1'"),
        ({"x0": np.zeros(2), "x1": np.zeros(3)}, r"columns of one length, .* got x0 \[2\], x1 \[3\]"),
        ({}, "got none"),
        (np.array([[0, np.nan, 0]]), "NumPy arrays:1: x1 is empty"),
    ],
)
def test_arrays_that_are_no_table_are_refused(run: Run, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.predict(data, progress=False)


def test_settings_and_folders_are_checked_first(run: Run, arrays: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ranksim has no setting 'epoch'"):
        train("ranksim", data=arrays, epoch=3)
    with pytest.raises(SettingsError, match="there is no recipe 'rank'"):
        train("rank", data=arrays)
    with pytest.raises(SettingsError, match="holds a run"):
        train("ranksim", data=arrays, output=run.folder, **SMALL)
    with pytest.raises(SettingsError, match="is not the folder of a run"):
        Run.load(tmp_path)
    again = train("ranksim", data=arrays, output=run.folder, resume=True, **SMALL)
    assert again.scores["all"] == run.scores["all"]


def test_the_module_is_the_network_in_the_unit_of_the_target(run: Run, arrays: Any) -> None:
    with torch.no_grad():
        predicted = run.module(torch.tensor(arrays[0], dtype=torch.float32))
    assert predicted.numpy() == pytest.approx(run.predict(arrays[0], progress=False))
    assert not run.module.training


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_an_exported_network_takes_any_number_of_samples(run: Run, arrays: Any, tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    file = run.export(tmp_path / f"model{suffix}")
    inputs = torch.tensor(arrays[0][:7], dtype=torch.float32)
    if suffix == ".pt2":
        found = torch.export.load(file).module()(inputs).detach().numpy()
    else:
        import onnx
        from onnx.reference import ReferenceEvaluator

        model = onnx.load(file)
        (found,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: inputs.numpy()})
    assert found == pytest.approx(run.predict(arrays[0][:7], progress=False), rel=1e-5)


@pytest.mark.slow
def test_an_export_that_cannot_be_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"model.bin: the suffix says the format; it is .pt2 or .onnx"):
        run.export(tmp_path / "model.bin")
    result = dadl("export", str(run.folder), "--output", str(tmp_path / "model.onnx"), hide=("onnx",))
    assert (result.returncode, result.stderr) == (1, "ONNX needs the package onnx: pip install 'dadl[export]'\n")
    monkeypatch.setattr(exporting, "_saved", lambda program, place, inputs: torch.zeros(exporting.CHECKED))
    with pytest.raises(SettingsError, match="differs from the network"):
        run.export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
