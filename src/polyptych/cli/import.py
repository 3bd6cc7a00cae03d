"""Turn a published checkpoint into a run folder: polyptych import FILE --out RUN [--dataset.root DIR]"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from polyptych.cli._parsing import parse, take
from polyptych.datasets._base import CATALOG, Dataset
from polyptych.errors import InputError

NOTE = """The network, its tasks and sizes are recognized by the names and shapes in the file; what these leave open is
asked for. `polyptych list published` names the networks that can be imported.
--dataset NAME: the data that the network was trained on, whose own options then become available (default: the dataset
of the authors with as many classes; --dataset.root DIR is its folder). With none, classes are numbered, and the run can
be used to predict, export and profile, but not to evaluate."""


@dataclass(frozen=True)
class Arguments:
    file: tyro.conf.Positional[Path]
    """The checkpoint, as the authors' program saved it (.pth, .tar, .ckpt, .safetensors)."""
    out: Path
    """Folder for the run, which must not exist yet."""
    repository: str = ""
    """Repository that trained it, if several have networks with the same names."""
    tasks: str = ""
    """Tasks A,B,... in the order of the network, if the file does not hold their names."""
    classes: tuple[str, ...] = ()
    """Names of the classes of a task that no known dataset has: semseg=road,car,..."""
    size: tuple[int, int] | None = None
    """Height and width of the training images, if the file does not determine them."""
    assume: tuple[str, ...] = ()
    """Settings that the file does not contain, by the authors' names: chan_nheads=16."""


@dataclass(frozen=True)
class OfData:
    dataset: Dataset.Config


def main(arguments: list[str]) -> None:
    chosen, rest = take(arguments, {"dataset"})
    own, of_data = _split(rest)
    options = parse(Arguments, own, "import", note=NOTE)
    from polyptych.importing import Said, converted, write_import
    from polyptych.weight_files import read_weights

    if options.out.exists():
        raise InputError("--out", str(options.out), "a folder that does not exist yet", "choose another name")
    state = read_weights(options.file)
    name = chosen.get("dataset", "")
    said = Said(repository=options.repository, tasks=tuple(task for task in options.tasks.split(",") if task),
                classes={task: tuple(names.split(",")) for task, names in _pairs(options.classes, "--classes")},
                assume={key: _number(key, value) for key, value in _pairs(options.assume, "--assume")},
                size=options.size, numbered=name == "none")
    if name not in ("", "none"):
        said = replace(said, dataset=_with_options(CATALOG.load(name).Config(), of_data))
    found = converted(state, options.file, said)
    if of_data and said.dataset is None:  # options of the data that were recognized
        found = converted(state, options.file, replace(said, dataset=_with_options(found.run.dataset, of_data)))
    for line in found.lines():
        print(line)
    write_import(found, options.out)
    print(options.out)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and those of the data: ``--dataset.root DIR``."""
    own: list[str] = []
    of_data: list[str] = []
    target = own
    for word in words:
        if word.startswith("--"):
            target = of_data if word.startswith("--dataset.") else own
        target.append(word)
        if target is of_data and (not word.startswith("--") or "=" in word):
            target = own  # an option has one value
    return own, of_data


def _with_options(dataset: Dataset.Config, words: list[str]) -> Dataset.Config:
    return parse(OfData, words, "import", default=OfData(dataset)).dataset


def _pairs(words: tuple[str, ...], option: str) -> list[tuple[str, str]]:
    """``NAME=VALUE`` in words."""
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise InputError(option, f"'{word}'", "NAME=VALUE", "for instance --assume chan_nheads=16, or "
                             "--classes semseg=road,car,sky")
        pairs.append((name, value))
    return pairs


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"--assume {name}", value, "a number", f"for instance --assume {name}=1") from None
