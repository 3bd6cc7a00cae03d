"""Encoders with the rest of a run: balancers at the cut, decoders whose tasks interact, and resuming."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain import RESNET, SEGNET, WIDE, image

from polyptych.balancers.graddrop import GradDrop
from polyptych.balancers.mgda import MGDA
from polyptych.checkpoint import read_tensors
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import CATALOG
from polyptych.encoders.cross_stitch import CrossStitch
from polyptych.encoders.mtan import Mtan
from polyptych.encoders.nddr import Nddr
from polyptych.encoders.split import Split
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.run import with_components, with_tasks
from polyptych.training import Trainer
from trying_encoders import backbone as suitable

CHANNELS = {"a": 2, "b": 1}
FEATURES_IN_COMMON = ("shared", "split", "dense", "mtan", "searched", "task_prompter", "lora")  # others have no cut


def run_once(encoder, backbone=RESNET, head="fused"):
    """A network in training mode, its output and its losses."""
    torch.manual_seed(0)
    network = Network.build(backbone, encoder, Heads.Config(head=head), CHANNELS).train()
    output = network(image(dtype=torch.float32))
    directions = {task: torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
                  for i, (task, x) in enumerate(output.final.items())}
    return network, output, {task: (x * directions[task]).mean() for task, x in output.final.items()}


def balancer_of(kind, **options):
    return kind.Config(**options).build(standard_weights=dict.fromkeys(CHANNELS, 1.0))


CUTS = {**{name: (name, suitable(name), "fused") for name in CATALOG.names()},
        "segnet-mtan": ("mtan", SEGNET, "linear"), "wrn-mtan": ("mtan", WIDE, "linear")}


@pytest.mark.parametrize(("name", "backbone", "head", "level"), [
    pytest.param(*cut, level, id=f"{name}-{level}", marks=[pytest.mark.grid] * ((number + (level == "parameters")) % 2))
    for number, (name, cut) in enumerate(CUTS.items()) for level in ("parameters", "representation")])
def test_gradients_are_the_weighed_sum_of_all_tasks(name, backbone, head, level):
    """Also for what lies between cut and heads (masks, refinements, units), and through every map of the cut."""
    network, output, losses = run_once(CATALOG.load(name).Config(), backbone, head)
    balancer = balancer_of(MGDA, level=level, weight_heads=True, normalization="none")
    frozen = name == "mtlora"  # of which gradients of parameters are compared, where there is no cut
    if name in ("single", "stan") or (level == "representation" and name not in FEATURES_IN_COMMON and not frozen):
        with pytest.raises(InputError, match="no trainable parameter is shared" if name in ("single", "stan") else
                           "the encoder shares no trained features"):
            balancer.backward(losses, network, output)
        return
    parameters = [p for p in network.parameters() if p.requires_grad]
    rows = {task: torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for task, loss in losses.items()}
    weights = balancer.backward(losses, network, output)
    assert sum(weights.values()) == pytest.approx(1) and 0.01 < min(weights.values()) < 0.49
    scale = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
    for i, parameter in enumerate(parameters):
        if frozen and not any(rows[task][i] is not None for task in CHANNELS):
            continue  # the last common update
        parts = [float(weights[task]) * rows[task][i] for task in CHANNELS if rows[task][i] is not None]
        assert torch.allclose(parameter.grad, sum(parts), atol=1e-5 * scale)


@pytest.mark.parametrize("encoder", [Mtan.Config(), Split.Config(private=2)], ids=["mtan", "split"])
def test_a_balancer_of_features_works_at_the_cut(encoder):
    """GradDrop needs one tensor per task at the cut, and gives one back."""
    network, output, losses = run_once(encoder)
    balancer_of(GradDrop).backward(losses, network, output)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("encoder", "decoder"), [
    (Mtan.Config(), "ema_net"), (CrossStitch.Config(), "mti_net"), (Nddr.Config(shortcut=True), "pad_net")],
    ids=["mtan-ema_net", "cross_stitch-mti_net", "nddr-pad_net"])
def test_interacting_decoders(encoder, decoder):
    """Each task's own features reach the prediction of the other, through the decoder."""
    torch.manual_seed(0)
    network = Network.build(RESNET, encoder, DECODERS.load(decoder).Config(), CHANNELS).train()
    output = network(image(dtype=torch.float32))
    own = network.encoder.masks if isinstance(encoder, Mtan.Config) else network.encoder.backbones
    gradients = torch.autograd.grad(output.final["a"].square().mean(), list(own["b"].parameters()), allow_unused=True)
    assert any(x is not None and x.abs().max() > 0 for x in gradients)
    predictions = [*output.final.values(), *(x for extra in output.auxiliary for x in extra.prediction.values())]
    sum(x.square().mean() for x in network(image(dtype=torch.float32)).final.values()).backward()
    assert len(predictions) > 2 and all(x.isfinite().all() for x in predictions)


@pytest.mark.parametrize("encoder", [
    CrossStitch.Config(learning_rate_factor=10.0),
    pytest.param(Nddr.Config(shortcut=True), marks=pytest.mark.grid),
    pytest.param(Mtan.Config(), marks=pytest.mark.grid)], ids=["cross_stitch", "nddr", "mtan"])
def test_resuming_ends_in_the_same_bits(encoder, small_run, tmp_path):
    run = with_tasks(with_components(small_run, {"balancer": "equal"}), ["semseg", "depth"])
    run = replace(run, encoder=encoder, steps=3, monitoring=replace(run.monitoring, save_every=2))
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
    assert whole.keys() == halves.keys() and any(".units." in name or ".masks." in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []
