"""The network: an encoder and a decoder between an image of any size and predictions of that size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.decoders._base import Decoder
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.freezing import hold_still
from polyptych.ops.resize import resize
from polyptych.optim import Optimizer
from polyptych.tasks._base import check_task_name
from polyptych.types import Auxiliary, FeatureSpec, Output


class Network(nn.Module):
    """``Decoder(Encoder(image))``.

    The mean and standard deviation that the backbone's weights expect are saved with the weights, so that a network
    restored from a checkpoint normalizes as it did in training.
    """

    encoder: Encoder
    decoder: Decoder
    whole: frozenset[str]
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, decoder: Decoder, whole: frozenset[str] = frozenset()):
        super().__init__()
        self.whole = whole
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1))

    @classmethod
    def build(cls, backbone: Backbone.Config, encoder: Encoder.Config, decoder: Decoder.Config,
              channels: dict[str, int], whole: frozenset[str] = frozenset()) -> Network:
        """Build a network from the Configs of its parts.

        Args:
            channels: how many channels each task predicts, in the order of the tasks.
            whole: tasks that predict one thing for the whole image.

        Raises:
            InputError: a task name that no module may have, or parts that do not fit together.
        """
        for task in channels:
            check_task_name(task, "the name of a task")
        encoder_module = encoder.build(backbone=backbone, tasks=tuple(channels))
        return cls(encoder_module, decoder.build(features=described(encoder_module), channels=channels), whole)

    def forward(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"],
                maps: tuple[Tensor, ...] = ()) -> Output:
        """Predict all tasks from RGB images, uint8 or float in [0, 1], of any size. ``final`` has the size of the
        image, except for the tasks in ``whole``. These keep the decoder's resolution if nothing was padded: enlarging
        thousands of class maps, only to average them, would fill the memory.

        Auxiliary predictions keep their own resolution, unless the image had to be padded: then they are resized to
        the image too, because only at that size can the padding be cropped exactly.

        Args:
            maps: the feature maps of the frozen backbone (``encoder.frozen_maps``), if they were computed before.
        """
        if maps:  # stored in low precision
            features = self.encoder.from_frozen_maps(tuple(x.to(self.mean.dtype) for x in maps))
        else:
            features = self.encoder(self.pad(self.normalize(image)))
        output = replace(self.decoder(features), shared=features.shared)
        return self.fit(output, image.shape[-2], image.shape[-1])

    def train(self, mode: bool = True) -> Network:
        """Set the mode as usual, but keep frozen modules in evaluation mode."""
        super().train(mode)
        hold_still(self)
        return self

    def parameter_groups(self, *, learning_rate: float = 1e-3, backbone_scale: float = 1.0, weight_decay: float = 0.05,
                         decay_everything: bool = False, adapter_scale: float = 1.0, decoder_scale: float = 1.0,
                         layer_decay: float = 1.0, balancer: nn.Module | None = None) -> list[dict[str, Any]]:
        """Parameter groups for any PyTorch optimizer, by the rules of ``polyptych train``: no weight decay for biases,
        normalization layers and position tables, and the factors that modules ask for.

        Args:
            learning_rate, backbone_scale, weight_decay, decay_everything, adapter_scale, decoder_scale, layer_decay:
                see :class:`polyptych.optim.Optimizer`.
            balancer: a balancer with learned parameters of its own (``uncertainty`` has some), to include them.
        """
        return Optimizer(learning_rate=learning_rate, backbone_scale=backbone_scale, weight_decay=weight_decay,
                         decay_everything=decay_everything, adapter_scale=adapter_scale,
                         decoder_scale=decoder_scale, layer_decay=layer_decay).groups(self, balancer)

    def normalize(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalize as the backbone's weights expect."""
        unit = image.to(self.mean.dtype)
        unit = unit if image.is_floating_point() else unit / 255
        return (unit - self.mean) / self.std

    def pad(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hp wp"]:
        """Repeat the last row and column until height and width are multiples of ``encoder.multiple``. (Zero padding
        would create an edge that the image does not have.)"""
        below, right = (-size % self.encoder.multiple for size in image.shape[-2:])
        return F.pad(image, (0, right, 0, below), mode="replicate") if below or right else image

    def fit(self, output: Output, height: int, width: int) -> Output:
        """Resize and crop predictions on the padded image to the image."""
        below, right = -height % self.encoder.multiple, -width % self.encoder.multiple
        padded = (height + below, width + right)

        def to_image(predictions: dict[str, Tensor]) -> dict[str, Tensor]:
            return {task: x if task in self.whole and padded == (height, width) else
                    resize(x, padded)[..., :height, :width] for task, x in predictions.items()}

        auxiliary = output.auxiliary
        if below or right:
            auxiliary = [Auxiliary(to_image(extra.prediction), extra.weight) for extra in auxiliary]
        return replace(output, final=to_image(output.final), auxiliary=auxiliary)


def described(encoder: Encoder) -> dict[str, FeatureSpec]:
    """What a decoder is built for: the shape of each task's pyramid, and the multiple to which the network pads
    images."""
    return {task: replace(spec, multiple=encoder.multiple) for task, spec in encoder.spec.items()}


@contextmanager
def normalizing(images: int, size: tuple[int, int]) -> Iterator[None]:
    """Context of a forward pass in training mode on ``images`` images of ``size`` (height, width).

    Batch normalization needs at least two values per channel. A single image as small as the coarsest stride leaves
    only one, which torch reports from deep inside the network without naming the cause.

    Raises:
        InputError: a layer gets a single value per channel.
    """
    try:
        yield
    except ValueError as error:
        said = str(error)
        if not said.startswith(("Expected more than 1 value per channel", "Expected more than 1 spatial element")):
            raise
        height, width = size
        number = "one image" if images == 1 else f"{images} images"
        raise InputError(
            "--batch-size", f"{number} of {height}x{width} in a forward pass, which leaves a normalization layer a "
            "single value per channel", "two values or more to train on",
            "raise --batch-size to 2, enlarge --size, or choose a backbone without BatchNorm") from None
