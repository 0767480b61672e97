"""Full disks, signals, other processes and consoles that cannot show something: a sentence, and nothing is lost."""

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

import yaml
from dadl import Run, cli, recipes
from dadl.errors import OutputError, SettingsError, UserError
from dadl.files import locked, replace_file, write_text
from dadl.output import ForgivingStream
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.train import RunOptions, train_run
from dadl.training import TrainingError
from dadl.training.checkpoints import CheckpointError
from rich.console import Console
from support.runs import FILES, QUIET, Perceptron, TinyRecipe, numbers, run


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRecipe:
    monkeypatch.setattr(recipes, "RECIPES", (*recipes.RECIPES, TinyRecipe))
    return TinyRecipe(data=numbers(tmp_path / "numbers.txt"))


@contextmanager
def full_disk(largest_file: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hidden_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def test_a_full_disk_is_a_sentence_and_keeps_the_last_checkpoint(
    tiny: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Perceptron, "stop_after", 8)
        with pytest.raises(InterruptedError):
            run(tiny, output)
    before = (output / "last.ckpt").read_bytes()
    with full_disk(3000), pytest.raises(OutputError, match=r"cannot write .*\.ckpt: File too large; make room there"):
        run(tiny, output, resume=True)
    assert (output / "last.ckpt").read_bytes() == before
    assert hidden_files(tmp_path) == []
    run(tiny, output, resume=True)
    with full_disk(10), pytest.raises(OutputError, match=r"cannot write .*predicted\.csv"):
        Run.load(output).write_predictions(tiny.data, tmp_path / "predicted.csv", device="cpu", progress=False)
    assert hidden_files(tmp_path) == []
    assert not (tmp_path / "predicted.csv").exists()


def test_devices_and_links_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_text(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"
    with pytest.raises(OutputError, match="cannot write /dev/full: No space left on device"):
        write_text(Path("/dev/full"), "text")
    assert Path("/dev/full").is_char_device()


def test_two_runs_in_one_folder(tiny: TinyRecipe, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(SettingsError, match=r"another process writes to .*run"):
        run(tiny, tmp_path / "run")
    run(tiny, tmp_path / "run")
    assert hidden_files(tmp_path) == []


def test_folders_that_look_like_addresses_are_folders(tiny: TinyRecipe, tmp_path: Path) -> None:
    for name in ("run::1", "http:", "s3:"):
        run(replace(tiny, epochs=1), tmp_path / name)
        assert (tmp_path / name / "last.ckpt").exists()


def test_checkpoints_are_written_beside_their_place(
    tiny: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    run(replace(tiny, epochs=1), tmp_path / "run")


class Gone(io.StringIO):
    """A console that fails as the test is shown."""

    def write(self, text: str) -> int:
        if "Test of" in text:
            raise UnicodeEncodeError("ascii", text, 0, 1, "no such letter")
        return super().write(text)


def test_results_are_written_before_they_are_shown(tiny: TinyRecipe, tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        train_run(tiny, RunOptions(output=tmp_path / "run", device="cpu"), Console(file=Gone()))
    for name in (*FILES, "results.json"):
        assert (tmp_path / "run" / name).exists()


def test_a_console_shows_what_it_can() -> None:
    raw = io.BytesIO()
    ascii_only = ForgivingStream(io.TextIOWrapper(raw, encoding="ascii"))
    print("γ = 100", file=ascii_only, flush=True)
    assert raw.getvalue() == b"\\u03b3 = 100\n"
    reading, writing = os.pipe()
    closed = ForgivingStream(os.fdopen(writing, "w"))
    os.close(reading)
    for _ in range(2):
        print("text", file=closed, flush=True)
    assert isinstance(closed.error, BrokenPipeError)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_as_ctrl_c_does(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*_: object, **options: object) -> None:
        def write(_: Path) -> None:
            os.kill(os.getpid(), number)

        replace_file(tmp_path / "file", write)

    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(type(cli.app), "meta", property(lambda app: command))
    monkeypatch.setattr(cli, "forgive_streams", lambda: None)
    signal.signal(number, signal.SIG_DFL)  # the tests may have been started by nohup
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert ended.value.code == 128 + number
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


WRITES_AND_WAITS = """
import os, sys
from pathlib import Path
from dadl.files import locked, replace_file
from dadl.processes.signals import stop_on_signals

def write(place):
    place.write_text("half of it")
    print("writing", flush=True)
    os.read(os.pipe()[0], 1)  # as in a collective, where no Python code runs

stop_on_signals()
with locked(Path(sys.argv[1])):
    replace_file(Path(sys.argv[1], "file"), write)
"""


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_of_several_processes_ends_at_once_and_leaves_no_half_file(
    number: signal.Signals, rank: int, tmp_path: Path
) -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": str(rank)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", WRITES_AND_WAITS, str(tmp_path)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error.count(f"stopped by {number.name}") == (rank == 0)
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_a_run_that_diverges_is_an_error(tmp_path: Path, lr: float) -> None:
    data = tmp_path / "data.csv"
    data.write_text("x,y\n" + "".join(f"{i},{i % 7}\n" for i in range(40)))
    recipe = RankSimRecipe(data=data, target="y", features=("x",), epochs=1, lr=lr)
    with pytest.raises(TrainingError, match=r"NaN or infinite|loss of epoch"):
        train_run(recipe, RunOptions(output=tmp_path / "run", device="cpu"), QUIET)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_checkpoint_of_nan_or_with_one_wrong_bit_is_refused(tiny: TinyRecipe, tmp_path: Path) -> None:
    run(tiny, tmp_path / "run")
    file = tmp_path / "run" / "best.ckpt"
    state = torch.load(file, weights_only=True)
    weight = state["method"]["network.0.weight"]
    content = bytearray(file.read_bytes())
    at = content.index(weight.numpy().tobytes())
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the checksum of .* is wrong"):
        Run.load(tmp_path / "run").evaluate(part="test", device="cpu", progress=False)
    weight[0, 0] = torch.nan
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"network\.0\.weight holds NaN or infinity"):
        Run.load(tmp_path / "run").evaluate(part="test", device="cpu", progress=False)


def test_a_run_on_a_table(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("id,x,y\n" + "".join(f"=a{i},{i},{i % 7}\n" for i in range(40)))
    recipe = RankSimRecipe(data=data, target="y", features=("x",), epochs=1)
    shown = io.StringIO()
    train_run(recipe, RunOptions(output=tmp_path / "run", device="cpu"), Console(file=shown, width=200))
    assert "A batch of 64 is larger than the 32 training samples" in shown.getvalue()
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (settings["lr"], settings["loss"], settings["ranksim"]) == (1e-3, "l1", 0.0)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["settings"] == settings
    train_run(recipe, RunOptions(output=tmp_path / "run", device="cpu", resume=True), QUIET)  # which names no defaults

    trained = Run.load(tmp_path / "run")
    trained.write_predictions(data, tmp_path / "out.csv", keep=["id"], device="cpu", progress=False)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"=a{i}" for i in range(40)]
    assert all(float(row["prediction"]) < 10 for row in rows)
    with pytest.raises(UserError, match="no column 'name'"):
        trained.write_predictions(data, tmp_path / "out.csv", keep=["name"], device="cpu", progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="device cuda: PyTorch finds no GPU"):
            trained.evaluate(part="test", device="cuda", progress=False)


def test_code_that_a_folder_or_a_file_names_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harmful.py").write_text("import pathlib\npathlib.Path('harm').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = {"data": str(tmp_path), "labels": 15, "augment": "harmful:view"}
    facts = {"recipe": "self-tuning", "facts": {"classes": 2}, "samples": {}, "fingerprints": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run.json").write_text(json.dumps(facts))
    config = ["--config", "config.yaml"]
    for tokens in (
        ["evaluate", "."],
        ["predict", ".", "--data", "."],
        ["train", "self-tuning", *config],
        ["train", "self-tuning", *config, "--resume", "--output", "."],
    ):
        with pytest.raises(SettingsError, match=r"augment harmful:view\. If you trust it, say --trust-code"):
            cli.app.meta(tokens, result_action="return_none")
    assert not (tmp_path / "harm").exists()
    with pytest.raises(UserError, match="augment 'harmful:view' cannot be used"):  # it was executed, and has no view
        cli.app.meta(["evaluate", ".", "--trust-code"], result_action="return_none")
    assert (tmp_path / "harm").exists()


def test_python_m_dadl_imports_nothing_of_the_current_folder(tmp_path: Path) -> None:
    for name in ("numpy", "torch", "yaml", "cyclopts", "rich"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported by accident')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "dadl", "--version"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_is_a_sentence(number: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    caught = f"    os.kill(os.getpid(), {int(number)})\n    time.sleep(60)\nexcept BaseException:\n    pass\n"
    for module, told in (("cyclopts", "before anything had begun"), ("torch", "training run continues with --resume")):
        (tmp_path / f"{module}.py").write_text(f"import os, time\ntry:\n{caught}")
        command = [sys.executable, "-m", "dadl", "info"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        (tmp_path / f"{module}.py").unlink()
        assert result.returncode == 128 + number
        assert result.stderr.startswith(f"stopped by {number.name}")
        assert result.stderr.endswith(f"{told}\n")


def test_who_imports_the_package_keeps_the_signals() -> None:
    code = "import signal, dadl; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
