"""The ``dadl`` command, in fresh processes as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dadl.processes.launch import PASSIVE_WAITING
from support.cli import dadl, predictions_of, results_of, train
from support.folders import image_folder

REGIONS = ("all", "many", "medium", "few")
TRAIN_PACKAGES = ("kanjivg", "lightning_fabric", "matplotlib", "PIL", "platformdirs", "resvg_py", "rich", "safetensors")


def test_info_prints_the_build_without_the_extra() -> None:
    result = dadl("info", hide=("lightning_fabric", "matplotlib", "resvg_py", "PIL"))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)


@pytest.mark.parametrize(("command", "waiting"), [("train", "PASSIVE"), ("bench", "None")])
def test_threads_wait_asleep_but_for_benchmarks(command: str, waiting: str) -> None:
    code = (
        "import os, sys; from dadl.cli import main\n"
        f"sys.argv = ['dadl', '{command}', '--help']\n"
        "try: main()\n"
        "finally: print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in PASSIVE_WAITING}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == waiting, result.stderr


def test_importing_dadl_needs_torch_and_numpy_only() -> None:
    with_extra = {"ImbalancedRegressor", "Run", "compare", "train"}
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({(*TRAIN_PACKAGES, 'cyclopts', 'scipy', 'dadl_ext')!r})); "
        f"import dadl; assert all(hasattr(dadl, name) for name in {{*dadl.__all__}} - {with_extra})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("lightning_fabric", ["train", "ranksim", "--data", ".", "--target", "y", "--features", "x"]),
        ("yaml", ["evaluate", "."]),
        ("jinja2", ["report", "."]),
    ],
)
def test_without_the_extra_a_command_says_what_to_install(missing: str, command: list[str]) -> None:
    result = dadl(*command, hide=(missing,))
    assert result.returncode == 1
    assert missing in result.stderr
    assert "pip install 'dadl[train]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_extra_a_demo_says_what_to_install() -> None:
    result = dadl("demo", "strokes", hide=("resvg_py",))
    assert result.returncode == 1
    assert result.stderr.strip() == "this needs the package resvg_py, which is not installed: pip install 'dadl[demo]'"


def test_help_needs_no_figures() -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    result = dadl("train", "ranksim", "--help", hide=("matplotlib", "optuna"))
    assert result.returncode == 0, result.stderr
    assert "--interp-strength" in result.stdout


def test_unknown_demo_and_impossible_options_are_usage_errors() -> None:
    assert dadl("demo", "nothing").returncode == 2
    assert dadl("demo", "--seeds", "0").returncode == 2


def test_train_evaluate_and_predict(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    data, output = image_folder(tmp_path / "data"), tmp_path / "output"
    (data / "val.txt").write_text("10.png 0\n11.png 1\n")
    result = train(data, output, "--logger", "tensorboard")
    assert result.returncode == 0, result.stderr
    results = results_of(output)
    assert results["samples"] == {"labelled": 4, "unlabelled": 8, "validation": 2, "test": 4}
    assert results["settings"]["labels"] == 30
    assert [row["epoch"] for row in results["history"]] == [1]
    assert set(results["test"]["all"]) == {"error %", "accuracy %", "class accuracy %"}
    assert "| all |" in (output / "table.md").read_text(encoding="utf-8")
    assert (output / "last.ckpt").stat().st_size > (output / "best.ckpt").stat().st_size > 10**6
    assert "val all error %" in (output / "log.csv").read_text(encoding="utf-8")
    assert list((output / "tensorboard").glob("events*"))
    predictions = predictions_of(output / "predictions.csv")
    assert [row["name"] for row in predictions] == [f"{i}.png" for i in range(12, 16)]
    right = sum(int(row["label"]) == i % 2 for i, row in enumerate(predictions, start=12))
    assert results["test"]["all"]["accuracy %"] == 25 * right

    evaluated = dadl("evaluate", str(output), "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"{results['test']['all']['accuracy %']:.2f}" in evaluated.stdout
    (data / "some.txt").write_text("13.png\n12.png\n")
    file = tmp_path / "predicted.csv"
    predicted = dadl("predict", str(output), "--data", str(data / "some.txt"), "--output", str(file))
    assert predicted.returncode == 0, predicted.stderr
    assert [row.pop("target") for row in predictions] == ["0", "1", "0", "1"]
    assert predictions_of(file) == [predictions[1], predictions[0]]


def test_a_run_is_neither_overwritten_nor_continued_with_other_settings(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    data, output = image_folder(tmp_path / "data"), tmp_path / "output"
    config = tmp_path / "config.yaml"
    config.write_text("method: fine-tuning\nseed: 3\n")
    assert train(data, output, "--config", str(config)).returncode == 0
    before = (output / "results.json").read_bytes()
    assert results_of(output)["settings"]["method"] == "fine-tuning"
    for options, message in (
        ((), "holds a run: --resume continues it"),
        (("--resume", "--seed", "4"), "holds a run with other settings: seed 3 and not 4"),
    ):
        other = train(data, output, "--config", str(config), *options)
        assert other.returncode == 1
        assert message in other.stderr
        assert "Traceback" not in other.stderr
    assert (output / "results.json").read_bytes() == before
    (output / "predictions.csv").unlink()
    again = train(data, output, "--resume", "--config", str(output / "config.yaml"))
    assert again.returncode == 0, again.stderr  # nothing but the test is done again
    assert results_of(output)["history"] == json.loads(before)["history"]
    assert (output / "predictions.csv").exists()
    (output / "last.ckpt").write_bytes(b"no checkpoint")
    damaged = train(data, output, "--resume", "--config", str(config))
    assert damaged.returncode == 1
    assert "last.ckpt is damaged" in damaged.stderr
    assert "Traceback" not in damaged.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--accumulate", "0"), "Must be >= 1"),
        (("--method", "magic"), "Choose from"),
        (("--epoch", "3"), "Did you mean --epochs?"),
        (("--config", "CONFIG"), "Unknown option"),
    ],
)
def test_settings_that_do_not_exist_or_are_impossible_are_usage_errors(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    config = tmp_path / "config.yaml"
    config.write_text("epoch: 3\n")
    options = tuple(str(config) if option == "CONFIG" else option for option in options)
    result = train(tmp_path, tmp_path / "output", *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "output").exists()


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    result = dadl("evaluate", str(tmp_path))
    assert result.returncode == 1
    assert "is not the folder of a run: it has no run.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_train_names_every_bad_row_before_training(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    data = image_folder(tmp_path / "data")
    (data / "train_30.txt").write_text("0.png 0\nmissing.png 1\n1.png red\n")
    (data / "val.txt").write_text("absent.png 1\n")
    result = train(data, tmp_path / "output")
    assert result.returncode == 1
    for where in ("train_30.txt:2", "train_30.txt:3", "val.txt:1"):
        assert where in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "output").exists()


def test_train_on_values(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    data, output = image_folder(tmp_path / "data"), tmp_path / "output"
    for name in ("train_100.txt", "train_30.txt", "test.txt"):
        rows = [row.split() for row in (data / name).read_text().splitlines()]
        (data / name).write_text("".join(f"{path} {int(path[:-4]) / 15} 0.5 {label}\n" for path, label in rows))
    result = train(data, output, "--columns", "0", "--columns", "2", recipe="chi-model")
    assert result.returncode == 0, result.stderr
    results = results_of(output)
    assert results["samples"] == {"labelled": 4, "unlabelled": 8, "validation": 0, "test": 4}
    table = results["test"]
    assert set(table) == {"all", "column 0", "column 2"}
    assert table["all"]["MAE %"] == pytest.approx((table["column 0"]["MAE %"] + table["column 2"]["MAE %"]) / 2)
    predictions = predictions_of(output / "predictions.csv")
    assert all(0 < float(row["column 2"]) < 1 for row in predictions)
    errors = [abs(float(row["column 0"]) - i / 15) for i, row in enumerate(predictions, start=12)]
    assert table["column 0"]["MAE %"] == pytest.approx(100 * sum(errors) / 4, rel=1e-4)

    (data / "train_30.txt").write_text("0.png 0 0.5 7\n1.png\n")
    bad = train(data, tmp_path / "bad", "--method", "mean-teacher", recipe="chi-model")
    assert bad.returncode == 1
    assert "train_30.txt:1: value 7" in bad.stderr
    assert "train_30.txt:2: expected" in bad.stderr
    assert "Traceback" not in bad.stderr
