"""One writer at a time: whatever writes to a run (training, evaluation, report, search) locks its folder.

The operating system releases the lock when the process ends, however it ends. On POSIX it is a record lock, because
child processes do not inherit those: loading processes that briefly outlive a killed trainer must not keep the folder
locked.
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
PATIENCE = 2.0  # seconds that a process that was just stopped may take to exit
HELD_ELSEWHERE = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_ours: dict[str, int] = {}  # folders that this process holds, and how many times

if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[str]) -> None:
        # Windows makes locked bytes unreadable, but the holder's name must stay readable: lock a byte far behind it.
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
    """Lock an open file until it is closed, also against other threads of this process; False if somebody else holds
    it."""
    try:
        _take_for_file(file)
    except OSError as error:
        if error.errno not in HELD_ELSEWHERE:
            raise
        return False
    return True


@contextlib.contextmanager
def hold(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a run's folder. A process may take it more than once.

    Raises:
        InputError: there is no such folder, or another process (the message gives its id) still holds it after
            ``patience`` seconds.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "the folder of a run", "check the path")
    # A second open file of the same process would share the record lock, and closing it would release both.
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
    """Take the lock and write who holds it, or raise an error that says who does."""
    deadline = time.monotonic() + patience
    while True:
        try:
            _take(file)
            break
        except OSError as error:
            if error.errno not in HELD_ELSEWHERE:  # a file system without locks: nothing to wait for
                print(f"polyptych: {folder}: this file system has no locks ({error.strerror}); do not let two "
                      "processes write here at once", file=sys.stderr)
                return
            if time.monotonic() > deadline:
                raise InputError(folder, f"a run that {_signed(file)} is writing", "a run that no other process writes",
                                 "wait for that process to end, or stop it") from None
            time.sleep(0.1)
    with contextlib.suppress(OSError):  # on a full disk the lock still holds; only its holder is unknown
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()


def _signed(file: IO[str]) -> str:
    """The holder, as it wrote its name."""
    file.seek(0)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read(200).strip() or "another process"
    return "another process"
