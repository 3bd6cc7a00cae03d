"""Decoding pictures: upright, of a limited number of pixels, and as the stored numbers where these mean something."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import (
    Image,
    TiffImagePlugin,  # noqa: F401  (or Pillow loads all of its formats when it looks for these two)
    WebPImagePlugin,  # noqa: F401
)

from polyptych.data.files import open_file, read_bytes, reading
from polyptych.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Suffixes of the pictures that are read."""

LARGEST_PICTURE = 1 << 28
"""Pixels of one picture, 16384 x 16384; as RGB they take 0.8 GB. Pillow's own limit, of which it warns at a third of
that, is meant for pictures from strangers; a map or a scan is one picture of this size, which ``predict --tile`` takes
apart."""

# Whatever the file is called. Other formats of Pillow are left out: one of them (EPS) runs another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

_NEEDS = "a picture (.jpg, .png)"
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and TIFF
# How the picture is moved to stand upright, by what EXIF says of its orientation
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}
_lock = threading.Lock()


@contextmanager
def open_picture(path: Path, needs: str = _NEEDS) -> Iterator[Image.Image]:
    """A picture whose header was read; pixels are decoded when they are asked for, within the block.

    Raises:
        InputError: no picture, a damaged one, or one of more than :data:`LARGEST_PICTURE` pixels.
    """
    with open_file(path, needs) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage beside the pixels
        with identify(file, path, needs) as picture:
            yield picture


def identify(file: io.IOBase | IO[bytes], path: Path | str, needs: str = _NEEDS) -> Image.Image:
    """The picture in an open file, of which only the header is read yet; ``path`` names it in messages.

    Raises:
        InputError: no picture of a known format, or one of more than :data:`LARGEST_PICTURE` pixels.
    """
    with _lock:  # Pillow's limit is one for the whole process; others may rely on it
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(file, formats=_FORMATS)  # type: ignore[arg-type]  # a member of an archive too
        except Image.UnidentifiedImageError:
            raise InputError(path, "an unreadable file (no picture of a known format)", needs,
                             "copy the file again; it is damaged or of another format") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if picture.width * picture.height > LARGEST_PICTURE:
        raise InputError(path, f"a picture of {picture.width * picture.height / 1e6:.0f} million pixels "
                         f"({picture.width} wide, {picture.height} high)",
                         f"at most {LARGEST_PICTURE / 1e6:.0f} million", "cut it into several files first")
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF data says that it is held. Every viewer shows it so, and labels are drawn in viewers."""
    picture.load()  # Pillow turns a TIFF while it decodes it, and knows the EXIF data of a PNG only then
    turn = _UPRIGHT.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    return int(picture.getexif().get(_ORIENTATION, 1))


def orientation(path: Path) -> int:
    """What EXIF says of a picture's orientation, 1 for upright; 5 to 8 exchange height and width."""
    with open_picture(path) as picture:
        return _orientation(picture)


def picture_size(path: Path) -> Size:
    """(h, w) of the upright picture; of most formats from the header alone. A picture with damaged pixels has a size:
    whoever reads it says what is wrong, or skips it."""
    with open_picture(path) as picture:
        try:
            held = _orientation(picture)  # a PNG may say so behind its pixels, and decodes them for it
        except (OSError, SyntaxError):
            held = 1
        turned = held >= 5 and picture.format != "TIFF"  # of which Pillow gives the turned size
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


# -- in color ----------------------------------------------------------------------------------------------


