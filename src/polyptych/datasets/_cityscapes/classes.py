"""Classes of Cityscapes: the 19 that are evaluated, their 7 categories, or 2 (what can move, and the rest).

Source: Cordts et al., CVPR 2016, arXiv 1604.01685
"""

from __future__ import annotations

import numpy as np

# (id in the labelIds files, name, category, color in pictures), in the order of the 19 train ids
_NINETEEN = (
    (7, "road", "flat", (112, 92, 140)), (8, "sidewalk", "flat", (216, 84, 196)),
    (11, "building", "construction", (188, 152, 112)), (12, "wall", "construction", (124, 96, 64)),
    (13, "fence", "construction", (228, 192, 168)), (17, "pole", "object", (220, 220, 232)),
    (19, "traffic light", "object", (252, 176, 32)), (20, "traffic sign", "object", (236, 228, 60)),
    (21, "vegetation", "nature", (64, 132, 52)), (22, "terrain", "nature", (156, 208, 120)),
    (23, "sky", "sky", (112, 184, 244)), (24, "person", "human", (228, 44, 72)),
    (25, "rider", "human", (252, 120, 148)), (26, "car", "vehicle", (32, 60, 168)),
    (27, "truck", "vehicle", (36, 120, 212)), (28, "bus", "vehicle", (20, 164, 172)),
    (31, "train", "vehicle", (100, 68, 220)), (32, "motorcycle", "vehicle", (64, 24, 104)),
    (33, "bicycle", "vehicle", (136, 20, 48)),
)

# The 7 categories, each with the class (of the 19) whose color it takes.
_SEVEN = (("flat", "road"), ("construction", "building"), ("object", "pole"), ("nature", "vegetation"),
          ("sky", "sky"), ("human", "person"), ("vehicle", "car"))

_COLOR_OF = {name: color for _, name, _, color in _NINETEEN}

NAMES = {19: tuple(name for _, name, _, _ in _NINETEEN), 7: tuple(name for name, _ in _SEVEN),
         2: ("background", "human or vehicle")}
COLORS = {19: tuple(_COLOR_OF.values()), 7: tuple(_COLOR_OF[twin] for _, twin in _SEVEN),
          2: (_COLOR_OF["building"], _COLOR_OF["car"])}

LAST_ID = 33
"""Ids in the labelIds files run from -1 to this; 8-bit files hold -1 as 255."""
VOID = 255
"""What :data:`TABLES` holds for ids without a class."""


def _table(classes: int) -> np.ndarray:
    table = np.full(256, VOID, np.uint8)
    for train_id, (label_id, _, category, _) in enumerate(_NINETEEN):
        table[label_id] = {19: train_id, 7: NAMES[7].index(category),
                           2: int(category in ("human", "vehicle"))}[classes]
    return table


TABLES = {classes: _table(classes) for classes in NAMES}
"""Entry i is the class of id i. Ids that the official evaluation ignores have none with 7 and 2 classes either."""
