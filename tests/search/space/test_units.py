"""Units: every weight in one, published counts of operations, regions, skips, ties, names that last."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from small import FAMILIES, FAST, SEVERAL, Everything, rest
from torch import nn

from polyptych.backbones.timm import Timm
from polyptych.search.capture.capturing import capture
from polyptych.search.capture.whole_modules import is_norm
from polyptych.search.space.anchors import tensors_of
from polyptych.search.space.units import GRANULARITIES, find_units

HEAVY = {"deepseek_vit", "gemma4_vit"}
many = [*FAST, *(pytest.param(m, marks=pytest.mark.slow) for f, m in FAMILIES.items() if f not in HEAVY)]


@cache
def captured(name):
    """A network of timm and its graph, at which tests only look."""
    network = timm.create_model(name).eval()
    return network, capture(network)


def units_of(network, granularity="region"):
    return find_units(captured(network)[1] if isinstance(network, str) else capture(network), granularity)


@pytest.mark.parametrize("name", many)
def test_every_weight_that_is_used_is_in_one_unit(name):
    network, found = captured(name)
    nodes = {str(n.target) for n in found.graph.nodes if n.op in ("call_module", "get_attr")}
    used = _used(network, nodes)
    for granularity in GRANULARITIES:
        units = find_units(found, granularity)
        owned = [id(p) for unit in units for t in unit.targets for p in tensors_of(network, t)]
        assert set(owned) == used and len(set(units.names)) == len(units)
        assert sum(unit.parameters for unit in units) == sum(p.numel() for p in network.parameters() if id(p) in used)
        assert all(i not in unit.before for i, unit in enumerate(units))
        if granularity == "op" and name != "coat_tiny":  # which calls modules twice
            assert all(max(unit.before, default=-1) < i for i, unit in enumerate(units))
        depth = max(unit.depth for unit in units)
        assert depth == max(unit.depth for unit in find_units(found, "op"))


def _used(network, nodes):
    modules, used = dict(network.named_modules()), set()
    for path in nodes:
        if path in modules:
            used |= {id(p) for p in modules[path].parameters()}
        else:
            used |= {id(p) for name, p in network.named_parameters() if name == path}
    return used


@pytest.mark.parametrize(("name", "identity", "projected", "depth", "weights_if_all_skipped"), [
    ("resnet34", 29, 7, 33, 0.35e6), ("mobilenetv2_100", 13, 39, 52, 2.55e6),
    pytest.param("mnasnet_100", 13, 39, 52, 3.32e6, marks=pytest.mark.slow)])
def test_numbers_of_operations_and_skips_as_in_automtl(name, identity, projected, depth, weights_if_all_skipped):
    """Counted from the prototxt files that AutoMTL ships (224x224, without classifier)."""
    network = timm.create_model(name, num_classes=0, global_pool="")
    units = units_of(network, "op")
    kinds = [unit.skip.kind for unit in units]
    assert (kinds.count("identity"), kinds.count("projection")) == (identity, projected)
    assert max(unit.depth for unit in units) == depth and len(units) == identity + projected
    projections = [unit.skip.projection.build()[0] for unit in units if unit.skip.projection is not None]
    assert sum(p.weight.numel() for p in projections) == pytest.approx(weights_if_all_skipped, rel=0.02)


@pytest.mark.parametrize("name", [*SEVERAL[:7], *rest(SEVERAL[7:8])])
def test_projections_give_the_shape_of_what_they_replace(name):
    _, found = captured(name)
    by_name = {node.name: node for node in found.graph.nodes}
    for unit in find_units(found, "op"):
        if unit.skip is not None and unit.skip.projection is not None:
            source = by_name[unit.skip.by].meta["shape"]
            assert unit.skip.projection.build()(torch.zeros(source)).shape == by_name[unit.skip.node].meta["shape"]


def test_a_convolution_without_padding_cannot_be_left_out():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, padding=1),
                            nn.Conv2d(8, 8, 5, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1))
    kinds = [unit.skip and unit.skip.kind for unit in units_of(network, "op")]
    assert kinds == ["projection", None, "identity", None, "projection"]


def test_regions_of_a_residual_network():
    units = units_of("resnet18")
    assert units.names == ("conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc")
    skips = [unit.name for unit in units if unit.skip is not None]
    assert skips == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]  # not where the size changes
    assert [unit.depth for unit in units] == [1, 3, 5, 7, 9, 11, 13, 15, 17, 18]
    assert [len(unit.before) for unit in units] == list(range(10))
    published = 64 * 3 * 49 + 2 * 64, *[2 * 64 * 64 * 9 + 4 * 64] * 2
    assert [unit.parameters for unit in units][:3] == list(published)


def test_regions_of_a_transformer():
    units = units_of("test_vit")
    blocks = [f"blocks.{i}.{part}" for i in range(6) for part in ("attn", "mlp")]
    assert units.names == ("patch_embed.proj", *blocks, "head")
    assert all((unit.skip is not None) == unit.name.startswith("blocks") for unit in units)
    assert units.all[0].targets == ("patch_embed.proj", "pos_embed", "cls_token")
    assert set(units.all[1].targets) == {"blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.proj"}
    assert set(units.all[1].norms) == {"blocks.0.norm1"}
    assert "norm" in units.all[-2].norms  # the last norm follows the last operation before it


def test_norms_belong_to_the_operation_before_them():
    network, _ = captured("resnet18")
    for unit in units_of("resnet18", "op"):
        assert [t for t in unit.targets if is_norm(network.get_submodule(t))] == list(unit.norms)
        conv, *rest = unit.targets
        assert len(rest) == (0 if conv == "fc" else 1)
        assert not rest or rest[0] in (conv.replace("conv", "bn"), conv[:-1] + "1")


def test_parallel_branches_are_units_of_their_own():
    units = units_of("hrnet_w18_small")
    assert {f"stage3.0.branches.{i}.{j}" for i in range(3) for j in range(2)} <= set(units.names)
    one, other = (units.names.index(f"stage3.0.branches.{i}.0") for i in (0, 1))
    assert one not in units.all[other].before and other not in units.all[one].before


def test_stages():
    assert len(units_of("resnet18", "stage")) in range(4, 9)
    backbone = Timm.Config(model="test_resnet").build()
    assert units_of(backbone, "stage").names == tuple(f"stages.{i}" for i in range(5))


def test_what_is_tied_or_called_twice_is_one_unit():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
            self.one, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.other.weight = self.one.weight

        def forward(self, x):
            x = self.twice(torch.relu(self.twice(self.first(x))))
            return self.other(torch.relu(self.one(x)))

    units = units_of(Tied(), "op")
    assert [unit.targets for unit in units] == [("first",), ("twice",), ("one", "other")]
    assert [unit.parameters for unit in units] == [16, 148, 24]
    assert all(unit.skip is None for unit in units.all[1:])


def test_functional_weights_are_units():
    units = units_of(Everything().eval(), "op")
    assert units.names == ("first", "second", "third") and "scale" in units.all[1].targets
    beit = units_of(timm.create_model("beit_base_patch16_224", depth=1, embed_dim=24, num_heads=2).eval(), "op")
    assert {"blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"} <= set(beit.names)


def test_the_hash_is_that_of_the_structure():
    def found(name, granularity="region", seed=0, **options):
        torch.manual_seed(seed)
        return find_units(capture(timm.create_model(name, **options)), granularity).hash

    same = found("test_resnet")
    assert same == found("test_resnet", seed=1) == found("test_resnet", drop_path_rate=0.2)
    assert len({same, found("test_resnet", "op"), found("test_vit"), found("test_resnet", num_classes=7)}) == 4
