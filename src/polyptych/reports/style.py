"""The common style of all plots and pictures: colors, fonts, lines, and how plots are saved.

The style of pages is ``style.css``. A plot is drawn and saved inside :func:`figure`::

    with style.figure((7.4, 3.5)) as drawing:
        axes = drawing.subplots()
        ...
        text = style.svg(drawing, "front", page=True)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageFont

if TYPE_CHECKING:  # matplotlib takes as long to import as a command's help may take
    from matplotlib.figure import Figure

# Mid-tones: each has a contrast ratio of at least 3 against white and near black.
COLORS = ("#3b82c4", "#cf7327", "#2f9468", "#9067c6", "#d1495b", "#1f9199", "#a0802b", "#c25c9e")
PLAIN = "#7d858f"
TEXT = "#5f6670"  # becomes currentColor where a plot goes into a page

# For pictures, which are RGB and always light.
BACKGROUND = (250, 250, 248)
INK = (38, 41, 46)
FAINT_INK = (112, 116, 122)
LINE = (214, 215, 212)
HATCH, HATCH_GROUND = (208, 209, 206), (226, 227, 224)

_STYLE: Any = {  # matplotlib types the keys of its settings one by one
    "font.family": "DejaVu Sans", "svg.fonttype": "path",
    "text.parse_math": False, "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": TEXT,
    "xtick.color": TEXT, "ytick.color": TEXT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.grid": True, "grid.color": TEXT, "grid.alpha": 0.18, "grid.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 0,
    "xtick.minor.size": 0, "ytick.minor.size": 0, "lines.solid_capstyle": "round",
    "legend.frameon": False, "legend.handletextpad": 0.3, "legend.fontsize": 8.5,
}


@contextmanager
def figure(size: tuple[float, float], text: float = 9, *, axes: bool = True) -> Iterator[Figure]:
    """A figure to draw into and to save; both inside the ``with``, because matplotlib makes ticks when it saves.

    Args:
        size: width and height in inches.
        text: size of the letters in points.
        axes: whether to draw spines, ticks and a grid; False for drawings without scales.
    """
    import matplotlib
    from matplotlib.figure import Figure

    bare: Any = {} if axes else {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False,
                                 "xtick.major.size": 0}
    with matplotlib.rc_context(_STYLE | bare | {"font.size": text, "axes.titlesize": max(text, 9)}):
        yield Figure(figsize=size, layout="constrained")


def svg(drawing: Figure, name: str, *, page: bool) -> str:
    """The figure as SVG, the same bytes for the same drawing.

    Args:
        name: makes the ids of one plot differ from those of others on the same page.
        page: an ``<svg>`` element, transparent, its text in the color of the page's text, which works on light and dark
            backgrounds; otherwise a whole file on white.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawing.savefig(buffer, format="svg", transparent=page, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg"):].replace(TEXT, "currentColor") if page else text


def write_png(drawing: Figure, path: Path) -> None:
    """Write the figure as a PNG on white."""
    drawing.savefig(path, dpi=130, facecolor="white")


@cache
def letters(size: int) -> ImageFont.FreeTypeFont:
    """The font of pictures, the same as in plots."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
