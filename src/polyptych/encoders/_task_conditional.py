"""Task-conditional encoders: one backbone that runs once per task, with a few task-specific parameters inside.

Source: Lu et al., Prompt Guided Transformer, IEEE TMM 2024; Task Indicating Transformer, ICASSP 2024
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._prompted_attention import Now
from polyptych.backbones._stages import ChannelsFirst
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.types import TaskFeatures


class TaskConditional(Encoder):
    """All tasks share the weights of the backbone, which are trained unless ``--backbone.freeze`` is set.

    No feature is common to all tasks, so ``shared`` is empty, and balancers compare gradients of parameters.
    """

    def __init__(self, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        self.tasks, self.now = tasks, Now()
        self.backbone = backbone.build()
        self.spec = dict.fromkeys(tasks, self.backbone.spec)
        self.multiple, self.mean, self.std = self.backbone.multiple, self.backbone.mean, self.backbone.std

    def blocks(self, kind: str) -> list[list[Any]]:
        """The blocks of every stage, to which task-specific parameters can be added.

        Args:
            kind: name of the encoder, for the message.

        Raises:
            InputError: the backbone has no blocks of attention and an MLP.
        """
        stages = [blocks for stage in self.backbone.stages if (blocks := _blocks(stage))]
        if not stages:
            raise InputError("--backbone.model", f"a network without blocks that encoder '{kind}' could let depend on "
                             "the task", "a transformer of timm that comes apart into blocks of attention and an MLP",
                             "choose for instance swin_tiny_patch4_window7_224")
        return stages

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        features = {}
        for task in self.tasks:
            self.now.task = task
            features[task] = self.backbone(image)
        return TaskFeatures(features)


def _blocks(stage: Any) -> list[Any]:
    blocks = getattr(stage.stage if isinstance(stage, ChannelsFirst) else stage, "blocks", ())
    found = [block for block in blocks if isinstance(getattr(block, "attn", None), nn.Module)
             and isinstance(getattr(block, "mlp", None), nn.Module)] if isinstance(blocks, nn.Sequential) else []
    return found if len(found) == len(blocks) else []


def width_of(block: Any) -> int:
    """The channels of a block's features."""
    return int(block.norm1.weight.shape[0])
