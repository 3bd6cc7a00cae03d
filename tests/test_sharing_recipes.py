"""The recipes of MTAN, the survey and the decathlon: complete, recorded exactly, of the published sizes, and trained on
miniatures of their data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.backbones.wide_resnet import WideResNet
from polyptych.datasets._cityscapes.layouts._base import CATALOG as CITYSCAPES
from polyptych.datasets._decathlon.domains import DOMAINS
from polyptych.datasets._decathlon.fixture import LAYOUTS as DECATHLON
from polyptych.datasets._nyuv2.layouts._base import CATALOG as NYUV2
from polyptych.datasets._pascal_context.fixture import LAYOUTS as PASCAL
from polyptych.evaluation_record import Evaluation
from polyptych.metrics.decathlon import LARGEST_ERROR
from polyptych.networks import Network
from polyptych.recipes._catalog import load
from polyptych.record import decode, encode
from polyptych.run import Loading, Monitoring, Run, with_components
from polyptych.training import Trainer, train
from polyptych.types import LabelInfo

CHANNELS = {
    "nyuv2_mtan": {"semseg": 13, "depth": 1, "normals": 3},
    "cityscapes_mtan": {"semseg": 7, "inverse_depth": 1},
    "nyud_survey": {"semseg": 40, "depth": 1},
    "pascal_survey": {"semseg": 21, "parts": 7, "saliency": 1, "boundaries": 1, "normals": 3},
    "decathlon_mtan": {name: domain.classes for name, domain in DOMAINS.items()},
}
recipes = pytest.mark.parametrize("recipe", CHANNELS)


def parameters(recipe: str, encoder: str) -> int:
    run = with_components(load(recipe)(), {"encoder": encoder})
    network = Network.build(run.backbone.without_weights(), run.encoder, run.decoder, CHANNELS[recipe])
    return sum(p.numel() for p in network.parameters())


@recipes
def test_complete_and_recorded_exactly(recipe):
    function = load(recipe)
    run = function()
    assert run.recipe == recipe and decode(Run, encode(run), "run") == run
    assert list(run.tasks) == list(CHANNELS[recipe])
    assert f"polyptych train {recipe} " in function.__doc__ and "Published" in function.__doc__
    run.balancer.build(standard_weights=dict.fromkeys(run.tasks, 1.0))  # refuses weights of other tasks


def test_weights_of_the_survey_are_the_customary_ones():
    for run in (load("nyud_survey")(), load("pascal_survey")()):
        assert run.balancer.weights == {name: config.owner.standard_weight for name, config in run.tasks.items()}


@pytest.mark.parametrize(("recipe", "encoder", "published"), [
    ("nyuv2_mtan", "mtan", 44_229_076 - 3),  # less three numbers of uncertainty weighting
    ("nyuv2_mtan", "shared", 25_055_188 - 3),
    ("nyuv2_mtan", "single", 24_981_069 + 24_980_289 + 24_980_419),
    ("nyud_survey", "shared", 55_769_449),
    pytest.param("nyud_survey", "mtan", 72_052_713, marks=pytest.mark.grid),
    pytest.param("nyud_survey", "cross_stitch", 79_292_841, marks=pytest.mark.slow),
    pytest.param("nyud_survey", "nddr", 101_591_721, marks=pytest.mark.slow),
    pytest.param("pascal_survey", "shared", 34_795_873, marks=pytest.mark.grid),
    ("pascal_survey", "mtan", 36_613_425),
    pytest.param("pascal_survey", "cross_stitch", 79_525_921, marks=pytest.mark.slow),
    pytest.param("pascal_survey", "nddr", 88_318_561, marks=pytest.mark.slow),
    ("decathlon_mtan", "mtan", 10_237_656), ("decathlon_mtan", "shared", 5_850_528 + 803_896),
])
def test_published_counts(recipe, encoder, published):
    assert parameters(recipe, encoder) == published


def test_counts_in_the_docstring_of_cityscapes():
    text = load("cityscapes_mtan").__doc__
    assert all(f"{parameters('cityscapes_mtan', encoder):,}" in text for encoder in ("mtan", "shared"))


def test_learning_rates_as_published():
    nyuv2, cityscapes, survey = (load(name)() for name in ("nyuv2_mtan", "cityscapes_mtan", "pascal_survey"))
    for run, images in ((nyuv2, 795), (cityscapes, 2975)):
        epoch = -(-images // run.batch_size)
        assert run.steps == 200 * epoch
        share = [run.schedule.share(number * epoch, run.steps) for number in (0, 99, 100, 199)]
        assert share == [1, 1, 0.5, 0.5]
    assert survey.steps == 100 * (4998 // survey.batch_size)
    assert survey.schedule.share(survey.steps // 2, survey.steps) == pytest.approx(0.5**0.9)
    decathlon = load("decathlon_mtan")()
    assert decathlon.schedule.share(decathlon.steps - 1, decathlon.steps) == 0.5**5


MINIATURES = {
    "nyuv2_mtan": (NYUV2.load("mtan").write_fixture, SegNet.Config(width=4, bottom_width=8)),
    "cityscapes_mtan": (CITYSCAPES.load("mtan").write_fixture, SegNet.Config(width=4, bottom_width=8)),
    "nyud_survey": (NYUV2.load("survey").write_fixture, Timm.Config(model="test_resnet")),
    "pascal_survey": (lambda root: PASCAL["pascal_mt"](root), Timm.Config(model="test_resnet")),
    "decathlon_mtan": (lambda root: DECATHLON["devkit"](root), WideResNet.Config(depth=10, width=1)),
}


def miniature(recipe: str, root: Path, **changes) -> Run:
    """The recipe on made-up data, with a small backbone and few steps."""
    write, backbone = MINIATURES[recipe]
    write(root)
    run = load(recipe)()
    values = {"backbone": backbone, "size": (35, 50), "steps": 2, "batch_size": 4, "loading": Loading(),
              "dataset": replace(run.dataset, root=root, validation=0.2),
              "monitoring": Monitoring(examples=1, trivial_samples=4)}
    return replace(run, **(values | changes))


def trained(run: Run, folder: Path) -> Evaluation:
    """All steps of the run, and the record of its test."""
    trainer = Trainer(run, folder, resume=False)
    batches = iter(trainer.batches)
    for _ in range(run.steps):
        trainer.step([next(batches)])
    return trainer.evaluator.evaluate(trainer.state.network, "test", final=True)


@pytest.mark.parametrize("recipe", ["nyuv2_mtan", "cityscapes_mtan", "nyud_survey", "pascal_survey"])
def test_trains_on_a_miniature(recipe, tmp_path):
    run = miniature(recipe, tmp_path / "data")
    record = trained(run, tmp_path / "run")
    assert list(record.tasks) == list(run.tasks) and record.images > 0
    for task in record.tasks.values():
        assert all(value == value for value in task.metrics.values())  # no NaN


@pytest.mark.parametrize("pages", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "with report"])
def test_the_decathlon_is_learned_and_scored(pages, tmp_path):
    """Colors tell one class of the miniature at once, and the other two with patience: ten tasks on one network are
    soon well above chance, which is a third."""
    run = miniature("decathlon_mtan", tmp_path / "data", size=(16, 16), steps=10, batch_size=20)
    if pages:
        train(run, tmp_path / "run")
        record = Evaluation.of_run(tmp_path / "run", "test")
    else:
        record = trained(run, tmp_path / "run")
    accuracy = {name: task.metrics["top1"] for name, task in record.tasks.items()}
    assert accuracy.keys() == LARGEST_ERROR.keys() and sum(accuracy.values()) / 10 > 50
    score = record.scores["decathlon_score"]
    expected = sum(1000 * max(0, 1 - (1 - accuracy[name] / 100) / most) ** 2 for name, most in LARGEST_ERROR.items())
    assert score == pytest.approx(expected) and 0 < score < 10000
    assert not pages or f"Decathlon score {score:.4g}. " in (tmp_path / "run/report.md").read_text()


def test_domains_have_attention_and_a_head_of_their_own_and_equal_parts_of_a_batch(tmp_path):
    run = miniature("decathlon_mtan", tmp_path / "data", size=(16, 16), batch_size=20)
    trainer = Trainer(run, tmp_path / "run", resume=False)
    batch = next(iter(trainer.batches))
    labelled = torch.stack([batch.valid[name].flatten(1).any(1) for name in DOMAINS])
    assert (labelled.sum(0) == 1).all() and (labelled.sum(1) == 2).all()
    network = trainer.state.network
    assert list(network.encoder.masks) == list(network.decoder.heads) == list(DOMAINS)
    loss = run.tasks["dtd"].build(labels=LabelInfo(classes=("a", "b", "c"))).loss(
        network(batch.image).final["dtd"], batch.target["dtd"], batch.valid["dtd"]).mean()
    loss.backward()
    for name in DOMAINS:
        own = [*network.encoder.masks[name].parameters(), *network.decoder.heads[name].parameters()]
        assert all((p.grad is not None) == (name == "dtd") for p in own)
    common = [*network.encoder.backbone.parameters(), *network.encoder.steps.parameters()]
    assert all(p.grad is not None for p in common)


def test_predictions_about_whole_images_are_not_enlarged():
    run = replace(load("decathlon_mtan")(), backbone=WideResNet.Config(depth=10, width=1))
    tasks = {name: config.build(labels=LabelInfo(classes=("a", "b", "c"))) for name, config in run.tasks.items()}
    network = run.build_network(tasks).eval()
    with torch.no_grad():
        kept, enlarged = network(torch.rand(1, 3, 72, 72)).final["dtd"], network(torch.rand(1, 3, 70, 72)).final["dtd"]
    assert kept.shape[-2:] == (9, 9) and enlarged.shape[-2:] == (70, 72)  # padding must be cut off


@pytest.mark.data
@pytest.mark.grid
def test_mtan_learns_real_frames(real_data, tmp_path):
    run = load("nyuv2_mtan")()
    run = replace(run, dataset=replace(run.dataset, root=real_data / "nyuv2"), size=(49, 63), loading=Loading(),
                  backbone=SegNet.Config(width=8, bottom_width=32),
                  optimizer=replace(run.optimizer, learning_rate=3e-3))
    trainer = Trainer(run, tmp_path / "run", resume=False)
    batch = [next(iter(trainer.batches))]
    losses = [trainer.step(batch)[0] for _ in range(20)]
    assert list(losses[0]) == ["semseg", "depth", "normals"]
    assert all(losses[-1][task] < 0.8 * losses[0][task] for task in losses[0])
