"""The one place that lists folders and opens files, for datasets, prediction and evaluation.

This code copes with what people really have on their disks, so that no other code has to: byte order marks, names that
macOS writes in decomposed Unicode, hidden files next to every picture, links, pipes, and files that claim more than
they hold. Pictures are decoded in :mod:`polyptych.data.pictures`, arrays in :mod:`polyptych.data.arrays`. Every failure
is an :class:`InputError` that names the file.
"""

from __future__ import annotations

import codecs
import os
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from polyptych.errors import InputError

Contents = TypeVar("Contents")

LARGEST = 1 << 30
"""The most bytes that a smaller file may unpack to. Data may compress a thousandfold, so a few megabytes could
otherwise take all memory; uncompressed data may be as large as its file."""

_LARGEST_TEXT = 1 << 31
_REPEATS = 10_000  # folders reached again through links, beyond which the links must form a maze

# Files that file managers and network storage add to folders; names that begin with a dot are ignored, too
_JUNK = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information",
                   "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})

# The longer marks first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
          (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


# -- opening -----------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path, needs: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an InputError with the path.

    Args:
        needs: what the file must be, for the message.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(path, "no such file", needs, "copy the file again or restore it") from None
    except MemoryError as error:
        raise InputError(path, "a file that does not fit into memory", needs,
                         "free some memory, or store the data in a smaller file") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        if isinstance(error, OSError) and error.errno:  # of the system, not of a decoder
            raise InputError(path, f"a file that cannot be opened ({error.strerror})", needs,
                             "correct its permissions or the path") from error
        said = " ".join(str(error).split())  # some errors of numpy have several lines
        raise InputError(path, f"an unreadable file ({type(error).__name__}: {said})", needs,
                         "copy the file again; it is damaged or of another format") from error


def require_plain(path: Path, needs: str) -> int:
    """The size in bytes of a file that can be read from beginning to end.

    Raises:
        InputError: it is a folder, or a pipe, socket, or device, for which a reader could wait forever.
    """
    with reading(path, needs):
        status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise InputError(path, kinds.get(stat.S_IFMT(status.st_mode), "a device"), needs,
                         "remove it, or put the file in its place")
    return status.st_size


@contextmanager
def open_file(path: Path, needs: str) -> Iterator[IO[bytes]]:
    """A plain file, open for reading; whatever is raised in the block becomes an InputError that names it."""
    require_plain(path, needs)
    with reading(path, needs), open(path, "rb") as file:
        yield file


def require_room(path: Path | str, what: str, declared: int, stored: int, needs: str) -> None:
    """Refuse data that declares an unpacked size above both :data:`LARGEST` and the size of its file, before any memory
    is allocated for it.

    Args:
        what: what would be unpacked, for the message.
        declared: bytes that it declares to need.
        stored: bytes of the file.
    """
    if declared > max(LARGEST, stored):
        raise InputError(path, f"{what} that would take {declared / 2**30:.1f} GiB of memory from a file of "
                         f"{stored / 2**20:.1f} MiB", f"{needs}, of at most {LARGEST >> 30} GiB unless stored in full",
                         "store less data, or store it uncompressed; do not trust a file that is not yours")


def read_bytes(path: Path, needs: str) -> bytes:
    """All of a file."""
    with open_file(path, needs) as file:
        return file.read()


# -- text --------------------------------------------------------------------------------------------------


def read_text(path: Path, needs: str) -> str:
    """A text in UTF-8, or in whatever its byte order mark says (Windows writes such marks); the mark is left out.

    Raises:
        InputError: it is in no such encoding; the line is named.
    """
    size = require_plain(path, needs)
    if size > _LARGEST_TEXT:
        raise InputError(path, f"a text of {size / 2**30:.1f} GiB", needs, "check that this is the file you mean")
    content = read_bytes(path, needs)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    try:
        text = content[len(mark):].decode(encoding)
    except UnicodeDecodeError as error:
        line = content[:len(mark) + error.start].count(b"\n") + 1
        raise InputError(path, f"text that is not {encoding.upper()} (line {line})", needs,
                         "save it as UTF-8") from None
    if "\0" in text:
        raise InputError(path, "text with null bytes, perhaps UTF-16 without a byte order mark", needs,
                         "save it as UTF-8")
    return text


def read_lines(path: Path) -> list[str]:
    """The ids of a list, one per line; empty lines and lines that begin with # are left out.

    Raises:
        InputError: an id stands there twice, and would count twice in every number.
    """
    found: dict[str, int] = {}
    lines = read_text(path, "a text file with one id per line").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#") and found.setdefault(composed(line), number) != number:
            raise InputError(f"{path}, line {number}", f"'{line[:100]}' a second time (first in line "
                             f"{found[composed(line)]})", "every id once", "remove the line")
    return list(found)


def read_json(path: Path, needs: str, kind: type[Contents] | Any = Any) -> Contents:
    """A JSON file as a ``kind`` (as :mod:`msgspec` checks it)."""
    text = read_text(path, needs)
    with reading(path, needs):
        return msgspec.json.decode(text, type=kind)


# -- names -------------------------------------------------------------------------------------------------


def composed(name: str) -> str:
    """A name in composed Unicode. macOS hands out decomposed names, everything else mostly composed ones; they look the
    same, so an id that is read from anywhere goes through this before it is compared with another."""
    return unicodedata.normalize("NFC", name)


def is_visible(name: str) -> bool:
    """Whether a name in a folder is one that the user put there: not hidden (macOS writes ``._a.jpg`` beside
    ``a.jpg``), and none of those that systems leave behind."""
    return not name.startswith(".") and name.lower() not in _JUNK


def spelled(path: Path) -> Path:
    """The path as the disk spells it, where a name is composed in one place and decomposed in the other."""
    if os.path.lexists(path) or path.parent == path:
        return path
    parent = spelled(path.parent)
    if parent.is_dir():
        wanted = composed(path.name)
        for name in sorted(os.listdir(parent)):
            if composed(name) == wanted:
                return parent / name
    return parent / path.name


def id_of(name: str, path: Path) -> str:
    """The id that a file's name gives, in composed Unicode.

    Raises:
        InputError: the name is no text, so that no list or table could name the file.
    """
    try:
        name.encode()
    except UnicodeEncodeError:  # Linux hands out what it cannot decode as halves of characters
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise InputError(shown, "a name that is not UTF-8", "names in UTF-8",
                         "rename the file (for instance with convmv)") from None
    return composed(name)


# -- folders -----------------------------------------------------------------------------------------------


def file_names(folder: Path) -> list[str]:
    """The visible names in a folder, without folders, sorted; none if there is no such folder. One listing without a
    look at each file, because a dataset on a network disk has thousands of them."""
    if not folder.is_dir():
        return []
    with reading(folder, "a folder that can be listed"), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_visible(entry.name) and not _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads to itself, or through a folder that may not be entered, is taken for a file: whoever opens it
    says what is wrong with it, where the whole folder would be refused."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def walk(base: Path) -> Iterator[str]:
    """Paths of all visible files below a folder, relative to it, with forward slashes. Links to folders are followed,
    two links to one folder both, and one that leads back to where it lies never.

    Raises:
        InputError: links lead through each other without an end in sight.
    """
    found: set[tuple[int, int]] = set()
    repeats = 0
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        prefix, above = waiting.pop()
        folder = base / prefix if prefix else base
        with reading(folder, "a folder that can be listed"):
            status = os.stat(folder)
            place = (status.st_dev, status.st_ino)
            if place in above:
                continue
            repeats += place in found
            found.add(place)
            if repeats > _REPEATS:
                raise InputError(base, f"links that reach the same folders more than {_REPEATS} times",
                                 "folders that do not link to each other", "remove some of the links")
            with os.scandir(folder) as entries:
                visible = sorted((entry.name, _is_folder(entry)) for entry in entries if is_visible(entry.name))
        for name, is_folder in visible:
            if is_folder:
                waiting.append((f"{prefix}{name}/", (*above, place)))
            else:
                yield f"{prefix}{name}"


def files_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """``{stem: path}`` of the visible files of a folder with one of ``suffixes`` (in capitals too), which are in order
    of preference; empty if there is no such folder.

    Raises:
        InputError: two files have one name, in two forms of Unicode or of capitals.
    """
    found: dict[str, tuple[int, bool, Path]] = {}
    rank = {suffix: place for place, suffix in enumerate(suffixes)}
    for name in file_names(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in rank and suffix not in rank:
            continue
        path = folder / name
        this = (rank.get(suffix, rank.get(suffix.lower(), 0)), suffix not in rank, path)
        sample = id_of(stem, path)
        other = found.setdefault(sample, this)
        if other[:2] == this[:2] and other[2] != path:
            raise InputError(folder, f"two files for '{sample}': {other[2].name!a} and {name!a}",
                             "one file for each name", "remove one of them")
        found[sample] = min(this, other)
    return {sample: path for sample, (_, _, path) in found.items()}


def require_files(where: Path, wanted: Iterable[str], have: Collection[str],
                  expected: Callable[[str], Path]) -> None:
    """Refuse a half-copied folder.

    Args:
        where: the folder.
        wanted: names that a list file promises.
        have: names that exist.
        expected: the path where a name is looked for, for the message.

    Raises:
        InputError: names are missing; the first path and the counts are given.
    """
    wanted = list(wanted)
    missing = [name for name in wanted if name not in have]
    if missing:
        paths = tuple(map(expected, missing))
        error = InputError(where, f"{len(wanted) - len(missing)} of {len(wanted)} listed files "
                           f"(the first missing one is {paths[0]})",
                           "every listed file", "copy the dataset again, or shorten its list of ids")
        error.missing = paths
        raise error
