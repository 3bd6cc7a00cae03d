"""Help is printed without torch and the like, at once, and says the same as with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import polyptych.cli
from polyptych.cli import _stand_ins, commands

PROGRAM = """
import sys
sys.argv = ["polyptych", *sys.argv[1:]]
import polyptych.cli
try:
    code = polyptych.cli.main()
finally:
    # Real modules come from files; a stand-in comes from nowhere.
    loaded = [name for name in {names} if getattr(sys.modules.get(name), "__file__", None)]
    print(loaded, file=sys.stderr)
"""


# A process for each command, which begins with what every help needs of other packages.
PROCESSES = """
import os, sys
import numpy, tyro
for words in {commands}:
    child = os.fork()
    if not child:
        for number, stream in enumerate(("out", "err"), 1):
            os.dup2(os.open(words[0] + "." + stream, os.O_WRONLY | os.O_CREAT), number)
        sys.argv[1:] = [*words, "--help"]
        exec({program!r})
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, open(words[0] + ".err").read()
"""


def help_of(*arguments: str, real: bool = False) -> tuple[str, str]:
    environment = {**os.environ, "COLUMNS": "120"} | ({_stand_ins.OFF: "1"} if real else {})
    program = PROGRAM.replace("{names}", repr(sorted(_stand_ins.LIBRARIES)))
    done = subprocess.run([sys.executable, "-c", program, *arguments, "--help"], capture_output=True, text=True,
                          env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> Path:
    """A folder with what every command writes when it is asked for help."""
    folder = tmp_path_factory.mktemp("helps")
    words = [[name, *(["rooms"] if name in ("train", "compare", "ablate", "search") else [])] for name in commands()]
    program = PROGRAM.replace("{names}", repr(sorted(_stand_ins.LIBRARIES)))
    done = subprocess.run([sys.executable, "-c", PROCESSES.format(commands=words, program=program)], cwd=folder,
                          capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("command", sorted(commands()))
def test_no_command_needs_the_numerics_for_its_help(command: str, helps: Path) -> None:
    assert f"polyptych {command}" in (helps / f"{command}.out").read_text()
    assert (helps / f"{command}.err").read_text().splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    ("train", "nyuv2", "--encoder", "cross_stitch", "--decoder", "mti_net", "--balancer", "nash_mtl"),
    ("train", "cityscapes_mtan"), ("search", "rooms"), ("export",), ("predict",)])
def test_help_says_what_it_says_with_the_real_libraries(arguments: tuple[str, ...]) -> None:
    assert help_of(*arguments)[0] == help_of(*arguments, real=True)[0]


@pytest.mark.parametrize("arguments", [("train", "rooms", "--encoder", "sharde", "--help"),
                                       ("view", "--nonsense", "--help", "--port", "x")])
def test_what_is_wrong_beside_help_is_left_to_a_process_with_the_real_libraries(
        arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(_stand_ins, "begin_again", begun.append)
    assert polyptych.cli._help(arguments) == 0 and begun == [arguments]


@pytest.mark.grid
def test_a_wrong_option_beside_help_is_still_refused_in_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "polyptych", "train", "rooms", "--encoder", "sharde", "--help"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "sharde" in done.stderr and len(done.stderr.splitlines()) == 1


def test_stand_ins_never_enter_a_process_that_has_the_libraries() -> None:
    import torch

    assert not _stand_ins.install() and torch.ones(1).item() == 1