def read_rgb(path: Path, size: Size | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """An upright RGB picture, resized (bilinear) to ``size`` (h, w) if given."""
    with open_picture(path) as file:
        picture = as_rgb(upright(file), path)
        if size is not None and picture.size != size[::-1]:
            picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        return np.array(picture)


def read_color(path: Path, size: Size | None = None) -> UInt8[Tensor, "3 h w"]:
    """:func:`read_rgb` as a tensor.

    Memory stays interleaved (h w 3): what decoders give and what the uint8 resize of torchvision is fastest
    on.
    """
    import torch  # what only measures files need not load it

    return torch.from_numpy(read_rgb(path, size)).permute(2, 0, 1)


def as_rgb(picture: Image.Image, place: object) -> Image.Image:
    """A picture as 8-bit RGB. Gray of 16 bits is scaled; Pillow alone would clip it to white.

    Raises:
        InputError: pixels are integers of 32 bits or floating-point numbers, which have no scale.
    """
    if picture.mode.startswith("I;16"):
        levels = np.rint(np.asarray(picture).astype(np.uint16) / 257).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if picture.mode in ("I", "F"):
        kind = "32-bit integers" if picture.mode == "I" else "floating-point numbers"
        raise InputError(place, f"a picture of {kind}",
                         "8 bits for each of red, green and blue, or gray of 8 or 16 bits", "convert it first")
    return picture.convert("RGB")


# -- as numbers --------------------------------------------------------------------------------------------


def read_stored(path: Path) -> np.ndarray:
    """The numbers of an upright picture as they are stored: (h w) of gray, bool where they have one bit; the indices of
    a palette; (h w c) of colors."""
    return _stored(path)[0]


def read_gray(path: Path) -> np.ndarray:
    """The numbers (h w) of a gray or palette picture, bool, uint8 or wider; palettes are not applied.

    Lossless WebP knows no gray: a picture with three equal channels is taken as gray too.
    """
    return read_levels(path)[0]


def read_levels(path: Path) -> tuple[np.ndarray, int]:
    """:func:`read_gray`, and the largest number that its pixels could hold: 1, 3, 15, 255 or 65535; 0 where that says
    nothing (32 bits)."""
    array, bits, form = _stored(path, "a picture with one channel")
    if form == "WEBP" and array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2:
        raise InputError(path, f"a picture with {array.shape[-1]} channels", "one channel",
                         "store ids or values as gray, not as colors")
    return array, (1 << bits) - 1 if bits <= 16 else 0


def _stored(path: Path, needs: str = _NEEDS) -> tuple[np.ndarray, int, str]:
    """The numbers, their bits, and the format."""
    with open_picture(path, needs) as file:
        bits, form, mode = _bits(file), str(file.format), file.mode
        _require_one_page(file, path)
        halved = bits == 16 and mode in ("RGB", "RGBA")  # Pillow keeps the upper half of each number
        array = _read_deep(path, form) if halved else np.array(upright(file))
    if mode in ("LA", "PA") or (halved and array.shape[-1] == 2):
        array = array[..., 0]  # how opaque a number is says nothing about it
    if bits in (2, 4) and array.dtype == np.uint8 and mode == "L":
        array //= 255 // ((1 << bits) - 1)  # Pillow spreads few levels over 0..255, which turns the id 1 into 17 or 85
    return array.astype(array.dtype.newbyteorder("="), copy=False), bits, form


def _read_deep(path: Path, form: str) -> np.ndarray:
    """The numbers (h w c) of a picture with 16 bits in each of several channels."""
    if form != "PNG":
        raise InputError(path, "a picture with 16 bits in each of several channels", "16 bits in one channel, 8 in "
                         "each of several, or PNG", "convert it, for instance to .npy or to PNG")
    import torch
    from torchvision.io import ImageReadMode, decode_png

    content = torch.frombuffer(bytearray(read_bytes(path, _NEEDS)), dtype=torch.uint8)
    with reading(path, _NEEDS):
        pixels = decode_png(content, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return pixels.permute(1, 2, 0).numpy()


def _require_one_page(picture: Image.Image, path: Path) -> None:
    """Refuse numbers on several pages, of which one would be taken without a word. (Smaller pages of a TIFF are the
    same one at a lower resolution.)"""
    if picture.format not in ("TIFF", "GIF", "PNG", "WEBP") or getattr(picture, "n_frames", 1) == 1:
        return
    size, pages = picture.size, 0
    for page in range(picture.n_frames):  # type: ignore[attr-defined]
        picture.seek(page)
        pages += picture.size == size
    picture.seek(0)
    if pages > 1:
        raise InputError(path, f"a picture with {pages} frames or pages", "one with the numbers of its image",
                         "save each page as a file of its own")


def _bits(picture: Image.Image) -> int:
    """Bits of each number, as the file says."""
    tiles = getattr(picture, "tile", ())
    if picture.format == "PNG" and tiles:  # Pillow keeps of the header how it will read the rows: "L;4"
        rows = str(tiles[0].args)
        return int(rows.rpartition(";")[2].rstrip("B")) if ";" in rows else 1 if rows == "1" else 8
    if picture.format == "TIFF":
        return int(np.ravel(picture.tag_v2.get(_BITS, 1))[0])  # type: ignore[attr-defined]
    return 1 if picture.mode == "1" else 16 if picture.mode.startswith("I;16") else 32 if picture.mode in "IF" else 8


def is_lossy(path: Path) -> bool:
    """Whether a file is a picture that was compressed with losses, whatever its name says: JPEG, or WebP of that
    kind."""
    with open_file(path, _NEEDS) as file:
        head = file.read(16)
    return head.startswith(b"\xff\xd8\xff") or (head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8 ")


# -- labels beside their images ----------------------------------------------------------------------------


def require_size(label: Size, size: Size, path: Path | str, image: Path | None = None) -> None:
    """Refuse a label that is not of the size of its image.

    Args:
        label: its (h, w).
        size: of the image.
        path: the label's place.
        image: where the image lies, if it is a picture; the advice differs if EXIF turned it.
    """
    if label == size:
        return
    needs, do = "the size of its image", "resize one of them"
    if image is not None and label == size[::-1] and os.path.splitext(image)[1].lower() in PICTURES:
        turn = orientation(image)
        if turn >= 5:
            needs = f"the size of its image as EXIF turns it (orientation {turn} of {image.name})"
            do = ("turn the label like the image; if it was drawn on the picture as stored, remove what EXIF says "
                  "(exiftool -Orientation= FILE)")
    raise InputError(path, f"a label of {label[0]}x{label[1]} pixels", f"{needs}, {size[0]}x{size[1]} "
                     "(height x width)", do)
