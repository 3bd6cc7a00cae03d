"""Profiles against numbers worked out by hand, on toys and on published networks."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from polyptych.backbones._base import Backbone
from polyptych.backbones.timm import Timm
from polyptych.decoders._base import Decoder
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import Encoder
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.ops.deform import deformable_convolution
from polyptych.profiling.memory import StorageWatch, Supervision, peak, training_peak
from polyptych.profiling.operators import count
from polyptych.profiling.profile import cost, profile
from polyptych.profiling.structure import sharing
from polyptych.profiling.timing import LARGEST_BATCH, throughput
from polyptych.types import Auxiliary, Features, FeatureSpec, Output, TaskFeatures

N = 6 * 8  # pixels of the toys' images
CPU = torch.device("cpu")


class ToyBackbone(Backbone):
    """A 3x3 convolution to 4 channels; its stage is called by the encoder, never the backbone itself."""

    spec, multiple = FeatureSpec((4,), (1,)), 1

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1, bias=False)])

    def features(self, states):
        return Features((states[-1],))


class ToyEncoder(Encoder):
    """The backbone's stage, then a 1x1 convolution with BatchNorm of the encoder's own."""

    multiple, mean, std = 1, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)

    def __init__(self, tasks):
        super().__init__()
        self.tasks, self.backbone = tasks, ToyBackbone()
        self.adapt = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, image):
        features = Features((self.adapt(self.backbone.stages[0](image)),))
        return TaskFeatures(dict.fromkeys(self.tasks, features), shared=features.maps)


class ToyDecoder(Decoder):
    """A mixing 1x1 convolution for all tasks, a head for each, and a parameter that nobody uses."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)
        self.heads = nn.ModuleDict({task: nn.Conv2d(4, c, 1) for task, c in channels.items()})
        self.idle = nn.Parameter(torch.zeros(5))

    def forward(self, features):
        return Output({task: head(self.mix(features[task].maps[0])) for task, head in self.heads.items()})


@pytest.fixture
def toy():
    torch.manual_seed(0)
    channels = {"semseg": 40, "depth": 1}
    return Network(ToyEncoder(tuple(channels)), ToyDecoder(channels))


def quick(network, **options):
    return profile(network, **{"size": (6, 8), "repeats": 2, "seconds": 0.01} | options)


def test_toy_by_hand(toy):
    found = quick(toy)
    by_part = {part.name: (part.parameters, part.multiply_adds) for part in found.parts}
    assert by_part == {
        "backbone": (108, N * 108),
        "encoder": (16 + 8, N * 16),
        "decoder": (20 + 5, 2 * N * 16),  # the mixing convolution runs once for each task
        "heads": (5 * 41, N * 4 * 41)}
    assert found.parameters == 108 + 24 + 25 + 205
    assert found.multiply_adds == N * (108 + 16 + 32 + 164)
    assert found.multiply_adds_by_operator == {"aten.convolution": found.multiply_adds}
    assert found.sharing.shared == 108 + 24 + 20 and found.sharing.partly == 0
    assert found.sharing.private == {"semseg": 200, "depth": 5} and found.sharing.unused == 5
    assert not [operator for operator in found.uncounted if operator.kind == "unknown"]
    memory = found.memory
    assert (memory.parameters, memory.gradients, memory.optimizer) == (4 * 362, 4 * 362, 8 * 362)
    assert memory.buffers == 4 * (3 + 3 + 4 + 4) + 8


def test_inference_memory_of_the_toy_by_hand(toy):
    # at the last head: features 4, semseg's prediction 40, depth's mixed features 4 and prediction 1
    assert quick(toy).memory.inference == 4 * N * 49
    assert quick(toy, batch_size=3).memory.inference == 3 * 4 * N * 49


def test_memory_of_a_backward_pass_by_hand():
    x = torch.rand(100, requires_grad=True)
    x.grad = torch.zeros(100)

    def step():
        a = x.sin()
        b = a.sin()
        b.sum().backward()  # at its peak: a, b, the gradient of a, cos(x), their product; the sum and its gradient

    assert peak(step, CPU) == 4 * (5 * 100 + 2)


def test_storages_are_counted_once_and_until_they_are_freed():
    x = torch.rand(10)
    with StorageWatch() as watch:
        y = x + 1
        view = y[2:].reshape(2, 4)
        assert watch.alive == 40
        view.mul_(2)
        x.add_(1)  # was there before
        assert watch.alive == watch.peak == 40
        del y
        assert watch.alive == 40
        del view
        assert watch.alive == 0
        for _ in range(50):
            (x + 1) * 2
        assert watch.alive == 0 and watch.peak == 80


def test_training_memory_grows_with_the_batch_and_holds_what_is_saved(toy):
    one, four = (quick(toy, batch_size=b).memory.training for b in (1, 4))
    saved = 4 * N * (3 + 4 + 4 + 2 * 4 + 41)  # the image, two feature maps, mixed features, predictions
    going_back = 4 * N * (40 + 4 + 4)  # gradients of semseg's prediction, of its mixed features, of the features
    assert saved < one < 1.1 * (saved + going_back) and 3.8 * one < four < 4 * one
    assert quick(toy, training=False).memory.training is None


