"""Imported networks give what the authors' programs give, to 1e-9 in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import distance, images, record, saved, small_hrnet, weights
from timm.models.hrnet import cfg_cls
from torch import Tensor

from polyptych.devices import shapes_only
from polyptych.importing import Said, converted, load_published, read_published
from polyptych.ops.resize import resize
from polyptych.types import Output

THEIRS = {"parts": "human_parts", "saliency": "sal", "boundaries": "edge"}
SAID: dict[str, dict[str, Any]] = {
    "emanet_small": {"size": (64, 96)},
    "m_emanet_small": {"size": (64, 96)},
    "invpt_small": {"size": (64, 128)},
    "taskprompter_small": {"size": (64, 96), "assume": {"chan_nheads": 4}},
    "pgt_small": {"size": (96, 128)},
    "tit_small": {"size": (96, 128)},
    "mlore_small": {"size": (64, 96), "assume": {"num_heads": 2, "topk": 3, "pre_softmax": 0}},
    "atrc_small": {"assume": {"genotype_semseg": 3241, "genotype_depth": 4102, "genotype_normals": 1320}},
}
INSIDE = ("backbone.", "feature.", "route_")
"""Recorded values that are no output of the network; tests/decoders compares those of decoders."""
FIXTURES = ("m_emanet_small", "papnet", "survey_hps_resnet18", "invpt_small", "taskprompter_small", "mtlora_small",
            "pgt_small", "tit_small", "mtmamba_plus_small", "atrc_small", "mlore_small")
LARGE = ("padnet", "mtinet", "mtan_segnet", "survey_mtan_resnet18", "survey_crossstitch_resnet18",
         "survey_nddr_resnet18", "demt_swin_t", "emanet_small", "mtmamba_small")
"""Two and more seconds each. FIXTURES has another network of the same table, or test_twins a small one; but not for the
survey's encoders."""


def seen_regions(network: Any) -> dict[str, Tensor]:
    """What ATRC's regions will be in the next forward pass."""
    found: dict[str, Tensor] = {}
    for task, layers in getattr(network.decoder, "regions", {}).items():
        layers.register_forward_hook(lambda module, inputs, logits, task=task: found.update({task: logits}))
    return found


def outputs(name: str, output: Output, size: tuple[int, int]) -> dict[str, Tensor]:
    """By the names of the authors' outputs."""
    found = {}
    for task, raw in output.final.items():
        if name == "mtan_segnet":  # their program returns more than the raw scores
            found["semseg/scores" if task == "semseg" else f"{task}/raw"] = raw
            raw = {"semseg": raw.log_softmax(1), "normals": raw / raw.norm(dim=1, keepdim=True)}.get(task, raw)
        found[("final/" if name == "atrc_small" else "") + THEIRS.get(task, task)] = raw
    if name == "taskprompter_small":
        found["sal/logit"] = found.pop("sal")
    for number, extra in enumerate(output.auxiliary):
        for task, raw in extra.prediction.items():
            own = THEIRS.get(task, task)
            found[f"deep_supervision/scale_{number}/{own}"] = raw
            if number == 0:
                found |= {f"initial_{own}": resize(raw, size), f"inter_preds/{own}": resize(raw, size)}
    return found


@pytest.mark.parametrize("name", [*FIXTURES, *(pytest.param(name, marks=pytest.mark.grid) for name in LARGE)])
def test_outputs_of_the_authors_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = record(name)
    if name == "atrc_small":  # no backbone with a name is as small
        monkeypatch.setitem(cfg_cls, "hrnet_w18_small", small_hrnet())
    path = saved(tmp_path / "file.pth", weights(fixture["layout"], fixture["seed"]), fixture)
    said = Said(numbered=True, **SAID.get(name, {}))
    found = read_published(path, said)
    assert [THEIRS.get(task, task) for task in found.run.tasks] == list(fixture["config"]["tasks"])
    assert not found.left_over
    image = images(fixture)
    asked: list[Said] = []  # once read and recognized is enough
    monkeypatch.setattr("polyptych.importing.read_published", lambda path, said: asked.append(said) or found)
    with torch.inference_mode():
        network = load_published(path, **SAID.get(name, {})).network
        assert asked == [said]
        size = (image.shape[-2], image.shape[-1])
        regions = seen_regions(network)
        got = outputs(name, network(image), size)
        got |= {f"aux/{THEIRS.get(task, task)}": resize(logits, size) for task, logits in regions.items()}
    expected = {output for output in fixture["expect"] if not output.startswith(INSIDE)}
    if "saliency" in found.run.tasks:  # two channels there, of which ours is the difference
        expected -= {"sal"}
    assert expected <= got.keys()
    for output in expected:
        assert distance(got[output], fixture, output) < 1e-9, output


LAYOUTS: dict[str, tuple[str, int, dict[str, int]]] = {
    "layout_demt_nyud_swin_t": ("nyuv2", 32_070_259, {"semseg": 40}),
    "layout_demt_nyud_swin_s": ("nyuv2", 53_388_163, {"semseg": 40}),
    "layout_invpt_nyud_vitl": ("nyuv2", 402_092_888, {"semseg": 40}),
    "layout_invpt_pascal_vitl": ("pascal_context", 422_928_144, {"semseg": 21, "parts": 7, "saliency": 1}),
    "layout_taskprompter_nyud_vitl": ("nyuv2", 513_506_733, {"semseg": 40}),
    "layout_taskprompter_pascal_vitl": ("pascal_context", 401_105_537, {"semseg": 21}),
    "layout_taskprompter_pascal_vitb": ("pascal_context", 418_331_957, {"semseg": 21}),
}


@pytest.mark.parametrize("name", [
    name if name in ("layout_demt_nyud_swin_t", "layout_invpt_pascal_vitl", "layout_taskprompter_pascal_vitb")
    else pytest.param(name, marks=pytest.mark.grid) for name in LAYOUTS])
def test_published_sizes_fill_the_whole_network(name: str) -> None:
    fixture = record(name)
    dataset, parameters, channels = LAYOUTS[name]
    layout = {key: torch.empty(shape, device="meta", dtype=torch.int64 if "int" in kind else torch.float32)
              for key, (shape, kind) in fixture["layout"].items()}
    with shapes_only():
        found = converted(layout, Path(name), Said())
    assert (found.run.dataset.name, found.run.size) == (dataset, tuple(fixture["config"]["size"]))
    assert not found.left_over
    tasks = found.tasks
    assert {task: tasks[task].channels for task in channels} == channels
    with shapes_only():
        network = found.run.build_network(tasks, pretrained=False)
    assert sum(p.numel() for p in network.parameters()) == parameters
