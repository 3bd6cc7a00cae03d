"""The survey's repository: plain heads, cross-stitch, NDDR-CNN and MTAN on a dilated ResNet; PAD- and MTI-Net on HRNet.

Source: Vandenhende et al., TPAMI 2021, arXiv 2004.13379,
Source: https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch
"""

from __future__ import annotations

from collections.abc import Callable

from polyptych.decoders.heads import Heads
from polyptych.encoders._base import Encoder
from polyptych.encoders.cross_stitch import CrossStitch
from polyptych.encoders.mtan import Mtan
from polyptych.encoders.nddr import Nddr
from polyptych.encoders.shared import Shared
from polyptych.published._backbones import HRNET, RESNET, dilated_resnet
from polyptych.published._base import Form, Parts, Repository, Row, Seen
from polyptych.published._hrnet_networks import BACKBONE, FUSED_HEAD, PAD_NET, fused_heads, mti_net, plain_heads
from polyptych.renaming import Rename, squared, under

DEEPLAB_HEAD = (
    Rename("0.convs.{n:0|1|2|3}.{m:0|1}.*", "aspp.local.{n}.{m}.*"),  # 1x1, then rates 12, 24, 36
    Rename("0.convs.4.{m:1|2}.*", "aspp.image.{m}.*"),  # the mean of the image
    Rename("0.project.{m:0|1}.*", "aspp.project.0.{m}.*"),
    Rename("{m:1|2}.*", "refine.{m - 1}.*"),
    Rename("4.*", "predict.*"),
)
SHARED_RESNET = under("backbone.", BACKBONE, RESNET)
RESNET_OF_EACH = under("backbone.{task}.", "encoder.backbones.{task}.", RESNET)


def deeplab_heads(module: str) -> tuple[Rename, ...]:
    return under(f"{module}.{{task}}.", "decoder.heads.{task}.", DEEPLAB_HEAD)


MTAN = (
    Rename("backbone.conv1.*", f"{BACKBONE}stages.0.0.*"),
    Rename("backbone.bn1.*", f"{BACKBONE}stages.0.1.*"),
    # Our MTAN cuts every layer before its last block, which masks look at.
    Rename("backbone.layer{n}.{b}.*", BACKBONE + "stages.{n}.{place(n, b)}.*"),
    Rename("attention_{n}.{task}.{m:0|1|3|4}.*", "encoder.masks.{task}.{n - 1}.masks.0.layers.{m}.*"),
    Rename("refine_{n}.0.conv{m}.*", "encoder.steps.{n - 1}.ways.0.before.change.{3 * m - 3}.*"),
    Rename("refine_{n}.0.bn{m}.*", "encoder.steps.{n - 1}.ways.0.before.change.{3 * m - 2}.*"),
    Rename("refine_{n}.0.downsample.{m:0|1}.*", "encoder.steps.{n - 1}.ways.0.before.shortcut.{m}.*"),
)
CROSS_STITCH = (
    # One vector for every receiver and sender; here one tensor (receiver, sender, channel).
    Rename("cross_stitch.layer{n}.cross_stitch_unit.{task}.{sender}.param", "encoder.units.{n}.0.weight",
           gather=squared),
)
NDDR = tuple(
    Rename(f"nddr.{place}.layer.{{task}}.{n}.*", f"encoder.units.{unit}.0.reductions.{{tasks.index(task)}}.{name}.*")
    for unit, place in enumerate(("conv", "layer1_without_conv", "layer2", "layer3", "layer4"))
    for n, name in enumerate(("mix", "norm")))


def on_resnet(encoder: Encoder.Config, own: bool = False) -> Callable[[Seen], Parts]:
    """Parts of a network with DeepLab heads.

    Args:
        own: whether every task has its own backbone.
    """
    def parts(seen: Seen) -> Parts:
        prefix = f"backbone.{next(iter(seen.tasks))}." if own else "backbone."
        last = {n: seen.count(f"{prefix}layer{n}.{{b}}.conv1.weight", "b") - 1 for n in (1, 2, 3, 4)}

        def place(layer: int, block: int) -> str:
            return "1" if block == last[layer] else f"0.{block}"

        return Parts(dilated_resnet(seen, prefix), encoder, Heads.Config(head="aspp"), sizes={"place": place})

    return parts


class Survey(Repository):
    """NYUD has 40 classes, PASCAL-Context 21 and 7 parts. Depth is in meters, normals are not of unit length."""

    page = "https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch"
    license = "CC BY-NC 4.0"
    files = ("none published; its training writes best_model.pth.tar, a bare state dict, and checkpoint.pth.tar, which "
             "has it under model; keys are module.*")
    order = ("semseg", "human_parts", "sal", "normals", "edge", "depth")
    recipes = ("nyud_survey", "pascal_survey")
    forms = (
        Form("cross-stitch", signs=("cross_stitch.layer1.*",), parts=on_resnet(CrossStitch.Config(), own=True),
             outputs=("heads.{task}.4.weight",), rules=(*RESNET_OF_EACH, *CROSS_STITCH, *deeplab_heads("heads"))),
        Form("NDDR-CNN", signs=("nddr.conv.*",), parts=on_resnet(Nddr.Config(), own=True),
             outputs=("heads.{task}.4.weight",), rules=(*RESNET_OF_EACH, *NDDR, *deeplab_heads("heads"))),
        Form("MTAN", signs=("attention_1.*", "refine_1.*"), parts=on_resnet(Mtan.Config()),
             outputs=("heads.{task}.4.weight",), rules=(*MTAN, *deeplab_heads("heads"))),
        Form("hard sharing", signs=("decoders.{task}.0.convs.0.0.weight",), parts=on_resnet(Shared.Config()),
             outputs=("decoders.{task}.4.weight",), rules=(*SHARED_RESNET, *deeplab_heads("decoders"))),
        Form("a single task", signs=("decoder.0.convs.0.0.weight",), parts=on_resnet(Shared.Config()),
             outputs=("decoder.4.weight",),
             rules=(*SHARED_RESNET, *under("decoder.", "decoder.heads.{tasks[0]}.", DEEPLAB_HEAD))),
        Form("a single task on HRNet", signs=("decoder.last_layer.3.weight",), parts=fused_heads,
             outputs=("decoder.last_layer.3.weight",),
             rules=(*under("backbone.", BACKBONE, HRNET),
                    *under("decoder.", "decoder.heads.{tasks[0]}.", FUSED_HEAD))),
        PAD_NET,
        mti_net(auxiliary_weight=1.0),
        plain_heads("decoders"),
    )
    rows = (
        Row("hard sharing, ResNet-50", "mIoU 44.4, RMSE 0.587", "SURV-N"),
        Row("cross-stitch, ResNet-50", "mIoU 44.2, RMSE 0.570", "SURV-N"),
        Row("NDDR-CNN, ResNet-50", "mIoU 44.2, RMSE 0.573", "SURV-N"),
        Row("MTAN, ResNet-50", "mIoU 45.0, RMSE 0.584", "SURV-N"),
        Row("MTI-Net, HRNet-W18", "mIoU 35.12, RMSE 0.620", "SURV-N"),
        Row("PAD-Net, HRNet-W18", "mIoU 32.80, RMSE 0.660", "SURV-N"),
    )
