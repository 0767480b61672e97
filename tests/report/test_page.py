"""The page that compares training runs, from made-up run folders."""

import csv
import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs pip install 'dadl[train]'")

from dadl.errors import ProblemsError
from dadl.metrics import higher_is_better
from dadl.report.page import write_report

VOID = {"meta", "br", "path", "use"}
Page = Callable[..., "Parsed"]


class Parsed(HTMLParser):
    """The cells of every table, the text outside of figures, and every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tables: list[list[list[str]]] = []
        self.marked: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.captions: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "figcaption":
            self.captions.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open) and data.strip():
            self.tables[-1][-1][-1] += data.strip()
        if "mark" in self._open:
            self.marked.append(data)
        if "figcaption" in self._open:
            self.captions[-1] += data
        if not {"svg", "style"} & set(self._open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def history(epochs: int) -> list[dict[str, float | None]]:
    return [
        {"epoch": e, "step": 9 * e, "loss": 5 / e, "lr": 0.1, "seconds": 2.0, "val all MAE": 9 - e}
        for e in range(1, epochs + 1)
    ]


def make_run(folder: Path, test: Mapping[str, Mapping[str, float | None]], **changes: Any) -> Path:
    """A run folder with ``results.json``; ``changes`` of settings, or of results where these have such a key."""
    results: dict[str, Any] = {
        "recipe": "ranksim",
        "settings": {"data": "data", "epochs": 3, "lr": 0.001, "seed": 0, "patience": None},
        "facts": {},
        "environment": {"python": "3.11.7", "device": "cpu (x86_64)"},
        "dadl_ext": {"dadl": "0.1.0"},
        "samples": {"train": 100, "test": 20},
        "seconds": 3725.0,
        "best_epoch": 2,
        "history": history(3),
        "test": test,
    }
    for key, value in changes.items():
        (results if key in results else results["settings"])[key] = value
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def make_unfinished(folder: Path, epochs: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: 3\n")
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, history(1)[0])
        writer.writeheader()
        writer.writerows(history(epochs))
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Page:
    def report(*runs: Path) -> Parsed:
        output = tmp_path / "new" / "report.html"
        write_report(runs, output)
        return Parsed(output.read_text(encoding="utf-8"))

    return report


def problems(output: Path, *runs: Path) -> list[str]:
    with pytest.raises(ProblemsError) as error:
        write_report(runs, output)
    assert str(error.value).splitlines() == error.value.problems
    return error.value.problems


def test_the_better_direction_of_metrics() -> None:
    assert [m for m in ("MAE", "GM", "MSE", "MAE %", "column 2", "AURC") if higher_is_better(m)] == []
    assert all(higher_is_better(m) for m in ("Pearson", "Spearman", "accuracy", "Accuracy %", "class accuracy"))


def test_the_best_of_each_row_is_marked(tmp_path: Path, page: Page) -> None:
    a = make_run(tmp_path / "a", {"all": {"MAE": 7.5, "Pearson": 0.8}, "few": {"MAE": 9.0, "Pearson": 0.5}})
    b = make_run(tmp_path / "b", {"all": {"MAE": 7.0, "Pearson": 0.7}, "few": {"MAE": None, "Pearson": 0.5}}, lr=0.1)
    c = make_run(tmp_path / "c", {"all": {"MAE": 70.0, "Pearson": 0.1}}, lr=0.2)
    found = page(a, b, c)
    header = ["arm", "test", "difference"]
    assert found.tables[:4] == [
        [header, ["a", "7.50", "reference"], ["b", "7.00", "−0.500"], ["c", "70.0", "+62.5"]],
        [header, ["a", "9.00", "reference"], ["b", "–", ""], ["c", "–", ""]],
        [header[:2], ["a", "0.800"], ["b", "0.700"], ["c", "0.100"]],
        [header[:2], ["a", "0.500"], ["b", "0.500"], ["c", "–"]],
    ]
    assert found.marked == ["7.00", "0.800", "0.500", "0.500"]  # no mark where only one has a number
    assert "b: MAE is 0.500 lower than with a, but one training each says nothing about chance." in found.text


def test_the_highest_accuracy_is_the_best(tmp_path: Path, page: Page) -> None:
    runs = [make_run(tmp_path / f"r{a}", {"all": {"Accuracy %": a}}, lr=a, recipe="self-tuning") for a in (50, 60)]
    found = page(*runs)
    assert "r60: Accuracy % is 10.0 higher than with r50, but one training each says nothing" in found.text
    assert found.marked == ["60.0"]


def test_seeds_are_paired(tmp_path: Path, page: Page) -> None:
    values = {("base", 0): 1.0, ("base", 1): 2.0, ("base", 2): 6.0, ("other", 0): 4.0, ("other", 1): 8.0}
    runs = [
        make_run(
            tmp_path / f"{name}-s{seed}", {"all": {"MAE": value}}, lr=float(name == "base"), seed=seed, split_seed=0
        )
        for (name, seed), value in values.items()
    ]
    found = page(*runs)
    assert found.tables[0][1:] == [
        ["base-s (3 seeds)", "1.5 ± 0.5", "reference"],
        ["other-s (2 seeds)", "6.0 ± 2.0", "+4.5 ± 1.5"],
    ]
    assert found.tables[1] == [
        ["arm", "lr", "seed"],
        ["base-s (3 seeds)", "1.0", "0, 1, 2"],
        ["other-s (2 seeds)", "0.0", "0, 1"],
    ]
    assert "other-s (2 seeds): no difference seen" in found.text
    assert "1 of 3 pairs of split and seed are left out, for all arms: one arm has no number there." in found.text
    assert "other-s (2 seeds): no test yet of split 0, seed 2" in found.text
    each = found.tables[-1]
    assert [row[0] for row in each[1:]] == [run.name for run in runs]
    assert each[1] == ["base-s0", "3", "2", "1 h 02 min", "1.00"]


def test_a_clear_difference_of_seeds(tmp_path: Path, page: Page) -> None:
    runs = [
        make_run(
            tmp_path / f"{lr}" / f"{seed}", {"all": {"MAE": lr + 0.01 * seed * lr}}, lr=lr, seed=seed, split_seed=0
        )
        for lr in (1.0, 2.0)
        for seed in (0, 1)
    ]
    text = page(*runs).text
    assert "raises MAE by 1.005 ± 0.005." in text
    assert "no difference seen" not in text


def test_a_repeated_seed_is_no_other_seed(tmp_path: Path, page: Page) -> None:
    found = page(make_run(tmp_path / "a", {"all": {"MAE": 1.0}}), make_run(tmp_path / "b", {"all": {"MAE": 1.0}}))
    assert found.tables[0][1:] == [["a", "1.00", "reference"], ["b", "1.00", "the same"]]
    assert "b: the same as a, number by number." in found.text


def test_equal_settings_are_listed_and_others_compared(tmp_path: Path, page: Page) -> None:
    a = make_run(tmp_path / "a", {"all": {"MAE": 1.0}}, lds=True)
    b = make_run(tmp_path / "b", {"all": {"MAE": 2.0}}, lr=0.1, environment={"python": "3.12.0"})
    found = page(a, b)
    assert found.tables[1] == [["arm", "lr", "lds"], ["a", "0.001", "true"], ["b", "0.1", "–"]]
    assert (
        "4 settings that are equal in all runs, defaults included data data epochs 3 seed 0 patience none" in found.text
    )
    assert "train 100 test 20" in found.text
    assert found.tables[-1] == [["run", "python", "device"], ["a", "3.11.7", "cpu (x86_64)"], ["b", "3.12.0", "–"]]


def test_runs_with_other_test_samples_are_not_compared(tmp_path: Path, page: Page) -> None:
    a = make_run(tmp_path / "a", {"all": {"MAE": 1.0}})
    b = make_run(tmp_path / "b", {"all": {"MAE": 2.0}}, lr=0.1, samples={"train": 100, "test": 30})
    found = page(a, b)
    assert "Not compared: the runs were tested on different numbers of samples (20, 30)." in found.text
    assert found.marked == []
    assert [["run", "test"], ["a", "20"], ["b", "30"]] in found.tables


def test_a_caution_where_the_data_have_other_names(tmp_path: Path, page: Page) -> None:
    runs = [make_run(tmp_path / name, {"all": {"MAE": 1.0}}, data=name) for name in "ab"]
    assert "The runs use different data" in page(*runs).text


def test_figures_of_curves_and_regions(tmp_path: Path, page: Page) -> None:
    regions = {region: {"MAE": 1.0, "GM": 0.5} for region in ("all", "many", "few")}
    arms = [(lr, seed) for lr in (0.1, 0.2) for seed in (0, 1)]
    found = page(*(make_run(tmp_path / f"{lr}-{seed}", regions, lr=lr, seed=seed) for lr, seed in arms))
    assert found.captions == ["overall MAE", "many-shot MAE", "few-shot MAE", "Training loss", "val all MAE"]
    figures = re.findall("<figure>.*?</figure>", found.html, re.DOTALL)
    assert all('role="img"' in figure and "aria-label=" in figure for figure in figures)
    # The best epoch of each run is marked in its curve, which the page's colour tells from lines and ticks.
    marks = [len(re.findall(r"<use [^>]*stroke: var\(--page\)", figure)) for figure in figures]
    assert marks == [0, 0, 0, 2, 2]  # of the first split alone: without a digest of the data, a seed draws a split


def test_a_single_run_without_validation(tmp_path: Path, page: Page) -> None:
    losses = [{"epoch": 1, "loss": 2.0, "lr": 0.1}, {"epoch": 2, "loss": None, "lr": 0.1}]
    found = page(make_run(tmp_path / "only", {"all": {"MAE": 0.01}}, history=losses, best_epoch=2))
    assert "only has a test MAE of 0.0100." in found.text
    assert found.captions == ["Training loss"]
    assert found.marked == []
    assert "5 settings, defaults included data" in found.text
    assert found.tables[-1][1] == ["only", "2", "–", "1 h 02 min", "0.0100"]
    assert "var(--page)" not in found.html.split("<figure>")[1]


def test_a_section_for_each_recipe_and_for_unfinished_runs(tmp_path: Path, page: Page) -> None:
    a = make_run(tmp_path / "a", {"all": {"MAE": 1.0}})
    b = make_run(tmp_path / "b", {"all": {"Accuracy %": 90.0}}, recipe="self-tuning")
    running = make_unfinished(tmp_path / "running", 2)
    found = page(a, running, b)
    assert re.findall("<h2>(.*)</h2>", found.html) == ["ranksim, data", "self-tuning, data", "Not finished"]
    assert found.tables[-1] == [["run", "epochs so far"], ["running", "2"]]
    assert found.marked == []
    assert page(running).captions == ["Training loss", "val all MAE"]


def test_everything_of_runs_is_escaped(tmp_path: Path, page: Page) -> None:
    evil = "<script>alert('1')<&\"$x_$"
    metrics = {evil: {evil: 1.0}, "few": {evil: 2.0}}
    losses = [{"epoch": 1, "loss": 1.0, evil: 3.0}]
    facts: dict[str, Any] = {"samples": {evil: evil, "test": 1}, "environment": {evil: evil}, "recipe": evil}
    runs = [
        make_run(tmp_path / f"{i}{evil}", metrics, history=losses, **{evil: i}, **facts, data=f"{evil}{i}")
        for i in range(2)
    ]
    unfinished = make_unfinished(tmp_path / f"2{evil}", 1)
    found = page(*runs, unfinished)
    assert found.count("script") == 0
    assert "<script" not in found.html
    assert evil in found.captions
    assert found.tables[0][1][0] == f"0{evil}"


def test_the_page_needs_nothing_besides_itself(tmp_path: Path, page: Page) -> None:
    regions = {region: {"MAE": 1.0} for region in ("all", "few")}
    found = page(make_run(tmp_path / "a", regions), make_run(tmp_path / "b", regions, lr=0.1))
    links = [
        value
        for _, attributes in found.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    assert links
    assert all(link and link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", found.html)
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in found.tags)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "overflow-x" not in found.html  # nothing hides behind a scroll
    assert "prefers-color-scheme: dark" in found.html


def test_equal_runs_give_equal_pages(tmp_path: Path, page: Page) -> None:
    run = make_run(tmp_path / "a", {"all": {"MAE": 1.0}, "few": {"MAE": 2.0}})
    assert page(run).html == page(run).html


def test_runs_of_one_name_are_told_apart(tmp_path: Path, page: Page) -> None:
    runs = [make_run(tmp_path / str(lr) / "run", {"all": {"MAE": lr}}, lr=lr) for lr in (1.0, 2.0)]
    assert [row[0] for row in page(*runs).tables[0][1:]] == [str(run) for run in runs]


def test_every_folder_that_tells_nothing_is_named(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", {"all": {"MAE": 1.0}})
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = make_run(tmp_path / "broken", {})
    (broken / "results.json").write_text('{"recipe": "rank')
    lacking = make_run(tmp_path / "lacking", {})
    (lacking / "results.json").write_text('{"recipe": 3, "settings": {}, "samples": {}, "seconds": 1, "test": {}}')
    a_list = make_run(tmp_path / "list", {})
    (a_list / "results.json").write_text("[]")
    worded = make_run(tmp_path / "worded", {"all": {"MAE": "good"}})  # type: ignore[dict-item]
    flat = make_run(tmp_path / "flat", {"MAE": 3.0})  # type: ignore[dict-item]
    no_epoch = make_run(tmp_path / "no-epoch", {}, history=[{"loss": 1.0}])
    started, torn = make_unfinished(tmp_path / "started", 0), make_unfinished(tmp_path / "torn", 1)
    with (torn / "log.csv").open("a") as file:
        file.write("1,18,2.\n2,27,abc,0.1,2.0,3.0\n")
    output = tmp_path / "report.html"
    runs = [good, tmp_path / "none", empty, broken, lacking, a_list, worded, flat, no_epoch, started, torn]
    expected = [
        (tmp_path / "none", "there is no such folder"),
        (empty, "not a run of `dadl train`: it has neither results.json nor log.csv"),
        (broken / "results.json", "cannot be read (Unterminated string"),
        (lacking / "results.json", "missing or wrong recipe, environment, dadl_ext, history, best_epoch; run the same"),
        (a_list / "results.json", "missing or wrong recipe, settings"),
        (worded / "results.json", "history or test is not a table of numbers ('good' is not a number)"),
        (flat / "results.json", "history or test is not a table of numbers"),
        (no_epoch / "results.json", "no number of the epoch; there are 'loss'"),
        (started, "this run has not finished its first epoch"),
        (torn / "log.csv:3", "expected 6 columns"),
        (torn / "log.csv:4", "could not convert string to float: 'abc'"),
    ]
    found = problems(output, *runs)
    for problem, (where, part) in zip(found, expected, strict=True):
        assert problem.startswith(f"{where}: "), problem
        assert part in problem
    assert not output.exists()


def test_what_else_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"all": {"MAE": 1.0}})
    assert problems(tmp_path / "report.html") == [
        "no runs: name at least one folder that `dadl train` or `dadl compare` wrote"
    ]
    twice = problems(tmp_path / "report.html", run, tmp_path / "run" / ".." / "run")
    assert twice == [f"{run}: given 2 times; name every run once"]
    assert problems(run, run) == [f"{run}: is a folder; name a file for the report, such as {run / 'report.html'}"]


def test_many_runs_stay_distinct(tmp_path: Path, page: Page) -> None:
    regions = {"all": {"MAE": 1.0}, "few": {"MAE": 2.0}}
    found = page(*(make_run(tmp_path / str(i), regions, lr=float(i)) for i in range(9)))
    styles = [
        (tag["style"], tag["stroke-dasharray"])
        for name, tag in found.tags
        if name == "path" and "stroke-dasharray" in tag
    ]
    assert len(set(styles)) == 9  # each run's in every table and key
    loss = re.findall("<figure>.*?</figure>", found.html, re.DOTALL)[2]
    assert loss.count("stroke-dasharray") == 2


def test_losses_of_different_definitions_have_axes_of_their_own(tmp_path: Path, page: Page) -> None:
    score = {"all": {"MAE": 1.0}}
    settings: list[dict[str, Any]] = [{"loss": "l1"}, {"loss": "mse"}, {"loss": "l1", "lr": 0.5}]
    found = page(*(make_run(tmp_path / f"r{i}", score, **own) for i, own in enumerate(settings)))
    assert found.captions[1:] == ["Training loss: r0, r2", "Training loss: r1", "val all MAE"]
