"""Swin's windows for dense prediction, written out position by position; in a backbone, and beside prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn

from polyptych.backbones._windows import ShiftedWindows, shift_every_second_block
from polyptych.backbones.timm import Timm
from polyptych.encoders._prompted_swin import PromptedSwin
from polyptych.encoders._task_prompts import PromptOptions
from polyptych.encoders.task_prompter import TaskPrompter

SWIN = Timm.Config(model="swin_tiny_patch4_window7_224",
                   architecture="embed_dim=12, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 3)")


def small() -> nn.Module:
    torch.manual_seed(3)
    whole = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, strict_img_size=False, window_size=4,
                              embed_dim=8, depths=(2, 2), num_heads=(1, 2), img_size=32, out_indices=(0, 1)).eval()
    for name, parameter in whole.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(parameter)
    shift_every_second_block(whole)
    return whole


def plain_attention(block: ShiftedWindows, x: Tensor) -> Tensor:
    """One head and image (h w c): every pixel asks those of its window; shifted, the padded map is a torus, but no
    pixel asks across the seam."""
    (height, width, channels), size = x.shape, block.window_size[0]
    rows, columns = (size * math.ceil(side / size) for side in (height, width))
    padded = x.new_zeros(rows, columns, channels)
    padded[:height, :width] = x
    shift = block.shift_size[0]
    table = block.attn.relative_position_bias_table.view(2 * size - 1, 2 * size - 1)
    query, key, value = block.attn.qkv(padded).chunk(3, dim=-1)
    out = torch.zeros_like(padded)

    def place(r: int, c: int) -> tuple[int, int, int, int, bool, bool]:
        """Window, place in it, and whether the pixel came around the seam."""
        a, b = (r - shift) % rows, (c - shift) % columns
        return a // size, b // size, a % size, b % size, r < shift, c < shift

    for r in range(rows):
        for c in range(columns):
            here = place(r, c)
            scores, values = [], []
            for r2 in range(rows):
                for c2 in range(columns):
                    there = place(r2, c2)
                    if here[:2] == there[:2] and here[4:] == there[4:]:
                        bias = table[here[2] - there[2] + size - 1, here[3] - there[3] + size - 1]
                        scores.append(query[r, c] @ key[r2, c2] / math.sqrt(channels) + bias)
                        values.append(value[r2, c2])
            out[r, c] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return block.attn.proj(out)[:height, :width]


@pytest.mark.parametrize("size", [(8, 12), (4, 4), (7, 10), (3, 5)])
@torch.no_grad()
def test_as_written_out(size):
    blocks = [m for m in small().modules() if isinstance(m, ShiftedWindows) and m.attn.num_heads == 1]
    assert [block.shift_size for block in blocks] == [(0, 0), (2, 2)]
    x = torch.randn(1, *size, 8)
    for block in blocks:
        assert torch.allclose(block._attn(x)[0], plain_attention(block, x[0]), atol=1e-5)


def test_every_second_block_of_a_backbone_shifts_unless_asked():
    def shifts(config: Timm.Config) -> list[tuple[int, int]]:
        return [tuple(m.shift_size) for m in config.build().modules() if hasattr(m, "shift_size")]

    assert shifts(SWIN) == [(0, 0), (3, 3)] * 4
    assert shifts(replace(SWIN, swin_windows="timm"))[-2:] == [(0, 0), (0, 0)]


@torch.no_grad()
def test_where_windows_divide_the_maps_only_the_last_stage_differs_from_timm():
    torch.manual_seed(0)
    ours = SWIN.build().eval()
    theirs = replace(SWIN, swin_windows="timm").build().eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(1, 3, 224, 448)
    for stage, (a, b) in enumerate(zip(ours(image).maps, theirs(image).maps, strict=True)):
        assert torch.allclose(a, b, atol=1e-5) == (stage < 3)


@pytest.mark.parametrize("windows", ["dense", "timm"])
@torch.no_grad()
def test_without_prompts_an_encoder_has_the_backbones_windows(windows):
    torch.manual_seed(0)
    backbone = replace(SWIN, swin_windows=windows).build().eval()
    for name, parameter in backbone.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(parameter)
    image = torch.rand(2, 3, 96, 160)
    runner = PromptedSwin(backbone.stages, PromptOptions(tasks=0, size=(96, 160))).eval()
    for level, x in zip(runner(backbone.stages, image), backbone(image).maps, strict=True):
        assert torch.allclose(level.map, x, atol=1e-4)
    assert TaskPrompter.Config(size=(96, 160)).build(backbone=SWIN, tasks=("a",))(image)["a"].maps
