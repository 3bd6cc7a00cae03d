"""Cutting a timm feature extractor into stages whose states are maps (b c h w), or lists of them.

Four kinds are cut: timm's lists of modules (ResNet, ConvNeXt, Swin, RegNet, DenseNet, ...), the EfficientNet and
MobileNet extractors, HRNet, and plain vision transformers, including those with rotary positions (EVA, DINOv3). Any
other timm network (hierarchical transformers with their own ``forward_intermediates``) becomes a single stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard, cast

from jaxtyping import Float
from timm.models._features import FeatureGetterNet, FeatureInfo, FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.eva import Eva
from timm.models.hrnet import HighResolutionNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, cat, nn


@dataclass(frozen=True)
class Cut:
    """A network cut into stages.

    Attributes:
        stages: the stages, to be run in order.
        taps: which states are maps of the pyramid; None when the last state is the list of all maps.
        channels, strides: channels and strides of the maps, as timm declares them.
        plain: whether all maps of the network have the same stride.
        concatenate: whether the map of a tuple state is the concatenation of its elements (else its first element).
    """

    stages: list[nn.Module]
    taps: tuple[int, ...] | None
    channels: list[int]
    strides: list[int]
    plain: bool = False
    concatenate: bool = False


def cut(network: nn.Module, finest: int, taps: bool = False) -> Cut:
    """Cut a timm feature extractor into stages.

    Args:
        network: the result of ``timm.create_model(..., features_only=True)``; its modules move into the stages.
        finest: maps with a smaller stride are left out.
        taps: for a network whose maps have one stride, keep all of them, not only the last (create it with
            :func:`options_of_taps`).
    """
    if isinstance(network, FeatureListNet):
        return _cut_list(network, finest)
    if isinstance(network, EfficientNetFeatures | MobileNetV3Features) and network.feature_hooks is None:
        return _cut_mobile(network, finest)
    if isinstance(network, HighResolutionNetFeatures):
        return _cut_hrnet(network)
    if isinstance(network, FeatureGetterNet) and _is_plain_transformer(network.model):
        return _cut_transformer(network.model, taps)
    info = cast(FeatureInfo, network.feature_info)
    strides = info.reduction()
    plain = len(strides) > 1 and len(set(strides)) == 1
    kept = [len(strides) - 1] if plain and not taps else [i for i, stride in enumerate(strides) if stride >= finest]
    return Cut([Whole(network, kept)], None, [info.channels()[i] for i in kept], [strides[i] for i in kept], plain)


class Whole(nn.Module):
    """A network that cannot be cut, as a single stage; its state is the list of its maps."""

    def __init__(self, network: nn.Module, kept: list[int]):
        super().__init__()
        self.network, self.kept = network, kept

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        maps = self.network(image)
        return [maps[i] for i in self.kept]


def _cut_list(network: FeatureListNet, finest: int) -> Cut:
    info = network.feature_info
    tapped = {name: info[int(index)] for name, index in network.return_layers.items()
              if info[int(index)]["reduction"] >= finest}
    stages, taps = _cut_sequence(network.items(), set(tapped))
    if network.output_fmt.value == "NHWC":
        stages = [ChannelsFirst(stage, enters_last=i > 0, leaves_last=True) for i, stage in enumerate(stages)]
    return Cut(stages, taps, [f["num_chs"] for f in tapped.values()], [f["reduction"] for f in tapped.values()],
               concatenate=network.concat)


def _cut_mobile(network: EfficientNetFeatures | MobileNetV3Features, finest: int) -> Cut:
    stem = [(name, getattr(network, name)) for name in ("conv_stem", "bn1", "act1") if hasattr(network, name)]
    blocks = [(f"blocks.{i}", block) for i, block in enumerate(network.blocks)]
    kept = [f for f in network.feature_info.get_dicts() if f["reduction"] >= finest]
    stages, taps = _cut_sequence([*stem, *blocks], {f"blocks.{f['stage'] - 1}" for f in kept})
    return Cut(stages, taps, [f["num_chs"] for f in kept], [f["reduction"] for f in kept])


def _cut_sequence(modules: Iterable[tuple[str, nn.Module]],
                  tapped: set[str]) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Every stage ends with a tapped module; what comes before the first is the stem, a stage without a tap; what
    comes after the last is dropped. A stage of one module is that module, so that its blocks can be indexed."""
    stages: list[nn.Module] = []
    taps: list[int] = []
    group: list[nn.Module] = []
    for name, module in modules:
        if name not in tapped:
            group.append(module)
            continue
        if group and not taps:
            stages.append(_join(group))
            group = []
        stages.append(_join([*group, module]))
        taps.append(len(stages) - 1)
        group = []
    return stages, tuple(taps)


