"""Pictures hold exactly the pixels that were painted, where the grid says they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from polyptych.errors import InputError
from polyptych.reports.panels import (
    BACKGROUND,
    banner,
    cell_size,
    contact_sheet,
    legend,
    mosaic,
    panel,
    panel_grid,
    shelves,
    strip,
)


def noise(seed: int, height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def cell(picture: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    return picture[top : top + size[0], left : left + size[1]]


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    return np.kron(picture, np.ones((factor, factor, 1), np.uint8))


@pytest.mark.parametrize("number", range(1, 8))
def test_every_cell_holds_the_painted_pixels(number: int) -> None:
    tasks = [f"task{i}" for i in range(number)]
    image = noise(99)
    truth = {task: noise(i) for i, task in enumerate(tasks)}
    prediction = {task: noise(100 + i) for i, task in enumerate(tasks)}
    picture = panel(image, tasks, truth, prediction)

    size = cell_size(image)
    assert size == (24 * 6, 40 * 6)
    place = panel_grid(size, 2, number + 1, labelled=True)
    assert picture.dtype == np.uint8 and picture.shape == (*place.size, 3)
    assert np.array_equal(cell(picture, place.lefts[0], place.tops[0], size), enlarged(image, 6))
    for left, task in zip(place.lefts[1:], tasks, strict=True):
        assert np.array_equal(cell(picture, left, place.tops[0], size), enlarged(truth[task], 6))
        assert np.array_equal(cell(picture, left, place.tops[1], size), enlarged(prediction[task], 6))


def test_cells_do_not_overlap_and_gutters_are_even() -> None:
    place = panel_grid((50, 80), 2, 4, labelled=True)
    assert {b - a for a, b in zip(place.lefts[1:], place.lefts[2:], strict=False)} == {88}
    assert place.tops[1] - place.tops[0] == 58
    assert place.lefts[1] > place.labels > place.lefts[0] + 80  # the row labels stand between image and tasks


def test_a_missing_label_is_hatched_and_says_so() -> None:
    image = noise(1)
    size = cell_size(image)
    place = panel_grid(size, 2, 3, labelled=True)
    picture = panel(image, ["semseg", "depth"], {"semseg": None}, {"semseg": noise(2), "depth": noise(3)})
    for left in place.lefts[1:]:
        hatched = cell(picture, left, place.tops[0], size)
        assert hatched.min() < 150 and np.ptp(hatched.astype(int), axis=-1).max() < 16  # gray, with dark words
        assert len(np.unique(hatched.reshape(-1, 3), axis=0)) > 2
    assert np.array_equal(cell(picture, place.lefts[2], place.tops[1], size), enlarged(noise(3), 6))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((128, 160), (256, 320)),
        ((240, 320), (240, 320)),
        ((480, 640), (240, 320)),
        ((1, 1), (240, 240)),
        ((1024, 2048), (204, 409)),
        ((213, 160), (213, 160)),
        ((3, 1000), (1, 333)),
    ],
)
def test_cell_size_is_a_whole_multiple_or_fraction(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    assert cell_size(image) == expected
    assert panel(image, ["a"], {}, {}).ndim == 3


def test_a_picture_of_another_size_fills_its_cell_without_new_colors_when_enlarged() -> None:
    image, small = noise(0), noise(1, 7, 11)
    place = panel_grid(cell_size(image), 1, 2, labelled=False)
    shown = cell(strip(image, {"depth": small}), place.lefts[1], place.tops[0], cell_size(image))
    assert {tuple(c) for c in shown.reshape(-1, 3)} == {tuple(c) for c in small.reshape(-1, 3)}


def test_thin_lines_survive_reduction() -> None:
    image = np.full((960, 1280, 3), 255, np.uint8)
    line = image.copy()
    line[:, 641] = 0
    place = panel_grid(cell_size(image), 1, 2, labelled=False)
    shown = cell(strip(image, {"boundaries": line}), place.lefts[1], place.tops[0], cell_size(image))
    assert (shown.min(axis=(1, 2)) < 255).all()


def test_header_and_row_labels_are_written() -> None:
    image = noise(0)
    place = panel_grid(cell_size(image), 2, 2, labelled=True)
    picture = panel(image, ["depth"], {}, {}, caption="frame 7")
    ground = np.array(BACKGROUND)
    header = picture[: place.tops[0] - 1, place.lefts[1] :]
    assert header.min() < 100 and (header[0] == ground).all()
    labels = picture[place.tops[0] :, place.labels : place.lefts[1] - 2]
    assert labels.min() < 160
    below = cell(picture, place.lefts[0], place.tops[1], cell_size(image))
    assert below.min() < 160
    assert (cell(panel(image, ["depth"], {}, {}), place.lefts[0], place.tops[1], cell_size(image)) == ground).all()


def test_a_banner_shows_more_of_a_name_than_a_column_can() -> None:
    rows = np.zeros((40, 600, 3), np.uint8)
    names = [f'shared · fixed:weights={{"semseg":{weight},"depth":1,"normals":1}}' for weight in (1, 4)]
    first, second = (banner(name, rows) for name in names)
    assert first.shape == second.shape and first.shape[1] == 600
    assert not np.array_equal(first, second) and (first[-2:] == BACKGROUND).all()


def test_a_contact_sheet_stacks_whole_pictures() -> None:
    first, second = (
        strip(noise(0), {"a": noise(1), "b": noise(2)}),
        strip(noise(3, 30, 20), {"a": noise(4, 30, 20)}),
    )
    sheet = contact_sheet([first, second])
    assert sheet.shape == (len(first) + len(second), max(first.shape[1], second.shape[1]), 3)
    assert np.array_equal(sheet[: len(first), : first.shape[1]], first)
    assert np.array_equal(sheet[len(first) :, : second.shape[1]], second)
    assert (sheet[len(first) :, second.shape[1] :] == np.array(BACKGROUND)).all()


def test_narrow_pictures_stand_beside_each_other() -> None:
    narrow, tall, wide = (np.full((h, w, 3), value, np.uint8) for h, w, value in
                          ((30, 40, 1), (50, 40, 2), (20, 200, 3)))
    rows = shelves([narrow, tall, wide, narrow], 100)
    assert [row.shape[:2] for row in rows] == [(50, 80), (20, 200), (30, 40)]
    assert (rows[0][:30, :40] == 1).all() and (rows[0][:, 40:] == 2).all()


def test_a_strip_says_where_there_is_no_label() -> None:
    image = np.full((60, 80, 3), 90, np.uint8)
    assert strip(image, {"semseg": None}).shape == strip(image, {"semseg": image}).shape


def test_a_legend_shows_every_color_and_fits_its_width() -> None:
    colors = [(i * 6, 255 - i * 6, i) for i in range(40)]
    picture = legend([f"class {i}" for i in range(40)], colors, width=500)
    seen = {tuple(int(v) for v in c) for c in picture.reshape(-1, 3)}
    assert picture.shape[1] == 500 and set(colors) <= seen
    assert legend([], []).shape[1] == 960
    assert legend(["a name that is longer than the whole legend"], [(1, 2, 3)], width=120).shape[1] == 120


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        [[0]],
    ],
)
def test_wrong_pictures_are_refused(wrong: object) -> None:
    # The checks of annotations (tests/typechecking.py) come first.
    refused = InputError, TypeCheckError
    message = r"picture: got .*; needs a uint8 array \(h w 3\)|violates type hint"
    with pytest.raises(refused, match=message):
        strip(wrong, {})  # type: ignore[arg-type]
    with pytest.raises(refused, match=message):
        panel(noise(0), ["a"], {"a": wrong}, {})  # type: ignore[dict-item]


@pytest.mark.parametrize(("size", "tasks"), [((48, 64), 7), ((48, 64), 2), ((64, 48), 5), ((20, 200), 3),
                                             ((48, 64), 0)])
def test_a_mosaic_has_about_the_shape_of_a_screen(size, tasks) -> None:
    image = np.full((*size, 3), 10, np.uint8)
    painted = {f"task {i}": np.full((*size, 3), 20 + i, np.uint8) for i in range(tasks)}
    sheet = mosaic(image, painted)
    shown = {tuple(color.tobytes()) for color in np.unique(np.ascontiguousarray(sheet).view("V3"))}
    assert {(10, 10, 10), *((20 + i,) * 3 for i in range(tasks))} <= shown, "every picture is there"
    # No other number of columns comes much nearer to 16:9, by the cells alone.
    height, width = cell_size(image)
    off = [abs(math.log(width * columns / (height * math.ceil((tasks + 1) / columns)) * 9 / 16))
           for columns in range(1, tasks + 2)]
    assert abs(math.log(sheet.shape[1] / sheet.shape[0] * 9 / 16)) < min(off) + 0.35


def test_cells_of_a_mosaic_may_be_larger() -> None:
    image = np.zeros((360, 640, 3), np.uint8)
    assert cell_size(image) == (180, 320) and cell_size(image, 640) == (360, 640)
    assert mosaic(image, {"a": image}, largest=640).shape[1] >= 640
