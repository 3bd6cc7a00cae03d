"""MTAN's repository: SegNets (MTAN, STAN, split, single, dense, cross-stitch) and the wide residual network.

Source: Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704, https://github.com/lorenmt/mtan
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.wide_resnet import WideResNet
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import Encoder
from polyptych.encoders.cross_stitch import CrossStitch
from polyptych.encoders.dense import Dense
from polyptych.encoders.mtan import Mtan
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.encoders.stan import Stan
from polyptych.errors import InputError
from polyptych.published._base import UNIT_RANGE, Form, Parts, Repository, Row, Seen
from polyptych.renaming import Rename, as_convolution, under

# Ten stages: five levels on the way down, then five on the way up. The repository numbers both from the finest.
BLOCKS = (
    Rename("encoder_block.{j}.*", "stages.{j}.first.*"),
    Rename("decoder_block.{j}.*", "stages.{9 - j}.first.*"),
    # One further convolution (with its norm 1), or several; in the deep network every one is a pair.
    Rename("conv_block_enc.{j}.{n}.{end:weight|bias|running_mean|running_var|num_batches_tracked}",
           "stages.{j}.rest.{n}.{end}"),
    Rename("conv_block_dec.{j}.{n}.{end:weight|bias|running_mean|running_var|num_batches_tracked}",
           "stages.{9 - j}.rest.{n}.{end}"),
    Rename("conv_block_enc.{j}.{b}.{n}.*", "stages.{j}.rest.{3 * times * b + n}.*"),
    Rename("conv_block_dec.{j}.{b}.{n}.*", "stages.{9 - j}.rest.{3 * times * b + n}.*"),
)
SEQUENCES = (  # cross-stitch and dense keep all convolutions of a level in one row
    Rename("{j}.{n:0|1}.*", "stages.{j}.first.{n}.*"),
    Rename("{j}.{n}.*", "stages.{j}.rest.{n - 3}.*"),
)
SEQUENCES_UP = (
    Rename("{j}.{n:0|1}.*", "stages.{9 - j}.first.{n}.*"),
    Rename("{j}.{n}.*", "stages.{9 - j}.rest.{n - 3}.*"),
)
OF_EACH = (
    *under("encoder_block_t.{i}.", "encoder.backbones.{tasks[i]}.", SEQUENCES),
    *under("decoder_block_t.{i}.", "encoder.backbones.{tasks[i]}.", SEQUENCES_UP),
)


def attention(masks: str, steps: str) -> tuple[Rename, ...]:
    """Masks of every task, and the steps between them that all tasks share."""
    return (
        Rename("encoder_att.{i}.{j}.{n:0|1|3|4}.*", masks + ".{j}.masks.0.layers.{n}.*"),
        Rename("decoder_att.{i}.{j}.{n:0|1|3|4}.*", masks + ".{9 - j}.masks.0.layers.{n}.*"),
        Rename("encoder_block_att.{j}.*", steps + ".{j}.ways.0.before.*"),
        Rename("decoder_block_att.{j}.*", steps + ".{8 - j}.ways.0.after.*"),
    )


HEADS = (
    Rename("pred_task{i}.0.*", "decoder.heads.{tasks[i - 1]}.mix.*"),
    Rename("pred_task{i}.1.*", "decoder.heads.{tasks[i - 1]}.predict.*"),
)
ONE_HEAD = (
    Rename("pred_task.0.*", "decoder.heads.{tasks[0]}.mix.*"),
    Rename("pred_task.1.*", "decoder.heads.{tasks[0]}.predict.*"),
)
ONE_OF_SOURCES = (
    # One number for every sender, the same for all receivers: (places, senders), in running order.
    Rename("cs_unit_encoder", "encoder.units.{part}.0.weight", spread=lambda x: x[:, None, :, None]),
    Rename("cs_unit_decoder", "encoder.units.{part + 4}.0.weight", spread=lambda x: x[:, None, :, None]),
)
WIDE_RESNET = (
    Rename("conv1.*", "encoder.backbone.stages.0.*"),
    Rename("layer{n}.{b}.bn1.*", "encoder.backbone.stages.{n}.{b}.change.0.*"),
    Rename("layer{n}.{b}.conv1.*", "encoder.backbone.stages.{n}.{b}.change.2.*"),
    Rename("layer{n}.{b}.bn2.*", "encoder.backbone.stages.{n}.{b}.change.3.*"),
    Rename("layer{n}.{b}.conv2.*", "encoder.backbone.stages.{n}.{b}.change.5.*"),
    Rename("layer{n}.{b}.shortcut.0.*", "encoder.backbone.stages.{n}.{b}.shortcut.*"),
    Rename("bn1.*", "encoder.backbone.stages.3.{blocks}.*"),
    Rename("encoder_att.{i}.{j}.{n:0|1|3|4}.*", "encoder.masks.{tasks[i]}.{j}.masks.0.layers.{n}.*"),
    Rename("encoder_block_att.{j}.*", "encoder.steps.{j}.ways.0.before.*"),
    Rename("linear.{i}.0.*", "decoder.heads.{tasks[i]}.predict.*", change=as_convolution),
)
DOMAINS = ("imagenet12", "aircraft", "cifar100", "daimlerpedcls", "dtd", "gtsrb", "omniglot", "svhn", "ucf101",
           "vgg-flowers")


def segnet(encoder: Encoder.Config) -> Callable[[Seen], Parts]:
    """A SegNet of this sharing, standard, wide (1024 channels at the bottom) or deep (every convolution a pair)."""
    def parts(seen: Seen) -> Parts:
        at = "encoder_block_t.0" if seen.has("encoder_block_t.*") else "encoder_block"
        width, bottom = seen.shape(f"{at}.0.0.weight")[0], seen.shape(f"{at}.4.0.weight")[0]
        doubled = at == "encoder_block" and seen.has("encoder_block.0.3.weight") and not seen.has("encoder_block_t.*")
        return Parts(SegNet.Config(width=width, bottom_width=bottom, doubled=doubled), encoder,
                     Heads.Config(head="linear", width=seen.shape("pred_task{n:|1}.0.weight")[0]),
                     sizes={"times": 2 if doubled else 1})

    return parts


def wide_resnet(seen: Seen) -> Parts:
    blocks = seen.count("layer3.{b}.conv1.weight", "b")
    width, left = divmod(seen.shape("layer1.0.conv1.weight")[0], 16)
    if left:
        raise InputError(seen.where, f"a first group of {16 * width + left} channels", "a multiple of 16",
                         "use a file of the repository's WRN")
    return Parts(WideResNet.Config(depth=6 * blocks + 4, width=width), Mtan.Config(), Heads.Config(head="linear"),
                 sizes={"blocks": blocks})


def by_channels(channels: tuple[int, ...]) -> list[str]:
    """The tasks of numbered heads: segmentation, depth, normals. A single head is identified by its channels."""
    if len(channels) == 1:
        return [{1: "depth", 3: "normals"}.get(channels[0], "semseg")]
    return ["semseg", "depth", "normals"][:len(channels)]


def domains(channels: tuple[int, ...]) -> list[str]:
    return list(DOMAINS[:len(channels)])


class MtanRepository(Repository):
    """Images are not normalized. The program returns log-softmax and unit normals, our network the raw values from
    which these are computed. Its ResNet is not imported: it upsamples predictions with aligned corners, which ours does
    not."""

    page = "https://github.com/lorenmt/mtan"
    license = "MIT"
    files = "none published, and the programs save none; a bare state dict of the user's own"
    order = ("semseg", "depth", "normals")
    names: ClassVar[Mapping[str, str]] = {name: name for name in ("semseg", "depth", "normals", *DOMAINS)}
    prefix = ""
    normalization = UNIT_RANGE
    recipes = ("nyuv2_mtan", "cityscapes_mtan", "decathlon_mtan")
    left_out = ("logsigma",)
    forms = (
        Form("MTAN", signs=("encoder_block_att.*", "pred_task1.1.weight"), parts=segnet(Mtan.Config()),
             outputs=("pred_task{i}.1.weight",), tasks=by_channels,
             rules=(*under("", "encoder.backbone.", BLOCKS), *attention("encoder.masks.{tasks[i]}", "encoder.steps"),
                    *HEADS)),
        Form("STAN", signs=("encoder_block_att.*", "pred_task.1.weight"), parts=segnet(Stan.Config()),
             outputs=("pred_task.1.weight",), tasks=by_channels,
             rules=(*under("", "encoder.encoders.{tasks[0]}.backbone.", BLOCKS),
                    *attention("encoder.encoders.{tasks[0]}.masks.{tasks[0]}", "encoder.encoders.{tasks[0]}.steps"),
                    *ONE_HEAD)),
        Form("cross-stitch", signs=("cs_unit_encoder",),
             parts=segnet(CrossStitch.Config(weights="source", after_last=False)),
             outputs=("pred_task{i}.1.weight",), tasks=by_channels, rules=(*OF_EACH, *ONE_OF_SOURCES, *HEADS)),
        Form("dense", signs=("encoder_block_t.*", "encoder_block.*"), parts=segnet(Dense.Config()),
             outputs=("pred_task{i}.1.weight",), tasks=by_channels,
             rules=(*under("encoder_block.", "encoder.shared_", SEQUENCES),
                    *under("decoder_block.", "encoder.shared_", SEQUENCES_UP),
                    *OF_EACH, *HEADS),
             left_out=("decoder_block.0.*",)),  # the shared network's last block, which nothing reads
        Form("split", signs=("encoder_block.*", "pred_task1.1.weight"),
             never=("encoder_block_att.*", "encoder_block_t.*"), parts=segnet(Shared.Config()),
             outputs=("pred_task{i}.1.weight",), tasks=by_channels,
             rules=(*under("", "encoder.backbone.", BLOCKS), *HEADS)),
        Form("a single task", signs=("encoder_block.*", "pred_task.1.weight"), never=("encoder_block_att.*",),
             parts=segnet(Single.Config()), outputs=("pred_task.1.weight",), tasks=by_channels,
             rules=(*under("", "encoder.backbones.{tasks[0]}.", BLOCKS), *ONE_HEAD)),
        Form("WRN", signs=("layer3.{b}.bn1.weight", "linear.{i}.0.weight"), parts=wide_resnet,
             outputs=("linear.{i}.0.weight",), tasks=domains, rules=WIDE_RESNET),
    )
    rows = (
        Row("MTAN", "mIoU 39.29, abs 0.5493, normals 28.15 degrees (trained by CAGrad's authors)", "CAG"),
        Row("MTAN", "mIoU 17.72, abs 0.5906, normals 31.44 degrees", "MTAN-19"),
        Row("WRN with attention", "2941 points", "VDD"),
    )
