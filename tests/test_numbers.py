"""Numbers of version 0.1.0 that later versions keep: outputs, gradients, and the first steps of training.

``python tests/test_numbers.py`` prints today's. A test that fails here means that recorded runs can no longer be put
beside new ones: restore the numbers, or raise ``NUMERICS`` (:mod:`polyptych.component`) or the ``numerics`` of the one
component, say so in CHANGELOG.md, and record anew. They are compared loosely enough for another processor, whose
matrix products round in another order, and tightly enough that a wrong factor or another random stream shows.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.component import NUMERICS
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.networks import Network
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, Run, with_components, with_tasks
from polyptych.training import Trainer

CHANNELS = {"semseg": 5, "depth": 1, "normals": 3}
NETWORKS = [("shared", "heads"), ("mtan", "heads"), ("cross_stitch", "heads"), ("shared", "ema_net"),
            ("shared", "mti_net"), ("shared", "demt")]
BALANCERS = ["fixed", "uncertainty", "gradnorm", "nash_mtl", "famo", "pcgrad"]
TOLERANCE = 2e-4

RECORDED = json.loads((Path(__file__).parent / "numbers.json").read_text("utf-8")) if __name__ != "__main__" else {}


def sizes(tensors) -> float:
    return sum(float(x.detach().double().abs().sum()) for x in tensors)


def of_network(encoder: str, decoder: str) -> dict[str, float]:
    """Sizes of predictions and of gradients for a fixed image and fixed directions."""
    torch.manual_seed(0)
    network = Network.build(Timm.Config(model=ENCODERS.load(encoder).example), ENCODERS.load(encoder).Config(),
                            DECODERS.load(decoder).Config(), CHANNELS).train()
    image = torch.rand(2, 3, 65, 98, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    output = network(image)
    predictions = [*output.final.values(), *(x for extra in output.auxiliary for x in extra.prediction.values())]
    torch.manual_seed(2)
    sum((x * torch.randn_like(x)).mean() for x in predictions).backward()
    return {"predictions": sizes(predictions),
            "gradients": sizes(p.grad for p in network.parameters() if p.grad is not None)}


def small_run(**slots: str) -> Run:
    run = with_tasks(with_components(rooms(), slots), ["semseg", "depth", "normals"])
    return dataclasses.replace(
        run, size=(48, 64), steps=6, batch_size=2, execution=Execution(device="cpu"), loading=Loading(workers=0),
        dataset=dataclasses.replace(run.dataset, size=(48, 64), val_frames=2, test_frames=2, frames=8),
        backbone=dataclasses.replace(run.backbone, model="test_resnet"),
        monitoring=Monitoring(log_every=100, validate_every=100, save_every=100, examples=1, trivial_samples=2))


def of_training(balancer: str) -> dict[str, float]:
    """Losses of the third step, and the size of all parameters after it."""
    run = small_run(balancer=balancer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, Path(folder) / "run", False)
        batches = iter(trainer.batches)
        for _ in range(3):
            losses, _ = trainer.step([next(batches)])
        return {**{name: float(loss) for name, loss in losses.items()},
                "parameters": sizes(trainer.state.network.parameters())}


@pytest.mark.parametrize(("encoder", "decoder"), NETWORKS)
def test_a_network_gives_what_it_gave(encoder: str, decoder: str) -> None:
    assert of_network(encoder, decoder) == pytest.approx(RECORDED[f"{encoder}+{decoder}"], rel=TOLERANCE)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_training_takes_the_steps_that_it_took(balancer: str) -> None:
    assert of_training(balancer) == pytest.approx(RECORDED[balancer], rel=TOLERANCE)


def test_the_generation_belongs_to_these_numbers() -> None:
    assert RECORDED["generation"] == NUMERICS


if __name__ == "__main__":
    found = {"generation": NUMERICS, **{f"{e}+{d}": of_network(e, d) for e, d in NETWORKS},
             **{name: of_training(name) for name in BALANCERS}}
    json.dump(found, sys.stdout, indent=1)
