"""Mirror image and scales: averaging the predictions of a network that treats them all alike changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import Model, Symmetric, Zooming
from PIL import Image

from polyptych.errors import InputError
from polyptych.prediction.predictor import Inference, Predictor


def image(height: int = 18, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(a, b) -> None:
    for task in a.tasks:
        one, two = a.decoded[task].double(), b.decoded[task].double()
        if task in ("semseg", "parts"):
            assert (one != two).double().mean() <= 0.002, f"{task}: but for ties"
        else:
            assert torch.allclose(one, two, atol=2e-5, rtol=1e-4), task


@pytest.mark.parametrize("size", [None, (12, 20), (31, 50)])
def test_flipping_a_symmetric_network_changes_nothing(size) -> None:
    plain = Predictor(Symmetric(), Inference(size=size)).predict(image())
    flipped = Predictor(Symmetric(), Inference(size=size, flip=True)).predict(image())
    assert_same(plain, flipped)


def test_flipping_another_network_changes_something() -> None:
    """The test above would also pass if nothing were averaged."""
    class Lopsided(Symmetric):
        def predict(self, name, unit):
            return self.lopsided(name, unit)

    plain, flipped = (Predictor(Lopsided(), Inference(flip=flip)).predict(image()) for flip in (False, True))
    same = [task for task in plain.tasks
            if torch.allclose(plain.decoded[task].double(), flipped.decoded[task].double(), atol=1e-4)]
    assert not same


def test_the_flipped_average_by_hand() -> None:
    class Lopsided(Symmetric):
        def predict(self, name, unit):
            return self.lopsided(name, unit)

    picture = image()
    scene = Predictor(Lopsided("normals"), Inference(flip=True)).predict(picture)
    there, back = (Predictor(Lopsided("normals")).predict(x).normals for x in (picture, picture[:, ::-1].copy()))
    back = back[:, ::-1] * [-1, 1, 1]
    mean = there + back
    assert np.allclose(scene.normals, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5), (2.0,)])
def test_scales_of_a_network_that_knows_sizes_change_nothing(scales) -> None:
    picture = np.full((20, 40, 3), (200, 90, 30), np.uint8)
    model = Zooming()
    scene = Predictor(model, Inference(scales=scales, flip=True)).predict(picture)
    assert {shape[2:] for shape in model.seen} == {(round(20 * s), round(40 * s)) for s in scales}
    plain = Predictor(Zooming()).predict(picture)
    symmetric = {task for task in plain.tasks if torch.allclose(
        plain.task[task].mirrored(model.predict(task, torch.ones(1, 3, 20, 40))),
        model.predict(task, torch.ones(1, 3, 20, 40)))}
    assert {"depth", "inverse_depth", "saliency"} <= symmetric
    for task in symmetric:
        assert torch.allclose(plain.decoded[task].double(), scene.decoded[task].double(), rtol=1e-4, atol=2e-5), task


def test_depth_at_another_scale_is_multiplied() -> None:
    """A network that ignores size says the same at scale 2; seen from half as far, that is twice as much."""
    picture = np.full((20, 40, 3), 100, np.uint8)
    one, two = (Predictor(Model("depth"), Inference(scales=(s,))).predict(picture).depth for s in (1.0, 2.0))
    assert np.allclose(two, 2 * one, rtol=1e-5)


def test_sizes() -> None:
    """What the network is shown: its own size, that of the image, another; windows keep the image's."""
    def shown(inference: Inference, own=(24, 32), fixed=False) -> set[tuple[int, ...]]:
        model = Model("depth")
        model.size, model.fixed = own, fixed
        scene = Predictor(model, inference).predict(image(30, 50))
        assert scene.depth.shape == (30, 50)
        return {shape[2:] for shape in model.seen}

    assert shown(Inference()) == {(24, 32)}
    assert shown(Inference(), own=None) == shown(Inference(native=True)) == {(30, 50)}
    assert shown(Inference(size=(9, 11))) == {(9, 11)}
    assert shown(Inference(scales=(0.5, 1.0))) == {(12, 16), (24, 32)}
    assert shown(Inference(tile=(24, 32)), fixed=True) == {(24, 32)}
    assert shown(Inference(tile=(24, 32), scales=(1.0, 2.0)), fixed=True) == {(24, 32)}
    assert shown(Inference(size=(24, 32)), fixed=True) == {(24, 32)}


