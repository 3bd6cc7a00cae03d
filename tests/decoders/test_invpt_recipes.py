"""The recipes of InvPT: complete, recorded exactly, of the published size and training, and trained on miniatures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transcription import NYUD_FOUR, PASCAL, count

from polyptych.backbones.timm import Timm
from polyptych.comparison.specification import with_network
from polyptych.datasets._nyuv2.layouts._base import CATALOG as NYUV2_LAYOUTS
from polyptych.datasets._pascal_context.fixture import LAYOUTS as PASCAL_LAYOUTS
from polyptych.decoders.invpt import InvPT
from polyptych.devices import shapes_only
from polyptych.encoders.shared import Shared
from polyptych.networks import Network
from polyptych.profiling.operators import count as count_operators
from polyptych.protocols.catalog import PROTOCOLS
from polyptych.recipes._catalog import load
from polyptych.record import decode, encode
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.boundaries import Boundaries
from polyptych.training import train

CHANNELS = {"nyud_invpt": NYUD_FOUR, "pascal_invpt": PASCAL}
PROTOCOL = {"nyud_invpt": "INVPT-N", "pascal_invpt": "INVPT-P"}
AS_PUBLISHED = "invpt:scale=published:encoder_features=published:drop_path=0:unused_weights=true"
recipes = pytest.mark.parametrize("recipe", CHANNELS)


@recipes
def test_complete_and_recorded_exactly(recipe):
    function = load(recipe)
    run = function()
    assert run.recipe == recipe and decode(Run, encode(run), "run") == run
    assert set(run.tasks) == set(CHANNELS[recipe]) == set(PROTOCOLS[PROTOCOL[recipe]].tasks)
    assert f"polyptych train {recipe} " in function.__doc__ and "Published" in function.__doc__
    assert run.balancer.weights == {name: config.owner.standard_weight for name, config in run.tasks.items()}
    assert run.batch_size * run.accumulate == 6 and run.steps == 40_000
    assert run.schedule.share(20_000, 40_000) == pytest.approx(0.5**0.9)
    for name, measure in PROTOCOLS[PROTOCOL[recipe]].tasks.items():
        assert all(getattr(run.tasks[name], option) == value for option, value in measure.options.items()
                   if hasattr(run.tasks[name], option))


def on_meta(run: Run, channels: dict[str, int]) -> Network:
    with shapes_only():
        return Network.build(run.backbone.without_weights(), Shared.Config(), run.decoder, channels)


@pytest.mark.parametrize("recipe", [
    pytest.param("nyud_invpt", marks=pytest.mark.grid), "pascal_invpt"])
def test_parameters_of_the_docstrings(recipe):
    """The weights of the backbone are its own, with a position table of the size of the images."""
    function = load(recipe)
    for run in (function(), with_network(function(), AS_PUBLISHED)):
        assert f"{count(on_meta(run, CHANNELS[recipe])):,}" in function.__doc__


@pytest.mark.slow
@recipes
def test_multiply_adds_of_the_docstrings(recipe):
    """One pass of ViT-L without numbers; the paper says 423 M and 669 G on PASCAL."""
    function = load(recipe)
    for run, channels in ((function(), CHANNELS[recipe]),
                          (with_network(function(), AS_PUBLISHED), CHANNELS[recipe] | {"saliency": 2})):
        network = on_meta(run, {task: channels[task] for task in CHANNELS[recipe]})
        image = torch.rand(1, 3, *run.size, device="meta")
        counted = count_operators(network, lambda network=network, image=image: network(image))[0]
        assert f"{counted.total / 1e9:.0f} G" in function.__doc__
        assert not [operator for operator in counted.uncounted if operator.kind == "unknown"]
    if recipe == "pascal_invpt":
        assert 0.995 * 669e9 < counted.total < 669e9 and round(count(network) / 1e6, 0) == 423


MINIATURES = {"nyud_invpt": NYUV2_LAYOUTS.load("invpt").write_fixture, "pascal_invpt": PASCAL_LAYOUTS["pascal_mt"]}


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=pytest.mark.slow) for name in MINIATURES])
def test_trains_on_a_miniature(recipe, tmp_path):
    MINIATURES[recipe](tmp_path / "data")
    run = load(recipe)()
    run = replace(
        run, dataset=replace(run.dataset, root=tmp_path / "data", validation=0.2), size=(35, 50), steps=2,
        tasks=run.tasks | {"boundaries": Boundaries.Config()},  # without the benchmark, which compiles for seconds
        backbone=Timm.Config(model="test_vit", vit_pyramid="taps", drop_path=0.15), decoder=InvPT.Config(width=8),
        loading=Loading(), monitoring=Monitoring(examples=1, trivial_samples=4))
    train(run, tmp_path / "run")
    result = json.loads((tmp_path / "run/evaluation/test.json").read_text())
    assert list(result["tasks"]) == list(run.tasks) and result["images"] > 0
    assert all(value == value for entry in result["tasks"].values() for value in entry["metrics"].values())  # no NaN
