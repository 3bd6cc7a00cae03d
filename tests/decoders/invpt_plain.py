"""InvPT's equations written out, number by number, in float64 and with the batch's statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transcription import conv, enlarge, norm

from polyptych.decoders._inverted_pyramid import CrossTaskAttention, EncoderFeatures
from polyptych.decoders.invpt import InvPT
from polyptych.types import Features, TaskFeatures


def transposed(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """Every pixel paints its kernel into the result, two apart; what falls over the upper left edge is lost."""
    b, _, h, w = x.shape
    y = torch.zeros(b, layer.out_channels, 2 * h, 2 * w, dtype=x.dtype)
    for row in range(h):
        for column in range(w):
            for i in range(3):
                for j in range(3):
                    u, v = 2 * row + i - 1, 2 * column + j - 1
                    if 0 <= u < 2 * h and 0 <= v < 2 * w:
                        y[:, :, u, v] += x[:, :, row, column] @ layer.weight[:, :, i, j]
    return y + layer.bias.view(-1, 1, 1)


def block(x: Tensor, layers: nn.Sequential) -> Tensor:
    """Two of: convolution, BatchNorm, ReLU."""
    flat = [part for part in layers.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    for layer, batch_norm in zip(flat[::2], flat[1::2], strict=True):
        x = norm(conv(x, layer), batch_norm).clamp(min=0)
    return x


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Over the last dimension."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def attention(x: Tensor, message: Tensor | None, layer: CrossTaskAttention, divisor: int) -> tuple[Tensor, Tensor]:
    """Number by number. ``x`` (b t c h w) and the result (b t c hq wq); scores (b g t hq wq k)."""
    b, t, c, h, w = x.shape
    g, p, per_head = layer.heads, layer.pool, c // layer.heads
    reduced = [norm(conv(x[:, i], local), batch_norm) for i, (local, batch_norm) in enumerate(layer.reduce.values())]
    means = [torch.stack([x[:, i, :, u:u + p, v:v + p].mean((2, 3)) for u in range(0, h, p) for v in range(0, w, p)], 1)
             for i in range(t)]
    hq, wq = reduced[0].shape[2:]
    assert (hq, wq) == (math.ceil(h / 2), math.ceil(w / 2))
    k, v = linear(torch.cat(means, 1), layer.key), linear(torch.cat(means, 1), layer.value)
    assert k.shape[1] == t * math.ceil(h / p) * math.ceil(w / p)
    scores = torch.zeros(b, g, t, hq, wq, k.shape[1], dtype=x.dtype)
    if message is not None:
        enlarged = torch.zeros_like(scores)
        for head in range(g):
            for i in range(t):
                for j in range(k.shape[1]):
                    enlarged[:, head, i, :, :, j] = enlarge(message[:, head, i, :, :, j][:, None], hq, wq)[:, 0]
    out = torch.zeros(b, t, c, hq, wq, dtype=x.dtype)
    for i in range(t):
        for row in range(hq):
            for column in range(wq):
                q = linear(reduced[i][:, :, row, column], layer.query)
                heads = [slice(head * per_head, (head + 1) * per_head) for head in range(g)]
                raw = [torch.einsum("bd,bkd->bk", q[:, s], k[:, :, s]) / divisor**0.5 for s in heads]
                if message is not None:
                    parts = [*raw, *(enlarged[:, head, i, row, column] for head in range(g))]
                    mix = layer.fuse.weight[:, :, 0, 0]
                    raw = [sum(mix[head, n] * part for n, part in enumerate(parts)) + layer.fuse.bias[head]
                           for head in range(g)]
                for head, s in enumerate(heads):
                    scores[:, head, i, row, column] = raw[head]
                    e = (raw[head] - raw[head].amax(1, keepdim=True)).exp()
                    out[:, i, s, row, column] = torch.einsum("bk,bkd->bd", e / e.sum(1, keepdim=True), v[:, :, s])
    return linear(out.permute(0, 1, 3, 4, 2), layer.join).permute(0, 1, 4, 2, 3), scores


def given(encoder: EncoderFeatures, features: Features, size: tuple[int, int]) -> Tensor:
    total = 0
    for i, layer in zip(encoder.indices, encoder.layers, strict=True):
        apply = transposed if isinstance(layer, nn.ConvTranspose2d) else conv
        total = total + enlarge(apply(features.maps[i], layer), *size)
    return total


def transcribed(decoder: InvPT, features: TaskFeatures, extent: tuple[int, int], published_scale: bool):
    """Preliminary and final predictions for an image of this extent."""
    def size(stride: int) -> tuple[int, int]:
        return math.ceil(extent[0] / stride), math.ceil(extent[1] / stride)

    initial, maps = {}, {}
    for task in features:
        x = block(enlarge(features[task].maps[-1], *size(32)), decoder.preliminary[task])
        initial[task] = conv(x, decoder.initial[task])
        maps[task] = conv(torch.cat([x, initial[task]], 1), decoder.mix[task])
    total, message = dict.fromkeys(features, 0), None
    for number, stage in enumerate(decoder.stages):
        own = size(32 // 2**number)
        if number > 0:
            maps = {task: block(enlarge(x, *own), stage.enlarge[task]) for task, x in maps.items()}
        if stage.encoder is not None:
            maps = {task: x + given(stage.encoder, features[task], own) for task, x in maps.items()}
        x = torch.stack(list(maps.values()), 1)
        width = x.shape[2]
        normed = layer_norm(x.permute(0, 1, 3, 4, 2), stage.norm1).permute(0, 1, 4, 2, 3)
        attended, scores = attention(normed, message if stage.attention.fuse is not None else None, stage.attention,
                                     width if published_scale else width // stage.attention.heads)
        message = scores
        x = x + torch.stack([enlarge(attended[:, i], *own) for i in range(x.shape[1])], 1)
        tokens = x.permute(0, 1, 3, 4, 2)
        inside = linear(layer_norm(tokens, stage.norm2), stage.mlp.fc1)
        inside = inside * 0.5 * (1 + torch.erf(inside / 2**0.5))
        tokens = tokens + linear(inside, stage.mlp.fc2)
        maps = {task: tokens[:, i].permute(0, 3, 1, 2) for i, task in enumerate(features)}
        together = layer_norm(torch.cat(list(maps.values()), 1).permute(0, 2, 3, 1), stage.norm).permute(0, 3, 1, 2)
        for i, task in enumerate(features):
            y = together[:, i * width:(i + 1) * width]
            if number > 0:
                y = conv(y, stage.out[task])
            total[task] = total[task] + enlarge(y, *size(4))
    final = {task: conv(norm(conv(total[task], layers[0]), layers[1]).clamp(min=0), decoder.heads[task])
             for task, layers in decoder.join.items()}
    return initial, final
