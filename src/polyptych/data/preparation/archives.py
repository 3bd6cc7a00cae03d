"""Unpacking untrusted archives: nothing is written outside the target, and no more than a limit.

A member must be a plain file or a folder with a relative name that stays inside the target: links, devices, absolute
names, and ``..`` are refused, and one such member refuses the whole archive. Sizes are limited twice: as declared by
the archive, and as unpacked. Everything is first unpacked next to its destination and moved there only if the whole
archive is good, so a refused or damaged archive leaves nothing behind.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from polyptych.data.files import reading
from polyptych.errors import InputError
from polyptych.record import put_in_place

_BLOCK = 512  # of a tar archive
_CHUNK = 1 << 20
_RATIO, _LEAST = 100, 1 << 30  # label maps compress best of all data, to about a fortieth
_NEEDS = "a whole .zip, .tar, .tar.gz (.tgz), .tar.bz2 or .tar.xz"


@dataclass
class Limits:
    """What an archive may unpack to, including the archives inside it.

    Attributes:
        size: bytes.
        members: files and folders.
    """

    size: int
    members: int = 5_000_000

    @staticmethod
    def of(archive: Path) -> Limits:
        """A hundred times the size of the archive (at least 1 GiB)."""
        with reading(archive, _NEEDS):
            return Limits(max(_LEAST, _RATIO * archive.stat().st_size))


def extract(archive: Path, target: Path, limits: Limits | None = None,
            progress: Callable[[int], None] = lambda size: None) -> list[Path]:
    """Unpack ``archive`` into ``target``; tars inside it (the decathlon has nine) are unpacked in place, too.

    Existing files are replaced.

    Args:
        target: the folder, created if it does not exist.
        limits: by default :meth:`Limits.of` the archive; in any case no more than fits on the disk.
        progress: called with the number of bytes written since the last call.

    Returns:
        The files, below ``target``.

    Raises:
        InputError: the archive is damaged, no archive, or too large, or holds a member that is not allowed; the message
            names archive and member. Nothing is left in the target then.
    """
    archive, target = Path(archive), Path(target)
    limits = limits or Limits.of(archive)
    with _writing(target):
        target.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
        inside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target))
    try:
        budget = _Budget(archive, min(limits.size, free), limits.members, progress)
        _unpack(archive, inside, budget)
        for inner in [path for path in sorted(inside.rglob("*.tar")) if path.is_file()]:
            _unpack(inner, inner.parent, budget)
            inner.unlink()
        return _move(archive, inside, target)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


class _Budget:
    """How much may still be written."""

    def __init__(self, archive: Path, size: int, members: int, progress: Callable[[int], None]):
        self.archive, self.size, self.members, self._progress = archive, size, members, progress
        self._written = self._skipped = 0

    def declare(self, where: str, size: int) -> None:
        """Count the size that a member declares."""
        self.members -= 1
        if self.members < 0:
            raise InputError(where, "too many members", "an archive of a dataset", "unpack it by hand if you trust it")
        if self._written + size > self.size:
            self._refuse(where)

    def write(self, where: str, count: int) -> None:
        self._written += count
        if self._written > self.size:
            self._refuse(where)
        self._progress(count)

    def skip(self, where: str, count: int) -> None:
        """Count bytes that come out of the archive but are not kept."""
        self._skipped += count
        if self._skipped > self.size:
            self._refuse(where)

    def _refuse(self, where: str) -> None:
        raise InputError(where, f"more than {self.size / 2**30:.3g} GiB in all",
                         "no more than 100 times the size of the archive (1 GiB if that is more) and than fits on the "
                         "disk", "free some space, or unpack it by hand if you trust it")


def _unpack(archive: Path, target: Path, budget: _Budget) -> None:
    with reading(archive, _NEEDS), archive.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            _unzip(archive, file, target, budget)
            return
        opened: Any = file
        if start.startswith(b"\x1f\x8b"):
            opened = gzip.GzipFile(fileobj=file)
        elif start.startswith(b"BZh"):
            opened = bz2.BZ2File(file)
        elif start.startswith(b"\xfd7zXZ"):
            opened = lzma.LZMAFile(file)  # noqa: SIM115 (closes with the file below it)
        _untar(archive, _Watched(opened), target, budget)


def _unzip(archive: Path, file: IO[bytes], target: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(file) as opened:
        members = opened.infolist()
        end: Any = getattr(zipfile, "_EndRecData")(file)  # noqa: B009  zipfile itself does not compare
        if end and end[4] != len(members):
            raise InputError(archive, f"an archive of {end[4]} members whose index names {len(members)}",
                             "an undamaged archive", "download it again")
        for member in members:  # all names and sizes before the first byte is written
            where = _where(archive, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                _refuse_kind(where)
            if member.flag_bits & 1:
                raise InputError(where, "an encrypted member", "an archive without a password", "unpack it by hand")
            # A backslash is a separator on Windows, where many archives are made; zipfile does not convert it here.
            _inside(where, member.filename)
            budget.declare(where, member.file_size)
        for member in members:
            where, path = _where(archive, member.filename), target / _inside("", member.filename)
            if member.is_dir():
                _make_folder(path)
                continue
            with reading(Path(where), _NEEDS), opened.open(member) as source:
                _copy(source, path, where, budget)


def _untar(archive: Path, file: _Watched, target: Path, budget: _Budget) -> None:
    with tarfile.open(fileobj=file, mode="r:") as opened:  # type: ignore[call-overload]  # it reads, seeks and tells
        for member in opened:
            where = _where(archive, member.name)
            if not (member.isreg() or member.isdir()):
                _refuse_kind(where)
            path = target / _inside(where, member.name)
            budget.declare(where, member.size if member.isreg() else 0)
            if member.isdir():
                _make_folder(path)
                continue
            source = opened.extractfile(member)
            assert source is not None  # it is a regular file
            with source:
                if _copy(source, path, where, budget) != member.size:
                    raise InputError(where, "fewer bytes than the archive says", _NEEDS, "download the archive again")
    last = file.last
    while chunk := file.read(_CHUNK):  # the checksum of a compressed archive is at its end
        budget.skip(str(archive), len(chunk))
    # tarfile takes garbage, or a file that is cut off between two members, as the end.
    if last != bytes(_BLOCK):
        raise InputError(archive, "a truncated archive", _NEEDS, "download it again; it is incomplete or damaged")


class _Watched:
    """A file read forward that remembers the last block, which is where tarfile stopped looking for members."""

    def __init__(self, file: Any):
        self._file, self.last = file, b""

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        if size == _BLOCK:
            self.last = data
        return data

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(position, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _inside(where: str, name: str) -> PurePosixPath:
    """The name of a member as a path below the target.

    Raises:
        InputError: it would lead elsewhere.
    """
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":"
    if outside or (not path.parts and name not in (".", "./")):
        raise InputError(where, "a name that points outside the folder", "relative names without '..'",
                         "do not trust this archive; take it from the official page")
    return path


def _refuse_kind(where: str) -> None:
    raise InputError(where, "a link or a device", "plain files and folders only",
                     "do not trust this archive; take it from the official page")


def _where(archive: Path, member: str) -> str:
    """A member's name for messages: it may contain anything, even control characters."""
    name = "".join(c if c.isprintable() else "?" for c in member)
    return f"{archive} (member '{name if len(name) <= 120 else name[:117] + '...'}')"


def _copy(source: Any, path: Path, where: str, budget: _Budget) -> int:
    """Copy an open binary file to a new one; returns the number of bytes."""
    _make_folder(path.parent)
    count = 0
    with _writing(path):
        out = path.open("wb")
    with out:
        while chunk := source.read(_CHUNK):
            budget.write(where, len(chunk))
            with _writing(path):
                out.write(chunk)
            count += len(chunk)
    return count


def _make_folder(path: Path) -> None:
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)


def _move(archive: Path, inside: Path, target: Path) -> list[Path]:
    """Move everything from the folder where it was unpacked to its destination."""
    base, moved = target.resolve(), []
    for folder, _, names in os.walk(inside):
        place = target / os.path.relpath(folder, inside)
        if not place.resolve().is_relative_to(base):
            raise InputError(place, "a link that points outside the folder", "a plain folder, into which "
                             f"{archive.name} is unpacked", "remove the link, or unpack the archive elsewhere")
        _make_folder(place)
        for name in names:
            with _writing(place / name):
                put_in_place(Path(folder) / name, place / name)
            moved.append(place / name)
    return sorted(moved)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(path, f"{error.strerror or error} while writing", "a writable folder with enough room",
                         "free some space or name another folder") from error
