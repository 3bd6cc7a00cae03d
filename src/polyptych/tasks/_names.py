"""What a task can be called."""

from __future__ import annotations

import re

from torch import nn

from polyptych.errors import InputError


def check_task_name(name: str, where: str) -> None:
    """Refuse a task name that no module may have: networks keep a module per task under its name.

    Args:
        where: the place of the name, for the message.

    Raises:
        InputError: a name with other characters, or one that modules use themselves (``type``, ``train``).
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or hasattr(nn.ModuleDict(), name):
        raise InputError(where, f"'{name}', a name that cannot be a task's",
                         "a letter, then letters, digits, - and _; not a name that PyTorch uses", "rename it")
