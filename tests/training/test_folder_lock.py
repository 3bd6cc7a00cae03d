"""One writer at a time: the lock on a run's folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polyptych.errors import InputError
from polyptych.folder_lock import LOCK, hold

HOLDER = """
import sys, time
from pathlib import Path
from polyptych.folder_lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_write_one_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match=rf"a run that process {holder.pid} on \S+ is writing"), hold(tmp_path, 0.1):
        pass
    holder.kill()
    with hold(tmp_path, patience=10):
        pass
    holder.communicate()


def test_the_holder_may_ask_again_and_keeps_it(tmp_path: Path) -> None:
    with hold(tmp_path):
        with hold(tmp_path / ".." / tmp_path.name):
            pass
        program = HOLDER.replace("hold(Path(sys.argv[1]))", "hold(Path(sys.argv[1]), 0.1)")
        other = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
        assert other.returncode and "InputError" in other.stderr and "held" not in other.stdout
    assert (tmp_path / LOCK).exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"), hold(tmp_path / "nowhere"):
        pass
