"""The characters, their rendering and the split."""

import numpy as np
import pytest

pytest.importorskip("resvg_py", reason="needs pip install 'dadl[demo]'")

from dadl.demos import kanji
from dadl.demos.splits import choose_labelled, split_stratified


@pytest.mark.parametrize(("character", "strokes"), [("一", 1), ("二", 2), ("水", 4), ("鬱", 29)])
def test_stroke_counts(character: str, strokes: int) -> None:
    assert len(kanji.read_strokes(character)) == strokes


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
    image = np.asarray(kanji.render_strokes(kanji.read_strokes("一"), 48))
    assert image.shape == (48, 48)
    assert image.dtype == np.uint8
    ink = np.argwhere(image > 64)
    assert np.ptp(ink[:, 1]) > 30  # wide
    assert np.ptp(ink[:, 0]) < 6  # and flat: no stroke number is drawn beside it
    assert image[:10].max() == 0


def test_more_strokes_are_more_ink() -> None:
    few, many = (np.asarray(kanji.render_strokes(kanji.read_strokes(c), 48)).mean() for c in "一鬱")
    assert many > 5 * few


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


def test_the_labelled_samples_are_a_part_of_every_label_rounded_up() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [3, 40, 101]))
    chosen = choose_labelled(labels, 15, seed=2)
    assert np.bincount(labels[chosen]).tolist() == [1, 6, 16]
    np.testing.assert_array_equal(choose_labelled(labels, 100), np.arange(len(labels)))
    assert set(chosen) != set(choose_labelled(labels, 15, seed=3))
