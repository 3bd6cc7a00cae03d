"""PASCAL-Context: what is written is read, at native sizes; the split; every damaged file is named in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.io import loadmat, savemat

from copying import copied
from polyptych.data.loading import EvaluationBatches, TrainingBatches
from polyptych.data.transforms import Augment
from polyptych.datasets._pascal_context.about import ABOUT
from polyptych.datasets._pascal_context.classes import HAS_NORMALS, NAMES, PART_IDS, PARTS
from polyptych.datasets._pascal_context.fixture import LAYOUTS, TRAIN, VAL, Photograph, annotation
from polyptych.datasets._pascal_context.parts import read_parts
from polyptych.datasets._pascal_context.tree import boundaries
from polyptych.datasets.pascal_context import PASCALContext
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG

TASKS = ("semseg", "parts", "saliency", "normals", "boundaries")


def open_split(root: Path, split: str = "train", tasks: tuple[str, ...] = TASKS, **options) -> PASCALContext:
    return PASCALContext(PASCALContext.Config(root=root, **options), split=split, tasks=tasks)


def built(dataset: PASCALContext) -> dict:
    return {task: CATALOG.load(task).Config().build(labels=dataset.labels[task]) for task in dataset.tasks}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "PASCAL_MT"
    LAYOUTS["pascal_mt"](folder)
    return folder


@pytest.fixture
def root(whole, tmp_path):
    """A copy to be damaged."""
    return copied(whole, tmp_path / "PASCAL_MT")


def test_fixture_and_about_name_the_same_layout():
    assert set(LAYOUTS) == set(ABOUT.layouts)


def test_what_is_written_is_read(root):
    dataset = open_split(root, validation=0.0)
    assert dataset.protocol == "pascal_context-21-native-pascal_mt" and dataset.frames == TRAIN
    assert {dataset.read(i).info.native for i in range(len(dataset))} == {(60, 80), (80, 60), (54, 80)}
    tasks = built(dataset)
    for index, name in enumerate(TRAIN):
        sample, photograph = dataset.read(index), Photograph(name)
        assert (sample.info.id, sample.info.native) == (name, photograph.size)
        assert np.array_equal(sample.valid["semseg"], photograph.semseg != 255)
        assert np.array_equal(sample.target["semseg"][sample.valid["semseg"]],
                              photograph.semseg[photograph.semseg != 255])
        assert np.array_equal(sample.target["saliency"] == 1, photograph.salient > 127)
        assert 0.01 < sample.target["saliency"].mean() < 0.95
        known = HAS_NORMALS[photograph.context]
        assert np.array_equal(sample.valid["normals"], known) and known.any()
        normals = sample.target["normals"].numpy()
        assert np.allclose(normals[:, known], photograph.normals.transpose(2, 0, 1)[:, known], atol=0.01)
        assert sample.target["semseg"].dtype == sample.target["parts"].dtype == torch.int64
        for task, target in sample.target.items():
            assert tasks[task].fault(target, sample.valid[task]) is None


def test_parts(root):
    """One person; two of whom the second overlaps the first; a third without parts; nobody."""
    dataset = open_split(root, "test", ("parts",))
    counts = {}
    for name, sample in zip(VAL, (dataset.read(i) for i in range(3)), strict=True):
        photograph = Photograph(name)
        expected = np.zeros(photograph.size, int)
        for _, kind, _, parts in photograph.things:
            for part, mask in parts:
                if kind == 15:
                    expected[mask] = PART_IDS[part]
        counts[photograph.persons] = len(np.unique(expected))
        assert np.array_equal(sample.target["parts"], expected)
        assert sample.valid["parts"].all() == (photograph.persons > 0) == sample.valid["parts"].any()
    assert counts == {2: 7, 3: 7, 0: 1}


def test_later_parts_win(tmp_path):
    left, right, low = np.zeros((3, 4, 6), np.uint8)
    left[:, :4], right[:, 2:], low[3] = 1, 1, 1
    path = tmp_path / "anno.mat"
    persons = [("person", 15, left, [("torso", left), ("unheard of", right), ("hair", low)]),
               ("cat", 8, right, [("head", right)]), ("person", 15, right, [("rfoot", right)])]
    savemat(path, annotation(persons))
    assert read_parts(path).tolist() == [[2, 2, 6, 6, 6, 6]] * 3 + [[1, 1, 6, 6, 6, 6]]
    savemat(path, annotation(persons[::-1]))
    assert read_parts(path).tolist() == [[2, 2, 2, 2, 6, 6]] * 3 + [[1] * 6]


def test_classes():
    assert len(NAMES) == 21 and len(PARTS) == 7 and len(PART_IDS) == 24 and set(PART_IDS.values()) == {*range(1, 7)}
    assert HAS_NORMALS.sum() == 170 and len(HAS_NORMALS) == 460
    assert HAS_NORMALS[427] and not HAS_NORMALS[431] and not HAS_NORMALS[0]  # tvmonitor, unknown, no class
    for fine, part in (("nose", "head"), ("neck", "torso"), ("ruarm", "upper arm"), ("lhand", "lower arm"),
                       ("luleg", "upper leg"), ("rfoot", "lower leg")):
        assert PARTS[PART_IDS[fine]] == part


def test_boundaries_follow_the_context_classes(root):
    sample = open_split(root, validation=0.0, tasks=("boundaries",)).read(0)
    context = Photograph(TRAIN[0]).context.astype(int)
    edge = sample.target["boundaries"].numpy() == 1
    assert np.array_equal(edge, boundaries(context)) and sample.valid["boundaries"].all()
    # one straight border between two classes: the Laplacian gives two lines, of which thinning leaves one
    half = np.zeros((12, 20), int)
    half[:, 9:] = 5
    lines = boundaries(half)
    assert lines[1:-1].sum(1).tolist() == [1] * 10 and set(np.flatnonzero(lines.any(0))) <= {8, 9}


def neighbors_laplacian(ids: np.ndarray) -> np.ndarray:
    """The sum of the four neighbors minus four times the pixel, the border mirrored without repeating it."""
    padded = np.pad(ids.astype(float), 1, mode="reflect")
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * ids


@given(arrays(int, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=st.integers(0, 4)))
@settings(deadline=None)
def test_boundaries_are_a_thinned_laplacian(ids):
    edge = boundaries(ids)
    thick = neighbors_laplacian(ids) != 0
    assert not (edge & ~thick).any()
    assert edge.any() == thick.any()  # thinning removes no component


def test_semseg_comes_from_voc_where_it_has_one(root):
    name = TRAIN[0]
    other = np.full(Photograph(name).size, 3, np.uint8)
    Image.fromarray(other).save(root / f"semseg/pascal-context/{name}.png")
    assert not (open_split(root, validation=0.0).read(0).target["semseg"] == 3).any()
    (root / f"semseg/VOC12/{name}.png").unlink()
    assert (open_split(root, validation=0.0).read(0).target["semseg"] == 3).all()


def test_labels_at_another_scale_are_resized(root):
    name = TRAIN[0]
    whole = open_split(root, validation=0.0).read(0)
    photograph = Photograph(name)
    Image.fromarray(photograph.semseg.repeat(2, 0).repeat(2, 1)).save(root / f"semseg/VOC12/{name}.png")
    normals = Image.open(root / f"normals_distill/{name}.png")
    normals.resize((160, 120), Image.Resampling.NEAREST).save(root / f"normals_distill/{name}.png")
    savemat(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": photograph.context.repeat(3, 0).repeat(3, 1)})
    sample = open_split(root, validation=0.0).read(0)
    for task in ("semseg", "boundaries"):
        assert torch.equal(sample.target[task], whole.target[task])
        assert torch.equal(sample.valid[task], whole.valid[task])
    assert torch.equal(sample.valid["normals"], whole.valid["normals"])
    assert (sample.target["normals"] - whole.target["normals"]).abs().max() < 0.05
    length = sample.target["normals"].square().sum(0)[sample.valid["normals"]]
    assert torch.allclose(length, torch.ones_like(length), atol=1e-5)


def test_parts_may_be_missing_for_some_images(root):
    for name in (TRAIN[1], VAL[0]):
        (root / f"human_parts/{name}.mat").unlink()
    dataset = open_split(root, validation=0.0)
    assert "parts" not in dataset.read(1).target and "semseg" in dataset.read(1).target
    assert "parts" in dataset.read(0).target  # all invalid, because nobody is there: not the same as no file
    batches = EvaluationBatches(dataset, built(dataset), size=None, batch_size=3)
    batch = next(iter(batches))
    assert batch.valid["parts"].any((1, 2)).tolist() == [False, False, True]
    assert batch.image.shape == (3, 3, 80, 80)
    assert [info.native for info in batch.info] == [(60, 80), (80, 60), (54, 80)]
    training = next(iter(TrainingBatches(dataset, built(dataset), Augment(), (32, 48), batch_size=6, seed=0)))
    assert training.valid["parts"].any((1, 2)).sum() == 3 and training.image.shape == (6, 3, 32, 48)


def test_splits_do_not_overlap(root):
    train, val, test = (open_split(root, split).frames for split in ("train", "val", "test"))
    assert test == VAL and sorted(train + val) == TRAIN and val == [TRAIN[-1]]
    with pytest.raises(InputError, match=r"val split of .*: got no frames"):
        open_split(root, "val", validation=0.0)
    names = [f"2008_{i:06d}" for i in range(4998)]
    (root / "ImageSets/Context/train.txt").write_text("\n".join(names))
    with pytest.raises(InputError, match=r"JPEGImages: got .* of 4498 listed files"):  # 500 are held out
        open_split(root)


# -- what goes wrong --------------------------------------------------------------------------------------------


def one_line(error: InputError) -> str:
    message = str(error)
    assert "\n" not in message and message.count("; ") >= 2
    return message


def test_missing_or_unknown_root(tmp_path, root):
    with pytest.raises(InputError, match=r"root of pascal_context \(.*nowhere\): got no such folder"):
        open_split(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"got a folder without JPEGImages/ and .*did you mean .*PASCAL_MT\?"):
        open_split(tmp_path)
    with pytest.raises(InputError, match=r"validation of pascal_context: got -0\.1"):
        open_split(root, validation=-0.1)
    with pytest.raises(InputError, match="task 'depth': got dataset pascal_context, which has no labels for it"):
        open_split(root, tasks=("depth",))


@pytest.mark.parametrize(("remove", "task", "message"), [
    ("sal_distill/2008_000003.png", "saliency", r"sal_distill: got 5 of 6 .*2008_000003\.png"),
    ("semseg/VOC12/2008_000002.png", "semseg", r"semseg/VOC12: got 5 of 6 .*2008_000002\.png"),
    ("pascal-context", "boundaries", r"pascal-context/trainval: got 0 of 6 .*2008_000002\.mat"),
    ("pascal-context/trainval/2008_000028.mat", "normals", r"pascal-context/trainval: got 5 of 6"),
    ("human_parts", "parts", r"human_parts: got 0 of 6 .*2008_000002\.mat"),
    ("ImageSets/Context/train.txt", "semseg", r"ImageSets/Context/train\.txt: got no such file"),
])
def test_missing_files_are_named(root, remove, task, message):
    path = root / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=message) as error:
        open_split(root, validation=0.0, tasks=(task,))
    one_line(error.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-120])


def picture(change):
    return lambda path: Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def variable(key, value):
    return lambda path: savemat(path, {key: value})


def parts(change):
    """Change one struct of a person's annotation, then write it again."""
    def write(path):
        anno = annotation(Photograph(TRAIN[1]).things)["anno"]
        changed = change(anno)
        savemat(path, {"anno": anno if changed is None else changed})
    return write


