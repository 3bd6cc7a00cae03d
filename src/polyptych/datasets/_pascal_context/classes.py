"""Classes of the tasks of PASCAL-Context.

Source: Everingham et al., IJCV 2010 (21 classes); Mottaghi et al., CVPR 2014 (context classes); Chen et al., CVPR 2014,
arXiv 1406.2031 (parts); Maninis, Radosavovic and Kokkinos, CVPR 2019, arXiv 1904.08918 (classes with normals)
"""

from __future__ import annotations

import numpy as np

NAMES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
         "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")

PERSON = 15
"""The ``class_ind`` of a person in part annotations."""

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

_FINE_PARTS = {
    "head": ("hair", "head", "lear", "rear", "leye", "reye", "lebrow", "rebrow", "mouth", "nose"),
    "torso": ("torso", "neck"),
    "upper arm": ("luarm", "ruarm"),
    "lower arm": ("llarm", "rlarm", "lhand", "rhand"),
    "upper leg": ("luleg", "ruleg"),
    "lower leg": ("llleg", "rlleg", "lfoot", "rfoot"),
}

PART_IDS = {fine: PARTS.index(part) for part, names in _FINE_PARTS.items() for fine in names}
"""Id of the part that each finer part of the annotation belongs to; left and right are merged."""

LAST_CONTEXT_ID = 459
"""Context classes run from 1 to this; 0 is none of them."""

_WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53,
    55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111,
    113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191,
    193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246,
    250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292,
    293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355,
    357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419,
    421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457)

HAS_NORMALS = np.zeros(LAST_CONTEXT_ID + 1, bool)
"""The 170 context classes for which the estimated normals are used: those whose name is one of the 894 of NYUv2
(without "unknown"), and tvmonitor."""
HAS_NORMALS[list(_WITH_NORMALS)] = True
