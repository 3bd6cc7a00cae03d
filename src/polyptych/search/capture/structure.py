"""Takes the result of a network apart into tensors, and puts it together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polyptych.errors import InputError
from polyptych.types import Features


@dataclass(frozen=True)
class Structure:
    """A tensor, or a nest of lists, tuples, dicts and feature pyramids of them.

    Attributes:
        kind: the type of the nest; ``Tensor`` for a tensor, ``type(None)`` for a plain value.
        parts: its elements.
        keys: the keys of a dict.
        value: the plain value.
    """

    kind: type
    parts: tuple[Structure, ...] = ()
    keys: tuple[Any, ...] = ()
    value: Any = None

    def build(self, tensors: Sequence[Any]) -> Any:
        """The nest with these tensors in place of its own."""
        return self._build(iter(tensors))

    def _build(self, tensors: Iterator[Any]) -> Any:
        if self.kind is Tensor:
            return next(tensors)
        if self.kind is type(None):
            return self.value
        parts = [part._build(tensors) for part in self.parts]
        if self.kind is Features:
            return Features(tuple(parts))
        if self.keys:
            return dict(zip(self.keys, parts, strict=True))
        return self.kind(*parts) if hasattr(self.kind, "_fields") else self.kind(parts)


def take_apart(result: Any) -> tuple[list[Tensor], Structure]:
    """The tensors of a result in order, and how they make up the result.

    Raises:
        InputError: the result holds something that is neither a tensor nor a nest of tensors.
    """
    tensors: list[Tensor] = []
    return tensors, _take(result, tensors)


def _take(value: Any, tensors: list[Tensor]) -> Structure:
    if isinstance(value, Tensor):
        tensors.append(value)
        return Structure(Tensor)
    if isinstance(value, Features):
        return Structure(Features, tuple(_take(x, tensors) for x in value.maps))
    if isinstance(value, list | tuple):
        return Structure(type(value), tuple(_take(part, tensors) for part in value))
    if isinstance(value, dict):
        return Structure(dict, tuple(_take(part, tensors) for part in value.values()), tuple(value))
    if value is None or isinstance(value, bool | int | float | str):
        return Structure(type(None), value=value)
    raise InputError("the network to be captured", f"a result of type {type(value).__name__}",
                     "a tensor, or lists, tuples, dicts or Features of tensors",
                     "wrap it in a module that returns these")
