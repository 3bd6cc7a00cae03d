"""Saved saliency maps: the measures of their pixels, every way to store them, and what is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyptych.cli import main
from polyptych.errors import InputError
from polyptych.metrics.saliency import SaliencyF
from polyptych.metrics.saliency_folders import evaluate_saliency_maps


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three images: maps of 8 bits, ground truth of 0 and 255."""
    random = np.random.default_rng(0)
    maps, masks = tmp_path / "maps", tmp_path / "masks"
    maps.mkdir(), masks.mkdir()
    for name, size in (("a", (9, 12)), ("b", (7, 5)), ("c", (9, 12))):
        mask = random.random(size) > 0.6
        values = (150 * mask + 90 * random.random(size)).astype(np.uint8)
        Image.fromarray(values).save(maps / f"{name}.png")
        Image.fromarray(255 * mask.astype(np.uint8)).save(masks / f"{name}.png")
    return maps, masks


def measured(folders: tuple[Path, Path], **options: object) -> dict[str, float]:
    return evaluate_saliency_maps(*folders, **options)[0].compute()


def by_hand(folders: tuple[Path, Path]) -> dict[str, float]:
    metric = SaliencyF()
    for path in sorted(folders[0].iterdir()):
        values, mask = (np.array(Image.open(folder / path.name)) / 255 for folder in folders)
        metric.update(torch.from_numpy(values)[None], torch.from_numpy(mask)[None],
                      torch.ones(1, *mask.shape, dtype=torch.bool))
    return metric.compute()


def test_the_command_says_what_the_metric_finds(folders, tmp_path, capsys):
    assert main(["evaluate-saliency", *map(str, folders), "--out", str(tmp_path / "new" / "found.json")]) == 0
    found, expected = json.loads((tmp_path / "new" / "found.json").read_text()), by_hand(folders)
    assert {name: found[name] for name in expected} == expected and found["images"] == 3
    said = capsys.readouterr().out
    assert f"{expected['maxF_SOD']:.2f}" in said and f"{expected['MAE']:.4f}" in said


def test_every_way_to_store_a_map_and_a_mask(folders):
    expected = measured(folders)
    maps, masks = folders
    values, mask = np.array(Image.open(maps / "a.png")), np.array(Image.open(masks / "a.png"))
    (maps / "a.png").unlink()
    np.save(maps / "a.npy", values / 255)
    Image.fromarray(mask // 255).save(masks / "a.png")
    Image.fromarray(np.array(Image.open(maps / "b.png")).astype(np.uint16) * 257).save(maps / "b.png")
    Image.fromarray(np.array(Image.open(masks / "b.png")) > 0).save(masks / "b.png")  # one bit
    Image.fromarray(np.array(Image.open(masks / "c.png")).astype(np.uint16) * 257).save(masks / "c.png")
    assert measured(folders) == pytest.approx(expected, rel=1e-12)


def test_few_bits_are_shares_of_what_they_can_hold(folders):
    """A gray PNG of four bits has 15 for 1, whatever a decoder makes of it."""
    maps, masks = folders
    values = np.array(Image.open(maps / "b.png")) // 17
    for folder, pixels in ((maps, values), (masks, np.array(Image.open(masks / "b.png")) // 17)):
        write_four_bits(folder / "b.png", pixels)
    found = measured(folders, images=listing(maps.parent, "b"))
    Image.fromarray(17 * values).save(maps / "b.png")
    assert found == measured(folders, images=listing(maps.parent, "b"))


def listing(folder: Path, *names: str) -> Path:
    (path := folder / "list.txt").write_text("\n".join(names))
    return path


def write_four_bits(path: Path, pixels: np.ndarray) -> None:
    """A gray PNG of four bits, which Pillow reads but does not write."""
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, width % 2)))
    rows = (padded[:, ::2] << 4 | padded[:, 1::2]).astype(np.uint8)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
                     + chunk(b"IEND", b""))


def test_pixels_without_a_label_do_not_count(folders):
    maps, masks = folders
    before = measured(folders)
    mask = np.array(Image.open(masks / "b.png")) // 255
    grown = np.pad(mask, ((0, 3), (0, 0)), constant_values=255)
    Image.fromarray(grown).save(masks / "b.png")
    Image.fromarray(np.pad(np.array(Image.open(maps / "b.png")), ((0, 3), (0, 0)))).save(maps / "b.png")
    listed = listing(maps.parent, "b")
    assert measured(folders, images=listed, ignore=255) != measured(folders, images=listed)
    for name in ("a", "c"):
        Image.fromarray(np.array(Image.open(masks / f"{name}.png")) // 255).save(masks / f"{name}.png")
    assert measured(folders, ignore=255) == pytest.approx(before)


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda maps, masks: (maps / "b.png").unlink(), "no prediction for 'b' (1 of 3 names)"),
    (lambda maps, masks: (maps / "b.png").write_bytes(b"no picture"), "b.png: got"),
    (lambda maps, masks: Image.new("L", (4, 4)).save(maps / "b.png"), "the size of its ground truth, 7x5"),
    (lambda maps, masks: Image.new("RGB", (5, 7)).save(maps / "b.png"), "one channel"),
    (lambda maps, masks: ((maps / "b.png").unlink(), np.save(maps / "b.npy", np.full((7, 5), 1.5))), "0 to 1"),
    (lambda maps, masks: ((maps / "b.png").unlink(), np.save(maps / "b.npy", np.full((7, 5), np.nan))), "nan to nan"),
    (lambda maps, masks: [path.unlink() for path in maps.iterdir()], "a folder without such files")])
def test_one_line_for_what_is_wrong(folders, spoil, said, capsys):
    spoil(*folders)
    assert main(["evaluate-saliency", *map(str, folders)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_known_first(folders, capsys):
    blocked = folders[0] / "a.png" / "found.json"
    assert main(["evaluate-saliency", *map(str, folders), "--out", str(blocked)]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1


def test_predictions_are_not_their_own_truth(folders) -> None:
    link = folders[0].parent / "link"
    link.symlink_to(folders[0])
    with pytest.raises(InputError, match="link: got the folder of the predictions"):
        evaluate_saliency_maps(folders[0], link)


def test_two_folders_are_needed(capsys):
    assert main(["evaluate-saliency"]) == 2
    assert "evaluate-saliency predictions masks" in capsys.readouterr().err
