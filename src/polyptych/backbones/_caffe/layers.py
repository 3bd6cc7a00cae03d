"""Layer specifications: a backbone as a list of typed dataclasses, in the terms of Caffe.

    layers = [Convolution("conv1", num_output=64, kernel_size=7, stride=2, pad=3, bias_term=False),
              BatchNorm("bn1"), ReLU("relu1"), Pooling("pool1", kernel_size=3, stride=2, pad=1)]
    definition = resolve(layers, (3, 224, 224))
    network = Section(definition, (0,), definition.outputs)          # an ordinary nn.Module

A layer reads the output of the previous layer in the list, unless ``bottom`` names other tops; its output is called
``top``, by default the layer's own name. If a top is defined again, later layers read the new values (this is how Caffe
writes in-place layers). Nothing is actually computed in place, so every reader sees the values it refers to.

The types, their fields and defaults are those of Caffe's NetParameter (Jia et al., ACM MM 2014, arXiv 1408.5093) as
AutoMTL changed them (Zhang, Liu, Guan, NeurIPS 2022): pooling rounds down, BatchNorm has an affine part. The types
that AutoMTL lacks are Concat, Sigmoid, Deconvolution, Scale and Flatten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, cast

from torch import nn

from polyptych.backbones._caffe.operators import ChannelScale, Concatenate, Elementwise, InnerProductLayer, Rescale
from polyptych.errors import InputError

Shape = tuple[int, ...]
Pair = int | tuple[int, int]
"""One number for both directions, or (height, width)."""
LARGEST = 1 << 20
"""Largest count or size in a specification; anything larger must be a typo."""


@dataclass(frozen=True)
class Layer(ABC):
    """Base of all layers."""

    name: str
    _: KW_ONLY
    bottom: str | tuple[str, ...] = ()
    """Names of the tops it reads; by default the output of the previous layer."""
    top: str = ""
    """Name of its output; by default its own name."""
    place: str = field(default="", compare=False, repr=False)
    """File and line of its definition, for errors."""

    readable: ClassVar[tuple[int, int]] = (1, 1)  # how many inputs, at least and at most

    def __post_init__(self) -> None:  # noqa: B027  not every layer has something to check
        """Check what can be checked without the shapes of the inputs."""

    @property
    def bottoms(self) -> tuple[str, ...]:
        return ((self.bottom,) if self.bottom else ()) if isinstance(self.bottom, str) else tuple(self.bottom)

    @abstractmethod
    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        """The module for inputs of these shapes, the batch as its first axis."""

    def wrong(self, where: str, got: object, needs: str) -> InputError:
        place = f"{self.place}: " if self.place else ""
        return InputError(f"{place}{where} of layer '{self.name}'", str(got), needs,
                          f"edit layer '{self.name}' of the description")

    def at_least(self, name: str, smallest: int) -> None:
        for value in _both(getattr(self, name)):
            if not smallest <= value <= LARGEST:
                raise self.wrong(name, value, f"{smallest} to {LARGEST}")

    def map_channels(self, shape: Shape) -> int:
        if len(shape) != 4:
            raise self.wrong("the input", f"shape {_shown(shape)}", "a map, (b c h w)")
        return shape[1]

    def an_axis(self, name: str, shape: Shape) -> int:
        axis = int(getattr(self, name))
        if not -len(shape) <= axis < len(shape):
            raise self.wrong(name, axis, f"an axis of {_shown(shape)}")
        return axis % len(shape)


@dataclass(frozen=True)
class _Sliding(Layer):
    num_output: int = field(kw_only=True)
    kernel_size: Pair = field(kw_only=True)
    stride: Pair = field(default=1, kw_only=True)
    pad: Pair = field(default=0, kw_only=True)
    dilation: Pair = field(default=1, kw_only=True)
    group: int = field(default=1, kw_only=True)
    bias_term: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        for name, smallest in (("num_output", 1), ("kernel_size", 1), ("stride", 1), ("pad", 0), ("dilation", 1),
                               ("group", 1)):
            self.at_least(name, smallest)

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        channels = self.map_channels(shapes[0])
        if channels % self.group or self.num_output % self.group:
            raise self.wrong("group", self.group, f"a divisor of {channels} and {self.num_output} channels")
        kind: Any = nn.Conv2d if isinstance(self, Convolution) else nn.ConvTranspose2d
        return kind(channels, self.num_output, _both(self.kernel_size), _both(self.stride), _both(self.pad),
                    dilation=_both(self.dilation), groups=self.group, bias=self.bias_term)


@dataclass(frozen=True)
class Convolution(_Sliding):
    """A 2D convolution."""


@dataclass(frozen=True)
class Deconvolution(_Sliding):
    """A transposed convolution: height becomes stride (h - 1) + dilation (kernel - 1) + 1 - 2 pad."""


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalization. ``momentum`` is defined as in torch: the weight of the new batch."""

    _: KW_ONLY
    eps: float = 1e-5
    momentum: float = 0.1
    affine: bool = True
    track_running_stats: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise self.wrong("eps", self.eps, "a small positive number")
        if not 0 <= self.momentum <= 1:
            raise self.wrong("momentum", self.momentum, "a share from 0 to 1")

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        if len(shapes[0]) not in (2, 4):
            raise self.wrong("the input", f"shape {_shown(shapes[0])}", "a map or a vector")
        kind = nn.BatchNorm2d if len(shapes[0]) == 4 else nn.BatchNorm1d
        return kind(shapes[0][1], self.eps, self.momentum, self.affine, self.track_running_stats)


