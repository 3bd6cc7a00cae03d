"""Networks that no recorded numbers exist of, and a twin of those that have some: ours, written under the authors'
names, come back as what they were."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import small_hrnet
from timm.models.hrnet import cfg_cls
from torch import Tensor

import polyptych
from polyptych.importing import Said, converted
from polyptych.ops.resize import resize
from polyptych.published._base import Seen
from polyptych.published.multi_task_transformer import invpt_with_one_logit

THREE = {"semseg": 13, "depth": 1, "normals": 3}
SEGNET = {"backbone_width": 4, "backbone_bottom_width": 6, "decoder": "heads", "decoder_head": "linear",
          "decoder_width": 4}
Renamer = Callable[[str], str]


def level(stage: str) -> tuple[str, int]:
    """Of the ten stages of a SegNet, the authors' name of the way and the level, counted from the finest."""
    return ("encoder", int(stage)) if int(stage) < 5 else ("decoder", 9 - int(stage))


def blocks(key: str, pairs: bool = False) -> str:
    """A convolution of a SegNet, ``stages.S.first.N...`` or ``stages.S.rest.N...``."""
    stage, part, number, rest = re.fullmatch(r"stages\.(\d)\.(first|rest)\.(\d+)\.(.*)", key).groups()
    way, j = level(stage)
    if part == "first":
        return f"{way}_block.{j}.{number}.{rest}"
    size = 6 if pairs else 3
    inner = number if j < 2 else f"{int(number) // size}.{int(number) % size}"
    return f"conv_block_{way[:3]}.{j}.{inner}.{rest}"


def in_a_row(key: str) -> str:
    """The same where a level is one sequence of convolutions: ``WAY.J.N...``."""
    stage, part, number, rest = re.fullmatch(r"stages\.(\d)\.(first|rest)\.(\d+)\.(.*)", key).groups()
    way, j = level(stage)
    return f"{way}/{j}.{int(number) + (3 if part == 'rest' else 0)}.{rest}"


def heads(key: str, tasks: list[str], single: bool = False) -> str | None:
    found = re.fullmatch(r"decoder\.heads\.(\w+)\.(mix|predict)\.(.*)", key)
    if not found:
        return None
    number = "" if single else str(tasks.index(found[1]) + 1)
    return f"pred_task{number}.{'0' if found[2] == 'mix' else '1'}.{found[3]}"


def attention(key: str, tasks: list[str]) -> str:
    if found := re.fullmatch(r"masks\.(\w+)\.(\d)\.masks\.0\.layers\.(.*)", key):
        way, j = level(found[2])
        return f"{way}_att.{tasks.index(found[1])}.{j}.{found[3]}"
    found = re.fullmatch(r"steps\.(\d)\.ways\.0\.(before|after)\.(.*)", key)
    if found[2] == "before":
        return f"encoder_block_att.{found[1]}.{found[3]}"
    return f"decoder_block_att.{8 - int(found[1])}.{found[3]}"


def shared(tasks: list[str], pairs: bool = False) -> Renamer:
    return lambda key: heads(key, tasks) or blocks(key.removeprefix("encoder.backbone."), pairs)


def mtan(tasks: list[str]) -> Renamer:
    def name(key: str) -> str:
        if key.startswith("encoder.backbone."):
            return blocks(key.removeprefix("encoder.backbone."))
        return heads(key, tasks) or attention(key.removeprefix("encoder."), tasks)
    return name


def stan(task: str) -> Renamer:
    def name(key: str) -> str:
        own = key.removeprefix(f"encoder.encoders.{task}.")
        if own.startswith("backbone."):
            return blocks(own.removeprefix("backbone."))
        return heads(key, [task], single=True) or attention(own, [task])
    return name


def of_each(tasks: list[str]) -> Renamer:
    def name(key: str) -> str:
        if found := re.fullmatch(r"encoder\.backbones\.(\w+)\.(.*)", key):
            way, _, rest = in_a_row(found[2]).partition("/")
            return f"{way}_block_t.{tasks.index(found[1])}.{rest}"
        if key.startswith("encoder.shared_"):
            way, _, rest = in_a_row(key.removeprefix("encoder.shared_")).partition("/")
            return f"{way}_block.{rest}"
        return heads(key, tasks) or key
    return name


def single(task: str) -> Renamer:
    return lambda key: heads(key, [task], single=True) or blocks(key.removeprefix(f"encoder.backbones.{task}."))


