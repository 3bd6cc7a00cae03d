"""A network that a Caffe description (prototxt) or a list of layers defines, as a feature pyramid and as stages.

Source: the input format of AutoMTL (Zhang, Liu, Guan, NeurIPS 2022, arXiv 2110.13076)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

from torch import Tensor, nn
from tyro.conf import Suppress

from polyptych.backbones._base import Backbone
from polyptych.backbones._caffe import layers
from polyptych.backbones._caffe.layers import Layer
from polyptych.backbones._caffe.module_layers import module_layers
from polyptych.backbones._caffe.network import Definition, Section
from polyptych.backbones._caffe.prototxt import parse_prototxt, read_text, to_text
from polyptych.backbones._states import maps_of
from polyptych.backbones._weights import read
from polyptych.errors import InputError
from polyptych.types import Features, FeatureSpec

__all__ = ["Prototxt", "layers", "module_layers", "of_layers", "to_text"]

FINEST_STRIDE = 4
PROBE = (1024, 1536)
"""Height and width of the image at which strides are measured; nothing is computed."""


class Prototxt(Backbone):
    """The maps of a described network with integer strides; layers that do not contribute to them are dropped. One
    submodule per layer, under the layer's name; stages end where a map is taken.

    Which maps: those of ``taps``; else the outputs, if the network has several; else, among the layers that the single
    output depends on, for each stride from 4 on the last map through which everything later passes (so that a stage
    does not end inside a residual block), or simply the last map if there is none.

    Pooling that rounds up makes maps one row and one column larger than the image divided by the stride
    (deeplab_resnet34 of AutoMTL). Their last row and column are beyond the image: later layers use them, as in the
    described network, and they are cropped where a map is taken.

    Raises:
        InputError: no file, an invalid description (the message names the line), a map without an integer stride,
            convolutions after the last usable map, an image without 3 channels, or weights that do not fit.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        file: Path | None = None
        """Network description (prototxt)."""
        taps: tuple[str, ...] = ()
        """Layers or tops to use as maps of the pyramid (default: the last map of every stride from 4 on)."""
        weights: Path | None = None
        """Local file of initial weights (.safetensors or .pth), with tensors named after the layers."""
        text: Annotated[str, Suppress] = ""
        """Contents of the file, recorded so that the network can be rebuilt without it."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.file is not None and not self.text.startswith(self._origin()):
                object.__setattr__(self, "text", self._origin() + read_text(self.file))

        def _origin(self) -> str:
            return f"# {self.file}\n"

        def without_weights(self) -> Prototxt.Config:
            return replace(self, weights=None)

        def build(self) -> Prototxt:
            if not self.text:
                raise InputError("--backbone.file", "nothing", "a network description (prototxt)",
                                 "for instance `--backbone prototxt --backbone.file resnet34.prototxt`")
            return Prototxt(self)

    def __init__(self, config: Config):
        super().__init__()
        source = str(config.file or "prototxt")
        definition = parse_prototxt(config.text.partition("\n")[2] if config.file else config.text, source).define()
        if definition.shapes[0][1] != 3:
            raise InputError(source, f"an input of {definition.shapes[0][1]} channels", "3, an RGB image",
                             "change the input")
        grids = _taps(definition, config.taps, source)
        strides = {value: grid.stride for value, grid in grids.items()}
        order = sorted(strides)  # as they come in the file
        self._maps = tuple(order.index(value) for value in sorted(order, key=lambda value: (strides[value], value)))
        needed = definition.needed(order)
        self.stages = nn.ModuleList()
        entries: tuple[int, ...] = (0,)
        for tap in order:
            exits = (tap, *_live(definition, tap, needed))
            self.stages.append(Section(definition, entries, exits))
            entries = exits
        fine_to_coarse = [order[index] for index in self._maps]
        self._beyond = tuple(grids[value].beyond for value in order)
        self.spec = FeatureSpec(tuple(definition.shapes[value][1] for value in fine_to_coarse),
                                tuple(strides[value] for value in fine_to_coarse))
        self.multiple = max(self.spec.strides)
        if config.weights is not None:
            self._load(config.weights)

    def features(self, states: list[Any]) -> Features:
        taken = [_within(maps_of(state)[0], beyond) for state, beyond in zip(states, self._beyond, strict=True)]
        return Features(tuple(taken[index] for index in self._maps))

    def grids(self, state: Any) -> list[Tensor]:
        """The map at the end of the stage; other values that later layers read may have any shape."""
        return maps_of(state)[:1]

    def _load(self, path: Path) -> None:
        """Fill the stages from tensors named after the layers; a classifier may be left over."""
        found = read(path)
        for stage in self.stages:
            state = stage.state_dict()
            for name, tensor in state.items():
                if name.endswith("num_batches_tracked"):
                    continue
                if name not in found or found[name].shape != tensor.shape:
                    got = f"shape {tuple(found[name].shape)}" if name in found else "nothing"
                    raise InputError(path, f"{got} for '{name}'", f"shape {tuple(tensor.shape)}",
                                     "pass weights of this network")
                state[name] = found[name]
            stage.load_state_dict(state)


def of_layers(specification: Sequence[Layer], shape: Sequence[int] = (3, 224, 224), taps: tuple[str, ...] = ()
              ) -> Prototxt:
    """A backbone from a list of layer specifications: AutoMTL's Python interface.

    Args:
        shape: shape of the image, (c, h, w); the size matters only for a network with InnerProduct.
    """
    return cast(Prototxt, Prototxt.Config(text=to_text(specification, shape), taps=taps).build())


@dataclass(frozen=True)
class _Grid:
    """Position of a map relative to the image.

    Attributes:
        stride: how much smaller it is than the image.
        beyond: number of rows and columns in excess of the image size divided by the stride.
    """

    stride: int
    beyond: tuple[int, int] = (0, 0)


def _taps(definition: Definition, names: Sequence[str], source: str) -> dict[int, _Grid]:
    """The values to use as maps, in the order of the file, and their positions relative to the image.

    Raises:
        InputError: a requested value is not a map; or none is requested, and the maps found would leave out
            convolutions, because a part of a network is never silently used in place of the whole.
    """
    chosen = [definition.find(name, f"taps of {source}") for name in names]
    if not chosen and len(definition.outputs) > 1:
        chosen = list(definition.outputs)
    keep = definition.needed(chosen or definition.outputs)
    small, large = (definition.at_size(times * PROBE[0], times * PROBE[1], keep) for times in (1, 2))
    grids = {value: grid for value, shape in small.items()
             if value and value in large and (grid := _grid(shape, large[value]))}
    if chosen:
        for value in chosen:
            if value not in grids:
                raise _no_map(source, f"'{definition.name(value)}', shape {definition.shapes[value][1:]}")
        return {value: grids[value] for value in sorted(chosen)}
    if not grids:
        raise _no_map(source, "layers without any")
    finest = FINEST_STRIDE if max(grid.stride for grid in grids.values()) >= FINEST_STRIDE else 1
    last: dict[int, int] = {}
    passed: set[int] = set()  # strides with a map that all that follows goes through
    for value, grid in sorted(grids.items()):
        narrow = not _live(definition, value, keep)
        if grid.stride >= finest and (narrow or grid.stride not in passed):
            last[grid.stride] = value
            passed |= {grid.stride} if narrow else set()
    end = max(last.values())
    for value in sorted(keep - definition.needed([end])):
        # Values of constant size (a classifier after global pooling) are not maps, and are left out.
        depends_on_size = value in small and value in large and small[value] != large[value]
        if isinstance(definition.layers[value - 1], layers.Convolution) and depends_on_size and value > end:
            down, across = small[value][2:]
            raise InputError(source, f"the convolution '{definition.name(value)}' after '{definition.name(end)}', the "
                             f"last map with a whole stride: it makes {down}x{across} of an image of "
                             f"{PROBE[0]}x{PROBE[1]}", "maps whose size is that of the image by a whole stride, to the "
                             "end", f"pad the layers that lose pixels, or leave out what follows with --backbone.taps "
                             f"{' '.join(definition.name(at) for at in sorted(last.values()))}")
    return {value: grids[value] for value in sorted(last.values())}


def _within(found: Tensor, beyond: tuple[int, int]) -> Tensor:
    """A map, cropped to the image."""
    below, right = beyond
    return found[..., :found.shape[-2] - below, :found.shape[-1] - right] if below or right else found


def _live(definition: Definition, tap: int, needed: set[int]) -> list[int]:
    """The values other than a tap that are computed before it and read after it."""
    return [value for value in sorted(needed) if value < tap and any(
        reader > tap and reader in needed for reader in definition.readers(value))]


def _grid(small: tuple[int, ...], large: tuple[int, ...]) -> _Grid | None:
    """How maps lie over the image, from those for images of ``PROBE`` and of twice that; None where they do not by a
    whole stride.

    Sizes follow that of the image in steps of the stride, so that what a map has beyond the image divided by the stride
    is the same for all images of whole steps. One row is what rounding up adds, at the end; more come from padding on
    both sides, which shifts the map. A map that is too small is none: it does not cover the image.
    """
    if len(small) != 4 or len(large) != 4:
        return None
    steps = [more - side for side, more in zip(small[2:], large[2:], strict=True)]
    if any(step < 1 or size % step for size, step in zip(PROBE, steps, strict=True)):
        return None
    down, across = (size // step for size, step in zip(PROBE, steps, strict=True))
    below, right = (side - step for side, step in zip(small[2:], steps, strict=True))
    return _Grid(down, (below, right)) if down == across and 0 <= below <= 1 and 0 <= right <= 1 else None


def _no_map(source: str, got: str) -> InputError:
    return InputError(source, got, "a map (b c h w) whose size is that of the image by a whole stride",
                      "name other layers with --backbone.taps, or pad the convolutions")
