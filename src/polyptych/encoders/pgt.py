"""PGT, the Prompt Guided Transformer: prompts of a task in every block of one backbone, which runs once per task.

Source: Lu, Sirejiding, Bayram, Huang, Lu, IEEE Transactions on Multimedia 2024, arXiv 2307.15362
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._prompted_attention import KNOWN, PromptedAttention, Prompts
from polyptych.encoders._task_conditional import TaskConditional, width_of
from polyptych.errors import InputError


class PGT(TaskConditional):
    """Each task has its own learned tokens in every block of every stage. They precede the tokens of every window (on a
    plain transformer, of all patches), enter attention without the block's norm, and their outputs are discarded; the
    next block has its own.

    The paper's decoder is ``--decoder pgt``; it reads the maps before patch merging, without norms, with windows as in
    ``--backbone.swin-windows published``.

    Raises:
        InputError: no prompts, or a backbone whose attention does not support them.
    """

    example = "test_vit"

    @dataclass(frozen=True, kw_only=True)
    class Config(TaskConditional.Config):
        prompts: int = 10
        """Number of tokens of a task in each block."""

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__(backbone, tasks)
        if config.prompts < 1:
            raise InputError("encoder.prompts", str(config.prompts), "1 or more", "change --encoder.prompts")
        self.prompts = nn.ModuleList()
        stages = self.blocks("pgt")
        for block in (block for blocks in stages for block in blocks):
            if not isinstance(block.attn, KNOWN):
                raise InputError("encoder 'pgt'", f"attention that cannot take prompts ({type(block.attn).__name__})",
                                 "a Swin transformer (not v2) or a plain vision transformer", "change --backbone.model")
        base, patch = width_of(stages[0][0]), self.backbone.spec.strides[0]
        limit = math.sqrt(6 / (3 * patch**2 + base))  # of the base width in all stages
        for blocks in stages:
            prompts = Prompts(tasks, len(blocks), config.prompts, width_of(blocks[0]), limit)
            self.prompts.append(prompts)
            for index, block in enumerate(blocks):
                block.attn = PromptedAttention(block.attn, self.now, prompts, index)
