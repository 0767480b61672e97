"""Texts read by an LSTM on word vectors: from a table to predictions of new texts."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cyclopts", reason="needs pip install 'dadl[train]'")

from dadl import Run
from dadl.errors import SettingsError
from dadl.output import JobProgress
from dadl.ranksim.recipe import RankSimRecipe
from dadl.runs.train import RunOptions, train_run
from rich.console import Console

QUIET = Console(quiet=True)
MOODS = {"awful": -2, "bad": -1, "fine": 0, "good": 1, "great": 2, "superb": 3}


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Of moods, by their value, and of other words; ``superb`` is in no training text."""
    torch.manual_seed(0)
    lines = [f"{word} {value} {value * value}" for word, value in MOODS.items()]
    lines += [f"{word} {torch.randn(()):.3f} 0" for word in ("the", "film", "is", ".")]
    path = tmp_path / "vectors.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Pairs of texts, rated by how far apart their moods are."""
    generator = torch.Generator().manual_seed(0)
    words = [word for word in MOODS if word != "superb"]
    chosen = torch.randint(len(words), (200, 2), generator=generator).tolist()
    rows = [(f"The film is {words[a]}.", f"{words[b]}!", abs(MOODS[words[a]] - MOODS[words[b]])) for a, b in chosen]
    path = tmp_path / "films.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("one", "other", "apart"), *rows])
    return path


def recipe_of(films: Path, vectors: Path, **settings: Any) -> RankSimRecipe:
    columns = {"text": ("one", "other"), "target": "apart", "text_encoder": "bilstm", "lstm_width": 8}
    training = {"epochs": 8, "lr": 0.02, "batch_size": 16}
    return RankSimRecipe(data=films, word_vectors=vectors, **{**columns, **training, **settings})


def test_texts_are_learnt_and_new_ones_predicted(films: Path, vectors: Path, tmp_path: Path) -> None:
    recipe, folder = recipe_of(films, vectors, fds=True, ranksim=0.0, epochs=30), tmp_path / "run"
    task = recipe.read(JobProgress(QUIET))
    assert task.facts["inputs"] == "words"
    assert any("1 of 10 different words have no vector" in note and "such as !" in note for note in task.notes)
    table = train_run(recipe, RunOptions(output=folder, device="cpu"), QUIET)
    assert table["all"]["Pearson"] > 0.9
    run = Run.load(folder)
    assert run.evaluate(device="cpu", progress=False) == table

    new, output = tmp_path / "new.csv", tmp_path / "predicted.csv"
    new.write_text("one,other\nThe film is superb.,awful!\nThe film is superb.,great!\n")
    run.write_predictions(new, output, device="cpu", progress=False)
    with output.open() as file:
        far, near = (float(row["prediction"]) for row in csv.DictReader(file))
    assert far > near + 1  # by vectors of words that no training text had

    vectors.write_text(vectors.read_text().replace("superb 3", "superb 2"))
    with pytest.raises(SettingsError, match="other word vectors than those of the training; put its file back"):
        run.write_predictions(new, output, device="cpu", progress=False)
    vectors.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{vectors}: No such file")):
        run.write_predictions(new, output, device="cpu", progress=False)


def test_a_run_is_not_resumed_with_other_vectors(films: Path, vectors: Path, tmp_path: Path) -> None:
    recipe, folder = recipe_of(films, vectors, epochs=1), tmp_path / "run"
    train_run(recipe, RunOptions(output=folder, device="cpu"), QUIET)
    vectors.write_text(vectors.read_text() + "\nnew 1 1")
    with pytest.raises(SettingsError, match="other word_vectors"):
        train_run(recipe, RunOptions(output=folder, device="cpu", resume=True), QUIET)


def test_settings_that_do_not_go_together(films: Path, vectors: Path) -> None:
    recipe = recipe_of(films, vectors)
    for settings, message in (
        ({"word_vectors": None}, "go together"),
        ({"text_encoder": "minilm"}, "go together"),
        ({"fine_tune": True}, "reads texts alone"),
        ({"text": ("one",), "features": ("other",)}, "reads texts alone"),
        ({"text": (), "features": ("other",)}, "reads texts"),
    ):
        with pytest.raises(SettingsError, match=message):
            replace(recipe, **settings)
