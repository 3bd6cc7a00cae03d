"""MLoRE: the published network's numbers and sizes, the equations written out, merged experts, every option."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from published_fixtures import Fixture
from torch import Tensor
from transcription import CHANNELS, NYUD_FOUR, PASCAL, built, conv, count, enlarge, everywhere, randomized

from polyptych.decoders.mlore import Mixture, MLoRE, unevenness
from polyptych.errors import InputError
from polyptych.published.mlore import DECODER
from polyptych.renaming import renamed
from polyptych.types import Features, FeatureSpec, TaskFeatures

SALIENCY_OF_TWO = {**PASCAL, "saliency": 2}
PASCAL_L, PASCAL_B = MLoRE.Config(width=452), MLoRE.Config(width=640, task_rank=64)
PASCAL_S = MLoRE.Config(width=192, ranks=tuple(range(8, 65, 4)), task_rank=32)
NYUD_L = MLoRE.Config(width=768, ranks=tuple(range(16, 241, 16)), task_rank=16, renormalize=True, size=(448, 576))

SPEC = FeatureSpec((6, 6, 6), (16, 16, 16))
SMALL = MLoRE.Config(width=8, ranks=(1, 2, 3), task_rank=2, active=2, size=(48, 64))


def taps(width: int) -> FeatureSpec:
    return FeatureSpec((width,) * 4, (16,) * 4)


# -- the published networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "channels", "vit", "parameters"), [
    (PASCAL_L, SALIENCY_OF_TWO, (1024, 304_148_480), 407_690_406),
    (NYUD_L, NYUD_FOUR, (1024, 304_132_096), 551_625_533),
    (PASCAL_S, SALIENCY_OF_TWO, (384, 21_983_232), 42_176_918)])
def test_published_counts(config, channels, vit, parameters):
    """The backbones are without class token, with one row of positions more than patches."""
    assert count(built(config, channels, taps(vit[0]))) == parameters - vit[1]


def test_published_counts_of_the_parts():
    module = built(PASCAL_L, SALIENCY_OF_TWO, taps(1024)).mixtures[0][0]
    assert count(module.down) + count(module.up) + module.offset.numel() == 4_889_460
    assert [count(part) for part in (module.enter, module.own, module.leave, module.shared, module.route)] == [
        1_023_780, 1_629_820, 1_023_780, 1_839_188, 622_260]


@pytest.mark.data
def test_the_published_network():
    """With two channels of saliency, as there, and the weights of experts; tests/published has the network as it comes
    in."""
    fixture = Fixture("mlore_small")
    of, channels = fixture.config["decoder"], fixture.config["tasks"]
    vit = fixture.config["backbone"]
    size = tuple(fixture.config["image_size"])
    backbone = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, embed_dim=vit["embed_dim"], depth=vit["depth"],
        num_heads=vit["num_heads"], class_token=False, num_classes=0, global_pool="").double().eval()
    own = {key.removeprefix("backbone."): value for key, value in fixture.state.items()}
    own["pos_embed"] = own["pos_embed"][:, 1:]
    backbone.load_state_dict({key: own[key] for key in backbone.state_dict()})
    config = MLoRE.Config(width=of["channels"], ranks=tuple(of["rank_list"]), task_rank=of["spe_rank"],
                          active=of["topk"], renormalize=of["pre_softmax"], size=size)
    levels = [n - 1 for n in vit["after_blocks_1_based"]]
    decoder = config.build(**everywhere(taps(vit["embed_dim"]), channels)).double().eval()
    tensors, left = renamed(fixture.state, DECODER, {task: task for task in channels}, {})
    assert all(name.removeprefix("backbone.") in own for name in left)
    decoder.load_state_dict(tensors)
    with torch.no_grad():
        *maps, last = backbone.forward_intermediates(fixture.image(), indices=levels, norm=False,
                                                     intermediates_only=True)
        maps.append(backbone.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        pyramids = TaskFeatures(dict.fromkeys(channels, Features(tuple(maps))))
        gates: dict[str, Tensor] = {}
        for level, mixtures in enumerate(decoder.mixtures):
            for stack, mixture in enumerate(mixtures):
                def see(module, inputs, output, at=f"route_{stack + 1}.{level}"):
                    gates.update({f"{at}.{task}": g[..., None, None, None]
                                  for task, g in zip(channels, output[1], strict=True)})

                mixture.register_forward_hook(see)
        merged = decoder(pyramids).final
    plain = decoder(pyramids).final  # where gradients are wanted
    for final in (merged, plain):
        fixture.agrees({task: F.interpolate(x, size, mode="bilinear") for task, x in final.items()} | gates)


# -- the equations ----------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, norm) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def batch_norm(x: Tensor, norm) -> Tensor:
    shape = (-1, 1, 1)
    return ((x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
            * norm.weight.view(shape) + norm.bias.view(shape))


def routed(x: Tensor, router) -> tuple[Tensor, Tensor]:
    seen = gelu(layer_norm(conv(x, router.enter).permute(0, 2, 3, 1), router.norm)).permute(0, 3, 1, 2)
    means = conv(seen, router.leave).mean((2, 3), keepdim=True)
    sums = torch.einsum("bchw,hw->bc", x, router.weigh.weight.view(router.grid)) + router.weigh.bias
    sums = conv(gelu(layer_norm(sums, router.norm_sums))[..., None, None], router.leave_sums)
    numbers = conv(torch.cat([means, sums], dim=1), router.decide)[:, :, 0, 0]
    return numbers[:, :router.experts], numbers[:, -1:]


def mixed(x: Tensor, task: str, mixture: Mixture, config: MLoRE.Config) -> Tensor:
    """One task, every expert by itself."""
    a = conv(x, mixture.enter[task])
    logits, scale = routed(a, mixture.route[task])
    order = logits.argsort(-1, descending=True)
    gates = logits.softmax(-1)
    for image, places in enumerate(order):
        if config.renormalize:
            gates = gates.clone()
            gates[image] = 0
            gates[image, places[:config.active]] = logits[image, places[:config.active]].softmax(0)
        else:
            gates = gates.clone()
            gates[image, places[config.active:]] = 0
    total, start = torch.zeros_like(a), 0
    for k, rank in enumerate(config.ranks):
        part = slice(start, start + rank)
        inside = F.conv2d(a, mixture.down.weight[part], mixture.down.bias[part], padding=1)
        expert = F.conv2d(inside, mixture.up.weight[:, part]) + mixture.offset[k].view(-1, 1, 1)
        total, start = total + gates[:, k].view(-1, 1, 1, 1) * expert, start + rank
    own = conv(conv(a, mixture.own[task][0]), mixture.own[task][1])
    joined = (batch_norm(total, mixture.norm_experts[task]) + scale[..., None, None] * own
              + conv(a.detach(), mixture.shared))
    return conv(gelu(batch_norm(joined, mixture.norm[task])), mixture.leave[task])


def written_out(decoder: MLoRE, features: TaskFeatures, config: MLoRE.Config) -> dict[str, Tensor]:
    final = {}
    for task in decoder.heads:
        maps = []
        for level, x in enumerate(features[task].maps):
            y = enlarge(conv(x, decoder.enter[level]), *features[task].maps[0].shape[2:])
            for mixture in decoder.mixtures[level]:
                y = mixed(y, task, mixture, config)
            maps.append(y)
        first, norm, _, last = decoder.mask[task]
        shares = conv(gelu(batch_norm(conv(torch.cat(maps, dim=1), first), norm)), last).softmax(1)
        z = sum(shares[:, i:i + 1] * y for i, y in enumerate(maps))
        z = enlarge(z, 4 * z.shape[2], 4 * z.shape[3])
        mix, norm, _, predict = decoder.heads[task]
        final[task] = conv(gelu(batch_norm(conv(z, mix), norm)), predict)
    return final


def pyramids(tasks=CHANNELS, sizes=((3, 4), (3, 4), (2, 3))) -> TaskFeatures:
    random = torch.Generator().manual_seed(0)
    return TaskFeatures({task: Features(tuple(torch.randn(2, 6, *size, dtype=torch.float64, generator=random)
                                              for size in sizes)) for task in tasks})


def with_statistics(decoder: MLoRE) -> MLoRE:
    random = torch.Generator().manual_seed(5)
    for name, buffer in decoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=random))
    return decoder.eval()


@pytest.mark.parametrize("renormalize", [False, True])
def test_equations_and_gradients(renormalize):
    config = replace(SMALL, renormalize=renormalize)
    decoder, features = with_statistics(randomized(config.build(**everywhere(SPEC, CHANNELS)))), pyramids()
    found, expected = decoder(features).final, written_out(decoder, features, config)
    for task, x in expected.items():
        assert torch.allclose(found[task], x, rtol=1e-10, atol=1e-10)
    parameters = list(decoder.parameters())
    one, two = (torch.autograd.grad(sum((x**2).sum() for x in final.values()), parameters, allow_unused=True)
                for final in (found, expected))
    for (name, _), x, y in zip(decoder.named_parameters(), one, two, strict=True):
        assert torch.allclose(x, y if y is not None else torch.zeros_like(x), rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("renormalize", [False, True])
def test_merged_experts_are_equal_to_rounding_and_follow_the_weights(renormalize):
    config = replace(SMALL, renormalize=renormalize)
    decoder, features = with_statistics(randomized(config.build(**everywhere(SPEC, CHANNELS)))), pyramids()
    for _ in range(2):
        plain = decoder(features).final
        with torch.no_grad():
            merged = decoder(features).final
            for task, x in plain.items():
                assert not torch.equal(merged[task], x)  # computed otherwise
                assert torch.allclose(merged[task], x, rtol=1e-12, atol=1e-12 * float(x.abs().max()))
            for parameter in decoder.parameters():
                parameter.mul_(1.1)
    decoder.train()
    assert all(not m.kernels.kernels for m in decoder.modules() if isinstance(m, Mixture))


def test_the_penalty_is_of_the_weights_in_use_and_only_in_training():
    decoder = SMALL.build(**everywhere(SPEC, CHANNELS)).double()
    seen = []
    for mixture in (m for m in decoder.modules() if isinstance(m, Mixture)):
        mixture.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    penalty = decoder.train()(pyramids()).penalty
    means = [gates.mean((0, 1)) for gates in seen]
    assert len(seen) == 6 and float(penalty.detach()) == pytest.approx(
        SMALL.balance * sum(float(((m - m.mean()) ** 2).sum() / (len(m) - 1) / m.mean() ** 2) for m in means))
    assert all((gates > 0).sum(-1).eq(SMALL.active).all() for gates in seen)
    assert decoder.eval()(pyramids()).penalty is None
    assert replace(SMALL, balance=0.0).build(**everywhere(SPEC, CHANNELS)).double()(pyramids()).penalty is None
    assert float(unevenness(torch.rand(2, 3, 1))) == 0


def test_noise_only_in_training():
    decoder = SMALL.build(**everywhere(SPEC, CHANNELS)).double().eval()
    for module in decoder.modules():
        if hasattr(module, "momentum"):
            module.momentum = 0.0
    router, x = decoder.mixtures[0][0].route["depth"], torch.randn(2, 8, 3, 4, dtype=torch.float64)
    assert torch.equal(router(x)[0], router(x)[0]) and torch.equal(router(x)[1], router.train()(x)[1])
    assert not torch.equal(router(x)[0], router(x)[0])


def test_other_sizes_share_the_weights_of_positions():
    router = SMALL.build(**everywhere(SPEC, CHANNELS)).mixtures[0][0].route["depth"].double().eval()
    assert router.grid == (3, 4)
    flat = torch.full((1, 8, 3, 4), 2.0, dtype=torch.float64)
    with torch.no_grad():
        router.weigh.weight.fill_(0.1)
    expected = router(flat)[0]
    for size in ((6, 8), (5, 7), (2, 2)):
        assert torch.allclose(router(flat[..., :1, :1].expand(-1, -1, *size))[0], expected)


def test_the_shared_convolution_learns_and_sends_no_gradient_to_the_features():
    """Two networks that differ in it alone give the features the same gradient of a linear function."""
    mixture = with_statistics(randomized(SMALL.build(**everywhere(SPEC, {"depth": 1})))).mixtures[0][0]
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    entered = {"depth": x}
    gates, scales = {"depth": torch.rand(1, 3, dtype=torch.float64)}, {"depth": torch.rand(1, 1, dtype=torch.float64)}

    def gradients() -> tuple[Tensor, ...]:
        y = mixture._in_parts(entered, gates, scales)["depth"]
        return torch.autograd.grad(y.sum(), [x, mixture.shared.weight])

    before, weight = gradients()
    with torch.no_grad():
        mixture.shared.weight.mul_(3)
    assert torch.equal(gradients()[0], before) and weight.abs().sum() > 0


@pytest.mark.parametrize(("options", "place"), [
    ({"width": 2}, "decoder.width"), ({"ranks": ()}, "decoder.ranks"), ({"ranks": (0, 2)}, "decoder.ranks"),
    ({"task_rank": 0}, "decoder.task_rank"), ({"active": 16}, "decoder.active"), ({"active": 0}, "decoder.active"),
    ({"balance": -1.0}, "decoder.balance"), ({"balance": float("nan")}, "decoder.balance"),
    ({"size": (0, 5)}, "decoder.size")])
def test_bad_options(options, place):
    with pytest.raises(InputError, match=place):
        MLoRE.Config(**options)


def test_pyramids_of_different_shapes_are_refused():
    with pytest.raises(InputError, match="one shape"):
        SMALL.build(features={"a": SPEC, "b": taps(4)}, channels={"a": 1, "b": 1})


def test_every_variation_builds_and_runs():
    for config in SMALL.ablation().values():
        final = config.build(**everywhere(SPEC, CHANNELS)).double()(own := pyramids()).final
        assert {task: x.shape[1] for task, x in final.items()} == CHANNELS and own
