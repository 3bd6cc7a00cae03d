"""`polyptych data`: from an archive to a trained run; what it shows, and that bad input is one line."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from polyptych.cli import main
from polyptych.data.preparation.facts import about, fixtures, with_files

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["data", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("polyptych: "), said
    return said


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def write(layout: str, root: Path) -> Path:
    root.mkdir(parents=True)
    fixtures("nyuv2")[layout](root)
    return root


def test_list_names_every_dataset(capsys) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    said = " ".join(" ".join(lines).split())
    for name in (*with_files(), "rooms", "folder"):
        assert f" {name} " in said
    assert "cityscapes-dataset.com" in said and "inverse_depth" in said and "NYU Depth v2" in said


@pytest.mark.parametrize("name", with_files())
def test_info_tells_all_that_is_known(capsys, name: str) -> None:
    assert main(["data", "info", name]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    flat, stated = "".join(said.split()), about(name)
    assert stated is not None
    for layout in stated.layouts:
        assert layout in flat
    for note in stated.notes:
        assert "".join(note.split()) in flat
    assert "…" not in said


def test_help_explains_the_commands(capsys) -> None:
    for arguments in (["data"], ["data", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert not stop.value.code and "polyptych data prepare NAME" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "prepare", "--help"])
    said = words(capsys)
    assert "--from" in said and "--size" in said and "--dataset.layout" in said


def test_a_miniature_is_verified(capsys, tmp_path: Path) -> None:
    assert main(["data", "fixture", "nyuv2", str(tmp_path / "mini"), "--layout", "mtan"]) == 0
    assert f"--root {tmp_path / 'mini'} --subset" in words(capsys)
    assert main(["data", "verify", "nyuv2", "--root", str(tmp_path / "mini"), "--dataset.classes", "13",
                 "--subset"]) == 0
    said = words(capsys)
    assert "layout mtan" in said and "official train: 6 of 795" in said and "no fault" in said


def test_verify_shows_every_fault_and_fails(capsys, tmp_path: Path) -> None:
    root = write("survey", tmp_path / "nyuv2")
    (root / "depth/0003.npy").write_bytes(b"")
    (root / "images/0001.jpg").write_bytes(b"text")
    assert main(["data", "verify", "nyuv2", "--root", str(root), "--subset"]) == 2
    said = capsys.readouterr()
    assert "depth/0003.npy" in said.out and "images/0001.jpg" in said.out and "2 faults" in said.err
    assert said.err.count("\n") == 1
    assert main(["data", "verify", "nyuv2", "--root", str(root), "--tasks", "semseg,normals"]) == 2
    assert "795, as published" in words(capsys)


def test_from_an_archive_to_a_trained_run(capsys, tmp_path: Path) -> None:
    root = write("official", tmp_path / "made/NYU")
    for path in (root / "normals").iterdir():
        path.unlink()
    (root / "normals").rmdir()
    with tarfile.open(tmp_path / "nyu.tgz", "w:gz") as archive:
        archive.add(root, "NYU")
    out = tmp_path / "fast"
    assert main(["data", "prepare", "nyuv2", "--root", str(tmp_path / "data"), "--from", str(tmp_path / "nyu.tgz"),
                 "--subset", "--intrinsics", "52", "52", "31.5", "23.5", "--window", "5", "--size", "24", "32",
                 "--out", str(out)]) == 0
    said = words(capsys)
    assert "2 files" in said and "no fault" in said and str(tmp_path / "data/NYU/normals") in said
    assert "--tasks semseg,depth,normals,boundaries" in said and "prepared-24x32" in said
    run = tmp_path / "run"
    assert main(["train", "nyuv2", "--dataset", "prepared", "--dataset.root", str(out), "--out", str(run), "--size",
                 "24", "32", "--steps", "1", "--batch-size", "2", "--backbone.model", "test_resnet",
                 "--tasks", "semseg,normals", "--monitoring.examples", "1"]) == 0
    assert "prepared-24x32" in (run / "run.json").read_text()


def test_prepare_unpacks_several_archives(capsys, tmp_path: Path) -> None:
    root = write("survey", tmp_path / "made")
    archives = []
    for number, folders in enumerate((("images", "gt_sets", "segmentation"), ("depth",))):
        archives.append(tmp_path / f"{number}.zip")
        with zipfile.ZipFile(archives[-1], "w") as archive:
            for path in (path for folder in folders for path in (root / folder).iterdir()):
                archive.write(path, path.relative_to(root))
    assert main(["data", "prepare", "nyuv2", "--root", str(tmp_path / "nyuv2"), "--from", *map(str, archives),
                 "--subset", "--no-normals"]) == 0
    assert "--tasks semseg,depth,boundaries" in words(capsys)
    assert (tmp_path / "nyuv2-prepared/prepared.json").is_file()


def test_an_evil_archive_is_refused(capsys, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("images/1.png", b"1")
        archive.writestr("../evil.txt", b"2")
    said = refused(capsys, "prepare", "nyuv2", "--root", str(tmp_path / "root"), "--from", str(tmp_path / "evil.zip"))
    assert "member '../evil.txt'" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.zip", "root"]


@pytest.mark.parametrize(("arguments", "parts"), [
    (["lst"], ["polyptych data lst", "nearest: list"]),
    (["info"], ["no dataset", "nyuv2"]),
    (["info", "nyu2"], ["dataset 'nyu2'", "nearest: nyuv2"]),
    (["info", "rooms"], ["dataset rooms", "not downloaded"]),
    (["info", "nyuv2", "more"], ["'more' after the name"]),
    (["list", "more"], ["'more'"]),
    (["verify", "nyuv2", "--root", "/nowhere"], ["/nowhere", "no such folder"]),
    (["verify", "rooms"], ["dataset rooms", "without files of its own"]),
    (["verify", "folder"], ["no root"]),
    (["verify", "nyuv2", "--qick"], ["--qick", "--quick"]),
    (["prepare", "nyuv2", "--root", "/nowhere"], ["/nowhere"]),
    (["prepare", "nyuv2", "--root", "/nowhere", "--window", "4"], ["window", "odd"]),
    (["prepare", "nyuv2", "--root", "/nowhere", "--download"], ["no plain address", "polyptych data info nyuv2"]),
    (["prepare", "nyuv2", "--from", "/nowhere.zip", "--root", "."], ["/nowhere.zip", "no such file"]),
    (["fixture", "rooms", "x"], ["dataset rooms", "without a miniature"]),
    (["fixture", "nyuv2", ".", "--layout", "mtan"], ["something that exists"]),
    (["fixture", "nyuv2", "x", "--layout", "mtn"], ["--layout", "nearest: mtan"]),
])
def test_refusals(capsys, arguments: list[str], parts: list[str]) -> None:
    said = refused(capsys, *arguments)
    assert all(part in said for part in parts), said
