"""Class names, colors and the map from 40 to 13 classes of NYU Depth v2.

Source: Gupta, Arbelaez and Malik, CVPR 2013 (40 classes); Couprie et al., ICLR 2013, arXiv 1301.3572 (13
classes).
"""

from __future__ import annotations

import numpy as np

# In the order of their ids, with the color of each in pictures. The official list spells "refridgerator".
_FORTY = (
    ("wall", (174, 188, 208)), ("floor", (214, 178, 120)), ("cabinet", (150, 92, 48)),
    ("bed", (214, 72, 96)), ("chair", (240, 152, 44)), ("sofa", (124, 64, 168)), ("table", (232, 212, 84)),
    ("door", (104, 140, 84)), ("window", (96, 196, 232)), ("bookshelf", (44, 248, 128)),
    ("picture", (248, 44, 176)), ("counter", (92, 248, 212)), ("blinds", (248, 164, 236)),
    ("desk", (20, 140, 248)), ("shelves", (20, 68, 116)), ("curtain", (224, 56, 20)),
    ("dresser", (92, 164, 20)), ("pillow", (116, 44, 80)), ("mirror", (188, 248, 152)),
    ("floor mat", (248, 164, 164)), ("clothes", (224, 104, 248)), ("ceiling", (232, 232, 208)),
    ("books", (44, 92, 236)), ("refrigerator", (20, 80, 68)), ("television", (32, 164, 152)),
    ("paper", (200, 248, 80)), ("towel", (140, 128, 188)), ("shower curtain", (20, 176, 104)),
    ("box", (140, 128, 20)), ("whiteboard", (248, 128, 92)), ("person", (188, 80, 152)),
    ("night stand", (152, 32, 20)), ("toilet", (176, 140, 248)), ("sink", (80, 68, 44)),
    ("lamp", (32, 116, 140)), ("bathtub", (20, 80, 20)), ("bag", (164, 248, 248)),
    ("otherstructure", (176, 116, 140)), ("otherfurniture", (152, 212, 164)), ("otherprop", (176, 20, 164)),
)

# The 13 classes, each with the class (of the 40) whose color it takes.
_THIRTEEN = (
    ("bed", "bed"), ("books", "books"), ("ceiling", "ceiling"), ("chair", "chair"), ("floor", "floor"),
    ("furniture", "cabinet"), ("objects", "otherprop"), ("picture", "picture"), ("sofa", "sofa"),
    ("table", "table"), ("tv", "television"), ("wall", "wall"), ("window", "window"),
)

# ASTMT counts unlabeled pixels as a class of their own, which comes first.
_BACKGROUND = ("background", (44, 44, 44))

NAMES = {41: tuple(name for name, _ in (_BACKGROUND, *_FORTY)), 40: tuple(name for name, _ in _FORTY),
         13: tuple(name for name, _ in _THIRTEEN)}
COLORS = {41: tuple(color for _, color in (_BACKGROUND, *_FORTY)), 40: tuple(color for _, color in _FORTY),
          13: tuple(dict(_FORTY)[twin] for _, twin in _THIRTEEN)}

FORTY_TO_THIRTEEN = np.array([
    11, 4, 5, 0, 3, 8, 9, 11, 12, 5, 7, 5, 12, 9, 5, 12, 5, 6, 6, 4,
    6, 2, 1, 5, 10, 6, 6, 6, 6, 6, 6, 5, 6, 6, 6, 6, 6, 6, 5, 6], np.uint8)
"""Entry i is the class among the 13 of class i among the 40; both count from 0."""
