"""The characters, their rendering and the split."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("resvg_py", reason="needs pip install 'dadl[train]'")

from dadl.demos import kanji
from dadl.demos.splits import choose_labelled, split_balanced, split_stratified


@pytest.mark.parametrize(("character", "strokes"), [("一", 1), ("二", 2), ("水", 4), ("鬱", 29)])
def test_stroke_counts(character: str, strokes: int) -> None:
    assert len(kanji.read_strokes(character)) == strokes


@pytest.mark.parametrize(
    ("stroke", "start", "end"),
    [
        ("M10,20C1,2,3,4,30,40", (10, 20), (30, 40)),
        ("M10,20c1,2,3,4,5,6", (10, 20), (15, 26)),
        ("m 10 20 c 1 2 3 4 5 6 1 1 2 2 -3 -4", (10, 20), (12, 22)),
        ("M10.5,20c1-2,3-4,.5-6s1.5,1,2,2.25", (10.5, 20), (13, 16.25)),
        ("M10,20c1,1,2,2,3,3S0,0,50,60.5", (10, 20), (50, 60.5)),
    ],
)
def test_where_a_stroke_starts_and_ends(stroke: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    fractions = [tuple(value / 109 for value in point) for point in (start, end)]
    for found, expected in zip(kanji.stroke_ends(stroke), fractions, strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("stroke", ["", "M1,2c1,2,3", "M1,2a1,2,3,4,5,6,7", "M"])
def test_a_stroke_that_cannot_be_followed_is_shown(stroke: str) -> None:
    with pytest.raises(ValueError, match="stroke"):
        kanji.stroke_ends(stroke)


def test_key_points_lie_on_ink() -> None:
    for character in "水河鬱":
        image = kanji.render_strokes(kanji.read_strokes(character), 109)
        for x, y in kanji.read_key_points(character):
            assert image[int(109 * y) - 1 : int(109 * y) + 2, int(109 * x) - 1 : int(109 * x) + 2].max() > 128
    (start, end, *last) = kanji.read_key_points("一")
    assert [start, end] == last  # its only stroke is the first and the last
    assert start[0] < 0.2 < 0.8 < end[0]  # from left to right


def test_only_han_characters_are_listed() -> None:
    characters = kanji.list_kanji()
    assert characters == sorted(set(characters))
    assert len(characters) > 6000
    assert {"一", "鬱", "令"} <= set(characters)
    assert not set("Aa0あアー々⺡") & set(characters)


def test_a_character_without_drawing_is_named() -> None:
    with pytest.raises(ValueError, match=r"'€' \(U\+20AC\)"):
        kanji.read_strokes("€")


def test_one_stroke_is_one_horizontal_line_of_ink() -> None:
    image = kanji.render_strokes(kanji.read_strokes("一"), 48)
    assert image.shape == (48, 48)
    assert image.dtype == np.uint8
    ink = np.argwhere(image > 64)
    assert np.ptp(ink[:, 1]) > 30  # wide
    assert np.ptp(ink[:, 0]) < 6  # and flat: no stroke number is drawn beside it
    assert image[:10].max() == 0


def test_more_strokes_are_more_ink() -> None:
    few, many = (kanji.render_strokes(kanji.read_strokes(c), 48).mean() for c in "一鬱")
    assert many > 5 * few


def test_cache_is_read_and_a_damaged_one_is_rendered_again(tmp_path: Path) -> None:
    rendered: list[int] = []
    characters = ["一", "二", "鬱"]

    def load() -> kanji.Kanji:
        return kanji.load_kanji(24, characters, cache_dir=tmp_path, on_rendered=lambda: rendered.append(1))

    first = load()
    assert first.strokes.tolist() == [1, 2, 29]
    assert load().radicals == first.radicals == ["一", "二", "鬯"]
    assert len(rendered) == 3
    np.testing.assert_array_equal(load().images, first.images)
    assert len(rendered) == 3  # nothing was rendered again

    (file,) = tmp_path.iterdir()  # the temporary file is gone
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]):
        rendered.clear()
        file.write_bytes(damaged)
        np.testing.assert_array_equal(load().images, first.images)
        assert len(rendered) == 3
        assert file.read_bytes() != damaged

    kanji.load_kanji(32, characters, cache_dir=tmp_path)
    kanji.load_kanji(24, characters[:2], cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # other parameters, another file


def test_split_is_balanced_disjoint_and_trains_every_label() -> None:
    sizes = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 49, 8: 50, 9: 600}
    labels = np.random.default_rng(1).permutation(np.repeat(list(sizes), list(sizes.values())))
    split = split_balanced(labels, per_label=20)
    parts = (split.train, split.validation, split.test)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))

    counts = {label: tuple(int((labels[part] == label).sum()) for part in parts) for label in sizes}
    assert counts == {
        1: (1, 0, 0),
        2: (1, 0, 1),
        3: (1, 1, 1),
        4: (2, 1, 1),
        5: (1, 2, 2),
        6: (2, 2, 2),
        7: (11, 19, 19),
        8: (10, 20, 20),
        9: (560, 20, 20),
    }


def test_split_repeats_for_a_seed() -> None:
    labels = np.repeat(np.arange(5), 50)
    one, two, other = (split_balanced(labels, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.test, two.test)
    assert (one.test != other.test).any()


@pytest.mark.parametrize(("character", "radical"), list(zip("河草鬱井一", "水艸鬯二一", strict=True)))
def test_traditional_radicals_in_their_full_form(character: str, radical: str) -> None:
    assert kanji.read_radical(character) == radical


def test_a_stratified_split_holds_out_the_same_fractions_of_every_label() -> None:
    sizes = {3: 20, 5: 40, 8: 360}
    labels = np.random.default_rng(1).permutation(np.repeat(list(sizes), list(sizes.values())))
    split = split_stratified(labels, validation=0.15, test=0.25)
    parts = (split.train, split.validation, split.test)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    counts = {label: tuple(int((labels[part] == label).sum()) for part in parts) for label in sizes}
    assert counts == {3: (12, 3, 5), 5: (24, 6, 10), 8: (216, 54, 90)}
    assert (split.test != split_stratified(labels, validation=0.15, test=0.25, seed=1).test).any()


def test_labelled_subsets_are_stratified_and_nested() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [3, 40, 101]))
    chosen = {ratio: choose_labelled(labels, ratio, seed=2) for ratio in (0.15, 0.3, 1.0)}
    assert np.bincount(labels[chosen[0.15]]).tolist() == [1, 6, 16]
    assert np.bincount(labels[chosen[0.3]]).tolist() == [1, 12, 31]
    assert set(chosen[0.15]) < set(chosen[0.3])
    np.testing.assert_array_equal(chosen[1.0], np.arange(len(labels)))
    assert set(chosen[0.15]) != set(choose_labelled(labels, 0.15, seed=3))
