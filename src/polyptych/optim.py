"""Optimizers and learning-rate schedules. A schedule is a pure function of the step, so it needs no state."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from polyptych.errors import InputError
from polyptych.freezing import later_trained
from polyptych.ranges import check_range

UNDECAYED = re.compile("bias|.*pos_embed.*|(cls|dist|reg)_token|attention_biases|relative_position_bias_table|"
                       "(pixel|patch)_pos|rel_pos_[hw]|logit_scale")
UNDECAYED_MODULES = frozenset({"cpb_mlp", "rel_pos", "pos_block"})  # modules that generate position tables


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How weights are updated.

    A module may scale these settings for its own parameters and those of all its submodules, with the attributes
    ``learning_rate_factor`` and ``weight_decay_factor`` (the units of cross-stitch networks have both). Its attribute
    ``undecayed`` names own parameters that are never decayed, whatever is set here. The attributes of a parameter say
    whether it ``adapts`` pretrained weights, and how many ``layers_above`` it the backbone has.
    """

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW decouples weight decay; Adam adds it to the gradient; SGD has momentum."""
    learning_rate: float = 1e-3
    """Learning rate at the peak of the schedule."""
    backbone_scale: float = 1.0
    """Multiplies the learning rate of the encoder (below 1 for pretrained weights), but not of its adapters."""
    adapter_scale: float = 1.0
    """Multiplies the learning rate of what an encoder adds to pretrained weights (low-rank updates, prompts, task
    adapters)."""
    decoder_scale: float = 1.0
    """Multiplies the learning rate of the decoder."""
    layer_decay: float = 1.0
    """Multiplies the learning rate of the backbone's weights once for every layer above them (0.65 to 0.95 is usual for
    pretrained transformers). Layers are those of timm: the embedding, every block, and one for all that follows."""
    weight_decay: float = 0.05
    """Weight decay. It does not apply to biases, normalization parameters, or a transformer's position tables and
    special tokens, unless decay-everything is set."""
    decay_everything: bool = False
    """Apply weight decay to all parameters, as older papers do."""
    momentum: float = 0.9
    """Momentum of SGD, or first beta of Adam."""
    beta2: float = 0.999
    """Second beta of Adam."""
    nesterov: bool = False
    """Use Nesterov momentum (SGD)."""
    fused: bool = False
    """Update all parameters in one kernel: the same arithmetic up to rounding, and several times faster on a CPU."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "backbone_scale", "adapter_scale", "decoder_scale", "weight_decay"):
            check_range(f"--optimizer.{name.replace('_', '-')}", getattr(self, name), 0)
        check_range("--optimizer.layer-decay", self.layer_decay, 0, 1, do="1 gives all layers the same rate")
        for name in ("momentum", "beta2"):
            check_range(f"--optimizer.{name}", getattr(self, name), 0, 1, below=True)
        if self.kind == "sgd" and self.nesterov and self.momentum == 0:
            raise InputError("--optimizer.nesterov", "no momentum", "a momentum above 0",
                             "set --optimizer.momentum, for instance to 0.9")

    def build(self, network: nn.Module, balancer: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer; its groups store their peak learning rate under ``peak``."""
        groups = self.groups(network, balancer)
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov,
                                   fused=self.fused)
        maker = torch.optim.AdamW if self.kind == "adamw" else torch.optim.Adam
        return maker(groups, lr=self.learning_rate, betas=(self.momentum, self.beta2), fused=self.fused)

    def groups(self, network: nn.Module, balancer: nn.Module | None = None) -> list[dict[str, Any]]:
        """Parameter groups by (learning rate, weight decay), in a fixed order, for any PyTorch optimizer. A balancer's
        own parameters come last and are never decayed."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        factors, later = _factors(network), {id(p) for p in later_trained(network)}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad or id(parameter) in later:
                of_rate, of_decay = factors[id(parameter)]
                rate = self.learning_rate * of_rate * self._scale(name, parameter)
                decayed = self.decay_everything or decays(name, parameter)
                decay = self.weight_decay * of_decay if decayed else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        made = [{"params": parameters, "peak": peak, "lr": peak, "weight_decay": decay}
                for (peak, decay), parameters in groups.items()]
        if own := list(balancer.parameters()) if balancer is not None else []:
            peak = self.learning_rate * getattr(balancer, "learning_rate_factor", 1.0)
            made.append({"params": own, "peak": peak, "lr": peak, "weight_decay": 0.0})
        return made


    def _scale(self, name: str, parameter: nn.Parameter) -> float:
        if not name.startswith("encoder."):
            return self.decoder_scale
        if getattr(parameter, "adapts", False):
            return self.adapter_scale
        return self.backbone_scale * self.layer_decay ** getattr(parameter, "layers_above", 0)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter. Of those with several dimensions it spares biases and what timm's
    networks list as ``no_weight_decay``. The names are repeated here because a backbone that was cut into stages has
    lost that list."""
    *modules, own = name.split(".")
    return parameter.ndim > 1 and not UNDECAYED.fullmatch(own) and not UNDECAYED_MODULES.intersection(modules)


def _factors(module: nn.Module, rate: float = 1.0, decay: float = 1.0) -> dict[int, tuple[float, float]]:
    """By the id of a parameter: the factors of learning rate and weight decay that its enclosing modules ask for."""
    rate *= getattr(module, "learning_rate_factor", 1.0)
    decay *= getattr(module, "weight_decay_factor", 1.0)
    undecayed = getattr(module, "undecayed", ())
    found = {id(parameter): (rate, 0.0 if name in undecayed else decay)
             for name, parameter in module.named_parameters(recurse=False)}
    for child in module.children():
        found |= _factors(child, rate, decay)
    return found


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate changes from step to step, after a linear warm-up."""

    kind: Literal["cosine", "polynomial", "warm_restarts", "step", "constant"] = "cosine"
    """Cosine and polynomial end at `final`; warm restarts repeat a cosine (Loshchilov and Hutter, ICLR 2017, arXiv
    1608.03983); step multiplies by `factor` every `period` steps."""
    warmup: int = 0
    """Steps of linear warm-up from near zero."""
    power: float = 0.9
    """Exponent of the polynomial schedule."""
    period: int = 1000
    """Steps in the first cycle (warm restarts) or between drops (step)."""
    factor: float = 2.0
    """Ratio of the length of each cycle to the one before (warm restarts); step divides the rate by it."""
    final: float = 0.0
    """Final learning rate, as a fraction of the peak."""

    def __post_init__(self) -> None:
        check_range("--schedule.warmup", self.warmup, 0)
        check_range("--schedule.power", self.power, 0, do="0.9 is usual")
        check_range("--schedule.period", self.period, 1)
        # Below 1, cycles would shrink so that the last step is never reached, and drops would raise the rate.
        check_range("--schedule.factor", self.factor, 1, do="2 is usual")
        check_range("--schedule.final", self.final, 0, 1)

    def share(self, step: int, steps: int) -> float:
        """The learning rate of a step (counted from 0) as a share of its peak, in a run of ``steps``."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        step, steps = step - self.warmup, max(steps - self.warmup, 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return self.factor ** -(step // self.period)
        if self.kind == "warm_restarts":
            position, cycle = float(step), float(self.period)
            while position >= cycle:
                position, cycle = position - cycle, cycle * self.factor
            progress = position / cycle
        else:
            progress = min(step / steps, 1.0)
        if self.kind == "polynomial":
            return self.final + (1 - self.final) * (1 - progress) ** self.power
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Give every group its share of its peak; returns that of the optimizer's own rate, which no factor multiplies."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return optimizer.defaults["lr"] * share
