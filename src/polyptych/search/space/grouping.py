"""From operations to units: which operations form a region, and which regions form a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from torch import fx, nn

from polyptych.backbones._base import Backbone
from polyptych.search.capture.capturing import Capture
from polyptych.search.capture.dataflow import Dataflow, Region
from polyptych.search.space.anchors import Anchor
from polyptych.search.space.skips import skip_of_branch

MOST_IN_REGION = 16  # operations in a region; a larger one (a stage of HRNet, a dense block) is divided into its parts
MOST_IN_BLOCK = 8  # operations in a module without a shortcut that form one unit
FEWEST_STAGES, MOST_STAGES = 3, 8  # plausible numbers of stages
STAGES = 4  # number of stages, of equal size, if resolutions give no plausible one
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def group_anchors(capture: Capture, flow: Dataflow, anchors: Sequence[Anchor]
                  ) -> tuple[list[list[Anchor]], list[fx.Node | None]]:
    """The anchors of each unit, and its join if it is a region (else None), in the order of the graph."""
    chosen = _choose(capture, flow, anchors)
    regions = {region.join: _within(region, anchors) for region in chosen}
    taken = {id(anchor) for group in regions.values() for anchor in group}
    residual = {id(a) for join, group in regions.items() if not _is_gate(join) for a in group}
    groups: list[tuple[list[Anchor], fx.Node | None]] = []
    blocks = _blocks(capture, anchors, residual)
    used: set[int] = set()
    for anchor in anchors:
        block = blocks.get(id(anchor))
        if id(anchor) in used:
            continue
        if block is not None:
            group, join = block, None
        elif id(anchor) in taken:
            join, group = next((j, g) for j, g in regions.items() if any(a is anchor for a in g))
        else:
            group, join = [anchor], None
        used |= {id(a) for a in group}
        groups.append((group, join))
    return [group for group, _ in groups], [join for _, join in groups]


def _choose(capture: Capture, flow: Dataflow, anchors: Sequence[Anchor]) -> list[Region]:
    """Regions that do not overlap, the largest first.

    Every join closes a region, so regions nest: a residual block lies in the stage that a longer shortcut closes, and
    a squeeze-and-excitation gate lies in the block. A unit should have the size of a *block*. The largest region of an
    entry is that block, unless

    - it is too large (MOST_IN_REGION). In a dense block every join goes back to the beginning, so that the regions of
      one entry grow to the whole block; then only the smallest of that entry counts.
    - it holds several residual blocks: the parallel branches of HRNet and DLA, which a later sum joins. Then the blocks
      are the regions; otherwise all branches of a stage would be one choice.
    """
    by_entry: dict[fx.Node, list[tuple[int, Region]]] = {}
    for region in flow.regions():
        count = len(_within(region, anchors))
        if count:
            by_entry.setdefault(region.entry, []).append((count, region))
    candidates = []
    for found in by_entry.values():
        fitting = [(count, region) for count, region in found if count <= MOST_IN_REGION]
        if len(fitting) < len(found):
            fitting = fitting[:1]
        candidates += fitting
    blocks = {region for _, region in candidates if skip_of_branch(capture, flow, region.join) is not None}
    candidates = [(count, region) for count, region in candidates if region in blocks
                  or sum(block.inside < region.inside for block in blocks) < 2]
    # Greedy by size. A chosen region covers everything inside it, so no operation belongs to two units.
    chosen: list[Region] = []
    covered: set[fx.Node] = set()
    for _, region in sorted(candidates, key=lambda pair: -len(pair[1].inside)):
        if not covered & region.inside and _closed_calls(region, anchors):
            chosen.append(region)
            covered |= region.inside
    return chosen


def _within(region: Region, anchors: Sequence[Anchor]) -> list[Anchor]:
    return [anchor for anchor in anchors if anchor.nodes[0] in region.inside]


def _closed_calls(region: Region, anchors: Sequence[Anchor]) -> bool:
    """Whether each of its modules is called only inside the region. Weights that are also used elsewhere cannot be
    copied for one task here and shared there: a set of weights belongs to one unit."""
    return all(all(node in region.inside for node in anchor.nodes) for anchor in _within(region, anchors))


def _is_gate(join: fx.Node) -> bool:
    """Whether it is a product, as in squeeze-and-excitation: such a region is part of a block, not a block itself. Its
    operations may therefore still join the others of their module in :func:`_blocks`."""
    return getattr(join.target, "__name__", join.target) in ("mul", "imul", "sigmoid", "__mul__")


def _blocks(capture: Capture, anchors: Sequence[Anchor], residual: set[int]) -> dict[int, list[Anchor]]:
    """For anchors outside residual regions, the block that they form: the outermost module that is no container and
    holds several operations, none of them from a residual region."""
    members: dict[str, list[Anchor]] = {}
    for anchor in anchors:
        path = anchor.name
        while path:
            members.setdefault(path, []).append(anchor)
            path = path.rpartition(".")[0]
    blocks: dict[int, list[Anchor]] = {}
    for path in sorted(members, key=lambda p: p.count(".")):  # outermost first: inner modules get what it leaves
        group = members[path]
        if not 2 <= len(group) <= MOST_IN_BLOCK or any(id(a) in residual or id(a) in blocks for a in group):
            continue
        if not isinstance(capture.root.get_submodule(path), CONTAINERS):
            blocks |= {id(a): group for a in group}
    return blocks


def group_stages(capture: Capture, groups: Sequence[list[Anchor]]) -> list[list[Anchor]]:
    """The groups of each stage, merged."""
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
    """A key per group: the resolution of its last operation, if resolutions never grow along the network and give a
    plausible number of stages; otherwise stages of equal size."""
    positions = [_positions(group[-1].nodes[-1]) for group in groups]
    for i in range(1, len(positions)):  # tokens and vectors (0) have no resolution: they stay in the stage before them
        positions[i] = positions[i] or positions[i - 1]
    falling = all(a >= b for a, b in pairwise(positions))
    if falling and FEWEST_STAGES <= len(list(groupby(positions))) <= MOST_STAGES:
        return list(positions)
    return [i * STAGES // len(groups) for i in range(len(groups))]


def _positions(node: fx.Node) -> int:
    """Positions per image (h w) of a feature map (b c h w); 0 for tokens and vectors."""
    shape = node.meta.get("shape", ())
    if len(shape) == 4:
        return math.prod(shape) // shape[0] // shape[1]
    return 0
