"""Heads against a plain transcription, and parameter counts of published networks, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polyptych.backbones.timm import Timm
from polyptych.decoders._blocks import ASPP, DeepLabHead, FPNHead, FusedHead, SingleValueBatchNorm
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.types import Features, FeatureSpec, TaskFeatures

HRNET = FeatureSpec((18, 36, 72, 144), (4, 8, 16, 32))
SMALL = FeatureSpec((3, 4, 5), (4, 8, 16))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("head", "expected"), [
    (lambda: FusedHead(HRNET, 13), 73_710 + 271 * 13),
    (lambda: DeepLabHead(FeatureSpec((2048,), (8,)), 40), 16_135_720),
    (lambda: DeepLabHead(FeatureSpec((512,), (8,)), 21), 4_727_573),
    # lateral 1x1 with bias, 3x3 without plus BatchNorm, prediction
    (lambda: FPNHead(HRNET, 13), 270 * 128 + 4 * 128 + 4 * (9 * 128 * 128 + 2 * 128) + 129 * 13),
])
def test_head_counts(head, expected):
    assert count(head()) == expected


@pytest.mark.parametrize(("encoder", "decoder", "backbone", "channels", "expected"), [
    (Shared, "fused", Timm.Config(model="hrnet_w18_small_v2"), (13, 1, 3), 4_086_457),
    (Shared, "fused", Timm.Config(model="hrnet_w18_small_v2"), (19, 1), 4_013_560),
    (Single, "fused", Timm.Config(model="hrnet_w18_small_v2"), (13, 1, 3), 11_807_897),
    pytest.param(Shared, "aspp", Timm.Config(model="resnet50", output_stride=8), (40, 1), 55_769_449,
                 marks=pytest.mark.grid),
    (Shared, "aspp", Timm.Config(model="resnet18", output_stride=8), (21, 7, 1, 3, 1), 34_795_873),
    (Shared, "aspp", Timm.Config(model="resnet50", output_stride=8), (40,), 39_643_752),
])
def test_network_counts(encoder, decoder, backbone, channels, expected):
    tasks = {f"task{i}": c for i, c in enumerate(channels)}
    network = Network.build(backbone, encoder.Config(), Heads.Config(head=decoder), tasks)
    assert count(network) == expected


def enlarge(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with half-pixel centers, written out."""
    def weights(source: int, target: int) -> Tensor:
        position = ((torch.arange(target, dtype=x.dtype) + 0.5) * source / target - 0.5).clamp(0, source - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=source - 1)
        matrix = torch.zeros(target, source, dtype=x.dtype)
        matrix[torch.arange(target), low] += 1 - (position - low)
        matrix[torch.arange(target), high] += position - low
        return matrix
    return torch.einsum("yh,bchw,xw->bcyx", weights(x.shape[2], height), x, weights(x.shape[3], width))


