"""A dataset that a Python function of yours returns: a torch Dataset, a Hugging Face one, a list."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from polyptych.data.own_samples import OwnSamples
from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.errors import InputError, first_line
from polyptych.types import Sample


class Python(Dataset):
    """``source`` names a function that takes a split (``train``, ``val``, ``test``) and returns ``polyptych.samples``
    of it, or None if there is no such split::

        def mine(split):
            return polyptych.samples(MyDataset(split), {"semseg": polyptych.task("semseg", classes=13, ignored=255)})

    Train with ``--dataset python --dataset.source my_data.py:mine``. The protocol is ``python`` and the source: numbers
    are comparable only as long as the function does not change.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        source: str = ""
        """FILE.py:FUNCTION or MODULE:FUNCTION."""

        def kinds(self) -> dict[str, str]:
            found = samples_of(self.source, "train") if self.source else None
            return {name: part.task.config.name for name, part in found.tasks.items()} if found else {}

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        found = samples_of(config.source, split)
        if found is None:
            raise EmptySplit(f"{split} split of {config.source}", "None", "samples", "return some for this split")
        self._samples = found
        self.labels = {name: part.task.labels for name, part in found.tasks.items()}
        self.protocol = f"python-{config.source}"
        super().__init__(config, split=split, tasks=tasks)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int) -> Sample:
        return self._samples.read(index, self.tasks, self.split)


def samples_of(source: str, split: str) -> OwnSamples | None:
    """Call the function for a split.

    Raises:
        InputError: there is no such function, it cannot be imported, or it returns something else.
    """
    where, (place, _, name) = "--dataset.source", source.rpartition(":")
    if not place or not name:
        raise InputError(where, f"'{source}'", "FILE.py:FUNCTION or MODULE:FUNCTION", "for instance my_data.py:mine")
    try:
        module = _module(place)
    except Exception as error:  # user code may raise anything
        raise InputError(where, f"'{place}', which cannot be imported ({type(error).__name__}: {first_line(error)})",
                         "a file or module that can", "fix that error") from error
    make: Any = getattr(module, name, None)
    if not callable(make):
        raise InputError(where, f"'{name}', which is not a function of {place}", "the name of one", "check the name")
    found = make(split)
    if found is not None and not isinstance(found, OwnSamples):
        raise InputError(f"{source}('{split}')", f"a {type(found).__name__}", "what polyptych.samples returns, or None",
                         "wrap it: polyptych.samples(dataset, tasks)")
    return found


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    name = f"polyptych_source_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known  # one module for all splits, like an import
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # loading processes find its classes by this name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
