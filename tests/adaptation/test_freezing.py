"""What is frozen gets no gradient and keeps its batch statistics, with every encoder and balancer."""

from __future__ import annotations

from dataclasses import replace
from shutil import copytree

import pytest
import torch
from torch import nn

from polyptych.backbones.timm import Timm
from polyptych.backbones.wide_resnet import WideResNet
from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.checkpoint import read_tensors
from polyptych.decoders.heads import Heads
from polyptych.devices import shapes_only
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.optim import Optimizer
from polyptych.run import with_components, with_tasks
from polyptych.training import Trainer
from trying_decoders import narrow
from trying_encoders import backbone as suitable
from trying_encoders import names

CHANNELS = {"a": 2, "b": 1}


def build(encoder="shared", decoder="heads", model=None, **freezing) -> Network:
    torch.manual_seed(0)
    config = replace(suitable(encoder), **freezing) if model is None else Timm.Config(model=model, **freezing)
    return Network.build(config, ENCODERS.load(encoder).Config(), narrow(decoder), CHANNELS).train()


def image(batch=2, size=64):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def losses_of(output):
    return {task: (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(i))).mean()
            for i, (task, x) in enumerate(output.final.items())}


def step(network, optimizer):
    sum(losses_of(network(image())).values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("encoder", list(names()))
def test_a_frozen_backbone_does_not_move_in_any_encoder(encoder):
    free, network = build(encoder), build(encoder, freeze="all")
    backbone = {name for (name, p), q in zip(network.named_parameters(), free.parameters(), strict=True)
                if (q.requires_grad or encoder in ("lora", "mtlora")) and not p.requires_grad}
    assert backbone and any(p.requires_grad for p in network.parameters())
    norms = {f"{name}.{key}" for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)
             and getattr(module, "frozen", "") for key in ("running_mean", "running_var", "num_batches_tracked")}
    before = state_of(network)
    optimizer = Optimizer(learning_rate=0.1).build(network, nn.Module())
    step(network, optimizer)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items()
               if name in backbone | norms)
    moved = [name for name, p in network.named_parameters() if p.requires_grad and not torch.equal(before[name], p)]
    assert moved


def test_no_memory_for_what_is_frozen():
    def saved(network):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            network.encoder(image())
        return sum(sizes)

    assert saved(build(freeze="all")) == 0 < saved(build(freeze="stages", freeze_first=2)) < saved(build()) / 2


@pytest.mark.parametrize(("what", "learns"), [
    ({"freeze": "stages", "freeze_first": 1}, {"layer2", "layer3", "layer4"}),
    ({"freeze": "blocks", "freeze_first": 3}, {"layer2.1", "layer3", "layer4"})])
def test_the_first_stages_and_blocks_with_the_stem(what, learns):
    backbone = Timm.Config(model="resnet18", **what).build()
    named = ["stem", "layer1", "layer2", "layer3", "layer4"]
    found = set()
    for name, module in zip(named, backbone.stages, strict=True):
        free = [p.requires_grad for p in module.parameters()]
        if all(free):
            found.add(name)
        elif any(free):
            found |= {f"{name}.{i}" for i, block in enumerate(module)
                      if all(p.requires_grad for p in block.parameters())}
    assert found == learns


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext"])
def test_all_but_norms(model):
    network = build(model=model, freeze="all_but_norms")
    kinds = {type(module).__name__ for module in network.encoder.modules()
             if any(p.requires_grad for p in module.parameters(recurse=False))}
    assert kinds and all("Norm" in kind for kind in kinds - {"ConvTranspose2d", "Conv2d"})
    still = [module for module in network.encoder.backbone.stages.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(module.training for module in still)


def test_what_is_added_to_trained_weights_learns():
    backbone = Timm.Config(model="test_vit", freeze="all").build()
    assert all(p.requires_grad for p in backbone.pyramid.parameters())
    assert not any(p.requires_grad for p in backbone.stages.parameters())


@pytest.mark.parametrize(("options", "where"), [
    ({"freeze": "stages", "freeze_first": 9}, "freeze-first"), ({"freeze": "blocks"}, "freeze-first"),
    ({"freeze_first": 1}, "freeze-first"), ({"freeze_until": 5}, "freeze-until"),
    ({"freeze": "all", "freeze_until": -1}, "freeze-until")])
def test_refusals(options, where):
    with pytest.raises(InputError, match=where):
        Timm.Config(model="test_resnet", **options).build()


# -- balancers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "decoder"), [
    *((name, "heads") for name in BALANCERS.names()),
    ("mgda", "jtrl"), ("uncertainty", "jtrl"),
    *(pytest.param(name, "jtrl", marks=pytest.mark.grid) for name in ("gradnorm", "pcgrad", "graddrop", "moco"))])
