"""From a list of layer specifications to a module: connections, shapes, and the network.

The result is an ordinary ``nn.Module``: one submodule for every layer, under the layer's name (a name with dots is a
path through plain modules, so that weights of a torch network keep their names), with a forward pass that torch.fx
traces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import torch
from torch import Tensor, nn

from polyptych.backbones._caffe.layers import Layer, Shape
from polyptych.devices import shapes_only
from polyptych.errors import InputError, nearest

INPUTS = ("data", "blob1")
"""Default name of the input (as in AutoMTL's files)."""
MOST_PARAMETERS = 1 << 33
RESERVED = {*dir(nn.Module()), "_entries", "_exits", "_steps"}
"""Attributes of the modules that hold layers."""


@dataclass(frozen=True)
class Definition:
    """Layers with resolved inputs. Values are numbered: 0 is the image, i + 1 is the output of layer i.

    Attributes:
        sources: the values that each layer reads.
        shapes: shapes of all values, for one image.
        outputs: the values that the network returns.
    """

    layers: tuple[Layer, ...]
    sources: tuple[tuple[int, ...], ...]
    shapes: tuple[Shape, ...]
    outputs: tuple[int, ...]

    def name(self, value: int) -> str:
        return self.layers[value - 1].name if value else "the input"

    def inputs_of(self, value: int) -> tuple[Shape, ...]:
        """The input shapes of the layer that makes a value."""
        return tuple(self.shapes[source] for source in self.sources[value - 1])

    def readers(self, value: int) -> list[int]:
        return [index + 1 for index, sources in enumerate(self.sources) if value in sources]

    def needed(self, outputs: Sequence[int]) -> set[int]:
        """All values that some outputs depend on, themselves included."""
        found, waiting = set(), list(outputs)
        while waiting:
            if (value := waiting.pop()) not in found:
                found.add(value)
                waiting += self.sources[value - 1] if value else ()
        return found

    def find(self, name: str, where: str) -> int:
        """The output of the layer with this name, or the last value of the top with this name.

        Raises:
            InputError: there is no such name.
        """
        names = {layer.top or layer.name: index for index, layer in enumerate(self.layers, 1)}
        names |= {layer.name: index for index, layer in enumerate(self.layers, 1)}
        if name not in names:
            raise InputError(where, f"'{name}', which no layer makes", nearest(name, names), "name a layer or a top")
        return names[name]

    def at_size(self, height: int, width: int, keep: set[int]) -> dict[int, Shape]:
        """Shapes of some values for an image of another size, without those whose layers do not support it."""
        shapes: dict[int, Shape] = {0: (1, self.shapes[0][1], height, width)}
        for value in sorted(keep - {0}):
            layer, sources = self.layers[value - 1], self.sources[value - 1]
            if all(source in shapes for source in sources):
                try:
                    if [module_size(layer, self.inputs_of(value))] == [
                            module_size(layer, [shapes[source] for source in sources])]:
                        shapes[value] = _run(layer, [shapes[source] for source in sources])
                except InputError:
                    continue  # fixed to the size that the file states
        return shapes


def resolve(layers: Sequence[Layer], shape: Sequence[int], inputs: Sequence[str] = INPUTS) -> Definition:
    """Resolve connections and shapes; nothing is allocated.

    Args:
        shape: shape of the input, (c, h, w); a network without InnerProduct accepts other sizes too.
        inputs: names of the input.

    Raises:
        InputError: a name is missing, used twice or cannot name a module, or shapes do not fit; with file and line
            where the layer comes from a file.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise InputError("the input", f"shape {tuple(shape)}", "channels, height and width of 1 or more",
                         "pass (channels, height, width)")
    if not layers:
        raise InputError("the network", "no layer", "one or more", "add it")
    latest = dict.fromkeys(inputs, 0)
    shapes: list[Shape] = [(1, *shape)]
    sources: list[tuple[int, ...]] = []
    taken: dict[str, Layer] = {}
    parameters = 0
    for index, layer in enumerate(layers):
        _check_name(layer, taken)
        read = tuple(_latest(layer, bottom, latest) for bottom in layer.bottoms) or (index,)
        fewest, most = layer.readable
        if not fewest <= len(read) <= most:
            needs = f"{fewest}" if fewest == most else f"{fewest} or more" if most > 2 else f"{fewest} or {most}"
            raise layer.wrong("bottom", f"{len(read)} inputs", needs)
        before = [shapes[value] for value in read]
        parameters += module_size(layer, before)
        if parameters > MOST_PARAMETERS:
            raise layer.wrong("the size", f"{parameters:,} parameters so far", f"at most {MOST_PARAMETERS:,}")
        shapes.append(_run(layer, before))
        sources.append(read)
        latest[layer.top or layer.name] = index + 1
    found = Definition(tuple(layers), tuple(sources), tuple(shapes), ())
    return dataclasses.replace(
        found, outputs=tuple(value for value in range(1, len(shapes)) if not found.readers(value)))


def _check_name(layer: Layer, taken: dict[str, Layer]) -> None:
    parts = layer.name.split(".")
    if not layer.name or not all(parts) or any(not part.isprintable() for part in parts):
        raise layer.wrong("name", f"'{layer.name}'", "a name")
    if RESERVED & set(parts):
        raise layer.wrong("name", f"'{layer.name}', which modules have for themselves", "another name")
    paths = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    for other in taken:
        if other in paths or other.startswith(f"{layer.name}."):
            what = "a name twice" if other == layer.name else f"'{layer.name}' beside '{other}', one within the other"
            raise layer.wrong("name", what, "a name of its own for every layer")
    taken[layer.name] = layer


def _latest(layer: Layer, bottom: str, latest: dict[str, int]) -> int:
    if bottom not in latest:
        raise layer.wrong("bottom", f"'{bottom}', which no layer before it makes", nearest(bottom, latest))
    return latest[bottom]


def module_size(layer: Layer, shapes: Sequence[Shape]) -> int:
    """Parameters of a layer."""
    return sum(parameter.numel() for parameter in _hollow(layer, shapes).parameters())


def _hollow(layer: Layer, shapes: Sequence[Shape]) -> nn.Module:
    """The module on the meta device, without memory."""
    with shapes_only():
        try:
            return layer.make(shapes)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise layer.wrong("the size", str(error).partition("\n")[0], "one that memory can hold") from None


@torch.no_grad()
def _run(layer: Layer, shapes: Sequence[Shape]) -> Shape:
    """The output shape of a layer."""
    module = _hollow(layer, shapes).eval()
    try:
        result = tuple(module(*(torch.empty(shape, device="meta") for shape in shapes)).shape)
    except (RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
        what = " and ".join(str(shape[1:]) for shape in shapes)
        raise layer.wrong("the input", f"shape {what} ({str(error).partition(chr(10))[0]})",
                          "a shape that the layer can take") from None
    if min(result) < 1:
        raise layer.wrong("the input", f"shape {shapes[0][1:]}, of which nothing remains", "a larger one")
    return result


class Section(nn.Module):
    """Consecutive layers of a definition, from some values to others.

    Args:
        entries: values in the input state.
        exits: values in the output state.
    """

    def __init__(self, definition: Definition, entries: Sequence[int], exits: Sequence[int]):
        super().__init__()
        inside = sorted(_between(definition, entries, exits))
        last_reader = {value: max((reader for reader in definition.readers(value) if reader in inside), default=0)
                       for value in (*entries, *inside)}
        self._entries, self._exits = tuple(entries), tuple(exits)
        self._steps = tuple(
            (definition.name(value), value, definition.sources[value - 1],
             tuple(old for old, reader in last_reader.items() if reader == value and old not in exits))
            for value in inside)
        for value in inside:
            _place(self, definition.name(value), definition.layers[value - 1].make(definition.inputs_of(value)))

    @no_type_check  # torch.fx calls it with stand-ins for tensors
    def forward(self, state: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        values = dict(zip(self._entries, state if isinstance(state, tuple) else (state,), strict=True))
        for name, value, sources, finished in self._steps:
            values[value] = self.get_submodule(name)(*(values[source] for source in sources))
            for old in finished:
                del values[old]
        results = tuple(values[value] for value in self._exits)
        return results if len(results) > 1 else results[0]



def _between(definition: Definition, entries: Sequence[int], exits: Sequence[int]) -> set[int]:
    """The values that must be computed to get from some values to others."""
    found, waiting = set(), list(exits)
    while waiting:
        value = waiting.pop()
        if value not in found and value not in entries:
            found.add(value)
            waiting += definition.sources[value - 1] if value else ()
    assert 0 not in found  # the entries hold what the exits need
    return found


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register a module under a path of names."""
    *groups, last = name.split(".")
    for group in groups:
        if group not in root._modules:
            root.add_module(group, nn.Module())
        root = root.get_submodule(group)
    root.add_module(last, module)
