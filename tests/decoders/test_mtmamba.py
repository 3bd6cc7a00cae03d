"""MTMamba and MTMamba++: the published networks' numbers and sizes, the equations written out, every option."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from published_fixtures import Fixture, load
from transcription import NYUD_FOUR, PASCAL, built, count, everywhere

from polyptych.decoders.mtmamba import MTMamba
from polyptych.types import Features, FeatureSpec, TaskFeatures

PLUS = MTMamba.Config()
FIRST = MTMamba.Config(cross="feature", head="dense")
SWIN = FeatureSpec((192, 384, 768, 1536), (4, 8, 16, 32))
SWIN_PARAMETERS = 195_201_204  # of Swin-L with four norms

SALIENCY_OF_TWO = {**PASCAL, "saliency": 2}
CITYSCAPES = {"semseg": 19, "depth": 1}


# -- the published networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "channels", "parameters"), [
    (FIRST, NYUD_FOUR, 307_999_137), (FIRST, SALIENCY_OF_TWO, 335_858_326), (FIRST, CITYSCAPES, 252_271_688),
    (PLUS, NYUD_FOUR, 315_021_249), (PLUS, SALIENCY_OF_TWO, 343_231_606), (PLUS, CITYSCAPES, 258_595_976)])
def test_published_counts(config, channels, parameters):
    assert count(built(config, channels, SWIN)) == parameters - SWIN_PARAMETERS


def paths(own: str, theirs: str) -> dict[str, str]:
    return {f"{own}.read": f"{theirs}.x_proj_weight", f"{own}.v": f"{theirs}.dt_projs_weight",
            f"{own}.beta": f"{theirs}.dt_projs_bias", f"{own}.rate": f"{theirs}.A_logs", f"{own}.skip": f"{theirs}.Ds"}


def layer(own: str, theirs: str, *parts: str) -> dict[str, str]:
    return {f"{own}.{part}": f"{theirs}.{part}" for part in parts or ("weight", "bias")}


def scanned(own: str, theirs: str) -> dict[str, str]:
    return (layer(f"{own}.enter", f"{theirs}.in_proj", "weight") | layer(f"{own}.local.convolve", f"{theirs}.conv2d")
            | paths(f"{own}.paths", theirs) | layer(f"{own}.scanned", f"{theirs}.out_norm"))


def gated(own: str, norm: str, op: str, crossed: bool = False) -> dict[str, str]:
    cross = layer(f"{own}.cross", f"{op}.in_proj_cross", "weight") if crossed else {}
    return layer(f"{own}.norm", norm) | scanned(own, op) | layer(f"{own}.leave", f"{op}.out_proj", "weight") | cross


def names(tasks: list[str], plus: bool) -> dict[str, str]:
    """Ours to the published ones."""
    found: dict[str, str] = {}
    for s in range(3):
        stage = f"stages.{s}"
        for task in tasks:
            found |= layer(f"{stage}.expand.{task}.linear", f"expand_layers.{task}_{s}.expand", "weight")
            found |= layer(f"{stage}.expand.{task}.norm", f"expand_layers.{task}_{s}.norm")
            found |= layer(f"{stage}.reduce.{task}", f"concat_layers.{task}_{s}")
            for i in (0, 1):
                theirs = f"block_stm.{task}_{s}.{i}" if plus else f"block_{i + 1}.{task}_{s}"
                found |= gated(f"{stage}.blocks.{i}.tasks.{task}", f"{theirs}.norm", f"{theirs}.op")
            own = f"{stage}.blocks.2.tasks.{task}"
            if plus:
                theirs = f"block_ctm.{s}.0"
                found |= gated(own, f"{theirs}.norm.{task}", f"{theirs}.op.{task}", crossed=True)
            else:
                theirs = f"block_3.{s}"
                found |= layer(f"{own}.norm", f"{theirs}.norm.{task}") | scanned(f"{own}.own", f"{theirs}.op.{task}")
                found |= layer(f"{own}.gate", f"{theirs}.in_proj.{task}", "weight")
                found |= layer(f"{own}.leave", f"{theirs}.out_proj.{task}", "weight")
        if plus:
            found |= layer(f"{stage}.blocks.2.norm", f"block_ctm.{s}.0.norm_share")
            found |= {key: value for i in (0, 1) for key, value in
                      layer(f"{stage}.blocks.2.share.{i}", f"block_ctm.{s}.0.conv_share.{i}").items()}
        else:
            found |= layer(f"{stage}.blocks.2.norm", f"block_3.{s}.norm_share")
            found |= scanned(f"{stage}.blocks.2.shared", f"block_3.{s}.op_share")
    for task in tasks:
        if plus:
            found |= layer(f"heads.{task}.0", f"final_expand.{task}.0")
            found |= layer(f"heads.{task}.1", f"final_expand.{task}.1", "weight", "bias", "running_mean", "running_var")
            found |= layer(f"heads.{task}.3", f"final_project.{task}")
        else:
            found |= layer(f"heads.{task}.expand.linear", f"final_expand.{task}.expand", "weight")
            found |= layer(f"heads.{task}.expand.norm", f"final_expand.{task}.norm")
            found |= layer(f"heads.{task}.predict", f"final_project.{task}")
    return found


@pytest.mark.data
@pytest.mark.parametrize(("name", "config"), [("mtmamba_small", FIRST), ("mtmamba_plus_small", PLUS)])
def test_the_published_decoder(name, config):
    fixture = Fixture(name)
    channels = fixture.config["tasks"]
    spec = FeatureSpec(tuple(shape[1] for shape in fixture.record["features"]["shapes"]), (4, 8, 16, 32))
    decoder = config.build(**everywhere(spec, channels)).double().eval()
    load(decoder, fixture.state, names(list(channels), config is PLUS))
    maps = Features(tuple(fixture.drawn(f"feature.{i}", shape)
                          for i, shape in enumerate(fixture.record["features"]["shapes"])))
    with torch.no_grad():
        final = decoder(TaskFeatures(dict.fromkeys(channels, maps))).final
    size = tuple(fixture.config["output_size"])
    fixture.agrees({task: F.interpolate(x, size, mode="bilinear") for task, x in final.items()}, "expect_from_features")
