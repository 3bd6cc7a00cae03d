"""MTLoRA: one frozen transformer with low-rank updates, some for all tasks and some for each.

Source: Agiza, Neseem, Reda, CVPR 2024, arXiv 2403.20320
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from jaxtyping import Float
from timm.layers import Mlp, SwiGLU
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._stages import TokenBlocks
from polyptych.backbones._windows import cut_windows, put_windows_back
from polyptych.backbones.timm import Timm
from polyptych.encoders._base import Encoder
from polyptych.encoders._low_rank import LowRankLinear, check_low_rank, freeze_weights, linear_layers
from polyptych.encoders._prompted_swin import PromptedSwin, inside
from polyptych.errors import InputError, nearest
from polyptych.types import Features, FeatureSpec, TaskFeatures

COMMON = ("qkv", "q_proj", "k_proj", "v_proj")
FORKED = ("proj", "fc1", "fc2", "fc1_g", "fc1_x")
TRAINED = r"norm|patch_embed|relative_position_bias_table|downsample\.reduction"


class MTLoRA(Encoder):
    """Every linear layer of the blocks has a low-rank update that all tasks share. In the last block of a stage, the
    tasks branch: the output projection of the attention and the MLP also have an update per task. The branched features
    go to the task's decoder; only the common features enter the next stage.

    On Swin, as published, patch merging belongs to the end of a stage: the maps have strides 8, 16, 32 and 32. On a
    plain vision transformer (not published), tasks branch in the last block of every quarter.

    The weights and biases of the linear layers in the blocks are frozen (on a plain transformer also special tokens,
    position embeddings and layer scales, which no paper trains). Norms, the patch embedding, relative position tables
    and patch merging are trained; with ``merging low_rank`` (MTLoRA+) patch merging is frozen and has an update too.
    The scale multiplies an update directly, whatever its rank (peft divides by the rank).

    ``shared`` is empty, because shared and task-specific computations alternate within a block; balancers compare
    gradients of parameters.

    Raises:
        InputError: an unsupported backbone, or an option out of range.
    """

    example = "test_vit"

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        ranks: tuple[int, ...] = (64,)
        """Rank of the common updates: one for all stages, or one for each."""
        task_rank: int = 4
        """Rank of the updates per task; 0 leaves them out (all tasks get the same features)."""
        task_ranks: dict[str, str] = field(default_factory=dict)
        """Ranks of single tasks in place of task_rank, one for all stages or one for each: semseg 4,4,8,8"""
        scale: float = 4.0
        """Multiplies the common updates."""
        task_scale: float = 4.0
        """Multiplies the updates per task."""
        dropout: float = 0.05
        """Dropout on the input of the updates."""
        task_output: Literal["own", "both"] = "own"
        """Updates in a task's output: only its own (published as mode matrix), or also the common one (matrixv2)."""
        merging: Literal["trained", "low_rank"] = "trained"
        """Whether Swin's patch merging is trained, or frozen with a low-rank update (MTLoRA+)."""
        reduce: tuple[int, ...] = (18, 36, 72, 144)
        """Channels to which a 1x1 convolution per task reduces the maps (one number for each map; none leaves the maps
        as they are)."""

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        self.config, self.tasks = config, tasks
        self.backbone = _build(backbone)
        stages = list(self.backbone.stages)[1:]
        ranks = _ranks(config.ranks, len(stages), "encoder.ranks")
        for rank in ranks:
            check_low_rank(rank, config.dropout, "encoder.ranks")
        of_tasks = _ranks_of_tasks(config, tasks, len(stages))
        freeze_weights(self.backbone.stages, backbone.freeze_until, TRAINED)
        self.is_swin = PromptedSwin.fits(self.backbone.stages)
        for number, (stage, rank) in enumerate(zip(stages, ranks, strict=True)):
            blocks = inside(stage).blocks
            own = {task: of_tasks[task][number] for task in tasks if of_tasks[task][number]}
            for block in blocks:
                self._adapt(block, rank, own if block is blocks[-1] else {})
            following = stages[number + 1:number + 2] if self.is_swin and config.merging == "low_rank" else []
            for merging in following:  # the end of a stage here is the beginning of the next in timm
                down = inside(merging).downsample
                down.reduction = self._low_rank(down.reduction, rank, {})
        spec = self.backbone.spec
        if self.is_swin:
            spec = FeatureSpec((*spec.channels[1:], spec.channels[-1]), (*spec.strides[1:], spec.strides[-1]))
        self.reduce = _reductions(config.reduce, spec, tasks)
        if config.reduce:
            spec = replace(spec, channels=config.reduce)
        self.spec = dict.fromkeys(tasks, spec)
        self.multiple, self.mean, self.std = self.backbone.multiple, self.backbone.mean, self.backbone.std

    def _low_rank(self, linear: nn.Linear, rank: int, own: dict[str, int]) -> LowRankLinear:
        config = self.config
        for parameter in linear.parameters():
            parameter.requires_grad_(False)
        return LowRankLinear(linear, rank, config.scale, config.dropout, own, config.task_scale,
                             config.task_output == "both")

    def _adapt(self, block: nn.Module, rank: int, own: dict[str, int]) -> None:
        for names, tasks in ((COMMON, {}), (FORKED, own)):
            for parent, name, linear in linear_layers(block, names, ""):
                setattr(parent, name, self._low_rank(linear, rank, tasks))
        if own:
            attention: Any = block.attn
            attention.proj.forks = True

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        first, *stages = self.backbone.stages
        state = first(image)
        maps: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        run = self._swin if self.is_swin else self._plain
        for number, stage in enumerate(stages):
            following = stages[number + 1] if number + 1 < len(stages) else None
            state, parted = run(stage, following, state)
            for task in self.tasks:
                maps[task].append(parted[task])
        return TaskFeatures({task: Features(tuple(
            self.reduce[task][i](x) if self.config.reduce else x  # type: ignore[index]
            for i, x in enumerate(maps[task]))) for task in self.tasks})

    def _swin(self, stage: nn.Module, following: nn.Module | None,
              state: Float[Tensor, "b c h w"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The state is that after patch merging, which ended the previous stage."""
        *blocks, last = inside(stage).blocks
        x = state.permute(0, 2, 3, 1)
        for block in blocks:
            x = block(x)
        merged = nn.Identity() if following is None else inside(following).downsample

        def attend(normed: Tensor) -> Tensor:
            windows, padded = cut_windows(last, normed)
            mask = last.get_attn_mask(padded) if last.dynamic_mask else last.attn_mask
            return put_windows_back(last, last.attn(windows, mask=mask), padded, normed.shape[1], normed.shape[2])

        common, parted = self._part(last, x, attend)
        return merged(common).permute(0, 3, 1, 2), {task: merged(own).permute(0, 3, 1, 2)
                                                    for task, own in parted.items()}

    def _plain(self, stage: Any, following: nn.Module | None, state: Any) -> tuple[Any, dict[str, Tensor]]:
        tokens, rotations = stage.to_tokens(state), stage.rotations(state)
        beside = {} if rotations is None else {"rope": rotations}
        *blocks, last = stage.blocks
        for block in blocks:
            tokens = block(tokens, **beside)
        common, parted = self._part(last, tokens, lambda normed: last.attn(normed, **beside))
        return stage.to_state(common, state), {task: _grid(stage.to_state(own, state)) for task, own in parted.items()}

    def _part(self, block: Any, x: Tensor, attend: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a block in which tasks branch; returns the common features and those of each task."""
        if not block.attn.proj.tasks:
            moved = x + block.drop_path1(_scaled(block, 1, attend(block.norm1(x))))
            common = moved + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(moved))))
            return common, {task: common.view_as(common) for task in self.tasks}
        # Stochastic depth is drawn separately for each stream.
        attended = attend(block.norm1(x)).chunk(1 + len(self.tasks), -1)
        moved, *own = [x + block.drop_path1(_scaled(block, 1, y)) for y in attended]
        outputs = _through(block.mlp, block.norm2(moved), [block.norm2(y) for y in own])
        common, *parted = [y + block.drop_path2(_scaled(block, 2, z)) for y, z in zip([moved, *own], outputs,
                                                                                     strict=True)]
        return common, dict(zip(self.tasks, parted, strict=True))


