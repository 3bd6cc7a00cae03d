"""Networks and balancers written as one word: ``shared+heads:head=aspp:width=64``.

A network is an encoder, a decoder, or both joined by ``+``; options follow a name as ``:option=value``. An unnamed part
is the recipe's, with the recipe's options. Numbers, booleans (true, false), null, and names are written as they are,
everything else as JSON: ``fixed:weights={"semseg":2}``.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.component import Catalog, Component
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError, nearest
from polyptych.record import encode
from polyptych.run import Run

_OPEN, _CLOSE = "[{(", "]})"


def split(text: str, separator: str) -> list[str]:
    """The parts between separators outside brackets; empty parts are dropped."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def with_network(run: Run, text: str) -> Run:
    """The run with the encoder and decoder that the text names.

    Raises:
        InputError: an unknown name or option, a value of the wrong type, or two parts of one kind.
    """
    chosen: dict[str, Any] = {}
    for part in split(text, "+"):
        name = split(part, ":")[0]
        kinds = [kind for kind in (ENCODERS, DECODERS) if name in kind.names()]
        if not kinds:
            raise InputError(f"network '{text}'", f"'{name}'", "an encoder or a decoder, "
                             + nearest(name, {*ENCODERS.names(), *DECODERS.names()}),
                             "see `polyptych list encoders decoders`")
        catalog = next((kind for kind in kinds if kind.kind not in chosen), None)
        if catalog is None:
            raise InputError(f"network '{text}'", f"a second {kinds[0].kind}, '{name}'", f"one {kinds[0].kind}",
                             "remove one")
        chosen[catalog.kind] = component(part, catalog, getattr(run, catalog.kind))
    if not chosen:
        raise InputError("--networks", "an empty name", "an encoder, a decoder, or both joined by +",
                         "for instance `--networks single,shared+heads:head=fpn`")
    return dataclasses.replace(run, **chosen)


def with_balancer(run: Run, text: str) -> Run:
    """The run with the balancer that the text names; errors as :func:`with_network`."""
    return dataclasses.replace(run, balancer=component(text, BALANCERS, run.balancer))  # type: ignore[arg-type]


def component(text: str, catalog: Catalog, current: Component.Config) -> Component.Config:
    """``name:option=value`` as a Config. A component that is the current one keeps its other options."""
    name, *options = split(text, ":")
    config = current if name == current.name else catalog.load(name).Config()
    hints = typing.get_type_hints(type(config))
    fields = [field.name for field in dataclasses.fields(config)]
    values = {}
    for option in options:
        key, equals, value = option.partition("=")
        key = key.replace("-", "_")
        if key not in fields:
            raise InputError(f"'{text}'", f"an unknown option '{key}'", nearest(key, fields),
                             f"see `polyptych train RECIPE --{catalog.kind} {name} --help`")
        if not equals:
            raise InputError(f"'{text}'", f"no value for '{key}'", f"{key}=VALUE", "add one")
        values[key] = _value(hints[key], value, f"option '{key}' of '{text}'")
    return dataclasses.replace(config, **values)


def spell(*configs: Component.Config, given: Component.Config | None = None) -> str:
    """The text that names components: the inverse of reading it. Options at their default are left out.

    Args:
        given: the component of the run for which the text is read, whose options hold unless the text says otherwise.
    """
    return "+".join(":".join([config.name, *_changed(config, given)]) for config in configs)


def _changed(config: Component.Config, given: Component.Config | None) -> Iterator[str]:
    before = given if type(given) is type(config) else type(config)()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(before, field.name):
            plain = encode(value)
            yield f"{field.name}={plain if isinstance(plain, str) else json.dumps(plain, separators=(',', ':'))}"


def _value(kind: Any, text: str, where: str) -> Any:
    try:
        value = json.loads(text) if text[:1] in ("[", "{") else text
        return msgspec.convert(value, kind, strict=False, dec_hook=lambda to, item: to(item))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        literal = typing.get_origin(kind) is typing.Literal
        needs = nearest(text, map(str, typing.get_args(kind))) if literal else getattr(kind, "__name__", str(kind))
        raise InputError(where, f"'{text}'", needs, f"choose such a value ({error})") from None
