"""Reads Caffe's network descriptions (prototxt) as layers, and writes layers as such text.

    definition = parse_prototxt(text, "resnet34.prototxt").define()
    text = to_text(layers, (3, 224, 224))

The fields of a layer's block are those of its class in :mod:`polyptych.backbones._caffe.layers`; sizes may be given
once, twice (height, width), or as ``kernel_h`` and ``kernel_w``. Caffe's own training options in a description
(fillers, per-parameter learning rates, engines) are skipped: weights are initialized as in torch. ``inplace`` is also
skipped, because nothing works in place here. Any other unknown field is refused, with its line.

The differences from Caffe are those of AutoMTL: pooling rounds down unless ``round_mode: CEIL`` is set, and BatchNorm
has its own affine part. If a Scale layer reads it, as in Caffe's files, that layer is the affine part, unless ``affine:
true`` is set. Fields of AutoMTL: batch_norm_param's ``affine``, ``momentum`` (torch's) and ``track_running_stats``. Of
Caffe's own, ``moving_average_fraction`` is 1 - momentum, ``concat_dim`` is ``axis``.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from polyptych.backbones._caffe.layers import TYPES, BatchNorm, Concat, Layer, Pair, Scale
from polyptych.backbones._caffe.network import INPUTS, Definition, resolve
from polyptych.backbones._caffe.text_format import Field, Message, Word, parse
from polyptych.errors import InputError, nearest

NET = ("name", "input", "input_dim", "input_shape", "layer")
OF_TRAINING = {"force_backward", "debug_info", "param", "weight_filler", "bias_filler", "filler", "engine", "inplace",
               "use_global_stats", "stable_prod_grad", "loss_weight", "propagate_down"}
"""Fields that Caffe reads but torch modules do not need."""
ALIASES = {"concat_dim": "axis"}
ALSO: dict[type[Layer], set[str]] = {Concat: {"concat_dim"}, BatchNorm: {"moving_average_fraction"}}


@dataclass(frozen=True)
class NetworkText:
    """A parsed file.

    Attributes:
        shape: of the input, (c, h, w).
        input: name of the input.
    """

    name: str
    layers: tuple[Layer, ...]
    shape: tuple[int, int, int]
    input: str

    def define(self) -> Definition:
        """Resolve connections; the outputs are the tops that nothing reads."""
        return resolve(self.layers, self.shape, (*INPUTS, self.input))


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(path, f"a file that cannot be read ({reason})", "a network description (prototxt)",
                         "check the path") from None


def parse_prototxt(text: str, source: str = "prototxt") -> NetworkText:
    """The layers of a text.

    Args:
        source: name of the file for errors.
    """
    message = parse(text, source)
    reader = _Reader(source)
    layers: list[Layer] = []
    name, inputs, sizes, input_line = "", [], [], 1
    reader.refuse_repeats(message, "the network", ("name", "input_shape"))
    for field in message.fields:
        if field.name == "name":
            name = reader.text(field)
        elif field.name == "input":
            inputs.append(reader.text(field))
        elif field.name == "input_dim":
            sizes.append(reader.whole(field))
            input_line = field.line
        elif field.name == "input_shape":
            sizes += reader.dims(reader.message(field))
            input_line = field.line
        elif field.name == "layer":
            block = reader.message(field)
            if any(f.name == "type" and f.value == "Input" for f in block.fields):
                declared, shape = reader.input_layer(block)
                inputs, sizes, input_line = [*inputs, declared], sizes + shape, field.line
            else:
                layers.append(reader.layer(block))
        elif field.name not in OF_TRAINING:
            raise reader.unknown(field, "of a network", NET)
    if len(inputs) > 1 or len(sizes) != 4:
        got = f"inputs {', '.join(inputs)}" if len(inputs) > 1 else f"{len(sizes)} sizes"
        raise reader.error(input_line, f"{got} of the input", "one input with four sizes (batch, channels, height, "
                           "width), in input_dim or input_shape")
    if min(sizes) < 1 or max(sizes) > 1 << 20:
        raise reader.error(input_line, f"an input of {' x '.join(map(str, sizes))}", "sizes of 1 to 1048576")
    if not layers:
        raise reader.error(message.line, "no layer", "one or more")
    _, channels, height, width = sizes
    return NetworkText(name, tuple(_affine_once(layers, reader.affine_stated)), (channels, height, width),
                       inputs[0] if inputs else INPUTS[0])


class _Reader:
    """Converts fields to values of the types of the dataclasses."""

    def __init__(self, source: str):
        self.source = source
        self.affine_stated: set[str] = set()  # names of BatchNorm layers

    def error(self, line: int, got: str, needs: str) -> InputError:
        return InputError(f"{self.source}:{line}", got, needs, "change that line")

    def unknown(self, field: Field, what: str, known: Iterable[str]) -> InputError:
        return self.error(field.line, f"the unknown field '{field.name}' {what}", nearest(field.name, known))

    def wrong(self, field: Field, needs: str) -> InputError:
        shown = "a message" if isinstance(field.value, Message) else (
            field.value.text if isinstance(field.value, Word) else repr(field.value))
        return self.error(field.line, f"{shown[:60]} for '{field.name}'", needs)

    def message(self, field: Field) -> Message:
        if not isinstance(field.value, Message):
            raise self.wrong(field, "a message in braces")
        return field.value

    def text(self, field: Field) -> str:
        if not isinstance(field.value, str):
            raise self.wrong(field, "a text in quotes")
        return field.value

    def whole(self, field: Field) -> int:
        if isinstance(field.value, bool) or not isinstance(field.value, int) or abs(field.value) >= 1 << 31:
            raise self.wrong(field, "a whole number of 32 bits")
        return field.value

    def value(self, field: Field, kind: Any) -> Any:
        """The value of a field whose type is a hint of a dataclass."""
        value = field.value
        if kind is bool:
            word = value.text if isinstance(value, Word) else value
            if word in ("true", "True", "t", 1):
                return True
            if word in ("false", "False", "f", 0):
                return False
            raise self.wrong(field, "true or false")
        if kind is float:
            if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 1e30:
                return float(value)
            raise self.wrong(field, "a number")
        if typing.get_origin(kind) is Literal:
            choices = dict(enumerate(cast("tuple[str, ...]", typing.get_args(kind))))  # in the order of Caffe's numbers
            if isinstance(value, Word) and value.text in choices.values():
                return value.text
            if isinstance(value, int) and value in choices:
                return choices[value]
            raise self.wrong(field, f"one of {', '.join(choices.values())}")
        return self.whole(field)

    def refuse_repeats(self, message: Message, what: str, names: Iterable[str]) -> None:
        seen: set[str] = set()
        for field in message.fields:
            if field.name in seen and field.name in names:
                raise self.error(field.line, f"'{field.name}' of {what} twice", "every field once")
            seen.add(field.name)

    def dims(self, message: Message) -> list[int]:
        for field in message.fields:
            if field.name != "dim":
                raise self.unknown(field, "of a shape", ("dim",))
        return [self.whole(field) for field in message.fields]

    def input_layer(self, message: Message) -> tuple[str, list[int]]:
        """Caffe's later way of declaring the input: a layer of type Input."""
        top, sizes = "", list[int]()
        self.refuse_repeats(message, "a layer", ("name", "type", "top", "input_param"))
        for field in message.fields:
            if field.name in ("name", "type", "top"):
                top = self.text(field) if field.name == "top" or (field.name == "name" and not top) else top
            elif field.name == "input_param":
                for inner in self.message(field).fields:
                    if inner.name != "shape":
                        raise self.unknown(inner, "of input_param", ("shape",))
                    sizes += self.dims(self.message(inner))
            else:
                raise self.unknown(field, "of an Input layer", ("name", "type", "top", "input_param"))
        return top, sizes

    def layer(self, message: Message) -> Layer:
        by_name: dict[str, list[Field]] = {}
        for field in message.fields:
            by_name.setdefault(field.name, []).append(field)
        self.refuse_repeats(message, "a layer", by_name.keys() - {"bottom", *OF_TRAINING})
        if "name" not in by_name or "type" not in by_name:
            raise self.error(message.line, f"a layer without {'type' if 'name' in by_name else 'name'}", "both")
        name = self.text(by_name["name"][0])
        if name == "" or not name.isprintable():
            raise self.wrong(by_name["name"][0], "a name")
        kind = self.text(by_name["type"][0])
        if kind not in TYPES:
            raise self.error(by_name["type"][0].line, f"layer '{name}' of the unknown type '{kind[:60]}'",
                             nearest(kind, TYPES))
        block = block_of(kind)
        if "bottom" not in by_name:
            raise self.error(message.line, f"layer '{name}' without a bottom", "the top that it reads")
        for field in message.fields:
            if field.name not in ("name", "type", "bottom", "top", block, *OF_TRAINING):
                raise self.unknown(field, f"of a {kind} layer", ("name", "type", "bottom", "top", block))
        inner = self.message(by_name[block][0]) if block in by_name else Message((), message.line)
        if any(field.name == "affine" for field in inner.fields):
            self.affine_stated.add(name)
        top = self.text(by_name["top"][0]) if "top" in by_name else ""
        return TYPES[kind](name, bottom=tuple(self.text(field) for field in by_name["bottom"]),
                           top="" if top == name else top, place=f"{self.source}:{message.line}",
                           **self.options(TYPES[kind], inner, f"of {block} ({kind})"))

    def options(self, kind: type[Layer], message: Message, what: str) -> dict[str, Any]:
        """The fields of a block as arguments of its class."""
        hints = typing.get_type_hints(kind)
        own = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name not in LAYER_FIELDS}
        halves = {f"{stem(name)}_{side}": name for name, hint in own.items() if hint == Pair for side in "hw"}
        known = {*own, *halves} | ALSO.get(kind, set())
        many = {name for name, hint in own.items() if hint == Pair or typing.get_origin(hint) is tuple}
        self.refuse_repeats(message, what.removeprefix("of "), known - many)
        found: dict[str, Any] = {}
        given: dict[str, list[Field]] = {}
        for field in message.fields:
            if field.name in known:
                given.setdefault(ALIASES.get(field.name, field.name), []).append(field)
            elif field.name not in OF_TRAINING:
                raise self.unknown(field, what, known)
        for name, fields in given.items():
            if name == "moving_average_fraction":
                found["momentum"] = 1 - cast(float, self.value(fields[0], float))
            elif name in halves:
                found[halves[name]] = self.two_sides(given, halves[name], fields[0])
            elif own[name] == Pair:
                sizes = [self.whole(field) for field in fields]
                if len(sizes) > 2:
                    raise self.error(fields[2].line, f"{len(sizes)} values for '{name}'", "one, or height and width")
                found.setdefault(name, sizes[0] if len(set(sizes)) == 1 else (sizes[0], sizes[1]))
            elif name in many:
                found[name] = tuple(self.value(field, float) for field in fields)
            else:
                found[name] = self.value(fields[0], own[name])
        for name in own:
            if name not in found and kind.__dataclass_fields__[name].default is dataclasses.MISSING:
                raise self.error(message.line, f"no '{name}' {what}", "a value for it")
        return found

    def two_sides(self, given: dict[str, list[Field]], name: str, field: Field) -> Pair:
        """A size that is given as ``kernel_h`` and ``kernel_w``."""
        sides = [given.get(f"{stem(name)}_{side}") for side in "hw"]
        if name in given or None in sides:
            got = f"'{name}' beside '{field.name}'" if name in given else f"'{field.name}' alone"
            raise self.error(field.line, got, f"{name}, or {stem(name)}_h and {stem(name)}_w")
        height, width = (self.whole(cast("list[Field]", fields)[0]) for fields in sides)
        return height if height == width else (height, width)