def person(anno):
    return anno[0, 0]["objects"][0, 1]


def no_mask(anno):
    person(anno)["parts"] = np.array([[("head",)]], [("part_name", object)])


def small_mask(anno):
    person(anno)["parts"][0, 1]["mask"] = np.ones((5, 6), np.uint8)


def flat_mask(anno):
    person(anno)["parts"][0, 0]["mask"] = np.ones((5, 6, 2), np.uint8)


SECOND, SEMSEG = TRAIN[1], "semseg/pascal-context/{}.png"


@pytest.mark.parametrize(("file", "damage", "message"), [
    ("JPEGImages/{}.jpg", truncate, "an unreadable file"),
    (SEMSEG, truncate, "an unreadable file"),
    (SEMSEG, picture(lambda a: a + 30), r"class id \d+; needs whole numbers from 0 to 20, or 255"),
    (SEMSEG, picture(lambda a: a[:-6]), "a label of 74x60 pixels; needs the size of the image, 80x60"),
    (SEMSEG, picture(lambda a: np.stack([a] * 3, -1)), "a picture with 3 channels"),
    ("sal_distill/{}.png", truncate, "an unreadable file"),
    ("sal_distill/{}.png", picture(lambda a: a.astype(np.uint16) * 256), r"u?int\d+ values; needs 8 bits"),
    ("sal_distill/{}.png", picture(lambda a: a[:, :-6]), "a label of 80x54 pixels"),
    ("normals_distill/{}.png", lambda path: path.write_text("no picture"), "an unreadable file"),
    ("normals_distill/{}.png", picture(lambda a: a[:-9]), "a label of 71x60 pixels"),
    ("pascal-context/trainval/{}.mat", truncate, "an unreadable file"),
    ("pascal-context/trainval/{}.mat", variable("other", np.zeros((80, 60))), "a MATLAB file without that variable"),
    ("pascal-context/trainval/{}.mat", variable("LabelMap", np.full((80, 60), 460)), "class id 460"),
    ("pascal-context/trainval/{}.mat", variable("LabelMap", np.full((80, 60), -3)), "class id -3"),
    ("pascal-context/trainval/{}.mat", variable("LabelMap", np.full((80, 60), np.nan)), "class id nan"),
    ("pascal-context/trainval/{}.mat", variable("LabelMap", np.zeros((60, 80))), "a label of 60x80 pixels"),
    ("pascal-context/trainval/{}.mat", variable("LabelMap", "text"), r"<U4 of shape \(1,\)"),
    ("human_parts/{}.mat", truncate, "an unreadable file"),
    ("human_parts/{}.mat", lambda path: path.write_bytes(b"MATLAB"), "an unreadable file"),
    ("human_parts/{}.mat", variable("anno", np.zeros((2, 2))), "an annotation without 'objects'"),
    ("human_parts/{}.mat", variable("anno", {"objects": np.ones((1, 2))}), "an annotation without 'class_ind'"),
    ("human_parts/{}.mat", variable("annotation", 1), "a MATLAB file without that variable; needs the variable 'anno'"),
    ("human_parts/{}.mat", parts(no_mask), "an annotation without 'mask'"),
    ("human_parts/{}.mat", parts(small_mask), "masks of 80x60 and 5x6 pixels; needs masks of one size"),
    ("human_parts/{}.mat", parts(flat_mask), r"uint8 of shape \(5, 6, 2\)"),
])
def test_damaged_files_are_named(root, file, damage, message):
    dataset = open_split(root, validation=0.0)
    path = root / file.format(SECOND)
    damage(path)
    with pytest.raises(InputError, match=f"got {message}") as error:
        dataset.read(1)
    assert one_line(error.value).startswith(str(path))
    assert dataset.read(2)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_read_or_named(tmp_path, data):
    """Any bytes may change anywhere: the file is read with lawful labels, or named in one line."""
    root = tmp_path / "PASCAL_MT"
    if not root.exists():
        LAYOUTS["pascal_mt"](root)
    dataset = open_split(root, validation=0.0)
    path = data.draw(st.sampled_from([files[SECOND] for files in dataset.tree.files.values()]))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(whole), 1500) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[:data.draw(st.sampled_from([len(whole), len(whole), len(whole) // 2]))])
    try:
        sample = dataset.read(1)
        for task, target in sample.target.items():
            assert built(dataset)[task].fault(target, sample.valid[task]) is None
    except InputError as error:
        assert one_line(error).startswith(str(root)) and SECOND in str(error)
    finally:
        path.write_bytes(whole)


# -- real files -------------------------------------------------------------------------------------------------


def real_tree(names: list[str], images: Path, out: Path) -> Path:
    """The folders of PASCAL_MT around real photographs, as links."""
    for folder in ("ImageSets/Context", "JPEGImages", "semseg/VOC12", "human_parts"):
        (out / folder).mkdir(parents=True)
    for split in ("train", "val"):
        (out / f"ImageSets/Context/{split}.txt").write_text("\n".join(names))
    for name in names:
        (out / f"JPEGImages/{name}.jpg").symlink_to(images / f"{name}.jpg")
    return out


@pytest.mark.data
def test_real_part_annotations(real_data, tmp_path):
    folder = real_data / "fixtures" / "pascal_part"
    if not folder.is_dir():
        pytest.skip(f"no part annotations at {folder}")
    names = sorted(path.stem for path in folder.glob("*.mat"))
    root = real_tree(names, folder, tmp_path)
    for name in names:
        (root / f"human_parts/{name}.mat").symlink_to(folder / f"{name}.mat")
    dataset = open_split(root, "test", ("parts",))
    persons = 0
    for index, name in enumerate(names):
        sample = dataset.read(index)
        things = loadmat(folder / f"{name}.mat", simplify_cells=True)["anno"]["objects"]
        expected = np.zeros(sample.info.native, int)
        for thing in things if isinstance(things, list) else [things]:
            own = thing["parts"] if thing["class"] == "person" else []
            for part in [own] if isinstance(own, dict) else own:
                expected[part["mask"] == 1] = PART_IDS[part["part_name"]]
        assert np.array_equal(sample.target["parts"], expected)
        assert bool(sample.valid["parts"].any()) == bool(expected.any())
        persons += expected.any()
    assert len(names) == 18 and persons == 8


@pytest.mark.data
def test_real_voc_segmentation(real_data, tmp_path):
    folder = real_data / "fixtures" / "pascal_person_context_voc" / "VOC"
    if not folder.is_dir():
        pytest.skip(f"no VOC labels at {folder}")
    names = sorted(path.stem for path in folder.glob("*.png"))
    root = real_tree(names, folder, tmp_path)
    for name in names:
        (root / f"semseg/VOC12/{name}.png").symlink_to(folder / f"{name}.png")
    dataset = open_split(root, "test", ("semseg",))
    seen = {}
    for index, name in enumerate(names):
        sample = dataset.read(index)
        valid = sample.valid["semseg"]
        seen[name] = {NAMES[i] for i in sample.target["semseg"][valid].unique().tolist()} - {"background"}
        assert 0 < (~valid).float().mean() < 0.2
    assert seen == {"2007_004189": {"dog"}, "2007_006449": {"bicycle"}, "2008_002536": {"dog", "sheep"},
                    "2010_005582": {"bottle", "person"}}
