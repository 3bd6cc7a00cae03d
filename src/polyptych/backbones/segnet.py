"""SegNet: a VGG-16 encoder and its mirrored decoder, which reuses the positions of the pooling maxima.

Source: Badrinarayanan, Kendall, Cipolla, TPAMI 2017, arXiv 1511.00561; as MTAN uses it: Liu, Johns, Davison, CVPR 2019,
arXiv 1803.10704
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from polyptych.backbones._attention import Attention, Point
from polyptych.backbones._base import Backbone
from polyptych.errors import InputError
from polyptych.ops import exporting
from polyptych.ops.winograd import Convolution3x3
from polyptych.types import Features, FeatureSpec
from polyptych.weight_files import read_weights

LAYERS = (2, 2, 3, 3, 3)  # convolutions of VGG-16 between two poolings


class Switches(NamedTuple):
    """What unpooling needs from a pooling: the position of each maximum in its input, and the size of that input."""

    places: Int[Tensor, "b c h w"]
    size: tuple[int, int]


class Pooled(NamedTuple):
    """The state between two blocks: a map, and the switches of the poolings that have not been undone, finest first."""

    map: Float[Tensor, "b c h w"]
    switches: tuple[Switches, ...]


State: TypeAlias = Tensor | Pooled
"""What a block takes: the image, or what another block made."""


class SegNet(Backbone):
    """Ten stages: five encoder blocks of 2, 2, 3, 3, 3 convolutions that end in max-pooling, and five decoder blocks of
    3, 3, 3, 2, 2 that begin with unpooling. Every convolution is 3x3 with bias, followed by BatchNorm and ReLU. The
    pyramid is the last map: full resolution, 64 channels. 24,943,296 parameters.

    Weights are initialized as in MTAN: Xavier normal, biases 0, without ImageNet; images are not normalized. Images may
    have any size: pooling rounds up, and unpooling restores the size before it.

    Raises:
        InputError: a width below 1.
    """

    multiple = 1
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        width: int = 64
        """Channels of the first level; the next three have 2, 4 and 8 times as many."""
        bottom_width: int = 512
        """Channels of the coarsest level; 1024 is MTAN's wide network."""
        doubled: bool = False
        """Two convolutions in place of each one, as in MTAN's deep network."""
        initialization: Literal["normal", "uniform"] = "normal"
        """Distribution of the initial weights (Glorot and Bengio): MTAN's code uses the uniform one in its cross-stitch
        and dense networks."""
        weights: Path | None = None
        """Initialize the encoder from a file with torchvision's vgg16_bn or vgg16; images are then normalized as for
        ImageNet."""

        def without_weights(self) -> SegNet.Config:
            return replace(self, weights=None)

    loaded: str = ""
    """Description of the initial weights, if a file was given."""

    def __init__(self, config: Config):
        super().__init__()
        for option in ("width", "bottom_width"):
            if getattr(config, option) < 1:
                raise InputError(f"backbone.{option}", str(getattr(config, option)), "1 or more", "raise it")
        self.times = 2 if config.doubled else 1
        widths = [*(config.width * factor for factor in (1, 2, 4, 8)), config.bottom_width]
        above = [3, *widths[:-1]]
        encoder = [EncoderBlock([a, *[b] * (n * self.times)], self.times)
                   for a, b, n in zip(above, widths, LAYERS, strict=True)]
        above[0] = config.width  # the way up ends with the channels of the first level, not with an image
        decoder = [DecoderBlock([b, *[a] * (n * self.times)], self.times)
                   for a, b, n in zip(above, widths, LAYERS, strict=True)]
        self.stages = nn.ModuleList([*encoder, *reversed(decoder)])
        if config.initialization == "uniform":
            for module in self.stages.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
        if config.weights is not None:
            self._begin_as_vgg(config.weights)
        self.spec = FeatureSpec((config.width,), (1,))
        self.attention = Attention(tuple(
            [Point((c,), (c,), (2**i,), bottom=32 if i == len(LAYERS) - 1 else 0) for i, c in enumerate(widths)]
            + [Point((b,), (a,), (2**i,)) for i, (a, b) in reversed(list(enumerate(zip(above, widths, strict=True))))]),
            form="plain")

    def _begin_as_vgg(self, path: Path) -> None:
        """Load the thirteen convolutions of a VGG-16 and their norms into the encoder; for a VGG without norms, norms
        are set to the identity.

        Raises:
            InputError: the file is not a VGG-16 of torchvision, or this network has other widths.
        """
        state = read_weights(path)
        found = sorted({int(name.split(".")[-2]) for name, value in state.items()
                        if re.fullmatch(r"(.*\.)?features\.\d+\.weight", name) and value.ndim == 4})
        prefix = next((name.partition("features.")[0] for name in state if "features." in name), "")
        layers: list[Any] = [layer for block in self.stages[:len(LAYERS)] for layer in block.modules()
                             if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        pairs = list(zip(found, layers[::2], layers[1::2], strict=False))
        shapes = [tuple(layer.weight.shape) for layer in layers[::2]]
        if len(found) != len(shapes) or shapes != [
                tuple(state[f"{prefix}features.{n}.weight"].shape) for n in found]:
            raise InputError(path, f"{len(found)} convolutions under 'features'", "the 13 of torchvision's vgg16_bn or "
                             "vgg16, in a SegNet of the published widths", "use such a file, and leave "
                             "--backbone.width, --backbone.bottom-width and --backbone.doubled out")
        for number, convolution, norm in pairs:
            convolution.load_state_dict({
                end: state[f"{prefix}features.{number}.{end}"] for end in ("weight", "bias")})
            own = {name: state.get(f"{prefix}features.{number + 1}.{name}") for name in (
                "weight", "bias", "running_mean", "running_var")}
            if all(value is not None for value in own.values()):
                norm.load_state_dict(own, strict=False)
            else:
                nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)
        self.mean, self.std = Backbone.mean, Backbone.std
        self.loaded = f"way down from VGG-16 in {path}"

    def features(self, states: list[Pooled]) -> Features:
        return Features((states[-1].map,))

    def attention_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """For every block, the maps that masks are computed from and those that they multiply: in the encoder the
        outputs of its first and last convolution, in the decoder its unpooled input and the output of its last
        convolution."""
        state: State = image
        pairs = []
        for block in self._blocks():
            before = block.enter(state)
            first = block.first(before)
            last = block.rest(first)
            pairs.append(([first if isinstance(block, EncoderBlock) else before], [last]))
            state = block.leave(state, last)
        return pairs

    def attended_features(self, attended: list[list[Tensor]]) -> Features:
        """A task's pyramid from its masked maps, one list for every block: the last of them."""
        return Features((attended[-1][0],))

    def double_inputs(self) -> None:
        """Make every block except the first take a pair of states, its own and another network's, and concatenate their
        maps (each unpooled with its own indices). The last block keeps twice its width up to its last convolution, as
        in MTAN's dense network."""
        for i, block in enumerate(self._blocks()):
            first, *inner, last = block.channels
            if i == len(self.stages) - 1:
                inner = [2 * c for c in inner]
            if i > 0:
                self.stages[i] = type(block)([2 * first, *inner, last], self.times)

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.stages))


