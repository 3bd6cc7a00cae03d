"""Training on stored features of a frozen backbone gives what training on the same views of the images gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.checkpoint import read_tensors
from polyptych.data.transforms import Augment, collate
from polyptych.data.views import Views
from polyptych.errors import InputError
from polyptych.run import Loading, with_components, with_tasks
from polyptych.training import Trainer


@pytest.fixture
def run(small_run, tmp_path):
    run = with_tasks(with_components(small_run, {"balancer": "equal"}), ["semseg", "depth"])
    return replace(run, augment=Augment(scales=(1.0, 1.5)), dataset=replace(run.dataset, frames=3), steps=3,
                   backbone=Timm.Config(model="test_resnet", freeze="all"),
                   loading=Loading(cache=tmp_path / "cache", feature_views=2, feature_type="float32"))


def views_of(run, trainer, batches):
    """The images of the next batches, augmented as the stored views are."""
    dataset = run.build_dataset("train")
    views = Views(dataset, trainer.tasks, run.augment, run.size, run.loading.feature_views)
    positions = range(batches * run.batch_size)
    samples = [views.read(views.index_at(p, run.seed)) for p in positions]
    return [collate(samples[i:i + run.batch_size], trainer.tasks) for i in range(0, len(samples), run.batch_size)]


def trained(trainer, batches):
    for batch in batches:
        trainer.step([batch])
    return {name: p.detach().clone() for name, p in trainer.state.network.named_parameters()}


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_the_numbers_are_those_of_the_images(run, model, tmp_path):
    run = replace(run, backbone=replace(run.backbone, model=model))
    stored = Trainer(run, tmp_path / "stored", resume=False)
    plain = Trainer(replace(run, loading=Loading()), tmp_path / "plain", resume=False)
    iterator = iter(stored.batches)
    batches = [next(iterator) for _ in range(3)]
    images = views_of(run, stored, 3)
    for one, other in zip(batches, images, strict=True):
        assert one.features and not other.features and one.image.shape == other.image.shape
        for task in ("semseg", "depth"):
            valid = one.valid[task]
            assert torch.equal(valid, other.valid[task]) and valid.any()
            assert torch.equal(one.target[task][valid], other.target[task][valid])
    found, expected = trained(stored, batches), trained(plain, images)
    assert all(torch.allclose(found[name], x, atol=1e-5) for name, x in expected.items())
    assert any(not torch.equal(x, y) for x, y in zip(found.values(), dict(Trainer(
        replace(run, seed=run.seed), tmp_path / "fresh", resume=False).state.network.named_parameters()).values(),
        strict=True))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_fewer_bits(run, kind, tmp_path):
    exact = next(iter(Trainer(run, tmp_path / "a", resume=False).batches)).features
    rough = Trainer(replace(run, loading=replace(run.loading, feature_type=kind)), tmp_path / "b", resume=False)
    found = next(iter(rough.batches)).features
    assert all(x.dtype == getattr(torch, kind) and torch.allclose(x.float(), y, rtol=1e-2, atol=1e-3)
               for x, y in zip(found, exact, strict=True))
    rough.step([next(iter(rough.batches))])


def test_computed_once_for_all_seeds_decoders_and_balancers(run, tmp_path, capsys):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    import timm
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    run = replace(run, backbone=replace(run.backbone, weights=path))
    Trainer(run, tmp_path / "a", resume=False)
    folders = {p.name for p in (tmp_path / "cache").iterdir()}
    said = capsys.readouterr()
    assert "GiB in" in said.out + said.err
    for number, other in enumerate([replace(run, seed=5), with_components(run, {"decoder": "pad_net"}),
                                    with_components(run, {"balancer": "mgda"})]):
        Trainer(other, tmp_path / f"b{number}", resume=False)
    assert {p.name for p in (tmp_path / "cache").iterdir()} == folders
    Trainer(replace(run, backbone=replace(run.backbone, weights=None)), tmp_path / "c", resume=False)
    assert {p.name for p in (tmp_path / "cache").iterdir()} > folders


def test_resuming_ends_in_the_same_bits(run, tmp_path):
    for name in ("whole", "halves"):
        trainer = Trainer(run, tmp_path / name, resume=False)
        batches = iter(trainer.batches)
        for _ in range(3 if name == "whole" else 2):
            trainer.step([next(batches)])
        trainer._save()
    resumed = Trainer(run, tmp_path / "halves", resume=True)
    resumed.step([next(iter(resumed.batches))])
    resumed._save()
    whole, halves = (read_tensors(tmp_path / name / "checkpoints/last.safetensors")[0] for name in ("whole", "halves"))
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []


@pytest.mark.parametrize(("change", "needs"), [
    (lambda run: replace(run, loading=replace(run.loading, cache=None)), "--loading.cache"),
    (lambda run: replace(run, backbone=replace(run.backbone, freeze="none")), "--backbone.freeze all"),
    (lambda run: replace(run, backbone=replace(run.backbone, freeze_until=2)), "--backbone.freeze all"),
    (lambda run: with_components(run, {"encoder": "cross_stitch"}), "--encoder shared"),
    (lambda run: replace(run, dataset=replace(run.dataset, frames=10**12)), "GiB")])
def test_refusals(run, change, needs, tmp_path):
    with pytest.raises(InputError, match=needs):
        Trainer(change(run), tmp_path / "run", resume=False)


