"""The ``dadl`` command, in fresh processes as a user runs it."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.cli import dadl, predictions_of, results_of, train
from support.folders import image_folder, write_idx

REGIONS = ("all", "many", "medium", "few")
TRAIN_PACKAGES = ("kanjivg", "lightning_fabric", "matplotlib", "PIL", "platformdirs", "resvg_py", "rich", "safetensors")


def test_info_prints_the_build_without_the_extra() -> None:
    result = dadl("info", hide=("lightning_fabric", "matplotlib", "resvg_py", "PIL"))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)


def test_importing_dadl_needs_torch_and_numpy_only() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({(*TRAIN_PACKAGES, 'cyclopts', 'scipy', 'dadl_ext')!r})); "
        "import dadl; assert all(hasattr(dadl, name) for name in dadl.__all__)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("lightning_fabric", ["demo"]),
        ("matplotlib", ["demo"]),
        ("resvg_py", ["demo"]),
        ("lightning_fabric", ["train", "ranksim"]),
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


def test_help_needs_no_figures() -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    result = dadl("train", "ranksim", "--help", hide=("matplotlib", "optuna"))
    assert result.returncode == 0, result.stderr
    assert "--interp-strength" in result.stdout


def test_unknown_demo_and_impossible_options_are_usage_errors() -> None:
    assert dadl("demo", "nothing").returncode == 2
    assert dadl("demo", "--seeds", "0").returncode == 2


def test_quick_demo_writes_table_results_and_figure_and_repeats(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    outputs = tmp_path / "one", tmp_path / "two"
    for output in outputs:
        options = ("--quick", "--seeds", "2", "--device", "cpu", "--output", str(output))
        result = dadl("demo", "ranksim", *options, cache=tmp_path / "cache")
        assert result.returncode == 0, result.stderr
        assert "KanjiVG" in result.stdout
        assert "CC BY-SA 3.0" in result.stdout
        assert "\x1b" not in result.stdout  # not a terminal: no bar, no colours
        assert "LDS + RankSim" in result.stdout

    output = outputs[0]
    one, two = (json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in outputs)
    assert one["metrics"] == two["metrics"]
    assert one["selection"] == two["selection"]
    assert (outputs[0] / "figure.svg").read_bytes() == (outputs[1] / "figure.svg").read_bytes()
    assert set(one["metrics"]) == {"L1", "L1 + RankSim", "LDS", "LDS + RankSim"}
    assert len(one["selected"]) == 2
    for by_seed in one["metrics"].values():
        assert len(by_seed) == 2
        for by_region in by_seed:
            assert tuple(by_region) == REGIONS
            assert by_region["all"]["samples"] == one["samples"]["test"]
            assert by_region["many"]["mae"] is None  # no label has more than 100 samples: null, not NaN or 0
            assert 0 < by_region["few"]["mae"] < 30
    assert sum(one["training_samples"]) == one["samples"]["train"]

    table = (output / "table.md").read_text(encoding="utf-8")
    assert "| L1 + RankSim |" in table
    assert "–" in table
    assert "KanjiVG" in table
    assert (output / "figure.png").read_bytes().startswith(b"\x89PNG")
    svg = (output / "figure.svg").read_text(encoding="utf-8")
    assert svg.startswith("<?xml")
    assert (output / "figure.png").stat().st_size > 50_000


def test_quick_self_tuning_demo_writes_table_results_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    result = dadl(
        "demo", "self-tuning", "--quick", "--device", "cpu", "--output", str(tmp_path), cache=tmp_path / "cache"
    )
    assert result.returncode == 0, result.stderr
    assert "CC BY-SA 3.0" in result.stdout
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    runs = {(run["arm"], run["percentage"]): run for run in results["runs"]}
    assert set(runs) == {
        ("Fine-tuning", 15),
        ("Fine-tuning", 100),
        ("FixMatch", 15),
        ("Self-Tuning", 15),
        ("Self-Tuning", 100),
    }
    trials = Counter(run["arm"] for run in results["selection"])
    assert trials == {"Fine-tuning": 1, "FixMatch": 2, "Self-Tuning": 2}  # one learning rate; two values of their own
    for arm, setting in results["selected"].items():
        tried = [run for run in results["selection"] if run["arm"] == arm]
        assert setting == max(tried, key=lambda run: run["validation_accuracy"])["setting"]
    assert "Trials: Fine-tuning 1, FixMatch 2, Self-Tuning 2." in result.stdout
    for run in runs.values():
        assert 0 <= run["test_accuracy"] <= 100
    assert runs["Self-Tuning", 100]["purity"][-1] == 1  # every key stands under a true label
    assert 0 < runs["Self-Tuning", 15]["purity"][-1] < 1
    assert "| Self-Tuning |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


CHI_MODEL_ARMS = {"Labels only", "Π-model", "R-Drop", "Mean Teacher", "MCD", "χ-Model"}


def test_quick_chi_model_demo_writes_table_results_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    options = ("--quick", "--device", "cpu", "--output", str(tmp_path))
    result = dadl("demo", "chi-model", *options, cache=tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert "CC BY-SA 3.0" in result.stdout
    assert "danielbuechele" in result.stdout
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    runs = {(run["task"], run["arm"]): run for run in results["runs"]}
    assert set(runs) == {(task, arm) for task in results["samples"] for arm in CHI_MODEL_ARMS}
    for (task, arm), run in runs.items():
        assert 0 < run["test_error"] <= 100
        assert run["setting"] == results["selected"][task][arm]
        assert (run["duel"] is not None) == (arm == "χ-Model")
        if run["duel"] is not None:
            assert len(run["duel"]["steps"]) == len(run["duel"]["heads"]) > 1
        assert len(run["points"]) == (8 if task == "stroke ends" else 0)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.index("| Labels only |") < table.index("| χ-Model |")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


CMW_NET_ARMS = ("CE", "CE, meta data too", "MW-Net", "CMW-Net", "CMW-Net-SL", "oracle: CE on clean labels")
SCENARIOS = ("long tail", "40 % flipped", "60 % symmetric")


def test_quick_cmw_net_demo_writes_table_results_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    result = dadl("demo", "cmw-net", "--quick", "--device", "cpu", "--output", str(tmp_path), cache=tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert "CC BY-SA 3.0" in result.stdout
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    runs = {(run["scenario"], run["arm"]): run for run in results["runs"]}
    expected = {(scenario, arm) for scenario in SCENARIOS for arm in CMW_NET_ARMS}
    assert set(runs) == expected - {("long tail", "oracle: CE on clean labels")}
    for run in runs.values():
        assert 0 <= run["test_accuracy"] <= 100
    flipped = runs["40 % flipped", "CMW-Net"]
    assert len(flipped["curves"]) == 3
    assert sum(flipped["clean"]) + sum(flipped["corrupted"]) == results["samples"]["train"]
    assert sum(flipped["corrupted"]) == int(0.4 * results["samples"]["train"])
    assert len(runs["40 % flipped", "MW-Net"]["curves"]) == 1
    assert "| CMW-Net-SL |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_cmw_net_demo_reads_idx_files(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    rng = np.random.default_rng(0)
    for part, n in (("train", 400), ("t10k", 40)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 4).astype(np.uint8)
        write_idx(tmp_path, part, images, labels)
    output = tmp_path / "output"
    result = dadl("demo", "cmw-net", "--quick", "--device", "cpu", "--data", str(tmp_path), "--output", str(output))
    assert result.returncode == 0, result.stderr
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["classes"] == 4
    assert results["samples"] == {"train": 284, "meta": 16, "validation": 75, "test": 40}
    tail = next(run for run in results["runs"] if (run["scenario"], run["arm"]) == ("long tail", "CMW-Net"))
    assert sum(tail["corrupted"]) == 0
    assert sum(tail["clean"]) < 284  # these classes have no tail of their own


def test_data_that_a_demo_cannot_use_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    result = dadl("demo", "cmw-net", "--data", str(tmp_path), "--output", str(tmp_path / "output"))
    assert result.returncode == 1
    assert "neither idx files" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "output").exists()
    result = dadl("demo", "chi-model", "--data", str(tmp_path), "--output", str(tmp_path / "output"))
    assert result.returncode == 1
    assert "expected one, of dSprites or MPI3D" in result.stderr
    assert not (tmp_path / "output").exists()
    result = dadl("demo", "ranksim", "--data", str(tmp_path))
    assert result.returncode == 1
    assert "the ranksim demo has data of its own" in result.stderr


def test_train_evaluate_and_predict(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")
    data, output = image_folder(tmp_path / "data"), tmp_path / "output"
    (data / "val.txt").write_text("10.png 0\n11.png 1\n")
    result = train(data, output, "--tensorboard")
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
