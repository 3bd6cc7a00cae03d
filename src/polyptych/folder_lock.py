"""One writer at a time: whoever writes a run (training, evaluation, report, search) holds its folder.

The operating system lets go of the lock when the process ends, however it ends. On POSIX it is a record lock, because
children do not inherit it: loading processes that outlive a killed trainer by a moment must not keep the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from polyptych.errors import InputError

LOCK = "training.lock"
PATIENCE = 2.0  # seconds for which a process that was just stopped may take to go away
HELD_ELSEWHERE = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_ours: dict[str, int] = {}  # folders that this process holds, and how often

if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[str]) -> None:
        # Windows lets nobody read what is locked, and the holder's name must be read: a byte far behind it is locked.
        file.seek(2**30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

    _take_for_file = _take
else:
    import fcntl

    def _take(file: IO[str]) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _take_for_file(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_taken(file: IO[str]) -> bool:
    """Take the lock of an open file until it is closed, also from other threads of this process; False where somebody
    else holds it."""
    try:
        _take_for_file(file)
    except OSError as error:
        if error.errno not in HELD_ELSEWHERE:
            raise
        return False
    return True


@contextlib.contextmanager
def hold(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the folder of a run. A process that holds it may ask for it again.

    Raises:
        InputError: there is no such folder, or another process, whose id is named, still holds it after ``patience``
            seconds.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "the folder of a run", "check the path")
    # A second file of the same process would share the record lock, and closing it would let go of both.
    key = str(folder.resolve())
    with contextlib.ExitStack() as stack:
        if not _ours.get(key):
            file = stack.enter_context(open(folder / LOCK, "a+", encoding="utf-8"))
            _wait(file, folder, patience)
        _ours[key] = _ours.get(key, 0) + 1
        try:
            yield
        finally:
            _ours[key] -= 1


def _wait(file: IO[str], folder: Path, patience: float) -> None:
    """Take the lock and sign it, or say who has it."""
    deadline = time.monotonic() + patience
    while True:
        try:
            _take(file)
            break
        except OSError as error:
            if error.errno not in HELD_ELSEWHERE:  # a file system without locks: there is nothing to wait for
                print(f"polyptych: {folder}: this file system has no locks ({error.strerror}); let no two processes "
                      "write here at once", file=sys.stderr)
                return
            if time.monotonic() > deadline:
                raise InputError(folder, f"a run that {_signed(file)} is writing", "a run that no other process writes",
                                 "wait for that process to end, or stop it") from None
            time.sleep(0.1)
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same; only its holder stays unnamed
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()


def _signed(file: IO[str]) -> str:
    """The holder, as it signed."""
    file.seek(0)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read(200).strip() or "another process"
    return "another process"
