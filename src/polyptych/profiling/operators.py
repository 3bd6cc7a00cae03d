"""Multiply-adds from torch's own counter, and every operator that it has no formula for, by name.

``torch.utils.flop_counter.FlopCounterMode`` knows matrix products, convolutions and attention, and counts two
operations per multiply-add. The literature reports just these; by convention, operators with a fixed number of
operations per element (activations, normalization, pooling, interpolation) are left out. An operator that is neither of
these nor mere data movement is *unknown*: its arithmetic is missing from the total, and the reader is told so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeVar

import torch
import torchvision.ops  # noqa: F401  registers the operator that is named below
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from polyptych.ops import selective_scan

T = TypeVar("T")
Kind = Literal["movement", "per_element", "unknown"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVEMENT = _words("""
    _to_copy _unsafe_index _unsafe_view arange as_strided cat channel_shuffle clone constant_pad_nd copy embedding empty
    empty_like empty_permuted empty_strided eye fill flip full full_like gather im2col index index_select lift
    lift_fresh linspace masked_select masked_scatter meshgrid narrow_copy native_channel_shuffle new_empty
    new_empty_strided new_full new_ones new_zeros nonzero ones ones_like pixel_shuffle pixel_unshuffle reflection_pad1d
    reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    resize roll rot90 scalar_tensor scatter select_scatter slice_scatter stack tril triu zero zeros zeros_like
    _local_scalar_dense
""")
"""Operators (without the underscore of the in-place form) that compute nothing, beside views, which say so."""

PER_ELEMENT = _words("""
    _batch_norm_no_update _batch_norm_with_update _fused_rms_norm _log_softmax _native_batch_norm_legit
    _native_batch_norm_legit_no_training _prelu_kernel _safe_softmax _softmax batch_norm_elemt batch_norm_stats
    cudnn_batch_norm elu glu hardswish hardtanh leaky_relu log_sigmoid_forward logit miopen_batch_norm mish
    native_batch_norm native_group_norm native_layer_norm softplus softshrink threshold
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d avg_pool2d avg_pool3d max_pool2d_with_indices
    max_pool3d_with_indices max_unpool2d mkldnn_max_pool2d
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact2d grid_sampler_2d grid_sampler_3d
    upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d upsample_trilinear3d
    all amax amin any argmax argmin col2im count_nonzero cumsum linalg_vector_norm logsumexp max mean min norm prod std
    std_mean sum topk var var_mean
    bernoulli native_dropout normal rand rand_like randint randn randn_like randperm uniform
""")
"""Activations, normalization, pooling, interpolation, reductions and noise: a few operations per element."""


def _attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, out_shape: Any = None,
               **__: Any) -> int:
    """Operations of softmax(Q K^T) V, two per multiply-add; shapes (b heads length width)."""
    *batch, length, width = query
    return 2 * prod(batch) * length * key[-2] * (width + value[-1])


def _deformable(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    """The products with the weights; sampling is interpolation, which is left out by convention."""
    return 2 * prod(out_shape) * prod(weight[1:])


EXTRA_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.torchvision.deform_conv2d: _deformable,
    torch.ops.polyptych.selective_scan: selective_scan.multiply_adds}
"""Formulas that some versions of torch's counter lack; the counter's own formula takes precedence."""


@dataclass(frozen=True)
class Operator:
    """An operator without a formula for multiply-adds.

    Attributes:
        name: as torch spells it, for instance ``aten.grid_sampler_2d``.
        calls: in one forward pass.
        kind: ``movement`` computes nothing; ``per_element`` is not counted by convention; the arithmetic of an
            ``unknown`` one is missing from the total.
    """

    name: str
    calls: int
    kind: Kind


@dataclass(frozen=True)
class Count:
    """Multiply-adds of one forward pass.

    Attributes:
        by_module: multiply-adds by the dotted path of the innermost running module; ``""`` is the network itself.
        by_operator: multiply-adds by the name of the operator.
        uncounted: operators without a formula, the unknown ones first.
    """

    by_module: dict[str, int]
    by_operator: dict[str, int]
    uncounted: tuple[Operator, ...]

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())


def count(network: nn.Module, forward: Callable[[], T]) -> tuple[Count, T]:
    """Run ``forward``, which calls ``network``, and count.

    Gradients must be recorded: otherwise torch may run whole layers in fused kernels without a formula.
    """
    recorder, counter = Recorder(), FlopCounterMode(display=False, custom_mapping=EXTRA_FORMULAS)
    with recorder, counter, _attributed(network, counter) as flops:  # the inner mode decomposes for the outer one
        result = forward()
    by_operator = {str(packet): n // 2 for packet, n in counter.get_flop_counts().get("Global", {}).items()}
    return Count({path: n // 2 for path, n in flops.items()}, by_operator, recorder.uncounted()), result


class Recorder(TorchDispatchMode):
    """Remembers which operators without a formula ran, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, Kind]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in flop_registry and func.overloadpacket not in EXTRA_FORMULAS:
            self.calls[str(func.overloadpacket), kind_of(func)] += 1
        return func(*args, **(kwargs or {}))

    def uncounted(self) -> tuple[Operator, ...]:
        order = ("unknown", "per_element", "movement")
        found = [Operator(name, calls, kind) for (name, kind), calls in self.calls.items()]
        return tuple(sorted(found, key=lambda operator: (order.index(operator.kind), operator.name)))


def kind_of(func: torch._ops.OpOverload) -> Kind:
    """The kind of an operator without a formula: torch's own are known by name, others by their tags."""
    namespace, _, name = func._schema.name.partition("::")
    name = name.rstrip("_") if namespace == "aten" else ""
    aliases = [value.alias_info for value in func._schema.returns if value.alias_info is not None]
    if name in MOVEMENT or (aliases and not any(alias.is_write for alias in aliases)):
        return "movement"
    tags = {torch.Tag.pointwise, getattr(torch.Tag, "reduction", torch.Tag.pointwise)}
    return "per_element" if name in PER_ELEMENT or tags & set(func.tags) else "unknown"


@contextmanager
def _attributed(network: nn.Module, counter: FlopCounterMode) -> Iterator[Counter[str]]:
    """Operations by the path of the innermost running module.

    torch's counter attributes operations to modules that are *called*; a backbone whose stages an encoder calls one by
    one would get none. So the counter's total is read whenever a module starts or ends.
    """
    flops: Counter[str] = Counter()
    at_work = [""]

    def settle() -> None:
        flops[at_work[-1]] += counter.get_total_flops() - sum(flops.values())

    def begin(path: str) -> None:
        settle()
        at_work.append(path)

    def end() -> None:
        settle()
        at_work.pop()

    handles = []
    for path, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, inputs, path=path: begin(path)))
        handles.append(module.register_forward_hook(lambda module, inputs, output: end(), always_call=True))
    try:
        yield flops
        settle()
    finally:
        for handle in handles:
            handle.remove()