def _join(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


class ChannelsFirst(nn.Module):
    """Wraps a stage that takes or returns (b h w c), so that it works on (b c h w)."""

    def __init__(self, stage: nn.Module, enters_last: bool, leaves_last: bool):
        super().__init__()
        self.stage, self.enters_last, self.leaves_last = stage, enters_last, leaves_last

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y = self.stage(x.permute(0, 2, 3, 1) if self.enters_last else x)
        return y.permute(0, 3, 1, 2) if self.leaves_last else y


def put_channels_first(stages: list[nn.Module], states: list[Any], height: int, width: int) -> list[nn.Module]:
    """Wrap stages so that all states between them are (b c h w), even if some were (b h w c).

    Args:
        states: output states of the stages for an image of this height and width, which must differ.
    """
    def is_grid(rows: int, columns: int) -> bool:
        return rows * width == columns * height

    last = [isinstance(x, Tensor) and not is_grid(x.shape[2], x.shape[3]) and is_grid(x.shape[1], x.shape[2])
            for x in states]
    return [ChannelsFirst(stage, enters, leaves) if enters or leaves else stage
            for stage, enters, leaves in zip(stages, [False, *last], last, strict=False)]


def leave_inputs_alone(stages: Iterable[nn.Module]) -> None:
    """Make sure that no stage begins with an in-place activation (VGG's do): others read its input state too."""
    for stage in stages:
        first: Any = next(module for module in stage.modules() if not any(True for _ in module.children()))
        if hasattr(first, "inplace"):
            first.inplace = False


# -- HRNet -----------------------------------------------------------------------------------------------------------


def _cut_hrnet(network: HighResolutionNetFeatures) -> Cut:
    stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.conv2, network.bn2, network.act2)
    stages = [stem, network.layer1,
              *(HighResolutionStage(getattr(network, f"transition{i - 1}"), getattr(network, f"stage{i}"))
                for i in (2, 3, 4))]
    info = cast(FeatureInfo, network.feature_info)  # timm declares it as the list that it is made from
    return Cut(stages, None, info.channels(), info.reduction())


