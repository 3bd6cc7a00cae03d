"""The recipes of TaskPrompter: complete, recorded exactly, of the published training, and trained on miniatures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transcription import NYUD_FOUR, PASCAL, count

from polyptych.backbones.timm import Timm
from polyptych.datasets._nyuv2.layouts._base import CATALOG as NYUV2_LAYOUTS
from polyptych.datasets._pascal_context.fixture import LAYOUTS as PASCAL_LAYOUTS
from polyptych.decoders.task_prompter import TaskPrompter as Heads
from polyptych.devices import shapes_only
from polyptych.networks import Network
from polyptych.profiling.operators import count as count_operators
from polyptych.protocols.catalog import PROTOCOLS
from polyptych.recipes._catalog import load
from polyptych.record import decode, encode
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.boundaries import Boundaries
from polyptych.training import train

CHANNELS = {"nyud_task_prompter": NYUD_FOUR, "pascal_task_prompter": PASCAL}
PROTOCOL = {"nyud_task_prompter": "INVPT-N", "pascal_task_prompter": "INVPT-P"}
RATES = {"nyud_task_prompter": 1e-5, "pascal_task_prompter": 2e-5}
recipes = pytest.mark.parametrize("recipe", CHANNELS)


@recipes
def test_complete_and_recorded_exactly(recipe):
    function = load(recipe)
    run = function()
    assert run.recipe == recipe and decode(Run, encode(run), "run") == run
    assert set(run.tasks) == set(CHANNELS[recipe]) == set(PROTOCOLS[PROTOCOL[recipe]].tasks)
    assert f"polyptych train {recipe} " in function.__doc__ and "Published" in function.__doc__
    assert run.balancer.weights == {name: config.owner.standard_weight for name, config in run.tasks.items()}
    assert run.batch_size * run.accumulate == 6 and run.steps == 40_000 and run.clip == 10
    assert run.optimizer.kind == "adam" and run.optimizer.learning_rate == RATES[recipe]
    assert run.optimizer.weight_decay == 1e-6 and run.encoder.size == run.size


def on_meta(run: Run, channels: dict[str, int]) -> Network:
    with shapes_only():
        return Network.build(run.backbone.without_weights(), run.encoder, run.decoder, channels)


@pytest.mark.slow
@recipes
def test_sizes_of_the_docstrings(recipe):
    """One pass of ViT-L without numbers; the paper says 401 M and 497 G on PASCAL."""
    function = load(recipe)
    run = function()
    published = replace(run, encoder=replace(run.encoder, channel="published", scores="raw"))
    assert f"{count(on_meta(published, CHANNELS[recipe])):,}" in function.__doc__
    network = on_meta(run, CHANNELS[recipe])
    assert f"{count(network):,}" in function.__doc__
    image = torch.rand(1, 3, *run.size, device="meta")
    counted = count_operators(network, lambda: network(image))[0]
    assert f"{counted.total / 1e9:.0f} G" in function.__doc__, counted.total
    assert not [operator for operator in counted.uncounted if operator.kind == "unknown"]


MINIATURES = {"nyud_task_prompter": NYUV2_LAYOUTS.load("invpt").write_fixture,
              "pascal_task_prompter": PASCAL_LAYOUTS["pascal_mt"]}


@pytest.mark.parametrize("recipe", ["nyud_task_prompter", pytest.param("pascal_task_prompter", marks=pytest.mark.slow)])
def test_trains_on_a_miniature(recipe, tmp_path):
    MINIATURES[recipe](tmp_path / "data")
    run = load(recipe)()
    run = replace(
        run, dataset=replace(run.dataset, root=tmp_path / "data", validation=0.2), size=(35, 50), steps=2,
        tasks=run.tasks | {"boundaries": Boundaries.Config()},  # without the benchmark, which compiles for seconds
        backbone=Timm.Config(model="test_vit", drop_path=0.15), encoder=replace(run.encoder, size=(48, 64)),
        decoder=Heads.Config(inner=4, width=6, reweight=run.decoder.reweight),
        loading=Loading(), monitoring=Monitoring(examples=1, trivial_samples=4))
    train(run, tmp_path / "run")
    result = json.loads((tmp_path / "run/evaluation/test.json").read_text())
    assert list(result["tasks"]) == list(run.tasks) and result["images"] > 0
    assert all(value == value for entry in result["tasks"].values() for value in entry["metrics"].values())  # no NaN
