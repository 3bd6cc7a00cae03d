"""Example pictures: the image next to labels and predictions, one column per task.

Pictures are uint8 RGB arrays (h w 3). Small ones are enlarged by integer factors, so that every pixel of a label stays
a crisp square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from polyptych.errors import InputError
from polyptych.reports.style import BACKGROUND, FAINT_INK, HATCH, HATCH_GROUND, INK, LINE, letters

Picture: TypeAlias = UInt8[np.ndarray, "_ _ 3"]

CELL = 240  # small pictures are enlarged until their longer side is about this many pixels
LARGEST_CELL = 480  # larger ones are reduced, or a sheet of seven tasks would be wider than any screen
SCREEN = 16 / 9
MARGIN = 16
GUTTER = 8


def panel(image: Picture, tasks: Sequence[str], truth: Mapping[str, Picture | None],
          prediction: Mapping[str, Picture | None], caption: str = "") -> Picture:
    """One example as a picture: the image in the first column, then truth above prediction for every task.

    Args:
        image: the input, uint8 RGB.
        tasks: the columns, in order.
        truth, prediction: painted pictures by task. They show the whole frame of the image but may have
            another size. A missing picture becomes a hatched cell that says so.
        caption: written below the image.

    Raises:
        InputError: a picture is not a uint8 RGB array.
    """
    labels = (image, *(_or_note(truth.get(task), "no label") for task in tasks))
    guesses = (_Note(caption), *(_or_note(prediction.get(task), "no prediction") for task in tasks))
    return _draw(("image", *tasks), cell_size(image),
                 [_Row("truth", labels), _Row("prediction", guesses)])


def strip(image: Picture, painted: Mapping[str, Picture | None], caption: str = "") -> Picture:
    """The image and the painted predictions (or labels) of all tasks in one row, each under its name.

    Args:
        painted: None where there is no label.
        caption: title of the image in place of the word "image", for instance its file name.

    Raises:
        InputError: a picture is not a uint8 RGB array.
    """
    return _draw((caption or "image", *painted), cell_size(image),
                 [_Row("", (image, *(_or_note(picture, "no label") for picture in painted.values())))])


def mosaic(image: Picture, painted: Mapping[str, Picture], largest: int = LARGEST_CELL) -> Picture:
    """Like :func:`strip`, in the number of rows that brings the whole closest to the shape of a screen (16:9); for
    videos.

    Args:
        largest: pixels of the longer side of a cell, at most.

    Raises:
        InputError: a picture is not a uint8 RGB array.
    """
    size = cell_size(image, largest)
    cells: list[tuple[str, Picture | _Note]] = [("image", image), *painted.items()]

    def distance(columns: int) -> float:
        height, width = panel_grid(size, 1, columns, False).size
        return abs(math.log(width / (height * -(-len(cells) // columns)) / SCREEN))

    columns = min(range(1, len(cells) + 1), key=distance)
    cells += [("", _Note(""))] * (-len(cells) % columns)
    rows = [cells[first:first + columns] for first in range(0, len(cells), columns)]
    return contact_sheet([_draw([name for name, _ in row], size, [_Row("", tuple(cell for _, cell in row))])
                          for row in rows])


def banner(words: str, above: Picture) -> Picture:
    """One line of text as wide as the picture below it; shortened if it does not fit."""
    text = 18
    height, width = round(1.8 * text), above.shape[1]
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    font = letters(text)
    ImageDraw.Draw(canvas).text((MARGIN, height - 6), _shortened(words, font, width - 2 * MARGIN), INK, font,
                                anchor="ls")
    return np.array(canvas)


def contact_sheet(pictures: Sequence[Picture]) -> Picture:
    """Panels, strips and legends stacked on one background; each keeps its header, so that any part of a long sheet can
    be read."""
    width = max(picture.shape[1] for picture in pictures)
    sheet = np.full((sum(map(len, pictures)), width, 3), BACKGROUND, np.uint8)
    top = 0
    for picture in pictures:
        sheet[top:top + len(picture), :picture.shape[1]] = picture
        top += len(picture)
    return sheet


def shelves(pictures: Sequence[Picture], width: int) -> list[Picture]:
    """The pictures in rows that are at most ``width`` pixels wide, unless one alone is wider."""
    rows: list[list[Picture]] = []
    for picture in pictures:
        if not rows or sum(each.shape[1] for each in (*rows[-1], picture)) > width:
            rows.append([])
        rows[-1].append(picture)
    return [np.concatenate([np.pad(picture, ((0, max(map(len, row)) - len(picture)), (0, 0), (0, 0)), mode="edge")
                            for picture in row], 1) for row in rows]


def legend(classes: Sequence[str], colors: Sequence[Sequence[int]], width: int = 960) -> Picture:
    """Colored swatches with the names of the classes, in as many columns as ``width`` pixels hold."""
    font = letters(14)
    swatch, line = 16, 26
    longest = max((font.getlength(name) for name in classes), default=0)
    entry = min(int(swatch + 8 + longest + 24), width - 2 * MARGIN)
    columns = max(1, (width - 2 * MARGIN) // entry)
    lines = -(-len(classes) // columns)
    canvas = Image.new("RGB", (width, 2 * MARGIN + lines * line), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (name, color) in enumerate(zip(classes, colors, strict=True)):
        # Down the columns, like an index.
        left = MARGIN + index // lines * entry
        top = MARGIN + index % lines * line
        # Without an outline, white would vanish into the background.
        draw.rectangle((left - 1, top + 3, left + swatch, top + 4 + swatch), outline=LINE)
        draw.rectangle((left, top + 4, left + swatch - 1, top + 4 + swatch - 1), fill=tuple(color))
        text = _shortened(name, font, entry - swatch - 16)
        draw.text((left + swatch + 8, top + line / 2), text, INK, font, anchor="lm")
    return np.array(canvas)


def cell_size(image: Picture, largest: int = LARGEST_CELL) -> tuple[int, int]:
    """Height and width at which a picture is shown: an integer multiple, or an integer fraction if it is larger than
    ``largest``."""
    _check(image)
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= largest:
        factor = max(1, round(CELL / longer))
        return height * factor, width * factor
    divisor = -(-longer // largest)
    return max(1, height // divisor), max(1, width // divisor)


# -- the grid ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Note:
    """Words in place of a picture."""

    text: str
    hatched: bool = False


@dataclass(frozen=True)
class _Row:
    label: str
    cells: tuple[Picture | _Note, ...]


@dataclass(frozen=True)
class PanelGrid:
    """Positions of the cells of a grid.

    Attributes:
        lefts: left edges of the columns.
        tops: top edges of the rows.
        labels: left edge of the row labels, which follow the first column.
        size: height and width of the whole picture.
        text: height of its letters.
    """

    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    labels: int
    size: tuple[int, int]
    text: int


def panel_grid(cell: tuple[int, int], rows: int, columns: int, labelled: bool) -> PanelGrid:
    """Place ``rows`` x ``columns`` cells of one size (h, w), with a header above and room for row labels if
    ``labelled``."""
    height, width = cell
    # Wide pictures are shown reduced, so their text grows with them.
    text = int(np.clip(columns * width / 70, 14, 28))
    aside = round(1.9 * text) if labelled else 0
    lefts = tuple(MARGIN + i * (width + GUTTER) + (aside if i else 0) for i in range(columns))
    tops = tuple(MARGIN + round(1.7 * text) + i * (height + GUTTER) for i in range(rows))
    size = (tops[-1] + height + MARGIN, lefts[-1] + width + MARGIN)
    return PanelGrid(lefts, tops, MARGIN + width + GUTTER, size, text)


def _draw(headers: Sequence[str], size: tuple[int, int], rows: Sequence[_Row]) -> Picture:
    height, width = size
    place = panel_grid(size, len(rows), len(headers), any(row.label for row in rows))
    canvas = Image.new("RGB", place.size[::-1], BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), letters(place.text)
    for left, header in zip(place.lefts, headers, strict=True):
        baseline = place.tops[0] - round(0.55 * place.text)
        draw.text((left, baseline), _shortened(header, font, width), INK, font, anchor="ls")
    for row, top in zip(rows, place.tops, strict=True):
        if row.label:
            _write_upwards(canvas, row.label, (place.labels, top), height, place.text)
        for left, cell in zip(place.lefts, row.cells, strict=True):
            if isinstance(cell, _Note):
                picture = _note_picture(cell, size, place.text)
            else:
                picture = Image.fromarray(fitted(cell, size))
                # Around the picture, not on it, because a white boundary map would vanish into the background.
                draw.rectangle((left - 1, top - 1, left + width, top + height), outline=LINE)
            canvas.paste(picture, (left, top))
    return np.array(canvas)


def fitted(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resize a picture to a cell (h, w)."""
    _check(picture)
    factor = size[0] // picture.shape[0]
    if factor >= 1 and (picture.shape[0] * factor, picture.shape[1] * factor) == size:
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    # Shrinking by nearest neighbor would drop lines that are one pixel wide.
    shrinks = size[0] < picture.shape[0] or size[1] < picture.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.array(Image.fromarray(picture).resize(size[::-1], method))