@dataclass(frozen=True)
class ReLU(Layer):
    """max(x, 0), plus ``negative_slope`` min(x, 0)."""

    _: KW_ONLY
    negative_slope: float = 0.0

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        return nn.LeakyReLU(self.negative_slope) if self.negative_slope else nn.ReLU()


@dataclass(frozen=True)
class Sigmoid(Layer):
    """1 / (1 + exp(-x))."""

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        return nn.Sigmoid()


@dataclass(frozen=True)
class Pooling(Layer):
    """Maximum or mean over windows; the mean includes the zeros of the padding, as in Caffe."""

    _: KW_ONLY
    pool: Literal["MAX", "AVE"] = "MAX"
    kernel_size: Pair = 0
    stride: Pair = 1
    pad: Pair = 0
    global_pooling: bool = False
    round_mode: Literal["CEIL", "FLOOR"] = "FLOOR"

    def __post_init__(self) -> None:
        for name, smallest in (("stride", 1), ("pad", 0), ("kernel_size", 0)):
            self.at_least(name, smallest)
        kernel, pad = _both(self.kernel_size), _both(self.pad)
        if self.global_pooling != (kernel == (0, 0)):
            raise self.wrong("kernel_size", self.kernel_size, "a size, or global_pooling without one")
        if not self.global_pooling and min(kernel) < 1:
            raise self.wrong("kernel_size", self.kernel_size, "1 or more")
        if any(2 * p > k for p, k in zip(pad, kernel, strict=True)):
            raise self.wrong("pad", self.pad, "at most half of kernel_size")

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        self.map_channels(shapes[0])
        if self.global_pooling:
            return nn.AdaptiveMaxPool2d(1) if self.pool == "MAX" else nn.AdaptiveAvgPool2d(1)
        kind: Any = nn.MaxPool2d if self.pool == "MAX" else nn.AvgPool2d
        return kind(_both(self.kernel_size), _both(self.stride), _both(self.pad), ceil_mode=self.round_mode == "CEIL")


@dataclass(frozen=True)
class Eltwise(Layer):
    """Product, sum or maximum of two or more inputs of one shape; ``coeff`` weights the terms of a sum."""

    _: KW_ONLY
    operation: Literal["PROD", "SUM", "MAX"] = "SUM"
    coeff: tuple[float, ...] = ()

    readable: ClassVar[tuple[int, int]] = (2, LARGEST)

    def __post_init__(self) -> None:
        if self.coeff and self.operation != "SUM":
            raise self.wrong("coeff", f"coefficients of {self.operation}", "SUM with them, or none")

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        if len(set(shapes)) > 1:
            raise self.wrong("the inputs", " and ".join(map(_shown, shapes)), "one shape")
        if self.coeff and len(self.coeff) != len(shapes):
            raise self.wrong("coeff", f"{len(self.coeff)} coefficients", f"one for each of {len(shapes)} inputs")
        return Elementwise(self.operation, self.coeff)


