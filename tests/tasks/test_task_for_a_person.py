"""What a person gets of every task: arrays, words, legends, layers, numbers for 16-bit files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyptych.tasks._base import CATALOG
from polyptych.tasks._pictures import scale_legend
from polyptych.types import LabelInfo

LABELS = LabelInfo(classes=("wall", "floor", "left hand", "right hand"),
                   colors=((9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 9)), mirror=((2, 3),), skeleton=((0, 1),))
SIZE = (9, 13)


def build(name, labels=LABELS, **options):
    return CATALOG.load(name).Config(**options).build(labels=labels)


def some(task, seed=0):
    raw = torch.randn(1, task.channels, *SIZE, generator=torch.Generator().manual_seed(seed))
    return task.decode(raw)[0]


@pytest.mark.parametrize("name", CATALOG.names())
def test_every_task(name):
    task = build(name)
    decoded, image = some(task), np.full((*SIZE, 3), 100, np.uint8)
    before = decoded.clone()
    assert task.unit or name == "inverse_depth"
    assert isinstance(task.array(decoded), np.ndarray) and np.isfinite(task.array(decoded)).all()
    assert task.at(decoded, SIZE[1] - 1, SIZE[0] - 1)
    layer = task.layer(decoded, image)
    assert layer.shape == (*SIZE, 4) and layer.dtype == np.uint8
    assert all(len(color) == 3 for _, color in task.legend().entries)
    kept = task.stored(decoded)
    if kept is not None:
        assert kept.values.dtype == np.uint16 and kept.values.shape == SIZE and kept.meaning
    assert torch.equal(decoded, before) and (image == 100).all()


@pytest.mark.parametrize("name", ["depth", "inverse_depth", "saliency", "boundaries", "edge_texture"])
def test_a_scale_has_the_colors_of_the_picture(name):
    task = build(name)
    legend = task.legend()
    assert legend.continuous and legend.entries[0][0] and legend.entries[-1][0]
    low, high = {"depth": (0, 10), "inverse_depth": (0, 0.25), "edge_texture": (-1, 1)}.get(name, (0, 1))
    values = torch.linspace(low, high, len(legend.entries))[None]
    picture = task.paint(values, np.zeros((1, len(legend.entries), 3), np.uint8))[0]
    assert np.abs(picture.astype(int) - [color for _, color in legend.entries]).max() <= 1


@pytest.mark.parametrize("name", ["semseg", "parts", "keypoints"])
def test_a_legend_names_every_class(name):
    assert build(name).legend().entries == tuple(zip(LABELS.classes, LABELS.colors, strict=True))


def test_the_legend_of_directions():
    legend = dict(build("normals").legend().entries)
    assert legend["to the camera"] == (128, 128, 255) and legend["right"] == (255, 128, 128)
    assert legend["up"] == (128, 255, 128)


def test_names_of_a_scale_are_evenly_spaced():
    legend = scale_legend(["a", "b", "c"], lambda share: np.zeros((len(share), 3), np.uint8))
    assert [name for name, _ in legend.entries] == ["a", "", "", "", "b", "", "", "", "c"]


def test_class_maps():
    task = build("semseg")
    ids = torch.tensor([[0, 1], [2, 3]])
    assert task.at(ids, 1, 0) == "floor" and task.at(ids, 0, 1) == "left hand"
    assert task.stored(ids).values.tolist() == ids.tolist() and task.unit == "class id"


def test_depth():
    task = build("depth")
    meters = torch.tensor([[0.0014, 1.5], [70.0, 1000.0]])
    assert task.stored(meters).values.tolist() == [[1, 1500], [65535, 65535]]
    assert "millimeters" in task.stored(meters).meaning
    assert task.at(meters, 1, 0) == "1.50 m" and task.unit == "m" and task.distance(meters) is meters


def test_inverse_depth_says_its_unit():
    pixels = build("inverse_depth", LabelInfo(unit="px"))
    assert pixels.stored(torch.tensor([[0.5, 300.0]])).values.tolist() == [[128, 65535]]
    assert pixels.at(torch.tensor([[0.5, 3.0]]), 1, 0) == "3 px"
    share = build("inverse_depth").stored(torch.tensor([[0.5, 2.0]]))
    assert share.values.tolist() == [[32768, 65535]] and "1/65535" in share.meaning


def test_normals():
    task = build("normals")
    vectors = some(task)
    assert task.array(vectors).shape == (*SIZE, 3)
    assert task.at(torch.tensor([0.0, -1.0, -0.0])[:, None, None].expand(3, 2, 2), 1, 1) == "(0.00, -1.00, 0.00)"
    assert task.directions(vectors) is vectors and task.distance(vectors) is None and task.stored(vectors) is None


def test_binary_maps_mark_only_what_is_there():
    task = build("saliency")
    layer = task.layer(torch.tensor([[0.0, 1.0, 0.5]]), np.zeros((1, 3, 3), np.uint8))
    assert layer[0, :, 3].tolist() == [0, 255, 128] and (layer[..., :3] == task.tint).all()
    assert task.at(torch.tensor([[0.25]]), 0, 0) == "25%"
    assert task.stored(torch.tensor([[1.0]])).values.item() == 65535
    assert build("boundaries").tint != task.tint
    assert task.layer_legend().entries[-1] == ("100%", task.tint) and task.legend().entries[-1][1] == (255, 255, 255)


def test_keypoints():
    task = build("keypoints", loss="mse")
    heat = torch.zeros(4, *SIZE)
    heat[2, 4, 7], heat[0, 1, 2] = 0.9, 0.05
    assert task.array(heat)[2].tolist() == [7, 4, pytest.approx(0.9)]
    assert task.at(heat, 7, 4) == "left hand 0.90" and task.at(heat, 2, 1) == "none"
    layer = task.layer(heat, np.full((*SIZE, 3), 100, np.uint8))
    assert layer[4, 7].tolist() == [0, 0, 9, 255] and layer[1, 2, 3] == 0 and layer[0, 12, 3] == 0


def test_classification():
    task = build("classification")
    decoded = torch.tensor([0.1, 0.6, 0.2, 0.1]).log()
    assert task.array(decoded).tolist() == pytest.approx([0.1, 0.6, 0.2, 0.1])
    assert task.at(decoded, 0, 0) == "floor 60%"