def table(*pairs: tuple[str, str]) -> Renamer:
    """The first pattern that matches says the name."""
    def name(key: str) -> str:
        for ours, theirs in pairs:
            if re.match(ours, key):
                return re.sub(ours, theirs, key, count=1)
        return key
    return name


HRNET = ((r"stages\.0\.0\.", "conv1."), (r"stages\.0\.1\.", "bn1."), (r"stages\.0\.3\.", "conv2."),
         (r"stages\.0\.4\.", "bn2."), (r"stages\.1\.", "layer1."), (r"stages\.2\.transition\.", "transition1."),
         (r"stages\.3\.transition\.", "transition2."), (r"stages\.4\.transition\.", "transition3."),
         (r"stages\.(\d)\.branches\.", r"stage\1."))
RESNET = ((r"stages\.0\.0\.", "conv1."), (r"stages\.0\.1\.", "bn1."), (r"stages\.(\d)\.", r"layer\1."))
DEEPLAB = ((r"aspp\.local\.", "0.convs."), (r"aspp\.image\.", "0.convs.4."), (r"aspp\.project\.0\.", "0.project."),
           (r"refine\.0\.", "1."), (r"refine\.1\.", "2."), (r"predict\.", "4."))
FUSED = ((r"fuse\.", "last_layer."), (r"predict\.", "last_layer.3."))
DEMT = ((r"decoder\.embed\.linear\.", "head.linear1."), (r"decoder\.interact\.", "head.task_fusion."),
        (r"decoder\.interacted\.", "head.smlp."), (r"decoder\.heads\.(\w+)\.0\.", r"head.bottleneck.\1.conv."),
        (r"decoder\.heads\.(\w+)\.1\.", r"head.bottleneck.\1.bn."), (r"decoder\.heads\.(\w+)\.3\.",
                                                                     r"head.final_logits.\1."))


