"""A captured graph gives what the network gives, bit for bit: sizes, numbers, modes, in-place code, closed modules."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from small import FAMILIES, FAST, Everything, Sized, Tangle, equal, scramble
from torch import nn

from polyptych.errors import InputError
from polyptych.search.capture.capturing import capture
from polyptych.search.capture.examples import same
from polyptych.search.capture.graph_functions import OPERATORS, require
from polyptych.search.capture.replay import replay
from polyptych.search.capture.structure import take_apart
from polyptych.search.capture.whole_modules import OPERATIONS

HEAVY = {"deepseek_vit", "gemma4_vit"}  # minutes on one core; benchmarks/search_compile.py has them
families = [pytest.param(model, marks=pytest.mark.slow) for family, model in FAMILIES.items() if family not in HEAVY]


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", [*FAST, *families])
@torch.no_grad()
def test_equals_the_network_for_every_number_and_size(name):
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    scramble(network)
    captured = capture(network)
    height, width = captured.shape[2:]
    for batch in (1, 3):
        image = rand(batch, 3, height, width)
        assert same(take_apart(captured(image))[0], take_apart(network(image))[0])
    if captured.any_size:
        image = rand(2, 3, height + 64, width + 32)
        assert same(take_apart(captured(image))[0], take_apart(network(image))[0])


@pytest.mark.parametrize(("name", "options"), [
    ("test_resnet", {"drop_path_rate": 0.4}), ("test_vit", {"drop_path_rate": 0.4, "proj_drop_rate": 0.2}),
    ("test_vit", {"attn_drop_rate": 0.3}), ("mobilenetv3_small_050", {"drop_path_rate": 0.4}),
    ("densenet121", {"drop_rate": 0.3, "num_classes": 0, "growth_rate": 8, "block_config": (2, 2, 2, 2)})])
@torch.no_grad()
def test_equals_the_network_in_training_with_the_same_random_numbers(name, options):
    torch.manual_seed(0)
    network = timm.create_model(name, **options)
    scramble(network)  # the last norms of blocks begin with zeros, so that dropping blocks would change nothing
    captured, image = capture(network), rand(3, 3, 64, 64)
    assert network.training
    twin = deepcopy(network)
    torch.manual_seed(5)
    expected = twin(image)
    torch.manual_seed(5)
    got = captured(image)
    assert torch.equal(got, expected)
    assert not all(torch.equal(captured(image), got) for _ in range(8))  # it is random
    network.load_state_dict(twin.state_dict())
    for run in (twin, captured):
        torch.manual_seed(7)
        run(image)
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), twin.buffers(), strict=True))


def test_attention_that_drops_by_code_of_its_own_stays_whole():
    captured = capture(timm.create_model("test_vit", attn_drop_rate=0.3))
    assert {closed.kind for closed in captured.closed} == {"Attention"}
    assert all("training" in closed.reason and closed.layers == 2 for closed in captured.closed)
    assert capture(timm.create_model("test_vit")).closed == ()


@torch.no_grad()
def test_in_place_code_becomes_pure():
    network = Everything().eval()
    scramble(network)
    captured = capture(network)
    assert captured.any_size and captured.closed == ()
    for image in (rand(2, 3, 24, 40), rand(1, 3, 64, 64)):
        expected, got = network(image), captured(image)
        assert list(got) == ["maps", "pair", "name"] and type(got["pair"]) is type(expected["pair"])
        assert same(take_apart(got)[0], take_apart(expected)[0]) and got["name"] == "all"
    for node in captured.graph.nodes:
        assert node.target not in OPERATORS and not node.kwargs.get("inplace")
        assert not (isinstance(node.target, str) and node.op == "call_method" and node.target.endswith("_"))


@pytest.mark.parametrize("name", [*FAST, "everything"])
@torch.no_grad()
def test_no_node_relies_on_what_another_wrote(name):
    """Every value is cloned, and every input of a node is destroyed after its last use: nothing changes."""
    torch.manual_seed(0)
    network = (Everything() if name == "everything" else timm.create_model(name)).eval()
    captured = capture(network)
    image = rand(2, 3, 64, 64)
    expected = take_apart(captured(image))[0]
    values, uses = {}, {node: len(node.users) for node in captured.graph.nodes}
    for node in captured.graph.nodes:
        if node.op == "output":
            assert same([values[n] for n in node.args[0]], expected)
            break
        if node.op == "placeholder":
            values[node] = image.clone()
            continue
        if node.op == "get_attr":
            known = captured.constants.get(node.target)
            values[node] = (dict([*network.named_parameters(), *network.named_buffers()])[node.target]
                            if known is None else known).clone()
            continue
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        function = (network.get_submodule(node.target) if node.op == "call_module" else
                    getattr(args[0], node.target) if node.op == "call_method" else node.target)
        result = function(*(args[1:] if node.op == "call_method" else args), **kwargs)
        values[node] = result.clone() if isinstance(result, torch.Tensor) else (
            type(result)(x.clone() for x in result) if isinstance(result, tuple | list) and result
            and isinstance(result[0], torch.Tensor) else result)
        for below in node.all_input_nodes:
            uses[below] -= 1
            if not uses[below] and isinstance(values[below], torch.Tensor) and values[below].is_floating_point():
                values[below].fill_(float("nan"))


@torch.no_grad()
def test_hooks_see_the_graph():
    """timm collects features by hooks on layers; a hook that changes a result is run by its module alone."""
    class Collects(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
            self.found = []
            self.layers[1].register_forward_hook(lambda module, args, result: self.found.append(result))

        def forward(self, x):
            self.found = []
            return [self.layers(x), *self.found]

    network = Collects().eval()
    captured = capture(network)
    assert equal(captured(rand(2, 3, 8, 9)), network(rand(2, 3, 8, 9))) and len(captured(rand(2, 3, 8, 9))) == 2
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    other[1][0].register_forward_hook(lambda module, args, kwargs, result: result + 1, with_kwargs=True)
    captured = capture(other)
    assert [(c.path, c.reason) for c in captured.closed] == [("1", "a hook changes what Conv2d gives")]
    assert equal([captured(rand(1, 3, 4, 4))], [other(rand(1, 3, 4, 4))])


@pytest.mark.parametrize("write", ["views", "parts"])
@torch.no_grad()
def test_writing_into_what_others_see_is_left_to_the_module(write):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            if write == "views":
                flat = y.flatten(2)
                y += 1
                return y + flat.view_as(y)
            parts = y.chunk(2, 1)
            y.mul_(2)
            return y + torch.cat(parts, 1)

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Writes(), nn.Conv2d(4, 4, 1)).eval()
    captured = capture(network)
    assert [c.path for c in captured.closed] == ["1"] and "writes" in captured.closed[0].reason
    twin = deepcopy(network)
    for seed in (1, 2):
        assert equal([captured(rand(seed, 3, 8, 8))], [twin(rand(seed, 3, 8, 8))])


def test_a_network_that_counts_its_calls_is_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x):
            self.seen.view(2, 2).add_(1)
            return self.conv(x) + self.seen.view(-1, 1, 1)

    network = Counts().eval()
    with pytest.raises(InputError, match=r"cannot be captured \(it writes into"):
        capture(network)
    assert not network.seen.any()


def test_leaves_the_network_as_it_was():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), None

        def forward(self, x):
            self.last = x.shape
            self.norm.eval()
            return self.norm(self.conv(x))

    network = nn.Sequential(Remembers()).train()
    names, before = list(network.state_dict()), deepcopy(network.state_dict())
    capture(network)
    assert network[0].last is None and network.training and network[0].norm.training
    assert list(network.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert isinstance(torch.arange(3), torch.Tensor) and "isinstance" not in globals()


@torch.no_grad()
def test_a_module_whose_structure_depends_on_the_size_stays_whole():
    network = Sized().eval()
    captured = capture(network)
    assert [(c.path, c.kind, c.layers) for c in captured.closed] == [("windows", "Windows", 1)]
    assert "size" in captured.closed[0].reason and captured.any_size
    for size in ((64, 64), (20, 30), (33, 47)):
        assert equal([captured(rand(1, 3, *size))], [network(rand(1, 3, *size))])


@torch.no_grad()
def test_or_is_opened_and_checks_the_size():
    network = Sized().eval()
    captured = capture(network, any_size=False)
    assert captured.closed == () and not captured.any_size
    assert any(node.target is require for node in captured.graph.nodes)
    image = rand(3, 3, 64, 64)
    assert equal([captured(image)], [network(image)])
    with pytest.raises(InputError, match=r"image: got \(20, 30\) where the network was captured with \(64, 64\)"):
        captured(rand(1, 3, 20, 30))


@pytest.mark.parametrize("mode", ["precision", "gradient mode"])
def test_code_that_sets_a_mode_stays_whole(mode):
    """A graph has no precision or gradient mode of its own: what runs under one must stay under it."""
    class Sets(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            if mode == "precision":
                with torch.autocast("cpu", enabled=False):
                    return self.two(torch.relu(self.one(x.float())))
            with torch.no_grad():
                x = self.one(x)
            return self.two(x)

    network = nn.Sequential(nn.Conv2d(3, 3, 1), Sets(), nn.Conv2d(4, 5, 1)).eval()
    captured = capture(network)
    assert [(c.path, c.layers, c.reason) for c in captured.closed] == [("1", 2, f"its code sets the {mode} itself")]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert equal([captured(rand(1, 3, 9, 9))], [network(rand(1, 3, 9, 9))])


@torch.no_grad()
def test_the_size_of_the_example_may_be_given():
    captured = capture(Sized().eval(), size=(40, 60))
    assert captured.shape[2:] == (40, 60)
    with pytest.raises(InputError, match=r"no result for images of \[\(1, 1\)\]"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 3)), size=(1, 1))


def test_code_that_looks_at_values_is_refused_or_stays_whole():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.one(x) if x.mean() > 0 else self.two(x)

    with pytest.raises(InputError, match=r"the network Chooses: got code at 'its own forward' .* values of a tensor"):
        capture(Chooses())
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Chooses(), nn.Conv2d(3, 5, 1)).eval()
    captured = capture(network)
    assert [(c.path, c.layers) for c in captured.closed] == [("1", 2)]
    image = rand(2, 3, 9, 9)
    assert equal([captured(image)], [network(image)])


@torch.no_grad()
def test_named_modules_in_a_row_are_the_last_way():
    network = Tangle().eval()
    with pytest.raises(InputError, match="whole="):
        capture(network)
    captured = capture(network, whole=["blocks.*"])
    assert [closed.path for closed in captured.closed] == ["blocks.0", "blocks.1", "blocks.2"]
    assert "in a row" in captured.notes[0]
    assert equal(captured(rand(2, 3, 20, 24)), network(rand(2, 3, 20, 24)))
    with pytest.raises(InputError, match=r"what enters blocks.1.*no named module returned"):
        capture(network, whole=["blocks.1"])


def test_what_is_not_made_of_tensors_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return {"image": {1, 2}}

    with pytest.raises(InputError, match="a result of type set"):
        capture(Odd())


class Factories(nn.Module):
    """Every tensor that code may make from a size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        b, _, h, w = x.shape
        grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, h), torch.arange(w).float(), indexing="ij"))
        mask = torch.ones(h, w, dtype=torch.bool).tril() if h > 2 else None
        flat = x.flatten(2).transpose(1, 2).reshape(b, h * w, 4)
        parts = flat.split(2, dim=-1)
        return (torch.cat(parts, -1) + grid.flatten(1).mean(1).sum(), x.masked_fill(~mask, 0.0),
                x.new_zeros(b, 2).index_fill(1, torch.tensor([1]), 3.0), F.pad(x, (0, w // 3, h % 3, 0)))


@torch.no_grad()
def test_tensors_made_from_sizes():
    network = Factories().eval()
    captured = capture(network, any_size=False)
    for size in ((64, 64), (40, 56)):
        assert equal(list(captured(rand(2, 3, *size))), list(network(rand(2, 3, *size))))


@torch.no_grad()
def test_operations_with_layers_inside_are_counted():
    network = timm.create_model("mobilevit_xxs")
    captured = capture(network)
    called = {str(node.target) for node in captured.graph.nodes if node.op == "call_module"}
    inside = sum(isinstance(m, OPERATIONS) and path not in called for path, m in network.named_modules())
    assert sum(closed.layers for closed in captured.closed) == inside == 48
    assert {closed.kind for closed in captured.closed} == {"MobileVitBlock"}
    assert same(replay(captured.graph, network.eval(), captured.constants, rand(1, 3, 64, 64)),
                [network(rand(1, 3, 64, 64))])
