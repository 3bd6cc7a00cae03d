"""Example images that a network accepts, and its results for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.errors import InputError
from polyptych.search.capture.structure import Structure, take_apart

PROBE = 64  # pixels; the least size of the example image for a network that takes any size


@dataclass(frozen=True, eq=False)
class Examples:
    """Two batches of images, different in number and, if the network takes more than one size, in size.

    Attributes:
        image, other: (2 3 h w) and (1 3 h w).
        expected, expected_other: the tensors that the network returns for them in evaluation mode.
        structure: how these tensors make up its result.
    """

    image: Tensor
    other: Tensor
    expected: list[Tensor]
    expected_other: list[Tensor]
    structure: Structure

    @property
    def resized(self) -> bool:
        return self.image.shape[-2:] != self.other.shape[-2:]


@torch.no_grad()
def examples(root: nn.Module, size: tuple[int, int] | None) -> Examples:
    """
    Args:
        size: size of the first image; by default small, or else the size that the network states.

    Raises:
        InputError: the network accepts no such image, or its result is not made of tensors.
    """
    steps = (32, 64)
    sizes: list[tuple[int, int]] = [size] if size is not None else [(PROBE, PROBE)]
    if size is None and isinstance(root, Backbone):
        side = root.multiple * math.ceil(PROBE / root.multiple)
        sizes, steps = [(side, side)], (root.multiple, 2 * root.multiple)
    elif size is None:
        native = (getattr(root, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
        sizes += [tuple(native[-2:]), (224, 224)]
    reason = ""
    for height, width in sizes:
        try:
            image = _image(root, 2, height, width)
            expected, structure = _run(root, image)
        except InputError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            continue
        try:
            other = _image(root, 1, height + steps[0], width + steps[1])
            expected_other, _ = _run(root, other)
        except Exception:
            other = image[:1]
            expected_other, _ = _run(root, other)
        return Examples(image, other, expected, expected_other, structure)
    raise InputError(f"the network {type(root).__name__}", f"no result for images of {sizes} ({reason})",
                     "a network that takes one image (b 3 h w)", "pass the size that it takes (size=(h, w))")


def _run(root: nn.Module, image: Tensor) -> tuple[list[Tensor], Structure]:
    with in_evaluation(root):
        return take_apart(root(image))


def _image(root: nn.Module, batch: int, height: int, width: int) -> Tensor:
    reference = next((p for p in root.parameters() if p.is_floating_point()), torch.zeros(()))
    noise = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(reference.device, reference.dtype)


@contextmanager
def in_evaluation(root: nn.Module, training: bool = False) -> Iterator[None]:
    """Set evaluation (or training) mode without gradient checkpointing, and restore all modules afterward: mode,
    attributes, buffers, and what their code remembers."""
    found = [(module, {k: dict(v) if isinstance(v, dict) and k in ("_buffers", "_parameters") else v
                       for k, v in vars(module).items()}) for module in root.modules()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in root.buffers()]
    root.train(training)
    for module, _ in found:
        if getattr(module, "grad_checkpointing", False) is True:
            module.grad_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, attributes in found:
            vars(module).clear()
            vars(module).update(attributes)
        with torch.no_grad():
            for buffer, version, value in buffers:
                if training or buffer._version != version:  # batch norms update theirs without a new version
                    buffer.copy_(value)


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether tensors are equal bit for bit; NaN equals NaN."""
    return len(one) == len(other) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | ((x != x) & (y != y))).all())
        for x, y in zip(one, other, strict=True))
