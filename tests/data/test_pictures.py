"""Pictures as cameras and tools write them: few bits, EXIF, sizes beyond Pillow's limit, other formats."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.data.arrays import flat, read_array
from polyptych.data.pictures import (
    LARGEST_PICTURE,
    is_lossy,
    open_picture,
    orientation,
    picture_size,
    read_color,
    read_gray,
    read_levels,
    read_rgb,
    read_stored,
    require_size,
)
from polyptych.errors import InputError


def png(path: Path, ids: np.ndarray, bits: int, color: int = 0, size: tuple[int, int] | None = None) -> Path:
    """A gray PNG (or with a palette, ``color`` 3) of so many bits, which Pillow does not write."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in ids:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i:i + 8], 2) for i in range(0, len(digits), 8))
    height, width = size or ids.shape
    palette = chunk(b"PLTE", bytes(range(3 << bits))) if color == 3 else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
                     + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("color", [0, 3], ids=["gray", "palette"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_the_stored_numbers(tmp_path: Path, bits: int, color: int) -> None:
    ids = np.arange(5 * 7).reshape(5, 7) % (1 << bits)
    found, top = read_levels(png(tmp_path / "a.png", ids, bits, color))
    assert np.array_equal(found, ids) and top == (1 << bits) - 1
    if color == 0:  # as a picture, the largest number is white
        assert read_rgb(tmp_path / "a.png").max() == 255


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["rgb", "gray+alpha", "rgb+alpha"])
def test_sixteen_bits_in_several_channels_keep_both_halves(tmp_path: Path, color: int, channels: int) -> None:
    """Pillow alone gives the upper half: 300 would be 1, and 7 would be 0."""
    numbers = np.array([[300, 7], [65535, 256], [0, 255]])
    wide = np.repeat(numbers, channels, 1)
    path = png(tmp_path / "a.png", wide, 16, color, size=(3, 2))
    found = read_stored(path)
    assert found.dtype == np.uint16 and np.array_equal(found if channels == 2 else found[..., 0], numbers)
    assert np.array_equal(flat(read_array(path), path), numbers)


def test_sixteen_bits_in_colors_of_another_format_are_refused(tmp_path: Path) -> None:
    strip = np.full((2, 3, 3), 300, "<u2").tobytes()
    entries = [(256, 3, 1, 3), (257, 3, 1, 2), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 220),
               (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, len(strip))]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    (tmp_path / "a.tif").write_bytes(head.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16).ljust(20, b"\0") + strip)
    with pytest.raises(InputError, match="16 bits in each of several channels"):
        read_stored(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_opacity_is_no_channel_of_ids(tmp_path: Path, mode: str) -> None:
    ids = (np.arange(35).reshape(5, 7) % 16).astype(np.uint8)
    gray = Image.fromarray(np.dstack([ids, np.full_like(ids, 200)]), "LA")
    if mode == "PA":
        gray = Image.fromarray(ids, "P")
        gray.putpalette(bytes(768))
        gray.info["transparency"] = bytes([0, 255])
    gray.save(tmp_path / "a.png")
    assert np.array_equal(read_gray(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("kind", ["tif", "gif", "png"])
def test_numbers_on_several_pages_are_refused(tmp_path: Path, kind: str) -> None:
    pages = [Image.fromarray(np.full((5, 7), number, np.uint8)) for number in range(3)]
    pages[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="3 frames or pages"):
        read_stored(tmp_path / f"a.{kind}")
    assert read_rgb(tmp_path / f"a.{kind}").shape == (5, 7, 3)


def test_an_overview_beside_the_map_is_no_page(tmp_path: Path) -> None:
    ids = (np.arange(35).reshape(5, 7) % 16).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(ids[::2, ::2])])
    assert np.array_equal(read_gray(tmp_path / "a.tif"), ids)


@pytest.mark.parametrize("kind", ["tif", "bmp", "gif", "png"])
def test_other_files_of_ids(tmp_path: Path, kind: str) -> None:
    ids = (np.arange(35).reshape(5, 7) % 16).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / f"a.{kind}")
    assert np.array_equal(read_gray(tmp_path / f"a.{kind}"), ids)
    Image.fromarray(ids > 7).save(tmp_path / f"b.{kind}")
    assert np.array_equal(read_gray(tmp_path / f"b.{kind}") > 0, ids > 7)


def test_colors_are_no_ids(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.webp", lossless=True)
    with pytest.raises(InputError, match="a picture with 3 channels"):
        read_gray(tmp_path / "a.webp")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_stand_upright(tmp_path: Path, suffix: str, turn: int) -> None:
    """All eight orientations, against Pillow's own function."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as file:
        expected = np.array(ImageOps.exif_transpose(file))
    assert np.array_equal(read_rgb(path), expected) and picture_size(path) == expected.shape[:2]
    assert read_color(path).shape[1:] == expected.shape[:2]
    Image.fromarray(pixels[..., 0]).save(tmp_path / f"b.{suffix}", exif=exif,
                                         **({"lossless": True} if suffix == "webp" else {}))
    assert read_gray(tmp_path / f"b.{suffix}").shape == expected.shape[:2]
    assert orientation(path) == turn


def test_a_label_beside_a_turned_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(tmp_path / "a.jpg", exif=exif)
    require_size((32, 24), (32, 24), "label", tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"24x32 pixels; .*EXIF turns it \(orientation 6 of a.jpg\), 32x24 .*exiftool"):
        require_size((24, 32), (32, 24), "label", tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"needs the size of its image, 32x24 \(height x width\); resize"):
        require_size((12, 16), (32, 24), "label", tmp_path / "a.jpg")


def test_large_pictures_are_read_and_bombs_refused(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    large = png(tmp_path / "large.png", np.zeros((1, 8), int), 8, size=(14000, 14000))
    with open_picture(large) as file:
        assert file.size == (14000, 14000)
    assert limit == Image.MAX_IMAGE_PIXELS
    bomb = png(tmp_path / "bomb.png", np.zeros((1, 8), int), 1, size=(1 << 15, (LARGEST_PICTURE >> 15) + 1))
    with pytest.raises(InputError, match=r"a picture of 268 million pixels .*at most 268 million; cut it") as refusal:
        read_rgb(bomb)
    assert "damaged" not in str(refusal.value)


def test_formats_that_run_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(InputError, match="no picture of a known format"):
        read_rgb(tmp_path / "a.png")


def test_losses_are_known_by_content(tmp_path: Path) -> None:
    picture = Image.new("L", (8, 8))
    for name, options in (("a.jpg", {}), ("b.png", {}), ("c.webp", {}), ("d.webp", {"lossless": True})):
        picture.save(tmp_path / name, **options)
    (tmp_path / "e.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    assert [is_lossy(tmp_path / name) for name in ("a.jpg", "b.png", "c.webp", "d.webp", "e.png")] == [
        True, False, True, False, True]
