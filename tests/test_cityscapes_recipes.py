"""The recipes on Cityscapes: complete, recorded exactly, and the networks they state."""

from __future__ import annotations

import pytest

from polyptych.networks import Network
from polyptych.recipes._catalog import load
from polyptych.record import decode, encode
from polyptych.run import Run


@pytest.mark.parametrize(("recipe", "parameters"), [
    ("cityscapes_ema_net", 5_301_766), ("cityscapes_ema_net_multi_scale", 8_512_998),
    ("cityscapes_ema_net_full", 5_301_766 + 38 * (131_072 - 2_048))])
def test_recipe(recipe: str, parameters: int) -> None:
    run = load(recipe)()
    assert run.recipe == recipe
    assert decode(Run, encode(run), "run") == run
    assert run.size == run.decoder.size
    assert set(run.balancer.weights) == set(run.tasks)
    network = Network.build(run.backbone.without_weights(), run.encoder, run.decoder,
                            {"semseg": 19, "inverse_depth": 1})
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_second_cosine_of_the_multi_scale_recipe_ends_with_the_run() -> None:
    run = load("cityscapes_ema_net_multi_scale")()
    share = [run.schedule.share(step, run.steps) for step in range(run.steps)]
    assert share[0] == share[9_300] == 1
    assert share[9_299] < 1e-6 and share[-1] < 1e-6
