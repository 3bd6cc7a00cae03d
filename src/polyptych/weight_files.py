"""Weight files from any source: torch.save, safetensors and numpy archives; nothing in them is executed.

Pickles go through torch's restricted loader. Training programs store a few objects next to the tensors (callbacks,
configurations, numpy scalars). Those of known packages are replaced by stand-ins that do nothing; anything else is
refused by name.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from polyptych.errors import InputError, first_line

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model_state", "model", "network",
              "net", "teacher", "weights")
"""Keys under which training programs store a network's tensors, in order of preference."""

_BESIDE_TENSORS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|yacs|numpy|argparse|easydict|omegaconf|mmcv|mmengine|addict|"
    r"torch\.optim|torch\.nn\.parallel|pathlib|collections|datetime)\.[\w.]+")
"""Packages whose objects may accompany tensors."""
_LIKE_DICTIONARIES = re.compile(r"\.(CfgNode|AttributeDict|EasyDict|ConfigDict|Config|Dict|defaultdict)$")
"""Classes that are filled like dictionaries; the loader fills nothing else."""
_MOST_STAND_INS = 64


class StandIn:
    """Replaces an object that accompanies the tensors: accepts everything and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, without the wrapping that training programs put around them.

    Raises:
        InputError: the file is missing or damaged, holds no tensors, or holds objects that are not allowed.
    """
    if not path.is_file():
        raise InputError(path, "no such file" if not path.exists() else "a folder", "a file with weights",
                         "check the path")
    content = _content(path)
    for _ in range(3):
        inside = next((content[key] for key in CONTAINERS if isinstance(content, dict)
                       and isinstance(content.get(key), dict) and _tensors(content[key])), None)
        if inside is None or _tensors(content):
            break
        content = inside
    found = _tensors(content)
    if not found:
        raise InputError(path, f"a {type(content).__name__} without tensors", "a state_dict",
                         "save the network's state_dict in this file")
    return found


def _tensors(content: Any) -> dict[str, Tensor]:
    return {name: value for name, value in content.items()
            if isinstance(name, str) and isinstance(value, Tensor)} if isinstance(content, dict) else {}


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files
                        if archive[name].dtype.kind in "fiub"}
        return _unpickled(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(path, f"a file that cannot be read as weights ({_reason(path, error)})",
                         "a whole file of tensors (.safetensors, .npz, or of torch.save)",
                         "download it again, or save its state_dict again") from error


def _reason(path: Path, error: Exception) -> str:
    """What is wrong, in clearer words than the library's if the cause is known."""
    head = b""
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(512)
    if not head:
        return "it is empty"
    if head.lstrip()[:1] == b"<":
        return "it is a web page; links to Google Drive and OneDrive often save one"
    if isinstance(error, EOFError | IndexError) or (head.startswith(b"PK") and not zipfile.is_zipfile(path)):
        return "it ends in the middle, like an interrupted download"
    # torch first gives long advice, and then, on a line of its own, says what is wrong.
    inner = re.search(r"(Unsupported operand|Trying to|Can only) [^\n]*", str(error))
    return inner[0] if inner else first_line(error) or type(error).__name__


def _unpickled(path: Path) -> Any:
    """Load what torch.save wrote, in the old or new format, with the restricted loader."""
    stand_ins: list[Any] = []  # pairs of a class and the name that it replaces
    while True:
        try:
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            name = _refused_name(error)
            if name is None:
                raise
            known = {each for _, each in stand_ins}
            if name in known or len(known) >= _MOST_STAND_INS or not _BESIDE_TENSORS.fullmatch(name):
                raise InputError(path, f"a pickle that asks for {name}, which torch's restricted loader refuses",
                                 "tensors, and objects of known training programs beside them",
                                 "do not open it otherwise unless you trust its author; ask for a file with the "
                                 "state_dict alone") from None
            kind = OrderedDict if _LIKE_DICTIONARIES.search(name) else type("StandIn", (StandIn,), {})
            stand_ins.append((kind, name))


def _refused_name(error: Exception) -> str | None:
    """The global that the restricted loader refuses, if that is the error."""
    found = re.search(r"GLOBAL ([A-Za-z_][\w.]*)", str(error))
    return found[1] if found else None


def without_prefixes(state: dict[str, Tensor], prefixes: Iterable[str],
                     beside: Iterable[str] = ()) -> tuple[dict[str, Tensor], str]:
    """Tensors without the prefix that all names share, and that prefix.

    Args:
        beside: beginnings of names that are outside of the wrapped network.
    """
    known, apart, removed = tuple(prefixes), tuple(beside), ""
    while True:
        inside = [name for name in state if not name.startswith(apart)] if apart else list(state)
        here = next((word for word in known if inside and all(name.startswith(word) for name in inside)), None)
        if here is None:
            return state, removed
        state = {name.removeprefix(here): value for name, value in state.items()}
        removed += here