def traced_peak(step) -> int:
    """The same from torch's profiler, which also sees the workspaces of kernels."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("kind", ["toy", "resnet"])
def test_memory_agrees_with_the_profiler(toy, kind):
    network, size = (toy, (6, 8)) if kind == "toy" else (
        Network.build(Timm.Config(model="test_resnet"), Shared.Config(), Heads.Config(), {"a": 9, "b": 1}), (96, 128))
    image = torch.rand(2, 3, *size)

    def step():
        with torch.no_grad():
            network.eval()(image)

    mine, traced = peak(step, CPU), traced_peak(step)
    assert mine <= traced < 1.1 * mine + 2**14

    network.train()
    mine = training_peak(network, lambda: network(image), CPU)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def train():
        output = network(image)
        torch.stack([Supervision.apply(x) for x in output.final.values()]).sum().backward()

    assert mine <= traced_peak(train) < 1.1 * mine + 2**14


def test_attention_counts_and_hand_count():
    heads, length, width = 2, 12, 8

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(heads * width, 3 * heads * width)

        def forward(self, x):
            q, k, v = (y.unflatten(-1, (heads, width)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v)

    network, x = Attention(), torch.rand(1, length, heads * width)
    found, _ = count(network, lambda: network(x))
    assert found.by_module == {"": 2 * heads * length * length * width, "qkv": length * 16 * 48}
    assert found.total == 2 * heads * length**2 * width + length * 16 * 48
    assert all(operator.kind == "movement" for operator in found.uncounted)


def test_operators_without_a_formula_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            x = torchvision.ops.roi_align(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], (6, 8))
            x = torch.fft.fft2(x).abs().relu()
            return x.mean((2, 3)) + torch.mv(torch.rand(3, 3), torch.rand(3))

    network, x = Odd(), torch.rand(1, 3, 6, 8)
    found, _ = count(network, lambda: network(x))
    unknown = {operator.name: operator.calls for operator in found.uncounted if operator.kind == "unknown"}
    assert unknown == {"torchvision.roi_align": 1, "aten._fft_c2c": 1, "aten.mv": 1}
    assert found.total == 0
    assert {"aten.relu", "aten.mean", "aten.abs"} <= {o.name for o in found.uncounted if o.kind == "per_element"}
    assert found.uncounted[0].kind == "unknown"


def test_sharing_by_all_some_one_and_none():
    everyone, two, one, extra, none = (nn.Parameter(torch.ones(n)) for n in (1, 2, 3, 4, 5))
    both = everyone.sum() * two.sum()
    final = {"a": both.reshape(1, 1, 1, 1), "b": (both + one.sum()).reshape(1, 1, 1, 1),
             "c": (everyone * everyone.detach()).reshape(1, 1, 1, 1)}
    auxiliary = [Auxiliary({"a": (extra.sum() * two.sum()).reshape(1, 1, 1, 1)})]
    found = sharing([everyone, two, one, extra, none], Output(final, auxiliary))
    assert (found.shared, found.partly, found.private) == (1, 2, {"a": 0, "b": 3, "c": 0})
    assert (found.auxiliary, found.unused) == (4, 5)
    alone = sharing([everyone, none], Output({"c": final["c"]}))
    assert (alone.shared, alone.private, alone.unused) == (0, {"c": 1}, 5)


def test_frozen_parameters_are_counted_as_used_but_not_trained(toy):
    toy.encoder.requires_grad_(False)
    found = quick(toy)
    assert found.sharing.shared == 152
    assert found.memory.gradients == 4 * (362 - 132)
    assert not toy.encoder.backbone.stages[0].weight.requires_grad


def test_the_network_stays_as_it_is_and_counts_repeat(toy):
    toy.train()
    toy.encoder.adapt[1].eval()
    toy(torch.rand(2, 3, 6, 8)).final["depth"].sum().backward()
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    grads = {name: p.grad for name, p in toy.named_parameters()}
    values = {name: None if g is None else g.clone() for name, g in grads.items()}
    state = torch.get_rng_state()
    first, second = quick(toy), quick(toy)
    for field in ("parameters", "multiply_adds", "uncounted", "parts", "sharing", "memory", "tree"):
        assert getattr(first, field) == getattr(second, field)
    assert toy.training and not toy.encoder.adapt[1].training
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())
    for name, parameter in toy.named_parameters():
        assert parameter.grad is grads[name]
        assert values[name] is None or torch.equal(parameter.grad, values[name])
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy.modules())


def test_tree_adds_up_and_credits_modules_that_are_not_called(toy):
    tree = quick(toy, depth=4).tree
    encoder, decoder = tree.children
    assert (encoder.name, decoder.name) == ("encoder", "decoder")
    backbone, adapt = encoder.children
    assert (backbone.name, backbone.type, backbone.multiply_adds) == ("backbone", "ToyBackbone", N * 108)
    assert encoder.multiply_adds == backbone.multiply_adds + adapt.multiply_adds
    assert tree.multiply_adds == encoder.multiply_adds + decoder.multiply_adds
    assert [child.name for child in decoder.children] == ["mix", "heads"]
    assert quick(toy, depth=0).tree.children == ()


def test_json_holds_everything(toy):
    data = json.loads(json.dumps(quick(toy).to_json()))
    assert data["setting"]["size"] == [6, 8] and data["setting"]["threads"] == torch.get_num_threads()
    assert {part["name"] for part in data["parts"]} == {"backbone", "encoder", "decoder", "heads"}
    assert data["tree"]["children"][0]["name"] == "encoder"


def test_times_are_ordered_and_throughput_stops(toy):
    found = quick(toy, repeats=12, seconds=0.3)
    assert 0 < found.latency.percentile_10 <= found.latency.median <= found.latency.percentile_90
    assert 3 <= found.latency.runs <= 12
    batches = [rate.batch_size for rate in found.throughput.rates]
    assert batches == [2**i for i in range(len(batches))]
    assert found.throughput.best.images_per_second == max(r.images_per_second for r in found.throughput.rates)


def test_throughput_survives_out_of_memory():
    def step(batch):
        if batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda: None

    found = throughput(step, CPU, 0, 60.0)
    assert [rate.batch_size for rate in found.rates] == [1, 2, 4] and found.stopped_by == "memory"
    assert throughput(step, CPU, 2**60, 60.0).stopped_by == "memory"
    assert throughput(lambda batch: lambda: None, CPU, 0, 60.0).rates[-1].batch_size == LARGEST_BATCH


def test_cost_is_the_profile_in_short(toy):
    short, full = cost(toy, size=(6, 8), seconds=0.01), quick(toy)
    assert (short.parameters, short.shared_parameters, short.multiply_adds) == (362, 152, full.multiply_adds)
    assert (short.memory_inference, short.memory_training) == (full.memory.inference, full.memory.training)
    assert short.latency > 0 and short.throughput > 0


@pytest.mark.parametrize(("options", "text"), [
    ({"size": (0, 8)}, r"--size: got \(0, 8\); needs a positive number"),
    ({"batch_size": 0}, "--batch-size: got 0; needs a positive number"),
    ({"device": "cuda:99"}, r"--device: got 'cuda:99', which is not there; needs one of auto, cpu"),
    ({"device": "gpu"}, r"--device: got 'gpu'; needs one of auto, cpu"),
])
def test_bad_input(toy, options, text):
    with pytest.raises(InputError, match=text):
        quick(toy, **options)


def test_not_enough_memory_is_one_line(toy):
    def exhausted(image):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    toy.encoder.forward = exhausted  # the copy has it too
    with pytest.raises(InputError, match="--batch-size: got 2, for which cpu is out of memory; needs one that fits"):
        quick(toy, batch_size=2)


def test_a_batch_too_small_to_train_on_is_refused():
    network = Network.build(Timm.Config(model="test_resnet"), Shared.Config(), Heads.Config(), {"depth": 1})
    with pytest.raises(InputError, match=r"--batch-size: got one image of 32x32 .* a single value"):
        quick(network, size=(32, 32))
    assert quick(network, size=(32, 32), batch_size=2).memory.training > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_counts_the_same_and_takes_less_memory(toy, precision):
    low, full = quick(toy, precision=precision, training=False), quick(toy, training=False)
    assert low.multiply_adds == full.multiply_adds and low.memory.inference < full.memory.inference


def test_single_shares_nothing():
    network = Network.build(Timm.Config(model="test_resnet"), Single.Config(), Heads.Config(), {"a": 2, "b": 1})
    found = quick(network, size=(64, 64))
    assert found.sharing.shared == found.sharing.partly == 0
    assert found.sharing.auxiliary == 0
    assert sum(found.sharing.private.values()) + found.sharing.unused == found.parameters
    assert {part.name: part.parameters for part in found.parts}["encoder"] == 0


def test_deformable_convolution_counts_as_a_convolution():
    x, offset, weight = torch.rand(2, 8, 5, 6), torch.zeros(2, 4, 5, 6), torch.rand(4, 8, 1, 1)
    layer = nn.Conv2d(8, 4, 1)
    found, _ = count(layer, lambda: deformable_convolution(x, offset, weight, method="compiled"))
    assert found.total == count(layer, lambda: layer(x))[0].total == 2 * 4 * 30 * 8
    assert {operator.kind for operator in found.uncounted} == {"movement", "per_element"}  # places that are no numbers


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "test_convnext"])
def test_families_of_backbones_leave_nothing_unknown(backbone):
    network = Network.build(Timm.Config(model=backbone), Shared.Config(), Heads.Config(), {"a": 2, "b": 1})
    found = quick(network, size=(160, 160), training=False)
    assert not [operator for operator in found.uncounted if operator.kind == "unknown"]
    assert sum(part.multiply_adds for part in found.parts) == found.multiply_adds > 0
