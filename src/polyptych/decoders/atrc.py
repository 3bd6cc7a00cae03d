"""ATRC: for every pair of tasks, the kind of context that one takes from the other; the kinds can be searched.

Source: Brüggemann, Kanakis, Obukhov, Georgoulis, Van Gool, ICCV 2021, arXiv 2104.13874
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import (
    SingleValueBatchNorm,
    common_spec,
    convolution,
    for_each_pyramid,
    upsample_and_concatenate,
)
from polyptych.errors import InputError
from polyptych.ops import without_autocast
from polyptych.ops.neighborhood import neighborhood_attention
from polyptych.types import Auxiliary, FeatureSpec, Output, TaskFeatures

NONE, GLOBAL, LOCAL, TARGET_LABEL, SOURCE_LABEL = range(5)  # the digits of published genotypes
KINDS = {"none": NONE, "global": GLOBAL, "local": LOCAL, "target_label": TARGET_LABEL, "source_label": SOURCE_LABEL}
NEIGHBORHOOD = 9
SMALLEST_SUM = 1e-12  # of the weights of global attention, as published
DECIDED = 0.3  # lead in probability at which a search fixes the kind of a pair
TEMPERATURES = 1.0, 0.05  # of the search, at its start and end
ENTROPIES = -0.02, 0.06  # weight of the entropy at start and end: explore, then decide

Contexts = dict[str, dict[str, int]]  # what each target takes from each source


class ATRC(Decoder):
    """``final[task]`` and the auxiliary predictions have the resolution of the pyramid's finest map. With X the
    concatenation of all maps at that resolution, of C_in channels, and C = C_in / 4:

        F_t = 3x3 convolution of X to C channels                         each convolution with BatchNorm and ReLU
        A_t = 1x1 logits of a 1x1 convolution of X without gradient      "regions": what label contexts refer to
        R_t = BatchNorm(1x1 convolution of the contexts that t takes from every task s)
        prediction = 1x1 logits of a 1x1 convolution of [F_t, R_t], of F_t alone where t takes nothing

    A context has C / 2 channels: attention with queries from F_t, and keys and values from F_s (s = t included). The
    keys are all positions, with a kernel instead of softmax (``global``, linear in their number); the 9 x 9 positions
    around each query (``local``); or one vector per region, the mean of F_s weighted by the region's share of each
    position, for the regions of the target (``target_label``) or of the source (``source_label``).

    ``contexts`` names one kind for all pairs; or a genotype as the authors publish it, a group of digits per task with
    one digit per source (0 none, 1 global, 2 local, 3 target label, 4 source label); or ``search``. A search keeps all
    kinds for every pair, mixed by a Gumbel softmax with one parameter per kind; over ``search_passes`` forward passes
    of training, its temperature falls and a penalty on the entropy of the mixture rises. Once one kind leads by 0.3,
    the pair is fixed permanently. :meth:`genotype` returns the result, for the option ``contexts`` of the run that
    trains it.

    Differences from the authors' code: they train regions of depth and normals by cross-entropy on 40 bins, with
    unpublished centroids. Here, a task whose ``regions`` differ from its channels learns one value per region, and the
    sum of these values weighted by the regions' shares is its auxiliary prediction, trained with the task's own loss.
    Their search trains the kinds with Adam at 5e-4 and the weights with SGD; here one optimizer trains both
    (``search_rate``).

    Raises:
        InputError: a bad option, contexts for other tasks, or tasks whose pyramids differ in shape.
    """

    refines = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        contexts: str = "target_label"
        """One kind for all pairs of tasks (none, global, local, target_label, source_label), a genotype in the order of
        the run's tasks such as '3344 4344 4334 3313', or search."""
        regions: dict[str, int] = field(default_factory=dict)
        """Number of regions for the label contexts of a task; by default its number of channels (published: 40 for
        depth and normals, 2 for boundaries)."""
        width: int = 0
        """Channels of a task's features; 0 means a quarter of the pyramid's."""
        gain: float = 0.1
        """Initial value of the learned gain on the sum of contexts (published: 0, so that training begins without
        contexts)."""
        dropout: float = 0.05
        """Probability that training drops a channel before the prediction; no effect in a search."""
        auxiliary_weight: float = 1.0
        """Weight of the losses of the auxiliary predictions (0: they are not supervised)."""
        search_passes: int = 40_000
        """Forward passes in training over which the temperature of a search falls: steps times accumulate."""
        search_rate: float = 1.0
        """Multiplies the learning rate of the mixing parameters of a search."""

        def __post_init__(self) -> None:
            words = self.contexts.replace("/", " ").split()
            self.require("contexts", self.contexts in (*KINDS, "search") or (bool(words) and all(
                len(word) == len(words) and set(word) <= set("01234") for word in words)),
                f"{', '.join(KINDS)}, search, or as many groups of digits 0 to 4 as each has digits")
            self.require("regions", all(n >= 1 for n in self.regions.values()), "1 or more for each task")
            self.require("width", self.width == 0 or self.width >= 2, "0 or at least 2")
            self.require("gain", math.isfinite(self.gain), "a number")
            self.require("dropout", 0 <= self.dropout < 1, "a probability in [0, 1)")
            self.require("auxiliary_weight", 0 <= self.auxiliary_weight < math.inf, "a number of at least 0")
            self.require("search_passes", self.search_passes >= 1, "1 or more")
            self.require("search_rate", 0 < self.search_rate < math.inf, "a positive number")

        def ablation(self) -> dict[str, Decoder.Config]:
            """The paper's baselines, with one kind for all pairs, and this configuration."""
            kinds: dict[str, Decoder.Config] = {kind.replace("_", " "): replace(self, contexts=kind) for kind in KINDS}
            return kinds | {"as chosen": self}

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec, tasks = common_spec(features, "atrc"), tuple(channels)
        if unknown := sorted(set(config.regions) - set(tasks)):
            raise InputError("decoder.regions", f"'{unknown[0]}'", f"tasks of this run: {', '.join(tasks)}",
                             "change --decoder.regions")
        total = sum(spec.channels)
        width = config.width or max(total // 4, 2)
        self.auxiliary_weight = config.auxiliary_weight
        searching = config.contexts == "search"
        self.contexts = {} if searching else _contexts(config.contexts, tasks)
        regional = tasks if searching else _with_regions(self.contexts)
        regions = {task: config.regions.get(task, channels[task]) for task in regional}
        self.features = nn.ModuleDict({task: convolution(total, width, 3) for task in tasks})
        self.regions = nn.ModuleDict({task: nn.Sequential(
            *convolution(total, total, 1), nn.Conv2d(total, n, 1)) for task, n in regions.items()})
        self.values = nn.ModuleDict({task: nn.Conv2d(n, channels[task], 1, bias=False)
                                     for task, n in regions.items() if n != channels[task] and self.auxiliary_weight})
        # Any: type checkers do not know what a container of containers holds.
        self.pairs: Any = nn.ModuleDict({target: nn.ModuleDict({
            source: Mixture(width, own=source == target, rate=config.search_rate) if searching
            else context_of(self.contexts[target][source], width)
            for source in tasks if searching or self.contexts[target][source] != NONE}) for target in tasks})
        taking = {task: len(list(pairs.children())) for task, pairs in self.pairs.items()}
        taking = {task: number for task, number in taking.items() if number}
        self.join = nn.ModuleDict({task: _joined(n * (width // 2), width, config.gain) for task, n in taking.items()})
        self.finish = nn.ModuleDict({task: nn.Sequential(
            *convolution(2 * width if task in taking else width, width, 1),
            nn.Dropout2d(0.0 if searching else config.dropout)) for task in tasks})
        self.heads = nn.ModuleDict({task: nn.Conv2d(width, c, 1) for task, c in channels.items()})
        self.passes, self.search_passes = torch.nn.Buffer(torch.zeros((), dtype=torch.long)), config.search_passes
        self.searching = searching
        self.apply(_initialize)
        for layer in (*self.heads.values(), *(layers[-1] for layers in self.regions.values())):  # type: ignore[index]
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: TaskFeatures) -> Output:
        stacked = for_each_pyramid(lambda pyramid: upsample_and_concatenate(pyramid.maps), features)
        own = {task: layers(stacked[task]) for task, layers in self.features.items()}
        regions = {task: layers(stacked[task].detach()) for task, layers in self.regions.items()}
        shares = {task: logits.flatten(2).softmax(-1) for task, logits in regions.items()}
        temperature, penalty = self._search_state()
        final = {}
        for target, pairs in self.pairs.items():
            x = own[target]
            found = [pair(x, own[source], shares.get(target), shares.get(source), temperature)
                     for source, pair in pairs.items()]
            if found:
                x = torch.cat([x, self.join[target](torch.cat(found, dim=1))], dim=1)
            final[target] = self.heads[target](self.finish[target](x))
        if not regions or not self.auxiliary_weight:
            return Output(final, penalty=penalty)
        auxiliary = {task: self.values[task](logits.softmax(1)) if task in self.values else logits
                     for task, logits in regions.items()}
        return Output(final, [Auxiliary(auxiliary, self.auxiliary_weight)], penalty=penalty)

    def _search_state(self) -> tuple[float, Tensor | None]:
        """The temperature, and, when a search is training, the entropy penalty of the undecided pairs."""
        if not self.searching or not self.training:
            return TEMPERATURES[1], None
        done = min(float(self.passes) / self.search_passes, 1.0)
        self.passes.add_(1)
        temperature, weight = (first + done * (last - first) for first, last in (TEMPERATURES, ENTROPIES))
        entropies = [pair.entropy() for pairs in self.pairs.values() for pair in pairs.values()]
        return temperature, weight * torch.stack(entropies).mean()

    def genotype(self) -> str:
        """The kinds in use, or, in a search, the best ones so far, in the form of the option ``contexts``."""
        tasks = list(self.heads)
        kinds = {target: {source: pair.best() for source, pair in pairs.items()}
                 for target, pairs in self.pairs.items()} if self.searching else self.contexts
        return " ".join("".join(str(kinds[target][source]) for source in tasks) for target in tasks)


def _contexts(text: str, tasks: tuple[str, ...]) -> Contexts:
    if text in KINDS:
        return {target: dict.fromkeys(tasks, KINDS[text]) for target in tasks}
    words = text.replace("/", " ").split()
    if len(words) != len(tasks):
        raise InputError("decoder.contexts", f"'{text}', of {len(words)} tasks",
                         f"{len(tasks)} groups of {len(tasks)} digits, for {', '.join(tasks)}",
                         "change --decoder.contexts")
    return {target: {source: int(digit) for source, digit in zip(tasks, word, strict=True)}
            for target, word in zip(tasks, words, strict=True)}


def _with_regions(contexts: Contexts) -> tuple[str, ...]:
    """The tasks whose regions some context uses, in their order."""
    needed = {task for target, kinds in contexts.items() for source, kind in kinds.items()
              for task, wanted in ((target, TARGET_LABEL), (source, SOURCE_LABEL)) if kind == wanted}
    return tuple(task for task in contexts if task in needed)


class Context(nn.Module):
    """Context that a target takes from a source: attention with ``width // 2`` channels for queries, keys and
    values."""

    def __init__(self, width: int, activation: type[nn.Module], affine: bool = True):
        super().__init__()
        inside = width // 2

        def project() -> nn.Sequential:
            return nn.Sequential(*convolution(width, inside, 1), nn.Conv2d(inside, inside, 1, bias=False),
                                 SingleValueBatchNorm(inside), activation())

        self.query, self.key = project(), project()
        self.value = nn.Sequential(nn.Conv2d(width, inside, 1, bias=False),
                                   SingleValueBatchNorm(inside, affine=affine), nn.ReLU(inplace=True))

    def forward(self, target: Float[Tensor, "b c h w"], source: Float[Tensor, "b c h w"],
                target_shares: Float[Tensor, "b _ l"] | None, source_shares: Float[Tensor, "b _ l"] | None,
                temperature: float) -> Float[Tensor, "b d h w"]:
        """``shares``: the share of each region at every position; ``temperature`` is that of the search."""
        raise NotImplementedError


class GlobalContext(Context):
    """Attention to all positions with weights q . k, where q and k are positive: without a softmax, the sums over
    positions can be computed first, which makes the cost linear."""

    def __init__(self, width: int, affine: bool = True):
        super().__init__(width, nn.Softplus, affine)

    def forward(self, target, source, target_shares, source_shares, temperature):
        q, k, v = self.query(target), self.key(source), self.value(source)
        q, k, v = (x.flatten(2).to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
        with without_autocast(target.device):  # sums over all positions exceed float16's range
            result = (v @ k.mT) @ q / (k.sum(-1, keepdim=True).mT @ q).clamp(min=SMALLEST_SUM)
        return result.to(target.dtype).unflatten(2, target.shape[-2:])


class LocalContext(Context):
    """Attention to the neighborhood of each position."""

    def __init__(self, width: int, affine: bool = True):
        super().__init__(width, nn.ReLU, affine)

    def forward(self, target, source, target_shares, source_shares, temperature):
        return neighborhood_attention(self.query(target), self.key(source), self.value(source), NEIGHBORHOOD)


class LabelContext(Context):
    """Attention to one vector per region of the target or of the source: the mean of the source's features, weighted by
    the region's shares."""

    def __init__(self, width: int, of_target: bool, affine: bool = True):
        super().__init__(width, nn.ReLU, affine)
        self.of_target = of_target

    def forward(self, target, source, target_shares, source_shares, temperature):
        shares = target_shares if self.of_target else source_shares
        vectors = (source.flatten(2) @ shares.to(source.dtype).mT)[..., None]  # (b c regions 1)
        q, k, v = self.query(target).flatten(2), self.key(vectors)[..., 0], self.value(vectors)[..., 0]
        attention = (q.mT @ k / q.shape[1] ** 0.5).softmax(-1)
        return (v @ attention.mT).unflatten(2, target.shape[-2:])


def context_of(kind: int, width: int, affine: bool = True) -> Context:
    if kind == GLOBAL:
        return GlobalContext(width, affine)
    if kind == LOCAL:
        return LocalContext(width, affine)
    return LabelContext(width, kind == TARGET_LABEL, affine)


class Mixture(nn.Module):
    """Weighted mixture of all kinds of context for a pair. For a task with itself, both label contexts are the same, so
    only one is kept.

    The values' BatchNorm has no learned scale, which could grow to compensate for a shrinking mixture weight.
    """

    undecayed = ("preference",)

    def __init__(self, width: int, own: bool, rate: float):
        super().__init__()
        kinds = [kind for kind in (GLOBAL, LOCAL, TARGET_LABEL, SOURCE_LABEL) if not (own and kind == SOURCE_LABEL)]
        self.kinds = [NONE, *kinds]
        self.blocks = nn.ModuleList(context_of(kind, width, affine=False) for kind in kinds)
        self.choice = Choice(len(self.kinds), rate)

    def entropy(self) -> Tensor:
        return self.choice.entropy()

    def best(self) -> int:
        return self.kinds[int(self.choice.preference.argmax())]

    def forward(self, target, source, target_shares, source_shares, temperature):
        weights = self.choice(temperature)[1:]  # the first weight is for no context
        parts = (weight * block(target, source, target_shares, source_shares, temperature)
                 for weight, block in zip(weights.to(target.dtype), self.blocks, strict=True))
        return sum(parts, torch.zeros((), dtype=target.dtype, device=target.device))


class Choice(nn.Module):
    """One weight per option, by Gumbel softmax of ``preference`` in training; ``settled`` holds the final choice once
    it is made."""

    undecayed = ("preference",)

    def __init__(self, options: int, rate: float):
        super().__init__()
        self.learning_rate_factor = rate
        self.preference = nn.Parameter(torch.zeros(options))
        self.settled = nn.Buffer(torch.zeros(options))  # all zero, or the final weights

    def entropy(self) -> Float[Tensor, ""]:
        logarithms = self.preference.log_softmax(0)
        return -(logarithms.exp() * logarithms).sum()

    def forward(self, temperature: float) -> Float[Tensor, " options"]:
        if not self.training:
            return torch.where(self.settled.any(), self.settled, self.preference.softmax(0))
        first, second = self.preference.detach().softmax(0).topk(2).values
        best = F.one_hot(self.preference.argmax(), len(self.preference))
        self.settled.add_(best * ((first - second >= DECIDED) & ~self.settled.any()))
        return torch.where(self.settled.any(), self.settled, F.gumbel_softmax(self.preference, temperature))


def _joined(inside: int, width: int, gain: float) -> nn.Sequential:
    norm = SingleValueBatchNorm(width)
    nn.init.constant_(norm.weight, gain)
    return nn.Sequential(nn.Conv2d(inside, width, 1, bias=False), norm)


def _initialize(module: nn.Module) -> None:
    """Initialize the attention's convolutions as published; all others keep torch's defaults."""
    if isinstance(module, Context):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