def _scaled(block: Any, number: int, x: Tensor) -> Tensor:
    """Apply the block's layer scale, if it has one."""
    layer: Any = getattr(block, f"ls{number}", None)
    if layer is not None:
        return layer(x)
    gamma = getattr(block, f"gamma_{number}", None)
    return x if gamma is None else gamma * x


def _through(mlp: Any, x: Tensor, own: list[Tensor]) -> list[Tensor]:
    """Apply a block's MLP to the common features and to those of each task."""
    if isinstance(mlp, SwiGLU):
        gate: Any = mlp.fc1_g
        value: Any = mlp.fc1_x
        hidden = [mlp.act(g) * y for g, y in zip(gate.streams(x, own), value.streams(x, own), strict=True)]
    else:
        hidden = [mlp.act(y) for y in mlp.fc1.streams(x, own)]
    streams = [mlp.norm(mlp.drop1(y)) for y in hidden]
    return [mlp.drop2(y) for y in mlp.fc2.streams(streams[0], streams[1:])]


def _grid(state: Any) -> Tensor:
    return state if isinstance(state, Tensor) else state[0]


def _build(config: Backbone.Config) -> Timm:
    where = f"backbone '{config.name}'"
    if isinstance(config, Timm.Config):
        where = f"backbone.model '{config.model}'"
        backbone = cast(Timm, replace(config, vit_pyramid="taps").build())
        stages = list(backbone.stages)
        blocks = [block for stage in stages[1:] for block in getattr(inside(stage), "blocks", ())]
        known = PromptedSwin.fits(backbone.stages) or (
            all(isinstance(stage, TokenBlocks) for stage in stages[1:])
            and all(type(block) in (Block, EvaBlock) for block in blocks))
        if known and blocks and all(type(block.mlp) in (Mlp, SwiGLU) for block in blocks):
            if config.norm_maps:
                raise InputError("backbone.norm_maps", "norms, with encoder 'mtlora'", "none: its maps are its own",
                                 "leave it out")
            return backbone
    raise InputError(where, "a network whose blocks encoder 'mtlora' cannot run", "a Swin transformer (not v2) or a "
                     "plain vision transformer", "choose for instance --backbone.model swin_tiny_patch4_window7_224")


