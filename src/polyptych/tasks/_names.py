"""What a task can be called."""

from __future__ import annotations

import re

from torch import nn

from polyptych.errors import InputError


def check_task_name(name: str, where: str) -> None:
    """Networks keep a module for each task under its name.

    Args:
        where: the place of the name, for the message.

    Raises:
        InputError: a name with other characters, or one that a module has for itself (``type``, ``train``).
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or hasattr(nn.ModuleDict(), name):
        raise InputError(where, f"'{name}', a name that cannot be a task's",
                         "a letter, then letters, digits, - and _, and no name of PyTorch's", "rename it")
