"""The decathlon's files, labels, splits and stream."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from copying import copied
from polyptych.datasets._decathlon.about import ABOUT
from polyptych.datasets._decathlon.annotations import Annotated, held_out
from polyptych.datasets._decathlon.domains import DOMAINS
from polyptych.datasets._decathlon.fixture import LAYOUTS
from polyptych.datasets.decathlon import Decathlon, matched
from polyptych.errors import InputError
from polyptych.metrics.decathlon import LARGEST_ERROR
from polyptych.run import Run
from polyptych.tasks.classification import Classification
from polyptych.training import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decathlon")
    LAYOUTS["devkit"](folder)
    return folder


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """Two domains of the fixture, to be damaged, and links to the others."""
    folder = tmp_path / "decathlon"
    folder.mkdir()
    for part in whole.iterdir():
        if part.name in ("annotations", "dtd", "vgg-flowers"):
            copied(part, folder / part.name)
        else:
            (folder / part.name).symlink_to(part)
    return folder


def open_split(root: Path, split: str = "train", tasks=("dtd", "vgg-flowers"), **options) -> Decathlon:
    return Decathlon.Config(root=root, **options).build(split=split, tasks=tasks)


def test_labels_come_from_the_categories_and_not_from_the_folders(whole):
    dataset = open_split(whole, "test")
    assert dataset.labels["dtd"].classes == ("dtd class 2", "dtd class 9", "dtd class 10")
    seen = Counter()
    for index in range(len(dataset)):
        sample = dataset.read(index)
        domain, split, folder, _ = sample.info.id.split("/")
        ((task, target),) = sample.target.items()
        assert task == domain and split == "val"  # the official val is our test
        assert dataset.labels[task].classes[int(target)] == f"{domain} class {int(folder)}"
        assert abs(sample.image[0].float().mean() - 20 * int(folder) - 10) < 5  # the picture shows that class
        assert sample.valid[task].all() and sample.valid[task].shape == sample.image.shape[1:]
        assert min(sample.info.native) == 72
        seen[task, int(target)] += 1
    assert set(seen.values()) == {2} and len(seen) == 6


def test_val_is_carved_out_of_every_class_of_the_training_images(whole):
    parts = {split: {open_split(whole, split).read(i).info.id for i in range(len(open_split(whole, split)))}
             for split in ("train", "val", "test")}
    assert {split: len(ids) for split, ids in parts.items()} == {"train": 30, "val": 6, "test": 12}
    assert not parts["train"] & parts["val"] and all("/train/" in name for name in parts["train"] | parts["val"])
    assert len(open_split(whole, validation=0.0)) == 36
    classes = Counter(name.rsplit("/", 1)[0] for name in parts["val"])
    assert set(classes.values()) == {1}


@given(st.lists(st.integers(0, 4), max_size=60), st.floats(0, 0.99))
def test_held_out_takes_a_share_of_each_class(labels, share):
    images = [Annotated(number, "", label) for number, label in enumerate(labels)]
    taken = held_out(images, share)
    for label, count in Counter(labels).items():
        own = [image.id for image in images if image.label == label]
        kept = [number for number in own if number in taken]
        assert abs(len(kept) - share * count) <= 1 and len(kept) < count and kept == own[len(own) - len(kept):]


def test_the_stream_follows_the_weights(whole):
    dataset = open_split(whole, weights={"dtd": 2.0, "svhn": 9.0})
    domains = Counter(dataset.read(dataset.index_at(position, 3)).info.id.split("/")[0] for position in range(60))
    assert domains == {"dtd": 40, "vgg-flowers": 20}
    assert open_split(whole, tasks=()).labels.keys() == DOMAINS.keys() and len(open_split(whole, tasks=())) == 0


@pytest.mark.parametrize("layout", ["data", "decathlon-1.0-data", "inner"])
def test_other_places_where_people_unpack(root, layout):
    if layout == "inner":
        (root / "decathlon-1.0" / "data").mkdir(parents=True)
        (root / "annotations").rename(root / "decathlon-1.0" / "annotations")
    target = root / ("decathlon-1.0/data" if layout == "inner" else layout)
    target.mkdir(exist_ok=True)
    for domain in DOMAINS:
        (root / domain).rename(target / domain)
    assert open_split(root, "test").read(0).info.id.startswith("dtd/val/")


def test_statistics_can_be_matched(whole):
    g = torch.Generator().manual_seed(0)
    for domain, stated in DOMAINS.items():
        mean, std = torch.tensor(stated.mean)[:, None, None], torch.tensor(stated.std)[:, None, None]
        image = ((mean + 0.3 * std * torch.randn(3, 40, 40, generator=g)).clamp(0, 1) * 255).round().to(torch.uint8)
        shown = (image / 255 - mean) / std
        expected = DOMAINS["imagenet12"]
        back = matched(image, domain) / 255
        back = (back - torch.tensor(expected.mean)[:, None, None]) / torch.tensor(expected.std)[:, None, None]
        assert (back - shown).abs().max() < 0.02, domain
    assert not torch.equal(open_split(whole, match_statistics=True).read(0).image, open_split(whole).read(0).image)


@pytest.mark.usefixtures("without_plots")
def test_a_run_on_three_domains(small_run: Run, whole, tmp_path):
    domains = ("svhn", "omniglot", "vgg-flowers")
    run = replace(small_run, dataset=Decathlon.Config(root=whole, validation=0.2), size=(48, 48), steps=2,
                  tasks=dict.fromkeys(domains, Classification.Config()))
    train(run, tmp_path / "run")
    result = json.loads((tmp_path / "run/evaluation/test.json").read_text())
    assert result["images"] == 18 and set(result["tasks"]) == set(domains)
    assert all(entry["trivial"]["top1"] == pytest.approx(100 / 3) for entry in result["tasks"].values())


def test_what_is_known_agrees():
    assert DOMAINS.keys() == LARGEST_ERROR.keys() and set(ABOUT.layouts) == set(LAYOUTS)


def edit(root: Path, change) -> None:
    path = root / "annotations/dtd_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.pop("categories"), "missing required field `categories`"),
    (lambda c: c["annotations"].pop(), "without an annotation"),
    (lambda c: c["annotations"].append(c["annotations"][0]), "an image with several annotations"),
    (lambda c: c["annotations"][0].update(category_id=77), "category id 77, which is none of its categories"),
    (lambda c: c["annotations"][0].update(category_id="dog"), "Expected `int`, got `str`"),
    (lambda c: c["images"].append(c["images"][0]), "two images with one id"),
    (lambda c: c["categories"].append(c["categories"][0]), "two categories with one id"),
    (lambda c: c["images"][0].update(file_name="data/../../secret.jpg"), "the path 'data/../../secret.jpg'"),
])
def test_wrong_annotations_are_named(root, change, message):
    edit(root, change)
    with pytest.raises(InputError) as refusal:
        open_split(root)
    assert "dtd_train.json" in str(refusal.value) and message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_annotations_never_escape(whole, tmp_path_factory, data):
    good = (whole / "annotations/dtd_val.json").read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "any"]))
    place = data.draw(st.integers(0, len(good) - 1))
    bad = {"cut": good[:place], "flip": good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1:],
           "any": data.draw(st.binary(max_size=80))}[kind]
    root = tmp_path_factory.mktemp("damaged")
    (root / "annotations").mkdir()
    (root / "dtd").symlink_to(whole / "dtd")
    (root / "annotations/dtd_train.json").write_bytes(bad)
    (root / "annotations/dtd_val.json").write_bytes(good)
    try:
        dataset = open_split(root, tasks=("dtd",), domains=("dtd",))
        dataset.read(0)
    except InputError as error:
        assert ("dtd_train.json" in str(error) or ".jpg" in str(error)) and "\n" not in str(error)


def test_damaged_and_missing_images_are_named(root):
    dataset = open_split(root, "test")
    path = root / dataset.read(1).info.id
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=f"{path.name}: got an unreadable file"):
        dataset.read(1)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: got no such file"):
        dataset.read(1)


@pytest.mark.parametrize(("options", "message"), [
    ({"domains": ("dtd", "mnist")}, "domain 'mnist': got an unknown name"),
    ({"validation": 1.0}, "validation of decathlon: got 1.0"),
    ({"weights": {"mnist": 1.0}}, "weight of 'mnist': got an unknown name"),
    ({"weights": {"dtd": -1.0}}, "weight of 'dtd': got -1"),
    ({"root": Path("nowhere")}, "root of decathlon (nowhere): got no such folder"),
])
def test_refusals(whole, options, message):
    with pytest.raises(InputError) as refusal:
        Decathlon.Config(**({"root": whole} | options)).build(split="train", tasks=("dtd",))
    assert message in str(refusal.value)


def test_domains_that_were_not_unpacked_are_named(root):
    (root / "dtd").rename(root / "elsewhere")
    with pytest.raises(InputError, match=r"without dtd/ or data/dtd/; needs the images of 'dtd'; unpack dtd\.tar"):
        open_split(root)
    (root / "annotations/dtd_train.json").unlink()
    with pytest.raises(InputError, match=r"dtd_train\.json: got no such file"):
        open_split(root, tasks=("svhn",))
    assert len(open_split(root, tasks=("svhn",), domains=("svhn",))) == 15
    with pytest.raises(InputError, match="task 'semseg': got dataset decathlon"):
        open_split(root, tasks=("semseg",), domains=("svhn",))