def normalized(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return ((x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).relu()


def pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    return y if conv.bias is None else y + conv.bias.view(-1, 1, 1)


@pytest.fixture
def pyramid() -> Features:
    torch.manual_seed(0)
    return Features(tuple(torch.randn(2, c, h, w, dtype=torch.float64)
                          for c, h, w in ((3, 9, 14), (4, 5, 7), (5, 3, 4))))


def randomized(head: nn.Module) -> nn.Module:
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head.double()


def test_fused_head_is_its_formula(pyramid):
    head = randomized(FusedHead(SMALL, 6))
    stacked = torch.cat([enlarge(x, 9, 14) for x in pyramid.maps], dim=1)
    conv, norm, _ = head.fuse
    expected = pointwise(normalized(pointwise(stacked, conv), norm), head.predict)
    assert torch.allclose(head(head.gather(pyramid)), expected, atol=1e-12)


def test_fpn_head_is_its_formula(pyramid):
    head = randomized(FPNHead(SMALL, 6, width=8))

    def smoothed(x: Tensor, i: int) -> Tensor:
        conv, norm, _ = head.smooth[i]
        padded = torch.zeros(2, 8, x.shape[2] + 2, x.shape[3] + 2, dtype=x.dtype)
        padded[:, :, 1:-1, 1:-1] = x
        y = sum(torch.einsum("oc,bchw->bohw", conv.weight[:, :, i, j],
                             padded[:, :, i:i + x.shape[2], j:j + x.shape[3]]) for i in range(3) for j in range(3))
        return normalized(y, norm)

    c = [pointwise(x, lateral) for x, lateral in zip(pyramid.maps, head.lateral, strict=True)]
    p2 = c[2]
    p1 = c[1] + enlarge(p2, 5, 7)
    p0 = c[0] + enlarge(p1, 9, 14)
    total = smoothed(p0, 0) + enlarge(smoothed(p1, 1), 9, 14) + enlarge(smoothed(p2, 2), 9, 14)
    assert torch.allclose(head(head.gather(pyramid)), pointwise(total, head.predict), atol=1e-12)


def test_aspp_is_its_formula(pyramid):
    aspp = ASPP(5, 8, width=4).double()
    aspp.project[1].p = 0.0
    x = torch.randn(2, 5, 30, 40, dtype=torch.float64)
    assert [branch[0].dilation[0] for branch in aspp.local] == [1, 12, 24, 36]
    branches = []
    for branch, rate in zip(aspp.local, (0, 12, 24, 36), strict=True):
        y = nn.functional.conv2d(x, branch[0].weight, padding=rate, dilation=max(rate, 1))
        branches.append(normalized(y, branch[1]))
    pooled = normalized(pointwise(x.mean((2, 3), keepdim=True), aspp.image[1]), aspp.image[2])
    branches.append(enlarge(pooled, 30, 40))
    conv, norm, _ = aspp.project[0]
    assert torch.allclose(aspp(x), normalized(pointwise(torch.cat(branches, 1), conv), norm), atol=1e-12)


def test_aspp_rates_keep_their_extent_at_other_strides():
    rates = [[b[0].dilation[0] for b in ASPP(5, stride, 4).local[1:]] for stride in (8, 16, 32)]
    assert rates == [[12, 24, 36], [6, 12, 18], [3, 6, 9]]


def test_aspp_trains_on_one_image_and_leaves_the_statistics_of_the_image_branch():
    aspp = ASPP(5, 32, width=4)
    norm = aspp.image[2]
    aspp(torch.randn(1, 5, 4, 5)).sum().backward()
    assert norm.num_batches_tracked == 0 and norm.weight.grad is not None
    aspp(torch.randn(2, 5, 4, 5))
    assert norm.num_batches_tracked == 1
    with pytest.raises(ValueError):
        nn.BatchNorm2d(3)(torch.randn(1, 3, 1, 1))  # what torch's own does
    x = torch.randn(1, 3, 1, 1)
    mine = SingleValueBatchNorm(3)
    assert torch.allclose(mine.train()(x), mine.eval()(x))


def test_tasks_that_share_a_pyramid_gather_it_once(pyramid):
    spec = dict.fromkeys("abc", SMALL)
    decoder = Heads.Config().build(features=spec, channels={"a": 2, "b": 1, "c": 3}).double()
    calls = []
    decoder.gather = lambda features: calls.append(features) or FusedHead.gather(features)
    shared = decoder(TaskFeatures(dict.fromkeys("abc", pyramid)))
    assert len(calls) == 1 and [x.shape[1] for x in shared.final.values()] == [2, 1, 3]
    own = decoder(TaskFeatures({task: Features(pyramid.maps) for task in "abc"}))
    assert len(calls) == 4
    assert all(torch.allclose(shared.final[t], own.final[t]) for t in "abc")


@pytest.mark.parametrize("head", ["fused", "aspp", "fpn"])
def test_every_head_works_on_a_single_scale(head):
    spec = FeatureSpec((6,), (16,))
    decoder = Heads.Config(head=head, width=8).build(features={"a": spec}, channels={"a": 2})
    assert decoder(TaskFeatures({"a": Features((torch.randn(2, 6, 4, 5),))})).final["a"].shape == (2, 2, 4, 5)


def test_negative_width_is_refused():
    with pytest.raises(InputError, match=r"decoder\.width: got -1; needs a positive number"):
        Heads.Config(width=-1).build(features={"a": SMALL}, channels={"a": 1})
