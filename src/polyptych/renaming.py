"""Tables of names: which of the authors' tensors becomes which of ours, and by which transformation.

A row reads

    Rename("scale_{s}.decoders.{task}.*", "decoder.initial.predict.{s}.{task}.*")

Braces on the left match one part of a name: ``{task}`` and ``{sender}`` a task, any other word a number, ``{n:0|1}``
one of these alternatives. A star at the end matches the rest. Braces on the right hold an expression of the matched
values, of ``tasks`` (our names, in the order of the network) and of values derived from the network's sizes: ``{9 -
j}``, ``{tasks[i]}``. On the right, a task has our name.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from polyptych.errors import InputError

Change = Callable[[Tensor], Tensor]
_NAMES = ("task", "sender")


@dataclass(frozen=True)
class Rename:
    """One row of a table.

    Attributes:
        theirs, ours: names, as above.
        change: transformation of the values.
        gather: combines several tensors of the file into one of ours; they come in the order of the rows, of the tasks,
            and of the numbers in their names.
        spread: splits one tensor of the file into several of ours, which differ in ``{part}``.
    """

    theirs: str
    ours: str
    change: Change | None = None
    gather: Callable[[list[Tensor]], Tensor] | None = None
    spread: Callable[[Tensor], Iterable[Tensor]] | None = None


def under(prefix: str, target: str, rules: Iterable[Rename]) -> tuple[Rename, ...]:
    """A table for a network inside another: names in the file and ours get a prefix."""
    return tuple(Rename(prefix + rule.theirs, target + rule.ours, rule.change, rule.gather, rule.spread)
                 for rule in rules)


@cache
def pattern(text: str) -> re.Pattern[str]:
    """The left side of a row as a regular expression."""
    parts = []
    for piece in re.split(r"(\{[^}]*\}|\*$)", text):
        if piece == "*":
            parts.append("(?P<rest>.+)")
        elif piece.startswith("{"):
            name, _, choices = piece[1:-1].partition(":")
            parts.append(f"(?P<{name}>{choices or ('[^.]+' if name in _NAMES else '[0-9]+')})")
        else:
            parts.append(re.escape(piece))
    return re.compile("".join(parts))


def matched(text: str, key: str) -> dict[str, str] | None:
    """What the braces of a left side match in a key; None if it does not match."""
    found = pattern(text).fullmatch(key)
    return found.groupdict() if found else None


def renamed(state: Mapping[str, Tensor], rules: Iterable[Rename], names: Mapping[str, str],
            sizes: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under our names, and the keys that match no row.

    Args:
        names: the authors' task names and ours, in the order of the network.
        sizes: further values that expressions may use.
    """
    rules = tuple(rules)
    tasks = tuple(names.values())
    found: dict[str, Tensor] = {}
    gathered: dict[str, list[tuple[tuple[int, ...], Tensor, Rename]]] = {}
    left_over = []
    for key, tensor in state.items():
        row, rule, values = next(((row, rule, values) for row, rule in enumerate(rules)
                                  if (values := _values(rule, key, names)) is not None), (0, None, {}))
        if rule is None:
            left_over.append(key)
            continue
        if rule.change is not None:
            tensor = rule.change(tensor)
        known: dict[str, Any] = {"tasks": tasks, **sizes, **values}
        if rule.spread is not None:
            for part, piece in enumerate(rule.spread(tensor)):
                found[_filled(rule.ours, known | {"part": part})] = piece
        elif rule.gather is not None:
            order = (row, *(tasks.index(value) if name in _NAMES else value for name, value in values.items()
                            if name != "rest"))
            gathered.setdefault(_filled(rule.ours, known), []).append((order, tensor, rule))
        else:
            found[_filled(rule.ours, known)] = tensor
    for name, pieces in gathered.items():
        pieces.sort(key=lambda piece: piece[0])
        rule = pieces[0][2]
        assert rule.gather is not None
        found[name] = rule.gather([tensor for _, tensor, _ in pieces])
    return found, left_over


def _values(rule: Rename, key: str, names: Mapping[str, str]) -> dict[str, Any] | None:
    """The values that a row matches in a key; tasks under our names, numbers as integers."""
    groups = matched(rule.theirs, key)
    if groups is None or any(groups[name] not in names for name in _NAMES if name in groups):
        return None
    return {name: names[text] if name in _NAMES else int(text) if text.isdigit() and name != "rest" else text
            for name, text in groups.items()}


def _filled(template: str, values: Mapping[str, Any]) -> str:
    """The right side of a row, filled in with matched values."""
    def one(found: re.Match[str]) -> str:
        try:
            return str(_value(ast.parse(found[1], mode="eval").body, values))
        except (IndexError, ValueError, KeyError):
            raise InputError("a table of names", f"{template} for {values}", "as many tasks as there are heads",
                             "use a whole file") from None

    return re.sub(r"\{([^}]*)\}", one, template).replace("*", values.get("rest", ""))


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Evaluate an expression of a right side. Only the forms that tables need are allowed, so that nothing else can
    run."""
    match node:
        case ast.Constant(int() as number):
            return number
        case ast.Name(name):
            return values[name]
        case ast.BinOp(left, symbol, right) if type(symbol) in _OPERATORS:
            return _OPERATORS[type(symbol)](_value(left, values), _value(right, values))
        case ast.Subscript(whole, entry):
            return _value(whole, values)[_value(entry, values)]
        case ast.Call(ast.Name(name), arguments, []):
            return values[name](*(_value(argument, values) for argument in arguments))
        case ast.Call(ast.Attribute(whole, "index"), [entry], []):
            return _value(whole, values).index(_value(entry, values))
    raise AssertionError(f"{ast.unparse(node)}: a table of names has no such expression")


# -- transformations ---------------------------------------------------------------------------------------------------


def as_convolution(weight: Tensor) -> Tensor:
    """A linear layer (out, in) as a 1x1 convolution (out, in, 1, 1); biases stay."""
    return weight[..., None, None] if weight.ndim == 2 else weight


def without_width(weight: Tensor) -> Tensor:
    """A 1x1 convolution of maps (out, in, 1, 1) as one of sequences (out, in, 1); biases stay."""
    return weight.squeeze(-1) if weight.ndim == 4 else weight


def stacked(pieces: list[Tensor]) -> Tensor:
    """Stack the tensors: one row for each."""
    return torch.stack(pieces)


def joined(pieces: list[Tensor]) -> Tensor:
    """Concatenate the tensors: all rows of the first, then all of the next."""
    return torch.cat(pieces)


def squared(pieces: list[Tensor]) -> Tensor:
    """A matrix of n x n vectors, row by row: (n, n, c)."""
    side = round(len(pieces) ** 0.5)
    if side * side != len(pieces):
        raise InputError("a matrix between tasks", f"{len(pieces)} entries", "one for every pair of tasks",
                         "use a file with all tasks")
    return torch.stack(pieces).unflatten(0, (side, side))


def two_channels_as_one(tensors: dict[str, Tensor], layer: str) -> None:
    """Fold the last layer, in place: two classes (background and salient) under a softmax equal one logit, their
    difference."""
    for end in ("weight", "bias"):
        value = tensors[f"{layer}.{end}"]
        if value.shape[0] == 2:
            tensors[f"{layer}.{end}"] = value[1:] - value[:1]
