"""What a network does in training only, and what it does in the backward pass, is not lost by its capture."""

from __future__ import annotations

import random
import re
from copy import deepcopy

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from polyptych.errors import InputError
from polyptych.search.capture.capturing import capture
from polyptych.search.capture.replay import replay


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.5 * gradient


reverse = Reversed.apply  # bound at import, as published code has it


def drop_path(x, training):
    if not training:
        return x
    return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5)) / 0.5


def later(x, training, rate):
    return F.dropout(x, rate, training)


class Part(nn.Module):
    """A module whose own code does what its layers do not show."""

    def __init__(self, what: str):
        super().__init__()
        self.what, self.conv = what, nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        y = self.conv(x)
        return getattr(self, self.what)(x, y)

    def dropout(self, x, y):
        return F.dropout(y, 0.5, self.training)

    def dropout_by_a_function(self, x, y):
        return later(y, self.training, 0.5)

    def alpha_dropout(self, x, y):
        return F.alpha_dropout(y, 0.5, self.training)

    def batch_norm(self, x, y):
        return F.batch_norm(y, self.mean, self.variance, training=self.training)

    def instance_norm(self, x, y):
        return F.instance_norm(y, self.mean, self.variance, use_input_stats=self.training)

    def drop_path(self, x, y):
        return x + drop_path(y, self.training)

    def noise(self, x, y):
        return y + 0.1 * torch.randn_like(y) if self.training else y

    def layer_drop(self, x, y):
        return x if self.training and random.random() < 0.5 else x + y

    def counts(self, x, y):
        if self.training:
            self.seen += 1
        return y

    def other_weights(self, x, y):
        return y * (self.variance if self.training else self.mean + 1).view(-1, 1, 1)

    def frozen_layer(self, x, y):
        self.norm.eval()
        return self.norm(y)

    def by_gradient_mode(self, x, y):
        return y * 2 + x if torch.is_grad_enabled() else y

    def reversal(self, x, y):
        return reverse(y)

    def tensor_hook(self, x, y):
        if y.requires_grad:
            y.register_hook(lambda gradient: -gradient)
        return y

    def no_gradient(self, x, y):
        with torch.set_grad_enabled(False):
            return y * 2 + x

    def own_checkpoint(self, x, y):
        return checkpoint(lambda z: F.dropout(self.conv(z), 0.5, self.training), x, use_reentrant=False)

    def detached(self, x, y):
        return y.detach() + x

    def no_dropout(self, x, y):
        return F.dropout(y, 0.0, self.training)


KEPT = ["dropout", "dropout_by_a_function", "alpha_dropout", "batch_norm", "instance_norm", "drop_path", "noise",
        "layer_drop", "counts", "other_weights", "frozen_layer", "by_gradient_mode", "reversal", "tensor_hook",
        "no_gradient", "own_checkpoint"]


def network(what: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), Part(what), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))


def trained(run, root, seed):
    torch.manual_seed(seed)
    random.seed(seed)
    image = torch.rand(4, 3, 9, 11, generator=torch.Generator().manual_seed(2))
    result = run(image)
    gradients = torch.autograd.grad(result.square().sum(), list(root.parameters()), allow_unused=True)
    return [result, *root.buffers(), *gradients]


@pytest.mark.parametrize("what", [*KEPT, "detached", "no_dropout"])
def test_a_training_step_is_that_of_the_network(what, request):
    jaxtyping.config.update("jaxtyping_disable", True)  # the checks of lists draw from Python's random numbers
    request.addfinalizer(lambda: jaxtyping.config.update("jaxtyping_disable", False))
    root = network(what)
    before, state = deepcopy(root.state_dict()), torch.get_rng_state()
    captured = capture(root)
    assert all(torch.equal(x, y) for x, y in zip(before.values(), root.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in root.modules())
    assert [closed.path for closed in captured.closed] == (["1"] if what in KEPT else [])
    twin = deepcopy(root)
    for seed in range(4):
        got = trained(lambda x: replay(captured.graph, root, captured.constants, x, gradients=True)[0], root, seed)
        expected = trained(twin, twin, seed)
        for x, y in zip(got, expected, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)


def test_it_is_said_which_modules_stay_whole_and_why():
    for what, said in (("dropout", "does otherwise in training"), ("reversal", "function of its own"),
                       ("layer_drop", "otherwise in training|random numbers"), ("tensor_hook", "hook")):
        captured = capture(network(what))
        assert any(re.search(f"Part stays whole: .*{said}.*1 layer", line) for line in captured.remarks()), what
    assert capture(network("no_dropout")).remarks() == []


def test_what_the_networks_own_code_does_is_said_or_refused():
    """There is no module around it that could stay whole."""
    class Own(Part):
        def __init__(self, what):
            super().__init__(what)
            self.conv = nn.Conv2d(3, 4, 1)

    assert any("otherwise in training" in line for line in capture(Own("dropout_by_a_function")).remarks())
    assert any("training" in line for line in capture(Own("dropout")).remarks())
    with pytest.raises(InputError, match=r"cannot be captured \(its gradients are those of a function of its own"):
        capture(Own("reversal"))


@pytest.mark.parametrize("kind", ["full", "pre"])
def test_hooks_on_gradients_stay_with_their_module(kind):
    root = network("no_dropout")
    register = root[1].register_full_backward_hook if kind == "full" else root[1].register_full_backward_pre_hook
    register((lambda module, given, got: tuple(-g for g in given)) if kind == "full" else
             lambda module, got: tuple(-g for g in got))
    assert [closed.path for closed in capture(root).closed] == ["1"]


def test_an_exact_backward_of_its_own_is_opened():
    """As timm's activations that save memory: the gradient is the same, so nothing is lost."""
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return Square.apply(self.conv(x))

    assert capture(nn.Sequential(nn.Conv2d(3, 4, 1), Squares(), nn.Conv2d(4, 4, 1))).closed == ()