def _note_picture(note: _Note, size: tuple[int, int], text: int) -> Image.Image:
    height, width = size
    font = letters(min(text, max(10, width // 8)))
    if not note.hatched:
        picture = Image.new("RGB", (width, height), BACKGROUND)
        ImageDraw.Draw(picture).text((0, 2), _shortened(note.text, font, width), FAINT_INK, font)
        return picture
    y, x = np.mgrid[:height, :width]
    stripes = (((x + y) // 6) % 3 == 0)[..., None]
    picture = Image.fromarray(np.where(stripes, HATCH, HATCH_GROUND).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    words = _shortened(note.text, font, width)
    left, top, right, bottom = draw.textbbox((width / 2, height / 2), words, font, anchor="mm")
    draw.rectangle((left - 6, top - 5, right + 6, bottom + 5), fill=HATCH_GROUND)
    draw.text((width / 2, height / 2), words, FAINT_INK, font, anchor="mm")
    return picture


def _write_upwards(canvas: Image.Image, words: str, corner: tuple[int, int], height: int, text: int) -> None:
    font = letters(text)
    box = Image.new("RGB", (height, round(1.4 * text)), BACKGROUND)
    ImageDraw.Draw(box).text((height / 2, box.height / 2), _shortened(words, font, height), FAINT_INK, font,
                             anchor="mm")
    canvas.paste(box.rotate(90, expand=True), corner)


def _or_note(picture: Picture | None, words: str) -> Picture | _Note:
    return _Note(words, hatched=True) if picture is None else picture


def _shortened(words: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    words = words.replace("\n", " ")
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "…") > width:
        words = words[:-1]
    return words + "…"


def _check(picture: np.ndarray) -> None:
    if not isinstance(picture, np.ndarray):
        got = type(picture).__name__
    elif picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        got = f"{picture.dtype} of shape {picture.shape}"
    else:
        got = ""
    if got:
        raise InputError("picture", got, "a uint8 array (h w 3)", "convert it to RGB first")