def within(ours: str, theirs: str, pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((ours + pattern, theirs + name) for pattern, name in pairs)


def with_groups(ours: str, theirs: str, pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """As :func:`within`, where the beginning holds the first group (a task)."""
    return tuple((ours + pattern, theirs + name.replace(r"\1", r"\2")) for pattern, name in pairs)


def wide_resnet(tasks: list[str]) -> Renamer:
    change = {"0": "bn1", "2": "conv1", "3": "bn2", "5": "conv2"}

    def name(key: str) -> str:
        if found := re.fullmatch(r"encoder\.backbone\.stages\.(\d)\.(\d)\.change\.(\d)\.(.*)", key):
            return f"layer{found[1]}.{found[2]}.{change[found[3]]}.{found[4]}"
        if found := re.fullmatch(r"encoder\.masks\.(\w+)\.(\d)\.masks\.0\.layers\.(.*)", key):
            return f"encoder_att.{tasks.index(found[1])}.{found[2]}.{found[3]}"
        if found := re.fullmatch(r"decoder\.heads\.(\w+)\.predict\.(.*)", key):
            return f"linear.{tasks.index(found[1])}.0.{found[2]}"
        return table((r"encoder\.backbone\.stages\.0\.", "conv1."), (r"encoder\.backbone\.stages\.3\.1\.", "bn1."),
                     (r"encoder\.backbone\.stages\.(\d)\.(\d)\.shortcut\.", r"layer\1.\2.shortcut.0."),
                     (r"encoder\.steps\.(\d)\.ways\.0\.before\.", r"encoder_block_att.\1."))(key)
    return name


AUXILIARY = {"semseg": 40, "normals": 3, "boundaries": 1, "depth": 1}
"""The survey's NYUD with two tasks that only help the others."""
PAD_NET = table(
    *within(r"encoder\.backbone\.", "backbone.0.", HRNET), (r"decoder\.fuse\.mix\.", "backbone.1.last_layer."),
    (r"decoder\.initial\.(\w+)\.refine\.", r"initial_task_prediction_heads.layers.\1."),
    (r"decoder\.initial\.(\w+)\.predict\.", r"initial_task_prediction_heads.conv_out.\1."),
    (r"decoder\.distill\.gate\.(\w+)\.(\w+)\.",
     r"multi_modal_distillation.self_attention.\1.\2.attention.0."),
    (r"decoder\.distill\.message\.(\w+)\.(\w+)\.", r"multi_modal_distillation.self_attention.\1.\2.conv."),
    (r"decoder\.heads\.(\w+)\.refine\.", r"heads.\1."), (r"decoder\.heads\.(\w+)\.predict\.", r"heads.\1.2."))


def mti_net(key: str) -> str:
    if found := re.fullmatch(r"decoder\.initial\.propagate\.(\d)\.(.*)", key):
        rest = re.sub(r"excite\.(\w+)\.([13])", lambda at: f"se.{at[1]}.squeeze.{int(at[2]) - 1}", found[2])
        rest = rest.replace("mask.", "non_linear.").replace("join.", "dimensionality_reduction.")
        return f"fpm_scale_{int(found[1]) + 1}.{rest}"
    return table(
        *within(r"encoder\.backbone\.", "backbone.", HRNET),
        (r"decoder\.initial\.refine\.(\d)\.(\w+)\.", r"scale_\1.refinement.\2."),
        (r"decoder\.initial\.predict\.(\d)\.(\w+)\.", r"scale_\1.decoders.\2."),
        (r"decoder\.distill\.(\d)\.gate\.(\w+)\.(\w+)\.",
         r"distillation_scale_\1.self_attention.\2.\3.attention.0."),
        (r"decoder\.distill\.(\d)\.message\.(\w+)\.(\w+)\.",
         r"distillation_scale_\1.self_attention.\2.\3.conv."),
        *with_groups(r"decoder\.heads\.(\w+)\.", r"heads.\1.", FUSED))(key)


NAMES = list(THREE)
TWINS: dict[str, tuple[str, dict[str, int], dict[str, Any], Renamer, Said]] = {
    "mtan, split": ("segnet", THREE, SEGNET, shared(NAMES), Said()),
    "mtan, split, deep": ("segnet", THREE, SEGNET | {"backbone_doubled": True}, shared(NAMES, pairs=True), Said()),
    "mtan, Cityscapes": ("segnet", {"semseg": 7, "depth": 1}, SEGNET, shared(["semseg", "depth"]), Said()),
    "mtan, MTAN": ("segnet", THREE, SEGNET | {"encoder": "mtan"}, mtan(NAMES), Said()),
    "mtan, STAN": ("segnet", {"normals": 3}, SEGNET | {"encoder": "stan"}, stan("normals"), Said()),
    "mtan, single": ("segnet", {"depth": 1}, SEGNET | {"encoder": "single"}, single("depth"), Said()),
    "mtan, cross-stitch": ("segnet", THREE, SEGNET | {"encoder": "cross_stitch", "encoder_weights": "source",
                                                       "encoder_after_last": False}, of_each(NAMES), Said()),
    "mtan, dense": ("segnet", THREE, SEGNET | {"encoder": "dense"}, of_each(NAMES), Said()),
    "mtan, WRN": ("wide_resnet", {"imagenet12": 6, "aircraft": 4}, {
        "backbone_depth": 10, "backbone_width": 1, "encoder": "mtan", "decoder_head": "linear"},
        wide_resnet(["imagenet12", "aircraft"]), Said(numbered=True)),
    "survey, a single task": ("resnet18", {"boundaries": 1}, {"backbone_output_stride": 8, "decoder_head": "aspp"},
                              table(*within(r"encoder\.backbone\.", "backbone.", RESNET),
                                    *within(r"decoder\.heads\.boundaries\.", "decoder.", DEEPLAB)),
                              Said(tasks=("boundaries",), numbered=True)),
    "ema_net, single tasks": ("hrnet_w18_small_v2", {"semseg": 19, "depth": 1}, {"encoder": "single"}, table(
        *with_groups(r"encoder\.backbones\.(\w+)\.", r"backbones.\1.", HRNET),
        *with_groups(r"decoder\.heads\.(\w+)\.", r"heads.\1.", FUSED)), Said(repository="ema_net")),
    "survey, PAD-Net with auxiliary tasks": ("hrnet_w18_small_v2", AUXILIARY, {
        "decoder": "pad_net", "decoder_gate": "source", "decoder_auxiliary_tasks": ("normals", "boundaries")}, PAD_NET,
        Said()),
    "survey, MTI-Net with auxiliary tasks": ("hrnet_w18_small_v2", AUXILIARY, {
        "decoder": "mti_net", "decoder_softmax": "published", "decoder_auxiliary_tasks": ("normals", "boundaries")},
        mti_net, Said()),
    "demt, HRNet": ("hrnet_w18_small_v2", {"semseg": 40, "depth": 1}, {
        "backbone_pad": False, "decoder": "demt", "decoder_attention": "pixel", "decoder_offsets": "published",
        "decoder_depth": 2, "decoder_width": 32}, table(*within(r"encoder\.backbone\.", "backbone.", HRNET), *DEMT),
        Said()),
}
BY_INDEX = {"mixers": "defor_mixers.{i}.blocks", "queries": "task_querys.{i}", "queried": "smlp2.{i}"}
INSIDE_MIXER = {"mix": "0", "norm": "2", "offsets": "3.fn.0.get_offset", "deform": "3.fn.0", "deformed_norm": "3.fn.2"}


def theirs(ours: dict[str, Tensor], name: Renamer, tasks: list[str]) -> dict[str, Tensor]:
    """Our tensors as the authors' file has them."""
    file: dict[str, Tensor] = {}
    for key, tensor in ours.items():
        if key in ("mean", "std"):
            continue
        if found := re.fullmatch(r"decoder\.(mixers|queries|queried)\.(\w+)\.(.*)", key):
            rest = re.sub(r"(?<=\.)(mix|norm|offsets|deform|deformed_norm)(?=\.)",
                          lambda part: INSIDE_MIXER[part[1]], found[3])
            file[f"head.{BY_INDEX[found[1]].format(i=tasks.index(found[2]))}.{rest}"] = tensor
        elif found := re.fullmatch(r"encoder\.units\.(\d)\.0\.weight", key):
            way, row = ("encoder", int(found[1])) if int(found[1]) < 4 else ("decoder", int(found[1]) - 4)
            numbers = torch.zeros(4 if way == "encoder" else 5, len(tasks), dtype=torch.float64)
            file.setdefault(f"cs_unit_{way}", numbers)[row] = tensor[0, :, 0]
        else:
            their = re.sub(r"\bboundaries\b", "edge", name(key))
            linear = (their.startswith("linear.") or ".squeeze." in their) and tensor.ndim == 4
            file[their] = tensor.flatten(1) if linear else tensor
    return file


@pytest.mark.parametrize("twin", TWINS)
def test_our_network_under_the_authors_names_comes_back(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, channels, options, name, said = TWINS[twin]
    if backbone.startswith("hrnet"):
        monkeypatch.setitem(cfg_cls, backbone, small_hrnet(repeated=2))
    torch.manual_seed(0)
    network = polyptych.network(backbone, channels, **options).double().eval()
    if any(key.startswith("encoder.units") for key in network.state_dict()):
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                if key.startswith("encoder.units"):
                    parameter.uniform_(0.5, 1.5)
    file = theirs(network.state_dict(), name, list(channels))
    if twin == "mtan, dense":  # the shared network's last block, which nothing reads
        file |= {f"decoder_block.0.{n}.weight": torch.zeros(13, 4, 3, 3) for n in (0, 3)}
    if twin.startswith("survey"):  # its training wraps the network
        file = {f"module.{key}": value for key, value in file.items()}
    found = converted(file, Path("file.pth"), said)
    assert not found.left_over and found.repository.component_name() == twin.partition(",")[0]
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    for buffer, values in zip((network.mean, network.std), found.repository.normalization, strict=True):
        buffer.copy_(torch.tensor(values, dtype=torch.float64).view(3, 1, 1))
    with torch.inference_mode():
        expected, got = network(image).final, found.network()(image).final
    for task, own in zip(channels, found.run.tasks, strict=True):
        same_size = resize(got[own], (64, 96))  # classifications keep the decoder's resolution
        torch.testing.assert_close(same_size, expected[task], rtol=0, atol=float(expected[task].abs().max()) * 1e-9)


def test_invpt_with_two_channels_of_saliency_is_one_with_a_logit() -> None:
    """Also inside, where the preliminary prediction is read onward."""
    options: dict[str, Any] = {"backbone_image_size": (64, 64), "backbone_vit_pyramid": "taps", "decoder": "invpt",
                               "decoder_width": 64}
    torch.manual_seed(0)
    two = polyptych.network("vit_tiny_patch16_224", {"semseg": 3, "saliency": 2}, **options).double().eval()
    one = polyptych.network("vit_tiny_patch16_224", {"semseg": 3, "saliency": 1}, **options).double().eval()
    tensors = dict(two.state_dict())
    seen = Seen("file", {}, None, {})
    seen.tasks = {"semseg": "semseg", "sal": "saliency"}
    invpt_with_one_logit(tensors, seen)
    one.load_state_dict(tensors)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        of_two, of_one = two(image), one(image)
    torch.testing.assert_close(of_one["semseg"], of_two["semseg"])
    for got, expected in ((of_one.final, of_two.final),
                          (of_one.auxiliary[0].prediction, of_two.auxiliary[0].prediction)):
        torch.testing.assert_close(got["saliency"], expected["saliency"][:, 1:] - expected["saliency"][:, :1])