class Block(nn.Module, ABC):
    """One level on the way down or up. ``enter`` makes the map that the convolutions see, ``first`` and ``rest`` are
    the convolutions, ``leave`` makes the state for the next block.

    Args:
        channels: channels of the input and after each convolution.
        first: number of convolutions in ``first``.
    """

    def __init__(self, channels: Sequence[int], first: int):
        super().__init__()
        self.channels = tuple(channels)
        self.first = _convolutions(self.channels[:first + 1])
        self.rest = _convolutions(self.channels[first:])

    def forward(self, state: State | tuple[Pooled, Pooled]) -> Pooled:
        if isinstance(state, Tensor | Pooled):
            own, x = state, self.enter(state)
        else:
            own, x = state[0], torch.cat([self.enter(one) for one in state], dim=1)
        return self.leave(own, self.rest(self.first(x)))

    @abstractmethod
    def enter(self, state: State) -> Float[Tensor, "b c h w"]:
        """The map that the convolutions see."""

    @abstractmethod
    def leave(self, state: State, x: Float[Tensor, "b c h w"]) -> Pooled:
        """The state for the next block."""


class EncoderBlock(Block):
    """Convolutions, then max-pooling by 2, which rounds up."""

    def enter(self, state: State) -> Float[Tensor, "b c h w"]:
        return state.map if isinstance(state, Pooled) else state

    def leave(self, state: State, x: Float[Tensor, "b c h w"]) -> Pooled:
        pooled, places = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        open_before = state.switches if isinstance(state, Pooled) else ()
        return Pooled(pooled, (*open_before, Switches(places, (x.shape[-2], x.shape[-1]))))


class DecoderBlock(Block):
    """Unpooling, which puts every value where the maximum was and zeros elsewhere, then convolutions."""

    def enter(self, state: State) -> Float[Tensor, "b c h w"]:
        assert isinstance(state, Pooled)  # an encoder block comes before
        places, size = state.switches[-1]
        if exporting():  # ONNX has no unpooling with a given size; positions stay the same
            empty = state.map.new_zeros((*state.map.shape[:2], size[0] * size[1]))
            return empty.scatter(2, places.flatten(2), state.map.flatten(2)).unflatten(2, size)
        return F.max_unpool2d(state.map, places, (2, 2), output_size=size)

    def leave(self, state: State, x: Float[Tensor, "b c h w"]) -> Pooled:
        assert isinstance(state, Pooled)
        return Pooled(x, state.switches[:-1])


def _convolutions(channels: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions with bias, BatchNorm and ReLU from each number of channels to the next."""
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        convolution = Convolution3x3(a, b)
        nn.init.xavier_normal_(convolution.weight)
        nn.init.zeros_(cast(Tensor, convolution.bias))
        layers += [convolution, nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
