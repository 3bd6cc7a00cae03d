"""The palette: distinct, far from what means something else, always the same."""

import numpy as np
import pytest

from polyptych.tasks._pictures import (
    UNLABELLED,
    _oklab,
    by_area,
    class_colors,
    class_legend,
    distinct_colors,
    to_bytes,
)
from polyptych.types import LabelInfo


@pytest.mark.parametrize(("count", "apart"), [(1, 0), (13, 0.11), (40, 0.06)])
def test_colors_are_distinct(count, apart):
    colors = distinct_colors(count)
    assert colors.shape == (count, 3) and colors.dtype == np.uint8
    special = np.array([[0, 0, 0], [255, 255, 255], [128, 128, 128]])
    lab = _oklab(np.concatenate([colors, special]).astype(float))
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1) + 10 * np.eye(len(lab))
    assert distance.min() > apart


def test_more_classes_keep_the_colors_of_the_first():
    assert (distinct_colors(40)[:13] == distinct_colors(13)).all()


def test_bytes():
    assert to_bytes(np.array([-1, 0, 0.5, 1, 2, np.nan, np.inf])).tolist() == [0, 0, 128, 255, 255, 0, 255]


def test_what_is_nothing_is_black_or_gray_and_all_else_is_colored() -> None:
    names = ("sky", "background", "Void", "road", "unlabeled", "background/clutter", "otherprop", "no parking")
    colors = class_colors(LabelInfo(classes=names)).astype(int)
    gray = (colors == colors[:, :1]).all(1)
    assert [name for name, flag in zip(names, gray, strict=True) if flag] == [
        "background", "Void", "unlabeled", "background/clutter"]
    assert colors[1].tolist() == [0, 0, 0] and not (colors == UNLABELLED).all(1).any()
    assert (colors[~gray] == distinct_colors(4)).all()
    given = LabelInfo(classes=("background", "a"), colors=((9, 9, 90), (1, 2, 3)))
    assert class_colors(given).tolist() == [[9, 9, 90], [1, 2, 3]]


def test_a_legend_of_what_occurs_the_largest_first() -> None:
    legend = class_legend(LabelInfo(classes=("a", "b", "c")))
    assert by_area(np.array([3, 0, 7])) == [2, 0]
    assert [name for name, _ in legend.occurring(np.array([3, 0, 7])).entries] == ["c", "a"]
    assert legend.occurring(None) is legend
