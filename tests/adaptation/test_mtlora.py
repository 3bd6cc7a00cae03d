"""MTLoRA: its parameters against the paper's table. (Its outputs: tests/published/test_fixtures.py.)"""

from __future__ import annotations

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.devices import shapes_only
from polyptych.encoders.mtlora import MTLoRA
from polyptych.errors import InputError
from polyptych.networks import Network

PASCAL = {"semseg": 21, "normals": 3, "saliency": 1, "parts": 7}
SWIN = "swin_tiny_patch4_window7_224"
TINY = Timm.Config(model=SWIN, architecture="embed_dim=12, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)")


@pytest.mark.parametrize(("rank", "task_rank", "merging", "adapting", "trained", "total"), [
    (64, 4, "trained", 4_798_464, 8_344_634, 34_262_906), (16, 4, "low_rank", 1_471_488, 3_469_370, None),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in [
        (16, 4, "trained", 1_406_976, 4_953_146, 30_871_418), (32, 4, "trained", 2_537_472, 6_083_642, 32_001_914),
        (64, 4, "low_rank", 5_056_512, 7_054_394, None), (8, 8, "low_rank", 1_150_464, 3_148_346, None)])])
@shapes_only()
def test_published_counts(rank, task_rank, merging, adapting, trained, total):
    encoder = MTLoRA.Config(ranks=(rank,), task_rank=task_rank, merging=merging)
    network = Network.build(Timm.Config(model=SWIN, image_size=(448, 448), swin_windows="published"), encoder,
                            Heads.Config(width=1080), PASCAL)
    count = {True: 0, False: 0}
    low_rank = 0
    for name, p in network.named_parameters():
        count[p.requires_grad] += p.numel()
        low_rank += p.numel() * ("lora_" in name)
    assert low_rank == adapting and count[True] == trained and total in (None, count[True] + count[False])


@pytest.mark.parametrize("backbone", [
    TINY, Timm.Config(model="test_vit"),
    Timm.Config(model="vit_small_plus_patch16_dinov3", architecture="embed_dim=48, num_heads=2, depth=4")],
    ids=["swin", "vit", "dinov3"])
def test_at_first_every_task_has_the_features_of_the_backbone(backbone):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 96)
    encoder = MTLoRA.Config(reduce=()).build(backbone=backbone, tasks=("a", "b")).eval()
    from dataclasses import replace
    torch.manual_seed(0)
    torch.rand(1, 3, 64, 96)
    plain = replace(backbone, vit_pyramid="taps").build().eval()
    with torch.no_grad():
        found, expected = encoder(image), plain(image).maps
    last = found["a"].maps[-1]
    assert torch.allclose(last, expected[-1], atol=1e-5)
    assert all(torch.equal(x, y) for x, y in zip(found["a"].maps, found["b"].maps, strict=True))
    for x, (c, s) in zip(found["b"].maps, zip(encoder.spec["b"].channels, encoder.spec["b"].strides, strict=True),
                         strict=True):
        assert tuple(x.shape) == (1, c, 64 // s, 96 // s)


def test_tasks_part_once_they_learned():
    torch.manual_seed(0)
    encoder = MTLoRA.Config(reduce=()).build(backbone=TINY, tasks=("a", "b")).eval()
    for name, p in encoder.named_parameters():
        if "lora_tasks_B.a" in name:
            torch.nn.init.normal_(p)
    with torch.no_grad():
        found = encoder(torch.rand(1, 3, 64, 64))
    assert all(not torch.equal(x, y) for x, y in zip(found["a"].maps, found["b"].maps, strict=True))


@pytest.mark.parametrize(("options", "where"), [
    ({"ranks": (1, 2)}, "encoder.ranks"), ({"ranks": (0,)}, "encoder.ranks"),
    ({"task_ranks": {"c": "2"}}, "encoder.task_ranks"), ({"task_ranks": {"a": "x"}}, "encoder.task_ranks of 'a'"),
    ({"task_ranks": {"a": "0"}}, "encoder.task_ranks"), ({"dropout": 1.0}, "encoder.dropout"),
    ({"reduce": (3,)}, "encoder.reduce")])
def test_refusals(options, where):
    with pytest.raises(InputError, match=where):
        MTLoRA.Config(**options).build(backbone=TINY, tasks=("a", "b"))


def test_other_backbones_are_refused():
    with pytest.raises(InputError, match="Swin transformer"):
        MTLoRA.Config().build(backbone=Timm.Config(model="test_resnet"), tasks=("a",))
