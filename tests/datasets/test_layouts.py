"""What holds for every layout of every dataset: it registers itself, and meets the files that people really have."""

from __future__ import annotations

import codecs
import json
import os
import signal
import struct
import typing
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import polyptych
from copying import copied
from polyptych.data import pictures
from polyptych.data.preparation.facts import about, fixtures
from polyptych.datasets._base import CATALOG
from polyptych.datasets._layouts import LayoutDataset
from polyptych.errors import InputError
from polyptych.types import Sample

DATASETS: dict[str, type[LayoutDataset]] = {name: CATALOG.load(name) for name in ("nyuv2", "cityscapes")}
EVERY = [(name, layout) for name, kind in DATASETS.items() for layout in kind.layouts.by_name()]
TEXTS = [each for each in EVERY if each[1] not in ("mtan",) and each != ("nyuv2", "official")]
PICTURES = TEXTS
"""Layouts whose images are pictures; they are those with lists or JSON files, too."""

every_layout = pytest.mark.parametrize(("name", "layout"), EVERY)


def one_of_each(first: str, *others: str) -> list:
    """Every layout with texts with the first value, one layout of each dataset with the others; the rest is slow."""
    few = {("nyuv2", "adashare"), ("cityscapes", "official")}
    return [*((*each, first) for each in TEXTS), *(
        pytest.param(*each, other, marks=[] if each in few else pytest.mark.grid)
        for other in others for each in TEXTS)]


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Every layout of every dataset; not to be changed by a test."""
    roots = {}
    for name, layout in EVERY:
        roots[name, layout] = tmp_path_factory.mktemp(f"{name}_{layout}")
        fixtures(name)[layout](roots[name, layout])
    return roots


@pytest.fixture
def copy(miniatures, tmp_path, name, layout) -> Path:
    return copied(miniatures[name, layout], tmp_path / "copy")


@pytest.fixture(autouse=True)
def no_reader_waits() -> Iterator[None]:
    """A reader that waits for a pipe would wait without end."""
    def stop(number, frame):
        raise TimeoutError("a reader waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def options(name: str, layout: str) -> dict:
    return {"classes": 13} if (name, layout) == ("nyuv2", "mtan") else {}


def open_split(name: str, root: Path, layout: str = "auto", split: str = "train", tasks=None, **more) -> LayoutDataset:
    config = DATASETS[name].Config(root=root, layout=layout, **{"validation": 0.0, **options(name, layout), **more})
    if tasks is None:
        tasks = tuple(config.build(split=split, tasks=()).labels)
    return config.build(split=split, tasks=tasks)


def same(a: Sample, b: Sample) -> bool:
    return (a.info == b.info and torch.equal(a.image, b.image) and a.target.keys() == b.target.keys()
            and all(torch.equal(a.target[task], b.target[task]) and torch.equal(a.valid[task], b.valid[task])
                    for task in a.target))


def reads_alike(name: str, layout: str, root: Path, whole: Path) -> None:
    for split in ("train", "test"):
        a, b = open_split(name, root, layout, split), open_split(name, whole, layout, split)
        assert a.frames == b.frames and a.protocol == b.protocol
        assert all(same(a.read(i), b.read(i)) for i in range(len(b)))


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


# -- registration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_folder_options_facts_and_fixtures_name_the_same_layouts(name):
    catalog = DATASETS[name].layouts
    folder = Path(polyptych.__file__).parent / "datasets" / f"_{name}" / "layouts"
    files = {path.stem for path in folder.glob("[!_]*.py")}
    choices = typing.get_args(typing.get_type_hints(DATASETS[name].Config)["layout"])
    facts = about(name).layouts
    assert files == set(catalog.names()) == set(choices) - {"auto"} == set(facts) == set(fixtures(name))
    annotated = typing.get_type_hints(DATASETS[name].Config, include_extras=True)["layout"]
    assert all(catalog.describe(layout).summary in annotated.__metadata__[0].help for layout in files)
    for layout, kind in catalog.by_name().items():
        assert facts[layout].looks_for == kind.looks_for and facts[layout].note == kind.note


def test_the_order_in_which_auto_looks():
    """It decides how old folders are read, and their protocols."""
    assert [*DATASETS["nyuv2"].layouts.by_name()] == [
        "folder", "mtan", "frames", "official", "adashare", "astmt", "survey", "invpt"]
    assert [*DATASETS["cityscapes"].layouts.by_name()] == ["official", "mtan"]
    for kind in DATASETS.values():
        orders = [layout.auto_order for layout in kind.layouts.by_name().values()]
        assert len(set(orders)) == len(orders)


@every_layout
def test_auto_finds_every_layout(miniatures, name, layout):
    root = miniatures[name, layout]
    found = open_split(name, root, tasks=(), **options(name, layout)).layout
    assert isinstance(DATASETS[name].layouts.load(layout)(found.config), type(found))  # or a form of it


@pytest.mark.parametrize("name", DATASETS)
def test_an_unknown_layout(name, tmp_path):
    with pytest.raises(InputError, match=rf"layout of {name}: got 'oficial'; needs .*official"):
        DATASETS[name].layouts.open(SimpleNamespace(root=tmp_path, layout="oficial"), ())


# -- files that people really have ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layout", "encoding"), one_of_each("utf-8-sig", "utf-16"))
def test_byte_order_marks(miniatures, copy, name, layout, encoding):
    texts = [path for path in files_of(copy) if path.suffix in (".txt", ".json")]
    assert texts
    for path in texts:
        path.write_bytes(path.read_text("utf-8").replace("\n", "\r\n").encode(encoding))
        assert path.read_bytes()[:2] in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16_LE)
    reads_alike(name, layout, copy, miniatures[name, layout])


@every_layout
def test_what_macos_and_network_disks_leave_behind(miniatures, copy, name, layout):
    for path in files_of(copy):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7" + bytes(60))
        path.with_name(".DS_Store").write_bytes(bytes(8))
    for folder in sorted(path for path in copy.rglob("*") if path.is_dir()):
        (folder / "@eaDir").mkdir()
        (folder / ".Trashes").mkdir()
    reads_alike(name, layout, copy, miniatures[name, layout])


@pytest.mark.parametrize(("name", "layout", "listed"), one_of_each("NFC", "NFD"))
def test_composed_and_decomposed_names_meet(miniatures, copy, name, layout, listed):
    """Every name gets an accent, spelled in one way in lists and images and in the other in labels."""
    other = {"NFC": "NFD", "NFD": "NFC"}[listed]
    for path in files_of(copy):
        if path.suffix in (".txt", ".json") and name == "nyuv2":
            text = path.read_text("utf-8").replace("000", unicodedata.normalize(listed, "é00"))
            path.write_text(text, "utf-8")
        else:
            image = "leftImg8bit" in path.name or path.parent.name in ("images", "img")
            spelled = unicodedata.normalize(listed if image else other, "é00")
            path.rename(path.with_name(path.name.replace("000", spelled, 1)))
    a, b = open_split(name, copy, layout), open_split(name, miniatures[name, layout], layout)
    assert len(a) == len(b) and all("é" in frame for frame in a.frames)
    for i in range(len(b)):
        assert torch.equal(a.read(i).image, b.read(i).image)
        for task in b.tasks:
            assert torch.equal(a.read(i).target[task], b.read(i).target[task])


def test_the_root_may_be_spelled_otherwise(miniatures, tmp_path):
    copied(miniatures["nyuv2", "survey"], tmp_path / unicodedata.normalize("NFD", "Küche"))
    assert len(open_split("nyuv2", tmp_path / unicodedata.normalize("NFC", "Küche"))) == 6


TURNS = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
         8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize(("name", "layout", "orientation"), [
    *(("nyuv2", "survey", orientation) for orientation in TURNS), ("nyuv2", "adashare", 6),
    ("cityscapes", "official", 6),
    *(pytest.param(*each, orientation, marks=pytest.mark.grid) for orientation in TURNS
      for each in (("nyuv2", "adashare"), ("cityscapes", "official")) if orientation != 6)])
def test_images_are_read_upright(miniatures, copy, name, layout, orientation):
    """Of the first image, whose size names the protocol, and of the others."""
    dataset = open_split(name, copy, layout)
    for frame in dataset.frames[:2]:
        path = dataset.layout.path(frame, "image")
        stored = Image.open(path).transpose(TURNS[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(path, "PNG", exif=exif)
    reads_alike(name, layout, copy, miniatures[name, layout])


@pytest.mark.parametrize(("name", "layout"), [("nyuv2", "frames"), ("cityscapes", "official")])
def test_a_label_that_was_not_turned_with_its_image(copy, name, layout):
    dataset = open_split(name, copy, layout)
    path = dataset.layout.path(dataset.frames[1], "image")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, "PNG", exif=exif)
    with pytest.raises(InputError, match=r"a label of .*as EXIF turns it .orientation 6"):
        dataset.read(1)


def png(array: np.ndarray, bits: int) -> bytes:
    """A gray PNG of so many bits for each pixel, which Pillow does not write."""
    height, width = array.shape
    digits = np.unpackbits(array.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits:].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(digits, axis=-1))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("name", "layout", "first", "bits"), [
    pytest.param(*each, bits, marks=[] if bits == 4 or each[1] == "survey" else pytest.mark.grid)
    for bits in (1, 2, 4) for each in (
        ("nyuv2", "survey", 1), ("nyuv2", "invpt", 1), ("nyuv2", "adashare", 0), ("nyuv2", "frames", 0),
        ("cityscapes", "official", 0))])
def test_ids_in_few_bits_are_ids(copy, name, layout, first, bits):
    dataset = open_split(name, copy, layout, tasks=("semseg",))
    size = dataset.layout.size(dataset.frames[0])
    ids = np.random.default_rng(bits).integers(0, 1 << bits, size)
    path = dataset.layout.path(dataset.frames[0], "semseg")
    path.write_bytes(png(ids, bits))
    few = dataset.read(0)
    Image.fromarray(ids.astype(np.uint8)).save(path)
    whole = dataset.read(0)
    assert same(few, whole)
    if name == "nyuv2":
        assert torch.equal(few.target["semseg"], torch.from_numpy(ids - first).clamp(min=0))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_levels_in_few_bits_are_levels(miniatures, tmp_path, bits):
    """Edges are 0 and the highest level, and a code of depth is as bright as with 8 bits."""
    root = copied(miniatures["nyuv2", "invpt"], tmp_path / "invpt")
    dataset = open_split("nyuv2", root, "invpt", tasks=("boundaries",))
    whole, path = dataset.read(0), dataset.layout.path(dataset.frames[0], "boundaries")
    path.write_bytes(png(np.asarray(Image.open(path)) // 255 * ((1 << bits) - 1), bits))
    assert same(dataset.read(0), whole)
    root = copied(miniatures["nyuv2", "frames"], tmp_path / "frames")
    dataset = open_split("nyuv2", root, "frames", tasks=("depth",))
    path = dataset.layout.path(dataset.frames[0], "depth")
    levels = np.random.default_rng(0).integers(0, 1 << bits, (48, 64)).astype(np.uint8)
    path.write_bytes(png(levels, bits))
    few = dataset.read(0)
    path.write_bytes(png(levels * (255 // ((1 << bits) - 1)), 8))
    assert same(few, dataset.read(0))


@every_layout
def test_pipes_and_folders_in_place_of_files(copy, name, layout):
    """They are named in one line; no reader waits."""
    dataset = open_split(name, copy, layout)
    for kind, frames in dataset.layout.files.items():
        path = frames.get(dataset.frames[0])
        if path is None:
            continue
        keep = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(InputError, match=r"a named pipe|no such file|a folder without") as error:
            # The file of all frames is open already where there is one, so that the dataset is built anew.
            open_split(name, copy, layout, tasks=dataset.tasks).read(0)
        assert str(copy) in str(error.value) and "\n" not in str(error.value), kind
        path.unlink()
        path.write_bytes(keep)


@pytest.mark.parametrize(("name", "layout"), PICTURES)
def test_large_pictures_are_not_damaged(copy, name, layout, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    dataset = open_split(name, copy, layout)
    assert dataset.read(0)
    monkeypatch.setattr(pictures, "LARGEST_PICTURE", 1000)
    with pytest.raises(InputError, match=r"got a picture of 0 million pixels .*; needs at most 0 million"):
        dataset.read(0)


@every_layout
def test_suffixes_in_capitals(miniatures, copy, name, layout):
    if (name, layout) in (("nyuv2", "official"), ("nyuv2", "adashare"), ("cityscapes", "official")):
        pytest.skip("whole file names are fixed here")
    for path in files_of(copy):
        if path.suffix != ".txt":
            path.rename(path.with_suffix(path.suffix.upper()))
    reads_alike(name, layout, copy, miniatures[name, layout])


def test_other_arrays_beside_the_numbered_ones(miniatures, tmp_path):
    for name in DATASETS:
        root = copied(miniatures[name, "mtan"], tmp_path / name)
        for part in ("train", "val"):
            np.save(root / part / "image/mean.npy", np.zeros(3))
        reads_alike(name, "mtan", root, miniatures[name, "mtan"])


@pytest.mark.parametrize(("name", "layout", "lists"), [
    ("nyuv2", "folder", "gt_sets/train.txt"), ("nyuv2", "frames", "train.txt"), ("nyuv2", "adashare", "")])
def test_an_id_that_is_listed_twice(copy, name, layout, lists):
    if lists:
        (copy / lists).write_text((copy / lists).read_text("utf-8") + "0004\n", "utf-8")
    else:
        index = json.loads((copy / "nyu_v2_3task.json").read_text("utf-8"))
        index["train"].append(index["train"][1])
        (copy / "nyu_v2_3task.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(InputError, match=r"got (the id '0004' twice|'0004' a second time).*; needs every id once"):
        open_split(name, copy, layout)


@pytest.mark.parametrize(("layout", "file"), [("survey", "normals/0003.npy"), ("mtan", "train/normal/0.npy")])
def test_normals_that_are_stored_as_pictures_store_them(miniatures, tmp_path, layout, file):
    root = copied(miniatures["nyuv2", layout], tmp_path / "copy")
    dataset = open_split("nyuv2", root, layout, tasks=("normals",))
    normals = np.load(root / file)
    np.save(root / file, (normals + 1) / 2)
    with pytest.raises(InputError, match=r"npy: got vectors of length .*, as \(n \+ 1\) / 2 has; needs unit"):
        dataset.read(0)
    np.save(root / file, np.abs(normals))  # all of them may point one way
    assert dataset.read(0)


# -- HDF5 -------------------------------------------------------------------------------------------------------

MAT = "nyu_depth_v2_labeled.mat"


def changed(root: Path, name: str, write) -> LayoutDataset:
    with h5py.File(root / MAT, "r+") as file:
        array = file[name][:]
        del file[name]
        write(file, array)
    return open_split("nyuv2", root, "official", tasks=("semseg", "depth"))


@pytest.mark.parametrize(("name", "layout"), [("nyuv2", "official")])
def test_arrays_outside_of_the_official_file(copy, name, layout):
    secret = copy / "secret"
    secret.write_bytes(bytes(8 * 64 * 48 * 4))

    def outside(file, array):
        file.create_dataset("depths", array.shape, array.dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    with pytest.raises(InputError, match=r"'depths' with its numbers in another file"):
        changed(copy, "depths", outside)

    def linked(file, array):
        file["labels"] = h5py.ExternalLink("other.h5", "/labels")

    with pytest.raises(InputError, match=r"'labels' as a link into another file"):
        changed(copy, "labels", linked)


@pytest.mark.parametrize(("name", "layout"), [("nyuv2", "official")])
def test_official_arrays_in_the_other_byte_order(miniatures, copy, name, layout):
    dataset = changed(copy, "depths", lambda file, array: file.__setitem__("depths", array.astype(">f4")))
    whole = open_split("nyuv2", miniatures[name, layout], layout, tasks=("semseg", "depth"))
    assert same(dataset.read(0), whole.read(0))


@pytest.mark.parametrize(("name", "layout"), [("nyuv2", "official")])
def test_a_small_official_file_that_claims_to_hold_much(copy, name, layout):
    """8 frames of 46,000 by 46,000 pixels, compressed to nothing, are refused before memory is taken."""
    with h5py.File(copy / MAT, "w") as file:
        shape = (8, 46_000, 46_000)
        file.create_dataset("images", (8, 3, *shape[1:]), np.uint8, chunks=(1, 1, 460, 460), compression="gzip")
        file.create_dataset("depths", shape, np.float32, chunks=(1, 460, 460), compression="gzip")
    with pytest.raises(InputError, match=r"a frame of 'images' that would take 5\.9 GiB"):
        open_split("nyuv2", copy, "official", tasks=("depth",)).read(0)
