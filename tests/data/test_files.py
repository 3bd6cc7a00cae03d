"""Folders and text as people have them: byte order marks, Unicode forms, hidden files, links, pipes."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path

import pytest

from polyptych.data import files
from polyptych.data.files import (
    file_names,
    files_by_stem,
    open_file,
    read_json,
    read_lines,
    read_text,
    require_room,
    spelled,
    walk,
)
from polyptych.errors import InputError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_and_without_a_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0001\r\ncaf\u00e9 2\n\n# a note\n", encoding=encoding, newline="")
    assert read_lines(path) == ["0001", "caf\u00e9 2"]
    path.write_text('{"a": ["\u00e9"]}', encoding=encoding)
    assert read_json(path, "JSON") == {"a": ["\u00e9"]}


@pytest.mark.parametrize(("content", "said"), [
    (b"a\n\xe9t\xe9\n", r"text that is not UTF-8 \(line 2\).*save it as UTF-8"),
    ("ab".encode("utf-16-le"), "null bytes, perhaps UTF-16"), (b"\xff\xfea", r"not UTF-16-LE \(line 1\)"),
    (b"a\nb\na\n", "line 3: got 'a' a second time .first in line 1.; needs every id once")])
def test_text_that_cannot_be_read(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        read_lines(tmp_path / "a.txt")
    assert "\n" not in str(refusal.value)


def test_what_systems_leave_behind_is_not_seen(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".DS_Store", "Thumbs.db", "b/c.png", "b/._c.png", "__MACOSX/a.png",
                 "@eaDir/a.png", "lost+found/a.png", "#recycle/a.png", "Icon\r"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(walk(tmp_path)) == ["a.png", "b/c.png"] and file_names(tmp_path) == ["a.png"]
    assert files_by_stem(tmp_path, (".png",)) == {"a": tmp_path / "a.png"}


def test_names_meet_in_either_form_of_unicode(tmp_path: Path) -> None:
    (tmp_path / f"{DECOMPOSED}.png").touch()
    assert list(files_by_stem(tmp_path, (".png",))) == [COMPOSED]
    assert spelled(tmp_path / f"{COMPOSED}.png") == tmp_path / f"{DECOMPOSED}.png"
    (tmp_path / DECOMPOSED).mkdir()
    (tmp_path / DECOMPOSED / "a").touch()
    assert spelled(tmp_path / COMPOSED / "a").is_file() and not spelled(tmp_path / "none" / "a").exists()
    (tmp_path / f"{COMPOSED}.png").touch()
    with pytest.raises(InputError, match="two files for") as refusal:
        files_by_stem(tmp_path, (".png",))
    assert "\\u0301" in str(refusal.value)  # or both would look the same


def test_suffixes_in_capitals_and_in_order(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.png", "b.JPG", "c.jpg", "c.JPG", "d.gif"):
        (tmp_path / name).touch()
    found = files_by_stem(tmp_path, (".jpg", ".png"))
    assert {stem: path.name for stem, path in found.items()} == {"a": "a.JPG", "b": "b.JPG", "c": "c.jpg"}


def test_a_link_to_itself_is_one_bad_file_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to("b.png")
    assert sorted(walk(tmp_path)) == file_names(tmp_path) == ["a.png", "b.png"]
    with pytest.raises(InputError, match=r"b\.png: got a file that cannot be opened \(Too many levels"):
        read_text(tmp_path / "b.png", "text")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xe9.png")).touch()
    with pytest.raises(InputError, match="a name that is not UTF-8") as refusal:
        files_by_stem(tmp_path, (".png",))
    str(refusal.value).encode()


def test_links_lose_nothing_and_never_lead_in_circles(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    (tmp_path / "day/a.png").touch()
    (tmp_path / "again").symlink_to("day", True)
    (tmp_path / "day/up").symlink_to("..", True)
    assert sorted(walk(tmp_path)) == ["again/a.png", "day/a.png"]


def test_a_maze_of_links_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_REPEATS", 500)
    for number in range(10):
        (tmp_path / f"{number}").mkdir()
        for other in range(10):
            (tmp_path / f"{number}/{other}").symlink_to(f"../{other}", True)
    with pytest.raises(InputError, match="links that reach the same folders"):
        list(walk(tmp_path))


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
        server.bind("socket")
        for name, kind in (("pipe", "a named pipe"), ("folder", "a folder"), ("socket", "a socket"),
                           ("/dev/zero", "a device"), ("none", "no such file")):
            with pytest.raises(InputError, match=f"got {kind}; needs a list"), open_file(tmp_path / name, "a list"):
                pass
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(InputError, match="a named pipe"):
        read_text(tmp_path / "link", "a list")


def test_room_is_that_of_the_file_or_a_gibibyte() -> None:
    require_room("a", "it", 5 << 30, 5 << 30, "an array")
    require_room("a", "it", 1 << 30, 1, "an array")
    with pytest.raises(InputError, match=r"would take 5\.0 GiB of memory from a file of 3\.0 MiB"):
        require_room("a", "it", 5 << 30, 3 << 20, "an array")