LAYER_FIELDS = {f.name for f in dataclasses.fields(Layer)}


def block_of(kind: str) -> str:
    """The name of a type's block of options: ``batch_norm_param``."""
    if kind == "Deconvolution":
        return "convolution_param"
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", kind).lower() + "_param"


def stem(name: str) -> str:
    return "kernel" if name == "kernel_size" else name


def _affine_once(layers: list[Layer], stated: set[str]) -> list[Layer]:
    """Make a Scale that reads a BatchNorm its affine part, unless the file states otherwise."""
    made: dict[str, int] = {}
    changed = list(layers)
    for index, layer in enumerate(layers):
        if isinstance(layer, Scale) and len(layer.bottoms) == 1 and layer.bottoms[0] in made:
            before = layers[made[layer.bottoms[0]]]
            if isinstance(before, BatchNorm) and before.name not in stated:
                changed[made[layer.bottoms[0]]] = dataclasses.replace(before, affine=False)
        made[layer.top or layer.name] = index
    return changed


def to_text(layers: Iterable[Layer], shape: Sequence[int], name: str = "network", input: str = "data") -> str:
    """Layers as a text that :func:`parse_prototxt` reads back to the same layers.

    Args:
        shape: of the input, (c, h, w).
    """
    lines = [f"name: {_quoted(name)}", f"input: {_quoted(input)}", *(f"input_dim: {size}" for size in (1, *shape))]
    before = input
    for layer in layers:
        top = layer.top or layer.name
        lines += ["layer {", f"  name: {_quoted(layer.name)}", f"  type: \"{type(layer).__name__}\"",
                  *(f"  bottom: {_quoted(bottom)}" for bottom in layer.bottoms or (before,)), f"  top: {_quoted(top)}"]
        if options := list(_option_lines(layer)):
            lines += [f"  {block_of(type(layer).__name__)} {{", *(f"    {line}" for line in options), "  }"]
        lines.append("}")
        before = top
    return "\n".join(lines) + "\n"


def _option_lines(layer: Layer) -> Iterable[str]:
    """The options that differ from the defaults."""
    hints = typing.get_type_hints(type(layer))
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.name in LAYER_FIELDS or (value == field.default and field.name != "affine"):
            continue
        if isinstance(value, bool):
            yield f"{field.name}: {str(value).lower()}"
        elif hints[field.name] == Pair and not isinstance(value, int):
            yield from (f"{stem(field.name)}_{side}: {number}" for side, number in zip("hw", value, strict=True))
        elif isinstance(value, tuple):
            yield from (f"{field.name}: {number!r}" for number in value)
        else:
            yield f"{field.name}: {value}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
