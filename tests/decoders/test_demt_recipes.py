"""The recipes of DeMT: complete, recorded exactly, and the published number of parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyptych.networks import Network
from polyptych.recipes._catalog import load
from polyptych.record import decode, encode
from polyptych.run import Run

CHANNELS = {"nyud_demt": {"semseg": 40, "depth": 1, "normals": 3, "boundaries": 1},
            "pascal_demt": {"semseg": 21, "parts": 7, "saliency": 1, "boundaries": 1, "normals": 3}}


@pytest.mark.parametrize("recipe", CHANNELS)
def test_recipe(recipe: str) -> None:
    run = load(recipe)()
    assert run.recipe == recipe and run.decoder.name == "demt" and set(run.tasks) == set(CHANNELS[recipe])
    assert decode(Run, encode(run), "run") == run
    assert f"polyptych train {recipe} " in (load(recipe).__doc__ or "")


def test_published_network() -> None:
    """32.07 M on Swin-T, whose four maps are normalized."""
    run = load("nyud_demt")()
    config = replace(run.decoder, attention="pixel", offsets="published")
    network = Network.build(replace(run.backbone, pretrained=False), run.encoder, config, CHANNELS["nyud_demt"])
    assert sum(p.numel() for p in network.parameters()) == 27_520_698 + 4_549_561
