"""TaskPrompter's encoder: timm's own maps where there is no prompt, its equations written out, any size and task."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import LayerScale
from torch import Tensor, nn

from polyptych.backbones._stages import cut
from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.decoders.task_prompter import TaskPrompter as PrompterHeads
from polyptych.encoders._prompted_swin import PromptedSwin
from polyptych.encoders._prompted_vit import PromptedViT
from polyptych.encoders._task_prompts import ChannelPrompts, PromptOptions, over_windows
from polyptych.encoders.task_prompter import TaskPrompter
from polyptych.errors import InputError
from polyptych.networks import Network

VIT = Timm.Config(model="test_vit")
SMALL = TaskPrompter.Config(size=(48, 64), windows=2)
PUBLISHED = replace(SMALL, channel="published", scores="raw")
TASKS = ("semseg", "depth", "normals")
forms = pytest.mark.parametrize("config", [SMALL, PUBLISHED], ids=["paper", "published"])


def built(config: TaskPrompter.Config = SMALL, backbone: Timm.Config = VIT, tasks=TASKS) -> TaskPrompter:
    torch.manual_seed(0)
    return config.build(backbone=backbone, tasks=tasks).eval()


def image(height: int = 48, width: int = 64, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# -- without prompts the network is timm's ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", [
    "test_vit", "test_vit2", "test_vit3",
    pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
    pytest.param("vit_small_patch14_reg4_dinov2", marks=pytest.mark.slow),  # registers, layer scale
    pytest.param("vit_base_patch16_siglip_224", marks=pytest.mark.slow)])  # no class token
@torch.no_grad()
def test_without_prompts_the_maps_are_timms(model, tmp_path):
    torch.manual_seed(3)
    options = {"patch_size": 16} if "patch14" in model else {}
    whole = timm.create_model(model, dynamic_img_size=True, num_classes=0, **options).eval()
    for module in whole.modules():
        if isinstance(module, LayerScale):  # which begins with next to nothing
            nn.init.constant_(module.gamma, 0.7)
    save_file({k: v.clone() for k, v in whole.state_dict().items()}, tmp_path / "w.safetensors")
    config = Timm.Config(model=model, vit_pyramid="taps", weights=tmp_path / "w.safetensors")
    backbone = config.build().eval()
    for size in ((96, 128), (64, 80)):
        runner = PromptedViT(backbone.stages, PromptOptions(0, size)).eval()
        expected = backbone(image(*size)).maps
        levels = runner(backbone.stages, image(*size))
        for level, x in zip(levels, expected, strict=True):
            assert torch.allclose(level.map, x, atol=1e-5)
            assert level.spatial.shape[2] == level.channel.shape[1] == 0
    # And with prompts they are not: patches attend to prompts.
    prompted = PromptedViT(backbone.stages, PromptOptions(2, (96, 128))).eval()
    assert not torch.allclose(prompted(backbone.stages, image(96, 128))[-1].map, backbone(image(96, 128)).maps[-1],
                              atol=1e-3)


def swin(**options) -> nn.Module:
    """A small one, as the backbone makes it: shifted windows, sizes that they do not divide."""
    return timm.create_model("swin_tiny_patch4_window7_224", features_only=True, strict_img_size=False, window_size=4,
                             embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), img_size=64, **options)


@pytest.mark.parametrize("size", [(64, 96), (72, 88)])
@torch.no_grad()
def test_without_prompts_swins_maps_are_timms(size):
    torch.manual_seed(3)
    whole = swin().eval()
    for name, parameter in whole.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(parameter)
    stages = nn.ModuleList(cut(whole, 4).stages)
    assert PromptedSwin.fits(stages)
    runner = PromptedSwin(stages, PromptOptions(0, size)).eval()
    levels = runner(stages, image(*size))
    state = stages[0](image(*size))
    for stage, level in zip(stages[1:], levels, strict=True):
        state = stage(state)
        assert torch.allclose(level.map, state, atol=1e-5)
    assert any(any(block.shift_size) for stage in stages for block in stage.modules() if hasattr(block, "shift_size"))


def test_a_class_token_can_be_dropped():
    """As in the published code: patches keep their rows of the position table."""
    torch.manual_seed(4)
    backbone = Timm.Config(model="vit_tiny_patch16_224")
    encoder = TaskPrompter.Config(size=(96, 128), prefix_tokens=False).build(backbone=backbone, tasks=("a", "b")).eval()
    before = encoder(image(96, 128))["a"].maps[-1]
    token = encoder.backbone.stages[0].model.cls_token
    assert not token.requires_grad
    with torch.no_grad():
        token.add_(5.0)
    assert torch.equal(encoder(image(96, 128))["a"].maps[-1], before)
    kept = TaskPrompter.Config(size=(96, 128)).build(backbone=backbone, tasks=("a", "b")).eval()
    kept.load_state_dict(encoder.state_dict())
    assert not torch.allclose(kept(image(96, 128))["a"].maps[-1], before, atol=1e-3)


# -- the equations ---------------------------------------------------------------------------------------------------


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def plain_channel(prompts: Tensor, x: Tensor, layers: ChannelPrompts, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """One image's queries (t h w), R (t d n n) and attended values (t h w), pixel by pixel. ``x`` is (d h w)."""
    d, height, width = x.shape
    p, q = math.ceil(height / n), math.ceil(width / n)
    asked = linear(prompts, layers.ask).view(-1, height, width)
    found, attended = x.new_zeros(len(prompts), d, n, n), x.new_zeros(len(prompts), height, width)
    for t in range(len(prompts)):
        for row in range(height):
            for column in range(width):
                for k in range(d):
                    found[t, k, row // p, column // q] += asked[t, row, column] * x[k, row, column]
        weights = (found[t] / math.sqrt(height * width / n**2)).softmax(0)
        for row in range(height):
            for column in range(width):
                for k in range(d):
                    attended[t, row, column] += weights[k, row // p, column // q] * x[k, row, column]
    return asked, found, attended


def plain(encoder: TaskPrompter, picture: Tensor, n: int, published: bool) -> list[tuple[Tensor, Tensor]]:
    """For one image and every level: the tasks' maps (t 2c h w) and the scores between prompts (heads t t)."""
    stages, runner = encoder.backbone.stages, encoder.prompted
    grid, prefix = stages[0](picture.unsqueeze(0))
    (height, width), t = grid.shape[-2:], len(encoder.tasks)
    tokens = torch.cat([runner.prompts, prefix[0, :, 0].T, grid[0].flatten(1).T])
    found = []
    for stage, modules in zip(stages[1:], runner.channels, strict=True):
        for block, layers in zip(stage.blocks, modules, strict=True):
            normed = layer_norm(tokens, block.norm1)
            heads, d = block.attn.num_heads, block.attn.head_dim
            queries, keys, values = linear(normed, block.attn.qkv).chunk(3, dim=1)
            out, raw = torch.zeros_like(tokens), []
            for head in range(heads):
                own = slice(head * d, head * d + d)
                raw.append(queries[:, own] @ keys[:, own].T)
                out[:, own] = (raw[-1] / math.sqrt(d)).softmax(1) @ values[:, own]
            out = linear(out, block.attn.proj)
            x = normed[-height * width:].T.reshape(-1, height, width)
            asked, channel, attended = plain_channel(normed[:t], x, layers, n)
            if layers.tell is not None:
                out[:t] += linear((asked if published else attended).flatten(1), layers.tell)
            tokens = tokens + out
            tokens = tokens + linear(gelu(linear(layer_norm(tokens, block.norm2), block.mlp.fc1)), block.mlp.fc2)
        patches = tokens[-height * width:]
        x = (layer_norm(patches, stage.norm) if stage.norm is not None else patches).T.reshape(-1, height, width)
        p, q = math.ceil(height / n), math.ceil(width / n)
        places, channels = (1, 1) if published else (math.sqrt(d), math.sqrt(height * width / n**2))
        maps = torch.zeros(t, 2 * len(x), height, width, dtype=x.dtype)
        for task in range(t):
            for k in range(len(x)):
                spatial = raw[k // (len(x) // heads)][task, -height * width:].view(height, width) / places
                maps[task, k] = x[k] + spatial * x[k]
                for row in range(height):
                    for column in range(width):
                        factor = 1 + channel[task, k, row // p, column // q] / channels
                        maps[task, len(x) + k, row, column] = factor * x[k, row, column]
        found.append((maps, torch.stack([scores[:t, :t] / places for scores in raw])))
    return found


@pytest.mark.parametrize(("config", "windows"), [(SMALL, 2), (PUBLISHED, 2), (replace(SMALL, windows=3), 3)])
@torch.no_grad()
def test_as_written_out(config, windows):
    """On a grid of 3x4, which the windows do not always divide; two of the backbone's six blocks."""
    encoder = built(config, tasks=("a", "b"))
    keep = encoder.backbone.stages[1].blocks
    assert len(keep) == 2
    encoder = encoder.double()
    for parameter in encoder.prompted.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    picture = image(batch=1).double()
    features = encoder(picture)
    for level, (maps, affinities) in enumerate(plain(encoder, picture[0], windows, config is PUBLISHED)):
        for number, task in enumerate(encoder.tasks):
            assert torch.allclose(features[task].maps[level][0], maps[number], atol=1e-8, rtol=1e-8)
        assert torch.allclose(features.affinities[level][0], affinities, atol=1e-8, rtol=1e-8)
        assert (features["a"].maps[level] - features["b"].maps[level]).abs().max() > 1e-2


@torch.no_grad()
def test_another_grid_resizes_and_keeps_the_scale():
    """A constant query on a constant map scores the same at every resolution; the own grid is left alone."""
    layers = ChannelPrompts(4, (4, 6), 2, "attended").double()
    layers.ask.weight.zero_()
    layers.ask.bias.fill_(0.7)
    prompts = torch.randn(2, 3, 4, dtype=torch.float64)
    value = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).view(1, 4, 1, 1)
    (update, found), (larger_update, larger) = (
        layers(prompts, value.expand(2, 4, *size).clone(), wanted=True) for size in ((4, 6), (8, 12)))
    assert torch.allclose(found, 0.7 * 6 * value.view(1, 1, 4, 1, 1).expand_as(found))
    assert torch.allclose(found, larger) and torch.allclose(update, larger_update)


def test_windows_at_each_pixel():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert over_windows(x, 3, 5)[0, 0].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [2, 2, 2, 3, 3]]


# -- sizes, tasks, gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", range(1, 7))
def test_any_number_of_tasks_at_an_odd_size(tasks):
    channels = {f"task{number}": number + 1 for number in range(tasks)}
    network = Network.build(VIT, SMALL, PrompterHeads.Config(inner=4, width=6), channels).train()
    final = network(image(33, 50)).final
    assert {task: tuple(x.shape) for task, x in final.items()} == {t: (2, c, 33, 50) for t, c in channels.items()}
    sum((x * torch.randn_like(x)).mean() for x in final.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@forms
@pytest.mark.parametrize("decoder", [Heads.Config(width=4), PrompterHeads.Config(inner=4, width=6)],
                         ids=["heads", "task_prompter"])
def test_every_parameter_learns(config, decoder):
    network = Network.build(VIT, config, decoder, {"a": 2, "b": 1}).train()
    sum((x * torch.randn_like(x)).mean() for x in network(image()).final.values()).backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    unused = {f"encoder.prompted.channels.3.1.tell.{part}" for part in ("weight", "bias")}
    assert without == (unused if config is PUBLISHED else set())
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == without
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@torch.no_grad()
@forms
def test_scores_are_not_rounded_to_16_bits(config):
    encoder = built(config)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(image())
    assert all(x.dtype == torch.float32 for x in features.shared)
    exact = encoder(image())
    assert all(torch.allclose(a, b, atol=0.1 * b.abs().max().item()) for a, b in zip(
        features.shared, exact.shared, strict=True))


@pytest.mark.parametrize("decoder", [Heads.Config(width=4), PrompterHeads.Config(inner=4, width=6)])
def test_gradients_by_what_is_shared_are_all_of_the_trunks_gradient(decoder):
    """The chain rule through ``shared`` gives the encoder the same gradient as through the network."""
    network = Network.build(VIT, SMALL, decoder, {"a": 2, "b": 1}).eval()
    trunk = list(network.encoder.parameters())

    def loss() -> tuple[Tensor, tuple[Tensor, ...]]:
        output = network(image())
        return sum(x.square().mean() for x in output.final.values()), output.shared

    whole = torch.autograd.grad(loss()[0], trunk)
    value, shared = loss()
    at_the_cut = torch.autograd.grad(value, shared, retain_graph=True, allow_unused=True)
    used = [(x, g) for x, g in zip(shared, at_the_cut, strict=True) if g is not None]
    parts = torch.autograd.grad([x for x, _ in used], trunk, [g for _, g in used])
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(whole, parts, strict=True))


def test_a_single_prompt_changes_only_its_tasks_scores_in_the_first_block():
    """Prompts are rows of attention: in the first level's scores of one block, task b does not see prompt a's value."""
    encoder = built(tasks=("a", "b"))
    encoder.backbone.stages[1].blocks = encoder.backbone.stages[1].blocks[:1]
    encoder.prompted.channels[0] = encoder.prompted.channels[0][:1]
    before = encoder(image())
    with torch.no_grad():
        encoder.prompted.prompts[0] += 1
    after = encoder(image())

    def scores(features, task: int) -> Tensor:
        return features.shared[1].unflatten(1, (-1, 2))[:, :, task]

    assert torch.equal(scores(before, 1), scores(after, 1)) and not torch.equal(scores(before, 0), scores(after, 0))


# -- Swin ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_swins_scores_lie_at_their_pixels():
    """The scores of the first block of every kind against the products of queries and keys at each pixel."""
    torch.manual_seed(0)
    stages = nn.ModuleList(cut(swin().eval(), 4).stages)
    runner = PromptedSwin(stages, PromptOptions(3, (64, 96), 2)).eval()
    layer = stages[1].stage
    x, prompts = stages[0].stage(image(72, 88)), runner.prompts.expand(2, -1, -1)
    for block in layer.blocks:  # the second one is shifted
        _, _, (spatial, channel, affinities) = runner._block(block, runner.channels[0][0], x, prompts, last=True)
        d = block.attn.qkv.out_features // 3 // block.attn.num_heads
        queries = block.attn.qkv(block.norm1(prompts))[..., :8].unflatten(2, (-1, d))
        keys = block.attn.qkv(block.norm1(x))[..., 8:16].unflatten(3, (-1, d))
        expected = torch.einsum("btkd,bhwkd->bkthw", queries, keys)
        assert spatial.shape == expected.shape == (2, 1, 3, 18, 22)
        assert torch.allclose(spatial, expected, atol=1e-5)
        own = block.attn.qkv(block.norm1(prompts))[..., 8:16].unflatten(2, (-1, d))
        assert torch.allclose(affinities, torch.einsum("btkd,bskd->bkts", queries, own), atol=1e-5)
        assert channel.shape == (2, 3, 8, 2, 2)
    assert any(layer.blocks[1].shift_size)


@torch.no_grad()
def test_swins_prompts_are_averaged_over_windows():
    """One block written out: every window with all prompts, without bias in their rows and columns."""
    torch.manual_seed(0)
    stages = nn.ModuleList(cut(swin().eval(), 4).stages)
    runner = PromptedSwin(stages, PromptOptions(2, (32, 32), channel="published")).eval()  # 8x8 positions, four windows
    block = stages[1].stage.blocks[0]
    nn.init.normal_(block.attn.relative_position_bias_table)
    x, prompts = stages[0].stage(image(32, 32, batch=1)), runner.prompts.unsqueeze(0)
    new_x, new_prompts, _ = runner._block(block, runner.channels[0][0], x, prompts, last=False)
    bias = block.attn._get_rel_pos_bias()[0, 0]
    total, attended = torch.zeros(2, 8), torch.zeros(8, 8, 8)
    for row in (0, 4):
        for column in (0, 4):
            tokens = torch.cat([prompts[0], x[0, row:row + 4, column:column + 4].reshape(16, 8)])
            queries, keys, values = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=1)
            weights = queries @ keys.T / math.sqrt(8)
            weights[2:, 2:] += bias
            out = block.attn.proj(weights.softmax(1) @ values)
            total += out[:2] / 4
            attended[row:row + 4, column:column + 4] = out[2:].view(4, 4, 8)
    layers = runner.channels[0][0]
    expected = prompts[0] + total + layers.tell(layers.ask(block.norm1(prompts[0])))
    assert torch.allclose(new_prompts[0], expected + block.mlp(block.norm2(expected)), atol=1e-5)
    expected = x[0] + attended
    assert torch.allclose(new_x[0], expected + block.mlp(block.norm2(expected)), atol=1e-5)


@pytest.mark.slow
def test_on_a_swin_every_parameter_learns_with_any_decoder():
    for decoder in (Heads.Config(width=4), PrompterHeads.Config(inner=4, width=6)):
        network = Network.build(Timm.Config(model="swin_tiny_patch4_window7_224"),
                                replace(SMALL, size=(64, 96)), decoder, {"a": 2, "b": 1}).train()
        final = network(image(65, 90)).final
        assert final["a"].shape == (2, 2, 65, 90)
        sum((x * torch.randn_like(x)).mean() for x in final.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# -- what the published code does besides ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["together", "separate"])
@torch.no_grad()
def test_stochastic_depth_is_drawn_once_or_for_prompts_and_patches(kind):
    """Of an image, either all tokens keep a block's change or none; or prompts and patches decide for themselves."""
    encoder = replace(SMALL, stochastic_depth=kind).build(backbone=replace(VIT, drop_path=0.5), tasks=TASKS).train()
    layer = encoder.backbone.stages[-1].blocks[-1].drop_path1
    assert layer.drop_prob == 0.5
    changed = encoder.prompted._drop(layer, torch.ones(64, 3 + 12, 8)) != 0
    prompts, patches = changed[:, :3].flatten(1), changed[:, 3:].flatten(1)
    for part in (prompts, patches):
        assert torch.equal(part.any(1), part.all(1)) and 0 < part.any(1).sum() < 64
    assert torch.equal(prompts.any(1), patches.any(1)) == (kind == "together")


def test_the_channel_attention_may_begin_with_the_published_weights():
    for initial, deviation in (("uniform", 3**-0.5 / 8), ("published", 0.02)):
        layers = built(replace(SMALL, initial=initial)).prompted.channels[0][0]
        assert layers.ask.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert bool(layers.ask.bias.any()) == bool(layers.tell.bias.any()) == (initial == "uniform")


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [Timm.Config(model="test_resnet"), SegNet.Config(width=2, bottom_width=6),
                                      Timm.Config(model="test_convnext")])
def test_other_backbones_are_refused(backbone):
    with pytest.raises(InputError, match="needs a plain vision transformer or a Swin") as error:
        SMALL.build(backbone=backbone, tasks=TASKS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "said"), [
    ({"windows": 0}, "encoder.windows: got 0"), ({"size": (0, 64)}, "encoder.size: got 0 64")])
def test_bad_options_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        TaskPrompter.Config(**options)


def test_the_pyramid_of_the_backbone_does_not_matter():
    simple, taps = (built(backbone=Timm.Config(model="test_vit", vit_pyramid=kind)) for kind in ("simple", "taps"))
    assert simple.spec == taps.spec and simple.state_dict().keys() == taps.state_dict().keys()
    assert taps.spec["depth"].channels == (128,) * 4 and taps.spec["depth"].affinities == (2,) * 4


def test_more_windows_than_positions():
    assert all(x.isfinite().all() for x in built(replace(SMALL, windows=9))(image(32, 32)).shared)
