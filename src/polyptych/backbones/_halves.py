"""Splits a stage in two: all but its last block, and that block.

Attention on a residual network reads the input of the last block of a stage and masks its output (MTAN in the survey
of Vandenhende et al., TPAMI 2021, arXiv 2004.13379). If a stage ends with a sequence of blocks, the last one is split
off. Whether the two parts in sequence still equal the stage is verified by running them, so that no list of
architectures is needed.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from polyptych.backbones._stages import ChannelsFirst, HighResolutionStage, TokenBlocks
from polyptych.backbones._states import maps_of

Halves = tuple[nn.Module, nn.Module]


def halve(stage: nn.Module, state: Any) -> nn.Sequential | None:
    """The stage as a sequence of two parts, made of its own blocks (do not use the stage itself afterwards); None if it
    cannot be split into two parts with maps of the same sizes.

    Args:
        state: an input state, for comparing the outputs. The stage must be in evaluation mode.
    """
    trial = _take_off(deepcopy(stage))
    if trial is None or not any(True for _ in trial[1].parameters()):
        return None
    with torch.no_grad():
        try:
            middle = trial[0](state)
            end = trial[1](middle)
        except Exception:
            return None  # a stage that does more than running its blocks one by one
        same = [torch.equal(x, y) for x, y in zip(maps_of(end), maps_of(stage(state)), strict=False)]
    sizes = [x.shape[2:] == y.shape[2:] for x, y in zip(maps_of(middle), maps_of(end), strict=False)]
    if not same or not all(same) or not all(sizes):
        return None
    return nn.Sequential(*_both(stage))


def _both(stage: nn.Module) -> Halves:
    halves = _take_off(stage)
    assert halves is not None  # splitting its copy worked
    return halves


def _take_off(stage: nn.Module) -> Halves | None:
    """May change the stage."""
    if isinstance(stage, ChannelsFirst):
        inner = _take_off(stage.stage)
        return None if inner is None else (ChannelsFirst(inner[0], stage.enters_last, stage.leaves_last),
                                           ChannelsFirst(inner[1], stage.leaves_last, stage.leaves_last))
    if isinstance(stage, TokenBlocks):
        *rest, last = stage.blocks
        return (TokenBlocks(rest, rope=stage.rope), TokenBlocks([last], stage.norm, stage.rope)) if rest else None
    if isinstance(stage, HighResolutionStage):
        modules = stage.branches
        if not isinstance(modules, nn.Sequential) or len(modules) < 2:
            return None
        return HighResolutionStage(stage.transition, modules[:-1]), modules[-1]
    if isinstance(stage, nn.Sequential):
        return _take_off_sequence(stage)
    blocks = getattr(stage, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) > 1:
        end = blocks[-1]
        del blocks[-1]
        return stage, end
    if len(names := [name for name, _ in stage.named_children()]) > 1:  # it may run its children in order
        end = stage.get_submodule(names[-1])
        delattr(stage, names[-1])
        return stage, end
    return None


def _take_off_sequence(stage: nn.Sequential) -> Halves | None:
    """Split off the last block, which may be at the end of a nested sequence."""
    if len(stage) == 0:
        return None
    inner = _take_off(stage[-1]) if isinstance(stage[-1], nn.Sequential) else None
    if inner is not None:
        return (nn.Sequential(*stage[:-1], inner[0]) if len(stage) > 1 else inner[0]), inner[1]
    return None if len(stage) < 2 else (stage[:-1], stage[-1])
