"""Cityscapes: what is written is read, in both layouts; the split; every damaged file is named in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from copying import copied
from polyptych.datasets._cityscapes.classes import COLORS, NAMES, TABLES, VOID
from polyptych.datasets._cityscapes.layouts._base import CATALOG as CITYSCAPES_LAYOUTS
from polyptych.datasets._cityscapes.streets import CAMERA, FRAMES, SIZE, StreetScene
from polyptych.datasets._holdout import blocks, hold_out
from polyptych.datasets.cityscapes import Cityscapes
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG

LAYOUTS = CITYSCAPES_LAYOUTS.fixtures()
OFFICIAL, MTAN = ("semseg", "depth", "inverse_depth"), ("semseg", "inverse_depth")


def open_split(root: Path, split: str = "train", tasks: tuple[str, ...] = OFFICIAL, **options) -> Cityscapes:
    return Cityscapes(Cityscapes.Config(root=root, **options), split=split, tasks=tasks)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """Both layouts; copied for every test that may change them."""
    roots = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS}
    for layout, write in LAYOUTS.items():
        write(roots[layout])
    return roots


@pytest.fixture
def official(written, tmp_path):
    return copied(written["official"], tmp_path / "official")


@pytest.fixture
def mtan(written, tmp_path):
    return copied(written["mtan"], tmp_path / "mtan")


def test_official_gives_what_was_written(official):
    dataset = open_split(official, validation=0.0)
    assert dataset.protocol == "cityscapes-19-64x128-official_val" and len(dataset) == 9
    for index, frame in enumerate(FRAMES["train"]):
        sample, scene = dataset.read(index), StreetScene(frame)
        assert (sample.info.id, sample.info.native) == (frame, SIZE)
        assert np.array_equal(sample.image.permute(1, 2, 0), scene.image)
        mapped = TABLES[19][scene.ids]
        assert np.array_equal(sample.valid["semseg"], mapped != VOID)
        assert np.array_equal(sample.target["semseg"][sample.valid["semseg"]], mapped[mapped != VOID])
        assert sample.target["semseg"].dtype == torch.int64
        assert np.array_equal(sample.valid["depth"], scene.codes > 1)
        assert np.array_equal(sample.valid["inverse_depth"], scene.codes > 0)
        assert np.allclose(sample.target["inverse_depth"], scene.codes / 65535)
        for task in OFFICIAL:
            built = CATALOG.load(task).Config().build(labels=dataset.labels[task])
            assert built.fault(sample.target[task], sample.valid[task]) is None


def test_metric_depth_in_closed_form(official):
    sample = open_split(official, validation=0.0, tasks=("depth",)).read(0)
    constant = CAMERA["extrinsic"]["baseline"] * CAMERA["intrinsic"]["fx"]
    # unknown, infinitely far, one pixel of disparity, the largest
    assert sample.valid["depth"][0, :8:2].tolist() == [False, False, True, True]
    assert sample.target["depth"][0, :8:2].tolist() == pytest.approx([0, 0, constant, constant / 126])


def test_what_is_farther_than_a_kilometer_has_no_depth(official):
    path = official / "disparity/train/aachen/aachen_000000_000019_disparity.png"
    codes = np.full(SIZE, 122, np.uint16)  # 121/256 px are 1002 m, 122/256 px are 994 m
    codes[:, ::2] += 1
    Image.fromarray(codes).save(path)
    sample = open_split(official, validation=0.0).read(0)
    assert sample.valid["depth"][0, :2].tolist() == [True, False] and sample.target["depth"].max() < 1000
    assert sample.valid["inverse_depth"].all()


def test_every_frame_has_its_own_camera(official):
    path = official / "camera/train/aachen/aachen_000000_000019_camera.json"
    before = open_split(official, validation=0.0, tasks=("depth",)).read(0).target["depth"]
    path.write_text(json.dumps({"extrinsic": {"baseline": 2 * CAMERA["extrinsic"]["baseline"]},
                                "intrinsic": CAMERA["intrinsic"]}))
    after = open_split(official, validation=0.0, tasks=("depth",)).read(0)
    assert torch.allclose(after.target["depth"], torch.where(after.valid["depth"], 2 * before, 0))


def test_disparity_in_pixels(official):
    dataset = open_split(official, validation=0.0, inverse_depth="pixels", tasks=("inverse_depth",))
    sample = dataset.read(0)
    assert dataset.protocol.endswith("official_val-px") and dataset.labels["inverse_depth"].unit == "px"
    assert sample.valid["inverse_depth"][0, :8:2].tolist() == [False, True, True, True]
    assert sample.target["inverse_depth"][0, 2:8:2].tolist() == [0, 1, 126]


@pytest.mark.parametrize("classes", [19, 7, 2])
def test_mtan_agrees_with_official(official, mtan, classes):
    stored = open_split(mtan, "test", MTAN, classes=classes)
    made = open_split(official, "test", MTAN, classes=classes)
    assert stored.protocol == f"cityscapes-{classes}-32x64-mtan" and len(stored) == len(made) == 3
    for index in range(3):
        a, b = stored.read(index), made.read(index)
        assert a.info.id == f"val/{index}"
        assert torch.equal(a.image, b.image[:, ::2, ::2])
        for task in MTAN:
            mask = b.valid[task][::2, ::2]
            assert torch.equal(a.valid[task], mask)
            assert torch.equal(a.target[task][mask], b.target[task][::2, ::2][mask])


def test_libmtl_calls_seven_classes_label(mtan):
    expected = open_split(mtan, tasks=("semseg",), classes=7).read(0).target["semseg"]
    for split in ("train", "val"):
        (mtan / split / "label_7").rename(mtan / split / "label")
        for other in ("label_2", "label_19"):
            shutil.rmtree(mtan / split / other)
    assert torch.equal(open_split(mtan, tasks=("semseg",), classes=7).read(0).target["semseg"], expected)
    with pytest.raises(InputError, match=r"classes of cityscapes: got 19, .*; needs one of 7; set classes to 7"):
        open_split(mtan, tasks=("semseg",))
    assert open_split(mtan, tasks=("inverse_depth",)).read(0)  # no segmentation, no objection


def test_class_tables():
    assert {n: len(NAMES[n]) for n in NAMES} == {19: 19, 7: 7, 2: 2}
    for n in NAMES:
        assert len(COLORS[n]) == n == len(set(COLORS[n]))
        assert set(TABLES[n]) == {*range(n), VOID}
        assert (TABLES[n] == VOID).sum() == 256 - 19
    # ids that are also train ids: mapping in place would send 7 -> 0 and later 8 -> 1 -> ... astray
    assert TABLES[19][[7, 8, 11, 12, 13, 17, 19, 20, 33]].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 18]
    names = {train: NAMES[19][train] for train in range(19)}
    seven = {names[TABLES[19][i]]: NAMES[7][TABLES[7][i]] for i in range(34) if TABLES[19][i] != VOID}
    members = ("sidewalk", "fence", "pole", "terrain", "sky", "rider", "bicycle")
    assert tuple(seven[name] for name in members) == NAMES[7]
    two = {names[TABLES[19][i]]: TABLES[2][i] for i in range(34) if TABLES[19][i] != VOID}
    assert {name for name, moving in two.items() if moving} == {
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"}


def test_void_may_be_minus_one(official):
    """A signed copy of the labels, as some tools write it, reads the same."""
    path = official / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    ids = np.asarray(Image.open(path)).copy()
    ids[:9] = 255
    Image.fromarray(ids).save(path)
    sample = open_split(official, validation=0.0, tasks=("semseg",)).read(0)
    assert not sample.valid["semseg"][:9].any() and sample.valid["semseg"].any()


# -- the split --------------------------------------------------------------------------------------------------


def test_val_is_whole_cities_and_test_is_the_official_val(official):
    train, val, test = (open_split(official, split).frames for split in ("train", "val", "test"))
    assert test == FRAMES["val"] and sorted(train + val) == FRAMES["train"]
    assert val == ["jena_000000_000019", "jena_000001_000019", "jena_000002_000019"]
    with pytest.raises(InputError, match=r"val split of .*: got no frames"):
        open_split(official, "val", validation=0.0)


def test_one_city_is_cut_into_blocks(official):
    for city in ("bochum", "jena"):
        shutil.rmtree(official / "leftImg8bit/train" / city)
    assert open_split(official, "val").frames == ["aachen_000002_000019"]
    assert len(open_split(official, "train")) == 2


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.floats(0, 0.6))
def test_whole_runs_are_held_out(lengths, share):
    runs = [[f"{run}/{i}" for i in range(length)] for run, length in enumerate(lengths)]
    total = sum(lengths)
    taken = hold_out(runs, share)
    assert taken == hold_out(runs, share) and len(taken) < max(total, 2)
    assert bool(taken) == (share > 0 and total > 1)
    if len(runs) > 1:
        assert all(len(taken & set(run)) in (0, len(run)) for run in runs)
        assert len(taken) <= max(share * total + max(lengths) / 2, lengths[-1])


def test_blocks_of_an_unnamed_order():
    frames = [f"train/{i}" for i in range(2975)]
    assert [frame for block in blocks(frames) for frame in block] == frames
    assert 0.09 < len(hold_out(blocks(frames), 0.1)) / 2975 < 0.11


# -- what goes wrong --------------------------------------------------------------------------------------------


def one_line(error: InputError) -> str:
    message = str(error)
    assert "\n" not in message and message.count("; ") >= 2
    return message


def test_missing_or_unknown_root(tmp_path, official):
    with pytest.raises(InputError, match=r"root of cityscapes \(.*nowhere\): got no such folder"):
        open_split(tmp_path / "nowhere")
    known = r"got a folder of no known layout; .*\(official\); .*\(mtan\); did you mean .*official\?"
    with pytest.raises(InputError, match=known):
        open_split(tmp_path)
    with pytest.raises(InputError, match=r"got a folder without train/image/ .*; needs the layout 'mtan'"):
        open_split(official, layout="mtan")


@pytest.mark.parametrize(("options", "tasks", "message"), [
    ({}, ("depth",), "task 'depth': got cityscapes in the layout 'mtan'.*replace depth by inverse_depth"),
    ({"inverse_depth": "pixels"}, MTAN, "inverse_depth of cityscapes: got 'pixels' with the layout 'mtan'"),
    ({"validation": 1.0}, MTAN, r"validation of cityscapes: got 1\.0"),
    ({}, ("normals",), "task 'normals': got dataset cityscapes, which has no labels for it; needs one of semseg, inv"),
])
def test_what_the_mtan_layout_does_not_have(mtan, options, tasks, message):
    with pytest.raises(InputError, match=message):
        open_split(mtan, tasks=tasks, **options)


@pytest.mark.parametrize(("remove", "task", "message"), [
    ("camera/train/bochum/bochum_000001_000019_camera.json", "depth",
     r"camera/train/bochum: got 8 of 9 .*bochum_000001_000019_camera\.json"),
    ("camera", "depth", r"camera/train/aachen: got 0 of 9 .*aachen_000000_000019_camera\.json"),
    ("disparity", "inverse_depth", r"disparity/train/aachen: got 0 of 9 .*_disparity\.png"),
    ("gtFine/train/jena", "semseg", r"gtFine/train/jena: got 6 of 9 .*jena_000000_000019_gtFine_labelIds\.png"),
])
def test_missing_files_are_named(official, remove, task, message):
    path = official / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=message):
        open_split(official, validation=0.0, tasks=(task,))
    others = tuple(other for other in OFFICIAL if other not in (task, "depth"))
    assert open_split(official, validation=0.0, tasks=others).read(0)  # only what is asked for is needed


@pytest.mark.parametrize(("content", "message"), [
    ("", "an unreadable file"),
    ("{", "an unreadable file"),
    ("[]", "an unreadable file .*Expected `object`"),
    ('{"extrinsic": {"baseline": 0.2}}', "missing required field `intrinsic`"),
    ('{"extrinsic": {"baseline": 0.2}, "intrinsic": {}}', r"missing required field `fx` - at `\$\.intrinsic`"),
    ('{"extrinsic": {"baseline": "0.2"}, "intrinsic": {"fx": 2262}}', r"Expected `float`.*extrinsic\.baseline"),
    ('{"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 2262}}', r"got extrinsic\.baseline = 0; needs a positive"),
    ('{"extrinsic": {"baseline": NaN}, "intrinsic": {"fx": 2262}}', "an unreadable file"),
])
def test_a_damaged_camera_is_named(official, content, message):
    path = official / "camera/train/aachen/aachen_000000_000019_camera.json"
    dataset = open_split(official, validation=0.0)
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        dataset.read(0)
    assert one_line(error.value).startswith(str(path))
    assert dataset.read(1)


def picture(**changes):
    def write(path):
        array = np.asarray(Image.open(path)).copy()
        Image.fromarray({"small": lambda: array[:-6], "color": lambda: np.stack([array.astype(np.uint8)] * 3, -1),
                         "class": lambda: np.where(array == 7, 57, array), "eight": lambda: array.astype(np.uint8),
                         }[changes["to"]]()).save(path)
    return write


def numbers(change):
    return lambda path: np.save(path, change(np.load(path)))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


IMAGE = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
IDS = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
DISPARITY = "disparity/train/aachen/aachen_000000_000019_disparity.png"


@pytest.mark.parametrize(("file", "damage", "message"), [
    (IMAGE, truncate, "an unreadable file"),
    (IMAGE, lambda path: path.write_text("not what it seems"), "an unreadable file"),
    (IDS, truncate, "an unreadable file"),
    (IDS, picture(to="class"), "class id 57; needs ids from -1 .* to 33"),
    (IDS, picture(to="small"), "a label of 58x128 pixels; needs the size of its image, 64x128"),
    (IDS, picture(to="color"), "a picture with 3 channels"),
    (DISPARITY, truncate, "an unreadable file"),
    (DISPARITY, picture(to="eight"), "a picture of uint8 values; needs 16 bits"),
    (DISPARITY, picture(to="small"), "a label of 58x128 pixels"),
])
def test_damaged_official_files_are_named(official, file, damage, message):
    dataset = open_split(official, validation=0.0)
    damage(official / file)
    with pytest.raises(InputError, match=f"got {message}") as error:
        dataset.read(0)
    assert one_line(error.value).startswith(str(official / file))
    assert dataset.read(1)


@pytest.mark.parametrize(("file", "damage", "message"), [
    ("image", truncate, "an unreadable file"),
    ("image", numbers(lambda a: a * 255), "values from 0 to 255; needs values from 0 to 1"),
    ("image", numbers(lambda a: np.where(a > 0.5, np.nan, a)), "values from nan"),
    ("image", numbers(lambda a: (a * 255).astype(np.uint8)), "uint8 of shape"),
    ("label_19", numbers(lambda a: np.where(a >= 0, 57, a)), "class id 57; needs whole numbers from 0 to 18, or -1"),
    ("label_19", numbers(lambda a: a - 1), "class id -2"),
    ("label_19", numbers(lambda a: a + 0.5), r"class id -?\d+\.5"),
    ("label_19", numbers(lambda a: np.where(a >= 0, np.nan, a)), "class id nan"),
    ("label_19", numbers(lambda a: a[:-2]), "a label of 30x64 pixels"),
    ("label_19", numbers(lambda a: np.array([None])), "an unreadable file .*allow_pickle"),
    ("depth", lambda path: path.write_bytes(b""), "an unreadable file"),
    ("depth", numbers(lambda a: -a), "values from -0.* to -?0; needs inverse depth from 0 to 1"),
    ("depth", numbers(lambda a: a * 65535), "values from 0 to 32257"),
    ("depth", numbers(lambda a: np.where(a > 0, np.nan, a)), "values from nan to nan"),
    ("depth", numbers(lambda a: a.astype(np.complex64)), "complex64 of shape"),
    ("depth", numbers(lambda a: a[None]), r"float32 of shape \(1, 32, 64, 1\)"),
    ("depth", numbers(lambda a: a[:0]), r"float32 of shape \(0, 64\)"),
])
def test_damaged_mtan_files_are_named(mtan, file, damage, message):
    dataset = open_split(mtan, tasks=MTAN, validation=0.0)
    path = mtan / "train" / file / "0.npy"
    damage(path)
    with pytest.raises(InputError, match=f"got {message}") as error:
        dataset.read(0)
    assert one_line(error.value).startswith(str(path))
    assert dataset.read(1)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_read_or_named(tmp_path, layout, data):
    """Any bytes may change anywhere: the file is read with lawful labels, or named in one line."""
    root = tmp_path / layout
    if not root.exists():
        LAYOUTS[layout](root)
    tasks = OFFICIAL if layout == "official" else MTAN
    dataset = open_split(root, validation=0.0, tasks=tasks)
    frame = dataset.frames[0]
    path = data.draw(st.sampled_from(sorted(files[frame] for files in dataset.layout.files.values())))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(whole), 400) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[:data.draw(st.sampled_from([len(whole), len(whole) // 2]))])
    try:
        sample = open_split(root, validation=0.0, tasks=tasks).read(0)
        for task in tasks:
            built = CATALOG.load(task).Config().build(labels=dataset.labels[task])
            assert built.fault(sample.target[task], sample.valid[task]) is None
    except InputError as error:
        # Damage may also show in the size, on which image and label must agree.
        assert one_line(error).startswith(str(root)) and frame.split("/")[-1] in str(error)
    finally:
        path.write_bytes(whole)


# -- real files -------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_label_ids_agree_with_the_real_train_ids(real_data):
    root = real_data / "fixtures" / "cityscapes"
    if not root.is_dir():
        pytest.skip(f"no Cityscapes frame at {root}")
    dataset = open_split(root, "test", ("semseg",))
    assert dataset.frames == ["frankfurt_000000_000294"]
    assert dataset.protocol == "cityscapes-19-128x256-official_val"
    sample = dataset.read(0)
    path = root / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png"
    train_ids = np.asarray(Image.open(path)).astype(int)
    ours = torch.where(sample.valid["semseg"], sample.target["semseg"], 255).numpy()
    # The two files were shrunk separately, so that one id may have several train ids; the most frequent one is ours.
    ids = np.asarray(Image.open(path.with_name(path.name.replace("labelTrainIds", "labelIds"))))
    for each in np.unique(ids):
        assert np.bincount(train_ids[ids == each]).argmax() == ours[ids == each][0]
    assert (ours != train_ids).mean() < 0.003
    with pytest.raises(InputError, match=r"disparity/val/frankfurt: got 0 of 1"):
        open_split(root, "test", ("inverse_depth",))
