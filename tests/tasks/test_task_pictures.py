"""The palette: distinct, far from what means something else, always the same."""

import numpy as np
import pytest

from polyptych.tasks._pictures import _oklab, distinct_colors, to_bytes


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