@dataclass(frozen=True)
class Concat(Layer):
    """Concatenates inputs along ``axis``."""

    _: KW_ONLY
    axis: int = 1

    readable: ClassVar[tuple[int, int]] = (1, LARGEST)

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        axis = self.an_axis("axis", shapes[0])
        if axis == 0:
            raise self.wrong("axis", self.axis, "another axis than the batch")
        if len({(*shape[:axis], *shape[axis + 1:]) for shape in shapes}) > 1 or len(set(map(len, shapes))) > 1:
            raise self.wrong("the inputs", " and ".join(map(_shown, shapes)), f"shapes that differ in axis {axis} only")
        return Concatenate(axis)


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout: zero a random share of the values during training."""

    _: KW_ONLY
    dropout_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout_ratio < 1:
            raise self.wrong("dropout_ratio", self.dropout_ratio, "a share of at least 0 and less than 1")

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        return nn.Dropout(self.dropout_ratio)


@dataclass(frozen=True)
class InnerProduct(Layer):
    """A linear map of the flattened input; it fixes the size of the network's input."""

    _: KW_ONLY
    num_output: int
    bias_term: bool = True

    def __post_init__(self) -> None:
        self.at_least("num_output", 1)

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        size = 1
        for side in shapes[0][1:]:
            size *= side
        return InnerProductLayer(size, self.num_output, self.bias_term)


@dataclass(frozen=True)
class Scale(Layer):
    """With one input, a learned factor (and with ``bias_term`` an offset) for every channel. With two inputs, their
    product, where the axes of the second match those of the first from ``axis`` on, or broadcast."""

    _: KW_ONLY
    axis: int = 1
    bias_term: bool = False

    readable: ClassVar[tuple[int, int]] = (1, 2)

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        axis = self.an_axis("axis", shapes[0])
        if len(shapes[0]) < 2:
            raise self.wrong("the input", f"shape {_shown(shapes[0])}", "channels")
        if len(shapes) == 1:
            if axis != 1:
                raise self.wrong("axis", self.axis, "1, the channels, as it has one input")
            return ChannelScale(shapes[0][1], self.bias_term, len(shapes[0]))
        if self.bias_term:
            raise self.wrong("bias_term", "an offset for a product of two inputs", "one input, or none")
        x, factor = shapes
        if len(x) == len(factor) and all(f in (1, s) for s, f in zip(x, factor, strict=True)):
            return Rescale(0)
        if x[axis:axis + len(factor)] != factor:
            raise self.wrong("the second input", _shown(factor), f"axes of the first, {_shown(x)}, from {axis} on")
        return Rescale(len(x) - axis - len(factor))


@dataclass(frozen=True)
class Flatten(Layer):
    """Flattens the axes from ``axis`` to ``end_axis`` into one."""

    _: KW_ONLY
    axis: int = 1
    end_axis: int = -1

    def make(self, shapes: Sequence[Shape]) -> nn.Module:
        first, last = self.an_axis("axis", shapes[0]), self.an_axis("end_axis", shapes[0])
        if not 1 <= first <= last:
            raise self.wrong("axis", f"{self.axis} to {self.end_axis}", "axes in order, without the batch")
        return nn.Flatten(first, last)


TYPES: dict[str, type[Layer]] = {kind.__name__: kind for kind in (
    Convolution, BatchNorm, ReLU, Pooling, Eltwise, Dropout, InnerProduct, Concat, Sigmoid, Deconvolution, Scale,
    Flatten)}
"""Layer types by their names in a file."""


def _both(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else cast(tuple[int, int], tuple(value))


def _shown(shape: Shape) -> str:
    return f"({', '.join(('b', *map(str, shape[1:])))})"
