"""Regions to stages: a backbone's own, else runs of one resolution, else four groups of equal size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from torch import fx

from polyptych.backbones._base import Backbone
from polyptych.search.anchors import Anchor
from polyptych.search.capture import Capture

FEWEST, MOST, PARTS = 3, 8, 4  # numbers of stages that make sense; how many where there is nothing to go by


def group_stages(capture: Capture, groups: Sequence[list[Anchor]]) -> list[list[Anchor]]:
    """The groups of each stage together."""
    keys: list[object]
    if isinstance(capture.root, Backbone):
        keys = [stage_of(group[0].name) for group in groups]
    else:
        keys = _by_resolution(groups)
    found: dict[object, list[Anchor]] = {}
    for key, group in zip(keys, groups, strict=True):
        found.setdefault(key, []).extend(group)
    return list(found.values())


def stage_of(path: str) -> str:
    """``stages.2`` of ``stages.2.0.conv1``."""
    return ".".join(path.split(".")[:2])


def _by_resolution(groups: Sequence[list[Anchor]]) -> list[object]:
    """Positions that the last operation of each group gives, per image, where these never grow along the network."""
    positions = [_positions(group[-1].nodes[-1]) for group in groups]
    for i in range(1, len(positions)):
        positions[i] = positions[i] or positions[i - 1]
    falling = all(a >= b for a, b in pairwise(positions))
    if falling and FEWEST <= len(list(groupby(positions))) <= MOST:
        return list(positions)
    return [i * PARTS // len(groups) for i in range(len(groups))]


def _positions(node: fx.Node) -> int:
    """Numbers per image and channel, taking the second dimension of maps, the last of tokens for the channels."""
    shape = node.meta.get("shape", ())
    if len(shape) == 4:
        return math.prod(shape) // shape[0] // shape[1]
    return 0
