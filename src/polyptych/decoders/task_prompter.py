"""TaskPrompter's heads: small convolutions at every level, and features mixed as the tasks' prompts attended.

Source: Ye, Xu, ICLR 2023, https://openreview.net/forum?id=-CwPopPJda
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import SingleValueBatchNorm
from polyptych.ops.resize import resize
from polyptych.ops.winograd import Convolution3x3
from polyptych.types import FeatureSpec, Output, TaskFeatures

STRIDE = 4  # of the predictions


class TaskPrompter(Decoder):
    """``final[task]`` has a quarter of the image's resolution (or that of the finest map, if that is finer).

    1. At every level, for every task: each half of the channels (from the encoder of this name: features weighted by
       position and by channel) goes through its own 1x1 convolution, then a 1x1 convolution to ``width``, a 3x3
       convolution, BatchNorm, GELU, a 1x1 convolution.
    2. With ``reweight``, if the encoder provides scores between prompts (``FeatureSpec.affinities``): F_t becomes sum_k
       a_tk F_k, where two 1x1 convolutions with a GELU in between compute the number a_tk from the scores of prompt t
       for prompt k of all heads. Tasks interact here only through these scores of the encoder, so ``refines`` is false:
       with other encoders, tasks are independent.
    3. The sum over levels at the finest resolution, upsampled; then per task a 3x3 convolution, BatchNorm, GELU, a 1x1
       convolution.

    As published, there is no activation between the first two convolutions; together they are one linear map.

    Published with the encoder on ViT-L: 5,529,684 parameters in step 3 on PASCAL-Context (width 350), 21,277,485 on
    NYUD (width 768).

    Raises:
        InputError: a width below 1.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        inner: int = 300
        """Output channels of the first convolution for each half (published: 300 on PASCAL, 768 on NYUD)."""
        width: int = 350
        """Channels of each task's features (published: 350 on PASCAL, 768 on NYUD)."""
        reweight: bool = True
        """Mix the tasks' features according to how their prompts attended to each other (published: not on NYUD)."""

        def __post_init__(self) -> None:
            for field in ("inner", "width"):
                self.require(field, getattr(self, field) >= 1, "1 or more")

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        self.stride = min(spec.strides[0] for spec in features.values())
        self.extract = nn.ModuleDict({task: nn.ModuleList(
            _extraction(c, config.inner, config.width) for c in features[task].channels) for task in channels})
        self.weigh = nn.ModuleDict({task: nn.ModuleList(
            nn.Sequential(nn.Conv1d(heads, heads, 1), nn.GELU(), nn.Conv1d(heads, 1, 1))
            for heads in features[task].affinities)
            for task in channels if config.reweight and features[task].affinities})
        self.heads = nn.ModuleDict({task: _head(config.width, c) for task, c in channels.items()})

    def forward(self, features: TaskFeatures) -> Output:
        height, width = (max(x.shape[i] for x in (p.maps[0] for p in features.values())) for i in (-2, -1))
        levels: list[dict[str, Tensor]] = []
        for level in range(max(len(p.maps) for p in features.values())):
            own = {task: _without_float16(layers[level], features[task].maps[level])  # type: ignore[index]
                   for task, layers in self.extract.items() if level < len(features[task].maps)}
            levels.append(self._mixed(own, features.affinities, level))
        size = (-(-height * self.stride // STRIDE), -(-width * self.stride // STRIDE))
        final = {}
        for task, head in self.heads.items():
            total = sum(resize(own[task], (height, width)) for own in levels if task in own)
            assert isinstance(total, Tensor)
            final[task] = head(resize(total, size) if self.stride > STRIDE else total)
        return Output(final)

    def _mixed(self, own: dict[str, Float[Tensor, "b f h w"]], affinities: tuple[Tensor, ...],
               level: int) -> dict[str, Tensor]:
        if not self.weigh or not affinities:
            return own
        stacked = torch.stack(list(own.values()), dim=1)
        mixed = {}
        for number, task in enumerate(own):
            weights = self.weigh[task][level](affinities[level][:, :, number])  # type: ignore[index]
            mixed[task] = torch.einsum("bt,btfhw->bfhw", weights.squeeze(1).to(stacked.dtype), stacked)
        return mixed


def _without_float16(layers: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f h w"]:
    """Apply ``layers`` to ``x``, in float32 under autocast to float16: features multiplied by raw scores (the encoder's
    ``scores="raw"``, as published) are unbounded, and the range of float16 ends at 65504."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != torch.float16:
        return layers(x)
    with torch.autocast(device, enabled=False):
        return layers(x.float())


def _extraction(channels: int, inner: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 2 * inner, 1, groups=2 if channels % 2 == 0 else 1), nn.Conv2d(2 * inner, width, 1),
        Convolution3x3(width, width), SingleValueBatchNorm(width), nn.GELU(), nn.Conv2d(width, width, 1))


def _head(width: int, channels: int) -> nn.Sequential:
    mix = Convolution3x3(width, width)
    trunc_normal_(mix.weight, std=0.02)  # as published
    return nn.Sequential(mix, SingleValueBatchNorm(width), nn.GELU(), nn.Conv2d(width, channels, 1))