def _ranks(given: tuple[int, ...], number: int, where: str) -> tuple[int, ...]:
    if len(given) not in (1, number):
        raise InputError(where, " ".join(map(str, given)), f"one rank, or one for each of the {number} stages",
                         "give one rank, or that many")
    return given * number if len(given) == 1 else given


def _ranks_of_tasks(config: MTLoRA.Config, tasks: tuple[str, ...], number: int) -> dict[str, tuple[int, ...]]:
    found = {}
    for task in config.task_ranks:
        if task not in tasks:
            raise InputError("encoder.task_ranks", f"'{task}'", nearest(task, tasks), "name tasks of this run")
    for task in tasks:
        text = config.task_ranks.get(task, str(config.task_rank))
        where = f"encoder.task_ranks of '{task}'" if task in config.task_ranks else "encoder.task_rank"
        try:
            ranks = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise InputError(where, f"'{text}'", "whole numbers, such as 4,4,8,8",
                             "separate them by commas") from None
        if min(ranks) < 0:
            raise InputError(where, f"'{text}'", "0 or more", "use 0 for no update")
        found[task] = _ranks(ranks, number, where)
    without = [task for task, ranks in found.items() if 0 in ranks]
    if without and any(any(ranks) for ranks in found.values()):
        raise InputError("encoder.task_ranks", f"0 for {', '.join(without)} and more for others", "updates for every "
                         "task in every stage, or for none", "set all ranks above 0, or all to 0")
    return found


def _reductions(channels: tuple[int, ...], spec: FeatureSpec, tasks: tuple[str, ...]) -> nn.ModuleDict:
    if not channels:
        return nn.ModuleDict()
    if len(channels) != len(spec.channels) or min(channels) < 1:
        raise InputError("encoder.reduce", " ".join(map(str, channels)), f"{len(spec.channels)} positive numbers, one "
                         "for each map", "change --encoder.reduce")
    return nn.ModuleDict({task: nn.ModuleList(nn.Conv2d(a, b, 1, bias=False)
                                              for a, b in zip(spec.channels, channels, strict=True)) for task in tasks})
