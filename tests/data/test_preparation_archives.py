"""Unpacking: what archives hold arrives, and nothing else, wherever they come from and however damaged they are."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyptych.data.preparation.archives import Limits, extract
from polyptych.errors import InputError

FILES = {"set/images/1.jpg": b"a picture" * 400, "set/list.txt": b"1\n", "set/empty.txt": b""}


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(archive: Path, where: Path, *parts: str, limits: Limits | None = None) -> None:
    """The archive is refused in one line, and neither the target nor what lies around it has changed."""
    target = where / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    before = contents(where)
    with pytest.raises(InputError) as error:
        extract(archive, target, limits)
    said = str(error.value)
    assert "\n" not in said and all(part in said for part in (archive.name, *parts)), said
    assert contents(where) == before


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"),
                                            ("a.tar.bz2", "w:bz2"), ("a.tar.xz", "w:xz"), ("a.zip", "")])
def test_every_format_is_unpacked(tmp_path: Path, name: str, mode: str) -> None:
    archive = write_tar(tmp_path / name, FILES, mode) if mode else write_zip(tmp_path / name, FILES)
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size

    assert extract(archive, tmp_path / "out", progress=count) == sorted(tmp_path / "out" / file for file in FILES)
    assert contents(tmp_path / "out") == FILES
    assert written == sum(map(len, FILES.values()))


def test_tars_inside_are_unpacked_where_they_lie(tmp_path: Path) -> None:
    """As in decathlon-1.0-data.tar.gz."""
    inner = {f"{name}.tar": write_tar(tmp_path / "inner", {f"{name}/train/1.jpg": name.encode()}).read_bytes()
             for name in ("dtd", "svhn")}
    extract(write_tar(tmp_path / "outer.tar.gz", inner, "w:gz"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"dtd/train/1.jpg": b"dtd", "svhn/train/1.jpg": b"svhn"}


def test_a_second_archive_joins_the_first(tmp_path: Path) -> None:
    """As the packages of Cityscapes do."""
    extract(write_zip(tmp_path / "1.zip", {"a/1.png": b"1", "README": b"old"}), tmp_path / "out")
    extract(write_zip(tmp_path / "2.zip", {"a/2.png": b"2", "README": b"new"}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a/1.png": b"1", "a/2.png": b"2", "README": b"new"}


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/tmp/outside", "a/..", "..\\outside", "C:outside",
                                  ".."])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_out_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    files = {"good.txt": b"1", name: b"2"}
    archive = write_tar(tmp_path / "a.tar", files) if kind == "tar" else write_zip(tmp_path / "a.zip", files)
    refused(archive, tmp_path, f"member '{name}'", "points outside the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tars_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("images")
        member.type, member.linkname = kind, "/etc"
        archive.addfile(member)
    refused(tmp_path / "a.tar", tmp_path, "member 'images'", "a link or a device")


def test_links_in_zips_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("images")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc")
    refused(tmp_path / "a.zip", tmp_path, "member 'images'", "a link or a device")


def test_a_link_in_the_target_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/set").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link that points outside"):
        extract(write_tar(tmp_path / "a.tar", FILES), tmp_path / "out")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_an_inner_tar_is_checked_too(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "inner", {"../../../outside": b"1"}).read_bytes()
    target = tmp_path / "target"
    with pytest.raises(InputError, match="points outside the folder"):
        extract(write_tar(tmp_path / "a.tar", {"x/inner.tar": inner}), target)
    assert not any(target.iterdir()) and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused(tmp_path: Path, kind: str) -> None:
    bomb = {"small.txt": b"1", "zeros.bin": bytes(5_000_000)}
    archive = write_zip(tmp_path / "a.zip", bomb) if kind == "zip" else write_tar(tmp_path / "a.tar.gz", bomb, "w:gz")
    refused(archive, tmp_path, "member 'zeros.bin'", "more than", limits=Limits(1_000_000))


def test_a_zip_that_understates_its_size_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"zeros.bin": bytes(5_000_000)})
    data = archive.read_bytes()
    size = (5_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(archive, tmp_path, "zeros.bin", limits=Limits(1_000_000))


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {str(i): b"" for i in range(20)})
    refused(archive, tmp_path, "too many members", limits=Limits(1000, members=10))


@pytest.mark.parametrize(("name", "content"), [
    ("a.zip", b"not an archive"), ("a.tar", b""), ("a.tgz", b"\x1f\x8b broken"), ("a.rar", b"Rar!\x1a\x07\x00"),
    ("a.gz", gzip.compress(b"a text, but no archive" * 50, mtime=0)), ("a.zip", b"PK\x03\x04")])
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, tmp_path)


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "a.zip", tmp_path, "no such file")


def test_a_tar_cut_off_between_members_is_refused(tmp_path: Path) -> None:
    """tarfile takes that for the end."""
    archive = write_tar(tmp_path / "a.tar", FILES)
    with tarfile.open(archive) as opened:
        cut = opened.getmembers()[1].offset
    archive.write_bytes(archive.read_bytes()[:cut])
    refused(archive, tmp_path, "truncated")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_either_noticed_or_harmless(tmp_path_factory, name: str, data: st.DataObject) -> None:
    """Cut off anywhere, or with a byte changed: one line, or files below the target; never anything else."""
    where = tmp_path_factory.mktemp("damage")
    mode = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.xz": "w:xz"}.get(name)
    archive = write_tar(where / name, FILES, mode) if mode else write_zip(where / name, FILES)
    content = bytearray(archive.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    archive.write_bytes(content)
    try:
        files = extract(archive, where / "out")
    except InputError as error:
        assert "\n" not in str(error) and name in str(error)
        assert not (where / "out").exists() or not any((where / "out").iterdir())
    else:
        assert all(path.is_file() and path.resolve().is_relative_to(where / "out") for path in files)
        # A plain tar has no checksum of its contents; the zeros after its end may be cut off.
        assert (name == "a.tar" and not cut) or contents(where / "out") == FILES
    assert {path.name for path in where.iterdir()} <= {name, "out"}
