"""Overlap of classes and errors of depth, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from tessera.evaluate.dense import DEPTH_SCORES, depth_scores, mean_scores, overlap
from tessera.evaluate.drawing import depth_png, film_row, labels_png, mask_png, shares, sheet, to_look_at

LABELS = np.array([[[0, 0, 1], [1, 255, 1]], [[2, 2, 2], [2, 2, 2]]])
SEEN = np.array([[[0, 1, 1], [1, 0, 0]], [[2, 2, 2], [2, 2, 1]]])


def test_overlap_counts_each_picture_and_class_and_passes_over_what_is_not_known() -> None:
    found = overlap(SEEN, LABELS, 4)
    assert found.both.tolist() == [[1, 2, 0, 0], [0, 0, 5, 0]]
    assert found.either.tolist() == [[3, 4, 0, 0], [0, 1, 6, 0]]
    assert found.mean() == pytest.approx((1 / 3 + 2 / 5 + 5 / 6) / 3)  # class 3 is neither there nor seen
    assert found.by_picture() == pytest.approx([(1 / 3 + 2 / 4) / 2, (0 + 5 / 6) / 2])
    assert found.overall(1) == pytest.approx(2 / 5)


def test_a_picture_of_which_nothing_is_known_is_right_and_what_is_all_right_is_one() -> None:
    nothing = overlap(SEEN[:1], np.full_like(SEEN[:1], 255), 3)
    assert nothing.by_picture().tolist() == [1.0] and nothing.mean() == 0.0
    perfect = overlap(SEEN, SEEN, 3)
    assert perfect.mean() == 1.0 and perfect.by_picture().tolist() == [1.0, 1.0]


def test_errors_of_depth_are_their_formulas_over_what_is_known() -> None:
    found = depth_scores(np.array([[1.0, 3.0, 9.0]]), np.array([[2.0, 2.5, 0.0]]))
    logs = [math.log(1 / 2), math.log(3 / 2.5)]
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 0.25) / 2))
    assert found["abs_rel"] == pytest.approx((1 / 2 + 0.5 / 2.5) / 2)
    assert found["log10"] == pytest.approx((abs(logs[0]) + logs[1]) / 2 / math.log(10))
    assert found["silog"] == pytest.approx(
        math.sqrt((logs[0] ** 2 + logs[1] ** 2) / 2 - 0.5 * ((logs[0] + logs[1]) / 2) ** 2)
    )
    assert (found["d1"], found["d2"], found["d3"]) == (0.5, 0.5, 0.5)
    unknown = depth_scores(np.ones((2, 2)), np.zeros((2, 2)))
    assert unknown == {name: float(name in ("d1", "d2", "d3")) for name in DEPTH_SCORES}
    assert mean_scores([found, unknown])["rmse"] == pytest.approx(found["rmse"] / 2)


def test_what_is_seen_is_written_as_numbers_of_classes_masks_and_millimetres() -> None:
    labels = np.array([[0, 3], [1, 3]])
    drawn = labels_png(labels)
    assert drawn.mode == "P" and np.asarray(drawn).tolist() == labels.tolist()
    colours = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    assert len({tuple(one) for one in colours.tolist()}) == 3 and colours[0].tolist() == [0, 0, 0]
    assert shares(labels, ("a", "b", "c", "d")) == {"d": 0.5, "a": 0.25, "b": 0.25}
    assert np.asarray(mask_png(np.array([[True, False]]))).tolist() == [[255, 0]]
    assert np.asarray(depth_png(np.array([[0.0124, 70.0]]))).tolist() == [[12, 65535]]


def test_what_is_to_be_looked_at_has_colours_and_the_nearest_is_white() -> None:
    depth = to_look_at(depth_png(np.array([[1.0, 2.0, 3.0]])))
    assert np.asarray(depth)[0, :, 0].tolist() == [255, 128, 0] and depth.mode == "RGB"
    assert np.asarray(to_look_at(depth_png(np.ones((1, 2)))))[0, :, 0].tolist() == [0, 0]
    labels = to_look_at(labels_png(np.array([[0, 1]])))
    assert labels.getpixel((0, 0)) == (0, 0, 0) and len(set(labels.getpixel((1, 0)))) == 3


def test_a_sheet_has_rows_as_high_as_its_pictures_and_a_film_is_a_row_from_first_to_last() -> None:
    reds = [Image.new("RGB", (20, 10), (255, 0, 0)) for _ in range(3)]
    page = sheet(reds, columns=2)
    assert page.size == (260, 132) and page.getpixel((0, 0)) == (255, 0, 0) == page.getpixel((132, 63))
    assert page.getpixel((0, 68)) == (255, 0, 0)
    assert page.getpixel((0, 64)) == page.getpixel((132, 68)) == (255, 255, 255)
    film = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    assert [one.getpixel((0, 0))[0] for one in film_row(film)] == [0, 3, 5, 8, 11, 14, 16, 19]
    assert len(film_row(film[:2])) == 8