@pytest.mark.parametrize(("inference", "part"), [
    (Inference(native=True), "--native"), (Inference(scales=(1.0, 2.0)), "--scales"),
    (Inference(size=(9, 9)), "--size"), (Inference(tile=(9, 9)), "--tile: got 9 9; needs 24 32")])
def test_a_fixed_model_refuses_other_sizes(inference: Inference, part: str) -> None:
    model = Model("depth")
    model.size, model.fixed = (24, 32), True
    with pytest.raises(InputError, match=part):
        Predictor(model, inference)


@pytest.mark.parametrize(("options", "part"), [
    ({"tile": (0, 4)}, "--tile"), ({"size": (10, 10**9)}, "--size"), ({"scales": ()}, "--scales"),
    ({"scales": (1.0, -1.0)}, "--scales"), ({"scales": (float("nan"),)}, "--scales"), ({"overlap": 1.0}, "--overlap"),
    ({"batch": 0}, "--batch"), ({"size": (4, 4), "native": True}, "--native")])
def test_bad_options_are_named(options, part: str) -> None:
    with pytest.raises(InputError, match=part):
        Inference(**options)


def test_a_scale_that_would_fill_the_memory() -> None:
    with pytest.raises(InputError, match="--scales"):
        Predictor(Model("depth"), Inference(scales=(1e4,))).predict(image())


def test_many_keep_their_order_and_share_passes(tmp_path) -> None:
    model = Model("depth", "semseg")
    pictures = [image(10, 12, 1), image(10, 12, 2), image(10, 12, 3), image(7, 9, 4), image(10, 12, 5)]
    scenes = list(Predictor(model, Inference(batch=2)).predict_many(pictures))
    assert [shape[0] for shape in model.seen] == [2, 1, 1, 1]
    for picture, scene in zip(pictures, scenes, strict=True):
        alone = Predictor(Model("depth", "semseg")).predict(picture)
        assert np.allclose(scene.depth, alone.depth, atol=1e-6) and (scene.image == picture).all()


def test_images_of_different_sizes_share_a_pass_where_the_network_has_its_own_size() -> None:
    model = Model("depth")
    model.size = (16, 16)
    scenes = list(Predictor(model, Inference(batch=3, flip=True)).predict_many(
        [image(10, 12), image(30, 20), image(8, 8)]))
    assert [shape[0] for shape in model.seen] == [3, 3]
    assert [scene.depth.shape for scene in scenes] == [(10, 12), (30, 20), (8, 8)]


def test_no_more_than_a_batch_is_held() -> None:
    asked = []

    def pictures():
        for index in range(100):
            asked.append(index)
            yield image(4, 4, index)

    scenes = Predictor(Model("depth"), Inference(batch=3)).predict_many(pictures())
    next(scenes)
    assert len(asked) == 3


def test_what_an_image_may_be(tmp_path) -> None:
    picture = image()
    predictor = Predictor(Model("depth"))
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = predictor.predict(picture).depth
    views = (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture), np.asfortranarray(picture))
    for one in views:
        assert np.array_equal(predictor.predict(one).depth, expected)
    read_only = picture.copy()
    read_only.flags.writeable = False
    assert np.array_equal(predictor.predict(read_only).depth, expected)
    assert predictor.predict(tmp_path / "a.png").name == "a.png" and predictor.seconds > 0


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), 7,
                                   torch.zeros(3, 4, 4)])
def test_what_an_image_may_not_be(wrong) -> None:
    with pytest.raises(InputError, match=r"image: got .*; needs a path, a PIL image or a uint8 RGB array"):
        Predictor(Model("depth")).predict(wrong)
