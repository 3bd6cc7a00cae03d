"""The command line: one file per command. Each imports only what it needs; bad input is one line and exit code 2."""

from __future__ import annotations

import ast
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from polyptych.cli import _stand_ins
from polyptych.errors import InputError, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a name that is no text, or a console without arrows, must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if arguments is None:
        arguments = sys.argv[1:]
        if {"-h", "--help"} & set(arguments[1:]) and _stand_ins.install():
            return _help(arguments)
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    try:
        if name in ("-h", "--help", "help"):
            print(usage())
        elif name == "--version":
            from polyptych import __version__

            print(__version__)
        elif name not in _files():
            raise InputError(f"command '{name}'", "an unknown name", nearest(name, _files()),
                             "see `polyptych --help`")
        else:
            importlib.import_module(f"{__name__}.{name.replace('-', '_')}").main(rest)
    except InputError as error:
        print(f"polyptych: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return _leave_pipe()
    except OSError as error:  # a file where a folder is needed, no right to write, ...
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""  # the error of a full disk names no file
        print(f"polyptych: {where}got a system error ({error.strerror}); needs a readable, writable place "
              "with free space; free some space or choose another path", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error).lower().replace(
                "out of memory", "allocate memory"):
            raise
        print(f"polyptych: ran out of memory ({' '.join(str(error).split())[:200] or 'no more is free'}); "
              "lower sizes (--size, --batch-size, --tile)", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # Interrupted is one, with a message that says how to continue
        print(f"polyptych: {error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _help(arguments: Sequence[str]) -> int:
    """The help of a command, without loading what it would compute with."""
    try:
        importlib.import_module(f"{__name__}.{arguments[0].replace('-', '_')}").main(arguments[1:])
    except SystemExit as stop:
        if not stop.code:
            raise
        _stand_ins.begin_again(arguments)
    except BrokenPipeError:
        return _leave_pipe()
    except Exception:  # something was missing; with the real libraries it works, or the error is real
        _stand_ins.begin_again(arguments)
    return 0


def _leave_pipe() -> int:
    """The reader of a pipe, for instance `head`, has seen enough; the exit code says so, as shells expect it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
    return 141


def commands() -> dict[str, str]:
    """The files of this folder, a hyphen for each underscore, with the first line of their docstrings."""
    texts = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in _files().items()}
    return {name: (text or "").partition("\n")[0] for name, text in texts.items()}


def _files() -> dict[str, Path]:
    return {path.stem.replace("_", "-"): path for path in sorted(Path(__file__).parent.glob("[!_]*.py"))}


def usage() -> str:
    summaries = commands()
    width = max(map(len, summaries)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in summaries.items()]
    return "\n".join(["usage: polyptych COMMAND [ARGUMENTS]", "",
                      "Multi-task learning of dense prediction: one image in, every panel of the scene out.", "",
                      *lines, "", "`polyptych COMMAND --help` explains a command."])