def test_every_balancer_trains_what_is_left(name, decoder):
    """Heads get their plain gradients where nothing is shared; a decoder that interacts has shared parameters."""
    network = build(decoder=decoder, freeze="all")
    loaded = BALANCERS.load(name)
    options = {"weights": dict.fromkeys(CHANNELS, 1.0)} if name == "fixed" else {}
    balancer = loaded.Config(**options).build(standard_weights=dict.fromkeys(CHANNELS, 1.0),
                                              likelihoods=dict.fromkeys(CHANNELS, "gaussian"))
    balancer.prepare(network, network(image()))
    splits = getattr(balancer, "splits", 1)

    def run():
        output = network(image())
        return {task: loss.square() + 1 for task, loss in losses_of(output).items()}, output

    for _ in range(2):
        _, weights = balancer.accumulate([run] * splits, network)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    assert sum(p.grad is not None and bool(p.grad.any()) for p in trained) > len(trained) / 2
    if getattr(balancer, "level", "") is None:
        assert decoder == "heads" and "nothing to balance" in balancer.remark and set(weights.values()) == {1.0}


def test_a_first_step_without_preparation():
    network = build(freeze="all")
    balancer = BALANCERS.load("nash_mtl").Config().build(standard_weights=dict.fromkeys(CHANNELS, 1.0))
    output = network(image())
    losses = losses_of(output)
    parameters = [p for p in network.parameters() if p.requires_grad]
    expected = torch.autograd.grad(sum(losses.values()), parameters, retain_graph=True)
    balancer.backward(losses, network, output)
    assert all(torch.equal(p.grad, x) for p, x in zip(parameters, expected, strict=True))


# -- learning rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["test_vit", "swin_tiny_patch4_window7_224", "convnext_tiny", "resnet18"])
def test_rates_by_layer_are_timms(model):
    import timm
    from timm.optim import param_groups_layer_decay

    with shapes_only():
        whole = timm.create_model(model)
    names = {id(p): name for name, p in whole.named_parameters()}
    expected = {names[id(p)].replace(".", "_"): group["lr_scale"]
                for group in param_groups_layer_decay(whole, layer_decay=0.7) for p in group["params"]}
    with shapes_only():
        extractor = timm.create_model(model, features_only=True)
    from polyptych.backbones._freezing import number_as_timm
    number_as_timm(extractor, model)
    found = {name.removeprefix("model.").replace(".", "_"): 0.7 ** p.layers_above
             for name, p in extractor.named_parameters()}
    assert len(found) > 20 and all(found[name] == pytest.approx(expected[name]) for name in found)


def test_every_part_has_its_own_rate():
    network = build(model="test_vit")
    groups = Optimizer(learning_rate=1.0, backbone_scale=0.5, layer_decay=0.8, decoder_scale=3.0).groups(network)
    rates = {id(p): group["peak"] for group in groups for p in group["params"]}
    heads = {rates[id(p)] for p in network.decoder.parameters()}
    first = {rates[id(p)] for p in network.encoder.backbone.stages[0].parameters()}
    added = {rates[id(p)] for p in network.encoder.backbone.pyramid.parameters()}
    assert heads == {3.0} and added == {0.5} and max(first) == min(first) == pytest.approx(0.5 * 0.8**7)


def test_stages_are_layers_where_nothing_finer_is_known():
    network = Network.build(WideResNet.Config(depth=10, width=1), ENCODERS.load("shared").Config(), Heads.Config(),
                            CHANNELS)
    rates = {round(g["peak"], 6) for g in Optimizer(learning_rate=1.0, layer_decay=0.5).groups(network)}
    assert rates == {1.0, 0.5, 0.25, 0.125, 0.0625}


# -- in training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balancer", [
    "equal", *(pytest.param(name, marks=pytest.mark.grid) for name in ("pcgrad", "moco"))])
def test_thawing_and_resuming_end_in_the_same_bits(balancer, small_run, tmp_path):
    """Frozen for two steps, then trained; resumed before, at and after that step."""
    run = with_tasks(with_components(small_run, {"balancer": balancer}), ["semseg", "depth"])
    run = replace(run, steps=4, ema=0.9, backbone=Timm.Config(model="test_resnet", freeze="all", freeze_until=2))

    def go(trainer, steps):
        if not hasattr(trainer, "stream"):
            trainer.stream = iter(trainer.batches)
        for _ in range(steps):
            trainer.step([next(trainer.stream)])
        trainer._save()
        return read_tensors(trainer.last)[0]

    first = Trainer(run, tmp_path / "whole", resume=False)
    start = {name: p.detach().clone() for name, p in first.state.network.encoder.named_parameters()}
    for step in (1, 2, 3):
        go(first, 1)
        copytree(tmp_path / "whole", tmp_path / f"parts{step}")
        same = [torch.equal(p, start[name]) for name, p in first.state.network.encoder.named_parameters()]
        assert all(same) if step <= 2 else not all(same)
    whole = go(first, 1)
    for before in (1, 2, 3):
        parts = go(Trainer(run, tmp_path / f"parts{before}", resume=True), 4 - before)
        assert whole.keys() == parts.keys()
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
