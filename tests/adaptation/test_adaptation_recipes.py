"""The recipes of frozen and adapted transformers: recorded exactly, with parts that fit together."""

from __future__ import annotations

import pytest
import torch

from polyptych.recipes._catalog import load
from polyptych.record import decode, encode
from polyptych.run import Run
from polyptych.types import LabelInfo

CLASSES = {"semseg": 40, "parts": 7}


@pytest.mark.parametrize("recipe", ["nyud_dinov3_frozen", "nyud_mtlora", "pascal_mtlora"])
def test_complete_and_recorded_exactly(recipe):
    function = load(recipe)
    run = function()
    assert run.recipe == recipe and decode(Run, encode(run), "run") == run
    assert f"polyptych train {recipe} " in function.__doc__
    assert run.balancer.weights == {name: config.owner.standard_weight for name, config in run.tasks.items()}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["nyud_dinov3_frozen", "nyud_mtlora"])
def test_parts_fit(recipe):
    run = load(recipe)()
    labels = {task: LabelInfo(tuple(map(str, range(CLASSES.get(task, 0))))) for task in run.tasks}
    network = run.build_network(run.build_tasks(labels), pretrained=False)
    assert any(not p.requires_grad for p in network.encoder.parameters())
    with torch.no_grad():
        final = network.eval()(torch.zeros(1, 3, *run.size, dtype=torch.uint8)).final
    assert {task: tuple(x.shape[2:]) for task, x in final.items()} == dict.fromkeys(run.tasks, run.size)
