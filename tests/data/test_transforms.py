from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyptych.data.geometry import Geometry
from polyptych.data.transforms import Augment, augment, collate, move, resize_image
from polyptych.errors import InputError

# The fixtures only build things; sharing them between the examples is what we want.
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(2, 40), st.integers(2, 40))  # torch cannot resize a uint8 image to 1x1
scales = st.lists(st.floats(0.3, 3), min_size=1, max_size=3).map(tuple)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@quick
@given(index=st.integers(1, 10))
def test_mirroring_twice_changes_nothing(noise, same, index):
    dataset, tasks = noise()
    sample = dataset.read(index)
    size = sample.info.native
    mirror = Geometry(size, size, (0, 0, *size), mirror=True)
    once = move(sample, tasks, mirror)
    assert not torch.equal(once.image, sample.image)
    same(move(once, tasks, mirror), sample)


@quick
@given(source=sizes, size=sizes, scales=scales, continuous=st.booleans(), seed=st.integers(0, 1000))
def test_window_has_the_zoom_the_aspect_and_a_place_in_the_frame(source, size, scales, continuous, seed):
    geometry = Augment(scales=scales, continuous=continuous).geometry(source, size, generator(seed))
    top, left, height, width = geometry.window
    largest = min(source[0] / size[0], source[1] / size[1])
    assert abs(height - size[0] * largest / geometry.zoom) <= 1
    assert abs(width - size[1] * largest / geometry.zoom) <= 1
    assert min(scales) - 1e-6 <= geometry.zoom <= max(scales) + 1e-6
    for start, length, frame in ((top, height, source[0]), (left, width, source[1])):
        inside, around = 0 <= start <= frame - length, frame - length <= start <= 0
        assert inside or around


def test_mtan_windows_are_the_published_ones():
    how = Augment(scales=(1.0, 1.2, 1.5))
    windows = {how.geometry((288, 384), (288, 384), generator(i)).window for i in range(300)}
    assert {w[2:] for w in windows} == {(288, 384), (240, 320), (192, 256)}
    tops = {top for top, _, height, _ in windows if height == 240}
    assert min(tops) >= 0 and max(tops) <= 48


def test_position_is_uniform_and_inclusive():
    how = Augment(scales=(1.5,), mirror=False)
    tops = [how.geometry((3, 30), (3, 30), generator(i)).window[0] for i in range(400)]
    assert {top: tops.count(top) > 150 for top in set(tops)} == {0: True, 1: True}


@quick
@given(zoom=st.floats(0.4, 3), seed=st.integers(0, 1000))
def test_zoom_divides_depth(noise, zoom, seed):
    dataset, tasks = noise(tasks=("depth",))
    sample = dataset.read(1)
    sample.target["depth"].fill_(6.0)
    moved = augment(sample, tasks, (18, 23), generator(seed), Augment(scales=(zoom,)))
    seen = moved.target["depth"][moved.valid["depth"]]
    assert torch.allclose(seen, torch.full_like(seen, 6 / zoom), rtol=1e-5)


@quick
@given(size=sizes, scales=scales, rotation=st.floats(0, 180), seed=st.integers(0, 1000), index=st.integers(0, 10))
def test_size_is_as_asked_and_nothing_becomes_valid(noise, size, scales, rotation, seed, index):
    dataset, tasks = noise()
    sample = dataset.read(index)
    for mask in sample.valid.values():
        mask.fill_(False)
    moved = augment(sample, tasks, size, generator(seed),
                    Augment(scales=scales, continuous=True, rotation=rotation, brightness=0.4))
    assert moved.image.shape == (3, *size) and moved.image.dtype == torch.uint8
    assert moved.info.content == size and moved.info.native == sample.info.native
    assert moved.target.keys() == tasks.keys()
    for name, mask in moved.valid.items():
        assert mask.shape == size and not mask.any()
        if name != "keypoints":
            assert moved.target[name].shape[-2:] == size
            assert torch.isfinite(moved.target[name].float()).all()


def test_padding_is_unlabeled_and_black(noise):
    dataset, tasks = noise(size=(20, 20))
    sample = dataset.read(1)
    sample.image.fill_(255)
    for mask in sample.valid.values():
        mask.fill_(True)
    moved = augment(sample, tasks, (20, 20), generator(0), Augment(scales=(0.5,)))
    shown = moved.image[0] > 0
    assert 90 <= int(moved.valid["semseg"].sum()) <= 110  # a quarter of the frame
    assert not (moved.valid["semseg"] & ~shown).any()
    # where the window lies is random, but labels and image agree within the blur of the resize
    assert int((shown & ~moved.valid["semseg"]).sum()) <= 80


@quick
@given(zoom=st.sampled_from([0.5, 1.0, 2.0]), mirror=st.booleans(), angle=st.sampled_from([0.0, 90.0, 180.0, -90.0]),
       top=st.integers(-6, 6), left=st.integers(-6, 6), row=st.integers(0, 23), column=st.integers(0, 23))
