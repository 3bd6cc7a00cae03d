"""The contract of a published repository: the networks whose checkpoints can be imported, and how.

An adapter is data: for every network (:class:`Form`) the keys by which it is recognized, a table of names
(:mod:`polyptych.renaming`), and a function from shapes to the Configs of a backbone, an encoder and a
decoder. The rest is the same for all (:mod:`polyptych.importing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.component import Catalog, Component
from polyptych.decoders._base import Decoder
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.renaming import Rename, matched, pattern, two_channels_as_one

CATALOG: Catalog[Repository] = Catalog("published repository", "polyptych.published")

Size = tuple[int, int]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNIT_RANGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and deviation for networks that take images in [0, 1] unchanged."""


@dataclass(frozen=True)
class Parts:
    """The parts that a network is built from.

    Attributes:
        size: height and width of the images that the weights fit; None if they fit any size.
        sizes: further values for the expressions in the table.
    """

    backbone: Backbone.Config
    encoder: Encoder.Config
    decoder: Decoder.Config
    size: Size | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)


class Seen:
    """The shapes in a file, and what the user says about it.

    Attributes:
        shapes: shapes by key, without prefixes.
        tasks: our task names by the authors' names, in the order of the network.
        channels: number of channels of each task's prediction in the file, by the authors' names.
        auxiliary: our names of the tasks that only help the others.
        size: height and width of the training images, if the user gives them.
        assumed: settings that a file does not contain, by the authors' names for them.
    """

    def __init__(self, where: object, state: Mapping[str, Tensor], size: Size | None, assumed: Mapping[str, float]):
        self.where, self.size, self.assumed = where, size, assumed
        self.shapes = {key: tuple(value.shape) for key, value in state.items()}
        self.tasks: dict[str, str] = {}
        self.channels: dict[str, int] = {}
        self.auxiliary: tuple[str, ...] = ()
        self.asked: set[str] = set()

    def rename(self, tasks: Mapping[str, str]) -> None:
        """Change our names of the tasks."""
        self.auxiliary = tuple(tasks[name] for name, own in self.tasks.items() if own in self.auxiliary)
        self.tasks = dict(tasks)

    def has(self, text: str) -> bool:
        """Whether any key matches the left side of a row."""
        expression = pattern(text)
        return any(expression.fullmatch(key) for key in self.shapes)

    def shape(self, text: str) -> tuple[int, ...]:
        """The shape of the first key that matches."""
        expression = pattern(text)
        found = next((shape for key, shape in self.shapes.items() if expression.fullmatch(key)), None)
        if found is None:
            raise InputError(self.where, f"no tensor '{text}'", "all tensors of the network",
                             "use a whole file; parts of a network cannot be imported")
        return found

    def values(self, text: str, name: str) -> list[str]:
        """The different values that one brace of a left side matches in all keys, in the order of the file."""
        found = (matched(text, key) for key in self.shapes)
        return list(dict.fromkeys(groups[name] for groups in found if groups))

    def count(self, text: str, name: str) -> int:
        """One more than the largest number that a brace matches; 0 if it matches none."""
        return max((int(value) for value in self.values(text, name)), default=-1) + 1

    def part(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the keys with this prefix, without the prefix."""
        return {key.removeprefix(prefix): shape for key, shape in self.shapes.items() if key.startswith(prefix)}

    def assume(self, name: str, default: float | None, needs: str) -> float:
        """A setting that the file does not contain: the user's value, else the default.

        Raises:
            InputError: there is neither; the message names the option.
        """
        self.asked.add(name)
        if name in self.assumed:
            return self.assumed[name]
        if default is None:
            raise InputError(self.where, f"nothing that says {name}", needs, f"add --assume {name}=NUMBER")
        return default

    def grid(self, cells: int, stride: int, known: Mapping[int, Size]) -> Size:
        """Height and width of the images for a grid of which only the number of cells is known.

        Args:
            known: grids of the published configurations, by their number of cells.

        Raises:
            InputError: the user's size does not fit, or several sizes are possible and the user gives none.
        """
        if self.size is not None:
            height, width = self.size
            rows, columns = -(-height // stride), -(-width // stride)
            if rows * columns != cells:
                raise InputError("--size", f"{height} {width}, which gives {rows}x{columns} positions at stride "
                                 f"{stride}", f"a size with {cells} of them, as in the file",
                                 "pass the size that the network was trained with")
            return self.size
        if cells in known:
            rows, columns = known[cells]
            return rows * stride, columns * stride
        shapes = [(rows, cells // rows) for rows in range(1, cells + 1) if cells % rows == 0]
        nearest = sorted(shapes, key=lambda shape: abs(shape[1] / shape[0] - 4 / 3))[:3]
        examples = ", ".join(f"{rows * stride} {columns * stride}" for rows, columns in nearest)
        raise InputError(self.where, f"weights for {cells} positions, but not their height and width",
                         "the size of the training images", f"add --size HEIGHT WIDTH (possible: {examples}, ...)")


@dataclass(frozen=True)
class Row:
    """A published result of a network, in words, with its protocol."""

    network: str
    numbers: str
    protocol: str = ""
    file: str = ""


@dataclass(frozen=True)
class Form:
    """One network of a repository.

    Attributes:
        signs: left sides that keys of this network match, each at least once.
        never: left sides that no key of this network matches.
        outputs: left sides of the weights of the last layers, whose rows are the channels: by ``{task}``, by ``{i}`` if
            tasks are numbered, or that of the only task. Tasks that only a later entry names are auxiliary, without a
            final prediction.
        parts: from shapes to the parts that the network is built from.
        rules: the table of names.
        tasks: from channels to the names of the tasks, where keys only number them; None if the file does not
            determine them.
        finish: changes to the renamed tensors that the table cannot express.
        invented: tensors that no file holds although the network has them (and never reads them); zeros.
        left_out: left sides of weights that no prediction depends on.
        recipes: recipes that replace the repository's.
    """

    name: str
    signs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: Callable[[Seen], Parts]
    rules: tuple[Rename, ...]
    never: tuple[str, ...] = ()
    tasks: Callable[[tuple[int, ...]], list[str]] | None = None
    finish: Callable[[dict[str, Tensor], Seen], None] | None = None
    invented: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()

    def fits(self, seen: Seen) -> bool:
        return all(map(seen.has, self.signs)) and not any(map(seen.has, self.never))


def one_saliency_logit(layer: str) -> Callable[[dict[str, Tensor], Seen], None]:
    """A ``finish``: the two channels of saliency become one in the last layer of its head."""
    def finish(tensors: dict[str, Tensor], seen: Seen) -> None:
        if "saliency" in seen.tasks.values():
            two_channels_as_one(tensors, f"decoder.heads.saliency{layer}")

    return finish


class Repository(Component):
    """A published repository.

    Attributes:
        page: its address.
        license: license of its code, and thus of the weights unless stated otherwise.
        files: where the authors keep checkpoints, and in which container.
        forms: its networks.
        names: our task names, by the authors' names.
        order: the order in which the authors' programs put tasks, whatever a configuration says.
        prefix: the prefix of every key in its checkpoints; tells repositories with the same networks apart.
        normalization: mean and deviation with which images were normalized in training.
        recipes: our recipes that train as the authors do, one for each of their datasets.
        left_out: left sides of entries that are no weights, or belong to no prediction.
        rows: published results.
    """

    page: ClassVar[str]
    license: ClassVar[str]
    files: ClassVar[str]
    forms: ClassVar[tuple[Form, ...]]
    names: ClassVar[Mapping[str, str]] = {"semseg": "semseg", "human_parts": "parts", "sal": "saliency",
                                          "normals": "normals", "edge": "boundaries", "depth": "depth"}
    order: ClassVar[tuple[str, ...]]
    prefix: ClassVar[str] = "module."
    normalization: ClassVar[tuple[tuple[float, float, float], tuple[float, float, float]]] = IMAGENET
    recipes: ClassVar[tuple[str, ...]]
    left_out: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[tuple[Row, ...]] = ()