class HighResolutionStage(nn.Module):
    """A transition, which opens one more branch, and the modules that follow; the state is the list of branches."""

    def __init__(self, transition: nn.ModuleList, modules: nn.Module):
        super().__init__()
        self.transition, self.branches = transition, modules

    def forward(self, state: Tensor | list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b _ _ _"]]:
        if isinstance(state, Tensor):  # the first transition makes all branches from one map
            return self.branches([step(state) for step in self.transition])
        opened = [state[i] if isinstance(step, nn.Identity) else step(state[-1])
                  for i, step in enumerate(self.transition)]
        return self.branches(opened)


# -- plain vision transformers ---------------------------------------------------------------------------------------


def _is_plain_transformer(model: nn.Module) -> TypeGuard[VisionTransformer | Eva]:
    if isinstance(model, Eva):  # variants with learned rotary angles per depth, or dropped patches, are not cut
        return (type(model).forward_intermediates is Eva.forward_intermediates and model.patch_drop is None
                and not getattr(model, "rope_mixed", False))
    return (isinstance(model, VisionTransformer)
            and type(model).forward_intermediates is VisionTransformer.forward_intermediates)


def _quarters(depth: int) -> list[int]:
    """The numbers of blocks after which a network of that depth is cut, including 0; four parts if it has at least four
    blocks."""
    return sorted({round(i * depth / 4) for i in range(5)})


def options_of_taps(network: Any) -> dict[str, Any]:
    """Options with which timm makes an extractor that returns the maps after each quarter of the blocks; none unless
    all maps of the network have the same stride."""
    if not isinstance(network, FeatureGetterNet) or len(set(network.feature_info.reduction())) > 1:
        return {}
    return {"feature_cls": QuarterTaps, "out_indices": [n - 1 for n in _quarters(len(network.feature_info.info))[1:]]}


class QuarterTaps(FeatureGetterNet):
    """Maps at several depths; only the last one passes through the network's final norm."""

    def __init__(self, model: nn.Module, **options: Any):
        super().__init__(model, norm=isinstance(getattr(model, "norm", None), nn.Module), **options)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _ _"]]:
        network: Any = self.model
        *maps, last = network.forward_intermediates(x, indices=self.out_indices, norm=False, intermediates_only=True)
        return [*maps, network.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.norm else last]


def _cut_transformer(model: VisionTransformer | Eva, taps: bool) -> Cut:
    """The embedding and four groups of blocks."""
    blocks = list(model.blocks)
    groups = [blocks[a:b] for a, b in pairwise(_quarters(len(blocks)))]
    norm, model.norm = model.norm, nn.Identity()  # it belongs to the last stage
    rope = Rotations(model) if isinstance(model, Eva) and model.rope is not None else None
    if isinstance(model, Eva):
        model.rope = None  # type: ignore[assignment]
    stages = [TokenEmbedding(model), *(TokenBlocks(group, rope=rope) for group in groups[:-1]),
              TokenBlocks(groups[-1], norm, rope)]
    info: Any = model.feature_info[-1]
    tapped = tuple(range(1, len(stages))) if taps else (len(stages) - 1,)
    return Cut(stages, tapped, [info["num_chs"]] * len(tapped), [info["reduction"]] * len(tapped), plain=True)


class Rotations(nn.Module):
    """Rotary position embeddings of a transformer, computed from the size of the map. Every stage has its own copy,
    because only maps pass from one to the next."""

    def __init__(self, model: Eva):
        super().__init__()
        self.rope, self.any_size = model.rope, model.dynamic_img_size or not hasattr(model.rope, "feat_shape")

    def forward(self, height: int, width: int) -> Tensor:
        rope: Any = self.rope
        return rope.get_embed(shape=(height, width)) if self.any_size else rope.get_embed()


class TokenEmbedding(nn.Module):
    """Image to tokens, as a map (b c h w). Class and register tokens are a second map (b c 1 p), so that modules that
    mix channels of states apply to them too."""

    def __init__(self, model: VisionTransformer | Eva):
        super().__init__()
        self.model = model
        model.blocks = nn.Sequential()  # they belong to the following stages

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Tensor | list[Tensor]:
        model: Any = self.model
        tokens = model._pos_embed(model.patch_embed(image))
        if isinstance(tokens, tuple):  # returned with rotary embeddings, which were removed
            tokens = tokens[0]
        if model.patch_drop is not None:
            tokens = model.patch_drop(tokens)
        tokens = model.norm_pre(tokens)
        height, width = model.patch_embed.dynamic_feat_size((image.shape[-2], image.shape[-1]))
        return _to_maps(tokens, height, width, model.num_prefix_tokens)


class TokenBlocks(nn.Module):
    """Consecutive transformer blocks; the last stage adds the norm and returns the map alone. Encoders that run the
    blocks themselves follow :meth:`forward`."""

    def __init__(self, blocks: list[nn.Module], norm: nn.Module | None = None, rope: Rotations | None = None):
        super().__init__()
        self.blocks, self.norm = nn.Sequential(*blocks), norm
        self.rope = rope

    def forward(self, state: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        tokens = self.to_tokens(state)
        if self.rope is None:
            tokens = self.blocks(tokens)
        else:
            for block in self.blocks:
                tokens = block(tokens, rope=self.rotations(state))
        return self.to_state(tokens, state)

    def to_tokens(self, state: Tensor | list[Tensor]) -> Float[Tensor, "b n c"]:
        """Class and register tokens, then patches."""
        grid, prefix = (state, None) if isinstance(state, Tensor) else state
        tokens = grid.flatten(2).transpose(1, 2)
        return tokens if prefix is None else cat([prefix.flatten(2).transpose(1, 2), tokens], dim=1)

    def rotations(self, state: Tensor | list[Tensor]) -> Tensor | None:
        """The rotary embeddings that attention needs; None if the network has none."""
        grid = state if isinstance(state, Tensor) else state[0]
        return None if self.rope is None else self.rope(grid.shape[2], grid.shape[3])

    def to_state(self, tokens: Float[Tensor, "b n c"], state: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """The state after the blocks, from their tokens and the state before them."""
        grid, prefix = (state, None) if isinstance(state, Tensor) else state
        count = 0 if prefix is None else prefix.shape[-1]
        if self.norm is None:
            return _to_maps(tokens, grid.shape[2], grid.shape[3], count)
        maps = _to_maps(self.norm(tokens), grid.shape[2], grid.shape[3], count)
        return maps if prefix is None else maps[0]


def _to_maps(tokens: Float[Tensor, "b n c"], height: int, width: int, prefix: int) -> Tensor | list[Tensor]:
    grid = tokens[:, prefix:].unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return [grid, tokens[:, :prefix].transpose(1, 2).unsqueeze(2)] if prefix else grid
