"""Freezing parts of a backbone, and the depth of each parameter below its top."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import timm
from timm.models import group_parameters
from torch import nn

from polyptych.devices import shapes_only
from polyptych.errors import InputError
from polyptych.freezing import mark

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def freeze(backbone: Any, what: str, first: int, until: int) -> None:
    """Freeze a part of a backbone's stages. Additions (a pyramid on a transformer's last map, a norm on every map) have
    no pretrained weights, so they are trained.

    Args:
        what, first, until: see the options of :class:`polyptych.backbones._base.Backbone.Config`.

    Raises:
        InputError: a number of stages or blocks that the backbone does not have.
    """
    if what == "all":
        still: Iterable[nn.Module] = backbone.stages
    elif what == "stages":
        stages, stem = list(backbone.stages), int(backbone.has_stem)
        _check_first(first, len(stages) - stem, "stages")
        still = stages[:first + stem]
    elif what == "blocks":
        _freeze_blocks(backbone, first, until)
        return
    else:
        assert what == "all_but_norms"
        for module in backbone.stages.modules():
            if not is_norm(module):
                mark(module, "weights", until)
        return
    for part in still:
        for module in part.modules():
            mark(module, "all", until)


def _freeze_blocks(backbone: Any, first: int, until: int) -> None:
    """Freeze modules that belong entirely to the first layers; layer 0 is the stem."""
    def layers(module: nn.Module, recurse: bool = True) -> list[int]:
        return [p.layer for p in module.parameters(recurse)]  # type: ignore[attr-defined]

    blocks = max(number for number in layers(backbone.stages) if number < _top(backbone))
    _check_first(first, blocks, "blocks")
    for module in backbone.stages.modules():
        if layers(module) and max(layers(module)) <= first:
            for part in module.modules():
                mark(part, "all", until)
        elif any(number <= first for number in layers(module, recurse=False)):
            mark(module, "weights", until)


def _top(backbone: Any) -> int:
    first: Any = next(backbone.stages.parameters())
    return first.layer + first.layers_above


def _check_first(first: int, most: int, what: str) -> None:
    if not 1 <= first <= most:
        raise InputError("--backbone.freeze-first", str(first), f"1 to {most}, of the {most} {what} of this backbone",
                         "choose such a number, or use --backbone.freeze all")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer with learned factors: torch's classes, and timm's, which have similar
    names."""
    return isinstance(module, NORMS) or "norm" in type(module).__name__.lower()


# -- layers ----------------------------------------------------------------------------------------------------------


def number_as_timm(network: nn.Module, model: str, architecture: str = "") -> None:
    """Set ``layers_above`` of every parameter of a timm network, and ``name_in_timm`` of every module.

    Layers are timm's: the embedding or stem, every block, and one more for everything after them and everything outside
    the network.

    Args:
        network: a feature extractor, whose parameters are named as in the whole network, except for a prefix and for
            dots that became underscores.
    """
    layers, top, modules = _layers_of(model, architecture)
    for name, module in network.named_modules():
        if (known := modules.get(_plain(name))) is not None:
            module.name_in_timm = known
    numbers = {name: layers.get(_plain(name)) for name, _ in network.named_parameters()}
    if None not in numbers.values():
        if any(number == top and "norm" not in name for name, number in numbers.items()):
            top += 1  # a network without a classifier, or whose last norm has no layer of its own
        for name, parameter in network.named_parameters():
            _write(parameter, numbers[name], top)


@lru_cache(8)
def _layers_of(model: str, architecture: str) -> tuple[dict[str, int], int, dict[str, str]]:
    """The layer of every parameter, counted from 0; the number of the last layer; and the names of all modules."""
    with shapes_only():
        network: Any = timm.create_model(model, **arguments(architecture))
    modules = {_plain(name): name for name, _ in network.named_modules()}
    if not hasattr(network, "group_matcher"):
        return {}, 0, modules
    numbers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    return {_plain(name): number for name, number in numbers.items()}, max(numbers.values(), default=0), modules


def arguments(text: str) -> dict[str, Any]:
    """Parse ``width=16, depths=(2, 2)`` into a dictionary.

    Raises:
        InputError: something else.
    """
    try:
        call: Any = ast.parse(f"f({text})", mode="eval").body
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise InputError("backbone.architecture", f"'{text}' ({error})", "names with values, such as "
                         "embed_dim=16, depths=(2, 2, 3, 2)", "write it like that") from None


def _plain(name: str) -> str:
    return re.sub(r"^model\.", "", name).replace(".", "_")


def number_stages(backbone: Any) -> None:
    """Treat stages as layers, if nothing finer is known."""
    if not any(hasattr(p, "layers_above") for p in backbone.stages.parameters()):
        stem = int(backbone.has_stem)
        top = len(backbone.stages) - stem + 1
        for number, stage in enumerate(backbone.stages):
            for parameter in stage.parameters():
                _write(parameter, number + 1 - stem, top)


def _write(parameter: Any, number: int | None, top: int) -> None:
    assert number is not None
    parameter.layer, parameter.layers_above = number, top - number