def test_points_move_with_the_dots_they_mark(noise, zoom, mirror, angle, top, left, row, column):
    """Draw a 2x2 dot, move the map, and compare with the moved point between its pixels."""
    _, tasks = noise(tasks=("boundaries", "keypoints"))
    row, column = min(row, 22), min(column, 22)
    dots = torch.zeros(24, 24)
    dots[row:row + 2, column:column + 2] = 1
    window = round(24 / zoom)
    geometry = Geometry((24, 24), (24, 24), (top, left, window, window), angle=angle, mirror=mirror, zoom=zoom)
    valid = torch.ones(24, 24, dtype=torch.bool)
    moved, _ = geometry.labels(dots), valid
    points = torch.tensor([[[column + 0.5, row + 0.5, 1.0]] * 3])
    target, _ = tasks["keypoints"].move(points, valid, geometry)
    whole = 4 * zoom**2
    if moved.sum() == whole:  # the dot lies inside
        y, x = (moved.nonzero().float().mean(0)).tolist()
        assert target[0, 0, :2].tolist() == pytest.approx([x, y], abs=1e-4 if zoom >= 1 else 0.51)
    if moved.sum() == 0 and zoom >= 1:
        assert target[0, 0, 2] == 0 or not geometry.inside().all()


def test_image_and_labels_move_alike(noise):
    """A picture of the class ids, moved as an image, shows the moved class ids."""
    dataset, tasks = noise(tasks=("semseg",), size=(24, 30))
    sample = dataset.read(1)
    blocks = torch.arange(20).reshape(4, 5).repeat_interleave(6, 0).repeat_interleave(6, 1) % 5
    sample.target["semseg"], sample.image = blocks, (blocks * 50 + 20).to(torch.uint8).expand(3, -1, -1).clone()
    for seed in range(20):
        how = Augment(scales=(1.0, 1.5, 0.8), rotation=30.0)
        moved = augment(sample, tasks, (48, 60), generator(seed), how)
        picture = moved.image[0].float()
        smooth = torch.nn.functional.max_pool2d(picture[None], 5, 1, 2)[0] \
            + torch.nn.functional.max_pool2d(-picture[None], 5, 1, 2)[0] == 0
        inner = smooth & (picture > 0)
        assert torch.equal(((picture[inner] - 20) / 50).long(), moved.target["semseg"][inner])


def test_same_generator_same_sample_and_colors_leave_the_geometry_alone(noise, same):
    dataset, tasks = noise()
    sample = dataset.read(3)
    plain = Augment(scales=(1.0, 1.5), rotation=10.0)
    colorful = Augment(scales=(1.0, 1.5), rotation=10.0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.3)
    a, b, c = (augment(sample, tasks, (18, 23), generator(5), how) for how in (plain, plain, colorful))
    same(a, b)
    assert torch.equal(a.target["semseg"], c.target["semseg"])
    assert not torch.equal(a.image, c.image)
    never = Augment(scales=(1.0, 1.5), rotation=10.0, brightness=0.5, color_chance=0.0)
    same(a, augment(sample, tasks, (18, 23), generator(5), never))


def test_a_missing_label_becomes_an_empty_one(noise):
    dataset, tasks = noise()
    moved = augment(dataset.read(0), tasks, (9, 9), generator(0), Augment())
    assert moved.target["depth"].shape == (9, 9) and not moved.valid["depth"].any()


def test_evaluation_resizes_the_image_only(noise):
    dataset, _ = noise()
    sample = dataset.read(1)
    resized = resize_image(sample, (36, 46))
    assert resized.image.shape == (3, 36, 46) and resized.info.content == (36, 46)
    assert resized.info.native == (18, 23) and resized.target is sample.target
    assert resize_image(sample, None).image is sample.image


def test_collate_pads_to_the_largest(noise):
    dataset, tasks = noise(growing=True)
    samples = [dataset.read(i) for i in (5, 0, 2)]
    batch = collate(samples, tasks)
    assert batch.image.shape == (3, 3, 23, 28) and batch.image.dtype == torch.uint8
    assert batch.info == [sample.info for sample in samples]
    for row, sample in enumerate(samples):
        height, width = sample.info.native
        assert torch.equal(batch.image[row, :, :height, :width], sample.image)
        assert not batch.image[row, :, height:].any() and not batch.image[row, :, :, width:].any()
        for name in sample.target:
            mask = batch.valid[name][row]
            assert torch.equal(mask[:height, :width], sample.valid[name])
            assert not mask[height:].any() and not mask[:, width:].any()
            if name != "keypoints":
                assert torch.equal(batch.target[name][row][..., :height, :width], sample.target[name]), name
    assert not batch.valid["depth"][1].any()
    persons = len(samples[0].target["keypoints"])  # padding at the right and the bottom moves no point
    assert torch.equal(batch.target["keypoints"][0, :persons], samples[0].target["keypoints"])


@pytest.mark.parametrize(("field", "value", "message"), [
    ("scales", (), r"augment.scales: got \(\); needs at least one positive number; use \(1,\) for no zoom"),
    ("scales", (1.0, 0.0), "augment.scales: got .*needs at least one positive number"),
    ("hue", 0.7, "augment.hue: got 0.7; needs a number from 0 to 0.5; choose one in that range; 0 turns it off"),
    ("rotation", -1.0, "augment.rotation: got -1.0; needs a number from 0 to 180"),
])
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        Augment(**{field: value})
