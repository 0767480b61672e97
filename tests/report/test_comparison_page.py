"""The page of a comparison, from made-up results whose truth is known."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs pip install 'dadl[train]'")

from dadl.comparison.judgement import judge
from dadl.comparison.results import Comparison
from dadl.report.page import write_figure, write_page, write_report
from matplotlib.figure import Figure
from support.comparisons import class_run, regression_comparison

ARMS = {"plain": {}, "LDS": {"few": -2.0}, "RankSim": {}}


def captions(html: str) -> list[str]:
    return re.findall("<figcaption>(.*?)</figcaption>", html)


def test_planted_effects_and_their_region_sizes(tmp_path: Path) -> None:
    comparison = Comparison.load(regression_comparison(tmp_path / "found", ARMS))
    judgement = judge(comparison)
    found = {(d.arm, d.row) for d in judgement.differences if d.found}
    assert ("LDS", "few") in found
    assert not [pair for pair in found if pair[0] == "RankSim"]
    assert (judgement.row, judgement.column) == ("few", "MAE")
    few = judgement.sizes["few"]
    assert {d.samples for d in judgement.differences if d.row == "few"} == {few.test[0]}
    assert sum(judgement.sizes[row].test[0] for row in ("many", "medium", "few")) == judgement.sizes["all"].test[0]
    assert judgement.verdict.sentences["LDS"].startswith("LDS lowers few-shot MAE by ")


def test_the_chance_of_test_samples_is_not_added_over_splits(tmp_path: Path) -> None:
    comparison = Comparison.load(regression_comparison(tmp_path / "splits", ARMS, seeds=2, splits=3))
    differences = judge(comparison).differences
    assert {(d.repeated, d.count, d.samples) for d in differences} == {("splits", 3, None)}


def test_predictions_that_do_not_give_the_score_are_not_used(tmp_path: Path) -> None:
    folder = regression_comparison(tmp_path / "changed", ARMS)
    (path,) = folder.glob("lds/split-0/seed-2/predictions.csv")
    path.write_text("name,target,prediction\n" + "x,1,2\n" * 380)
    assert {d.samples for d in judge(Comparison.load(folder)).differences} == {None}


def test_everything_a_page_shows(tmp_path: Path) -> None:
    folder = regression_comparison(tmp_path / "all", ARMS, without=(("RankSim", 0, 4),))
    failed = folder / "ranksim" / "split-0" / "seed-4"
    failed.mkdir()
    (failed / "failed.txt").write_text("the loss is NaN")
    figure = Figure()
    figure.subplots().plot([0, 1])
    write_page(Comparison.load(folder), tmp_path / "page.html", lambda recipe, run: [(f"{recipe}'s own", figure)])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    shown = captions(html)
    assert shown[:4] == ["overall MAE", "many-shot MAE", "medium-shot MAE", "few-shot MAE"]
    for title in ("Error by label, above the number of training samples", "Training loss: LDS", "lr", "val few MAE"):
        assert title in shown
    assert shown[-1] == "RankSim: ranksim&#39;s own"
    assert "RankSim, split 0, seed 4: the loss is NaN" in html
    assert "no test yet" not in html  # it has failed, and is not to come
    assert "1 of 4 pairs of split and seed are left out" in html
    assert "Chosen on validation, by few MAE" in html
    assert html.count("aria-label=") >= html.count("<figure")
    for table in re.findall("<table.*?</table>", html, re.DOTALL):
        header, *rows = re.findall("<tr.*?</tr>", table, re.DOTALL)
        assert {len(re.findall("<t[dh]", row)) for row in rows} == {len(re.findall("<th[ >]", header))}


def test_dadl_report_takes_the_folder_of_a_comparison(tmp_path: Path) -> None:
    folder = regression_comparison(tmp_path / "given", ARMS, trials=0)
    write_page(Comparison.load(folder), tmp_path / "one.html")
    write_report([folder], tmp_path / "other.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_an_unfinished_comparison_has_a_page(tmp_path: Path) -> None:
    nothing = tuple((arm, 0, seed) for arm in ARMS for seed in (1, 2))
    folder = regression_comparison(tmp_path / "begun", ARMS, seeds=2, without=nothing)
    write_page(Comparison.load(folder), tmp_path / "page.html")
    write_figure(Comparison.load(folder), tmp_path / "figure")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No test scores." in html
    assert "plain: no test yet of split 0, seed 1; split 0, seed 2" in html


def test_the_figure_is_written_twice_alike(tmp_path: Path) -> None:
    comparison = Comparison.load(regression_comparison(tmp_path / "drawn", ARMS))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_figure(comparison, tmp_path / name / "figure")
    for ending in ("png", "svg"):
        one, two = (tmp_path / name / f"figure.{ending}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_classes_have_coverage_and_calibration(tmp_path: Path) -> None:
    runs = [
        class_run(tmp_path / f"{method}-{seed}", accuracy, seed, method=method, split_seed=0)
        for method, accuracy in (("ce", 0.7), ("cmw-net", 0.8))
        for seed in (1, 2, 3)
    ]
    write_report(runs, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert captions(html)[1:3] == ["Error among the samples that are most certain", "Accuracy by confidence"]
    area = re.search(r"on average over all coverages ce \(3 seeds\) ([\d.]+) %", html)
    assert area is not None
    assert 0 < float(area[1]) < 30
    assert "The chance of drawing these test samples is counted in." in html


def test_labels_of_a_region_reach_its_ends(tmp_path: Path) -> None:
    comparison = Comparison.load(regression_comparison(tmp_path / "labels", ARMS))
    sizes = judge(comparison).sizes
    assert sizes["all"].text.endswith("labels 0 to 100")
    assert np.diff(sizes["many"].labels[0])[0] < 100
