"""`polyptych.network`: what the command line would build, and a module as any other."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import polyptych
from polyptych.networks import Network
from polyptych.recipes.rooms import rooms
from polyptych.run import with_components, with_tasks

TASKS = {"semseg": 5, "depth": 1, "normals": 3}
IMAGE = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_the_network_of_a_run_with_the_same_names() -> None:
    run = with_components(with_tasks(rooms(), ["semseg", "depth"]), {"encoder": "mtan", "decoder": "ema_net"})
    run = replace(run, backbone=type(run.backbone)(model="test_resnet", output_stride=16))
    parts = {"semseg": polyptych.task("semseg", classes=5), "depth": polyptych.task("depth")}
    torch.manual_seed(0)
    expected = run.build_network({name: part.task for name, part in parts.items()})
    for tasks in (parts, {"semseg": 5, "depth": 1}):
        torch.manual_seed(0)
        network = polyptych.network("test_resnet", tasks, encoder="mtan", decoder="ema_net", backbone_output_stride=16)
        assert all(torch.equal(x, y) for x, y in zip(network.state_dict().values(), expected.state_dict().values(),
                                                     strict=True))


def test_copies_and_pickles_predict_the_same() -> None:
    """Also in inference mode. tests/conformance copies and pickles every encoder and decoder."""
    network = polyptych.network("test_resnet", TASKS, encoder="mtan", decoder="pad_net").eval()
    with torch.inference_mode():
        expected = network(IMAGE)
        assert {task: value.shape for task, value in expected.items()} == {
            task: (2, channels, 40, 56) for task, channels in TASKS.items()}
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            for task, value in other(IMAGE).items():  # a copy made in inference mode may take other kernels
                torch.testing.assert_close(value, expected[task])


def test_outputs_read_as_a_mapping_keep_what_belongs_to_them() -> None:
    output = polyptych.network("test_resnet", TASKS, decoder="pad_net")(IMAGE)
    assert list(output) == list(TASKS) == list(output.keys()) and len(output) == 3 and "depth" in output
    assert dict(output) == {**output} == output.final and output["depth"] is output.final["depth"]
    leaves, form = torch.utils._pytree.tree_flatten(output)
    assert all(isinstance(x, torch.Tensor | float) for x in leaves)
    again = torch.utils._pytree.tree_unflatten(leaves, form)
    assert again.auxiliary[0].prediction["depth"] is output.auxiliary[0].prediction["depth"]


def test_export() -> None:
    network = polyptych.network("test_resnet", TASKS, encoder="mtan").eval()
    with torch.no_grad():
        exported = torch.export.export(network, (IMAGE,)).module()(IMAGE)
        assert isinstance(exported, polyptych.Output)
        assert torch.allclose(exported["normals"], network(IMAGE)["normals"], atol=1e-5)


@pytest.mark.slow
def test_compile_in_one_graph() -> None:
    """In a process of its own, whose functions no test wraps."""
    program = """
import polyptych, torch
network = polyptych.network("test_resnet", {"depth": 1, "normals": 3}, encoder="mtan").eval()
image = torch.rand(1, 3, 40, 56)
with torch.no_grad():
    output = torch.compile(network, backend="eager", fullgraph=True)(image)
    assert isinstance(output, polyptych.Output)
    assert torch.allclose(output["normals"], network(image)["normals"], atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_parameter_groups_are_those_of_training() -> None:
    network = polyptych.network("test_resnet", TASKS)
    balancer = polyptych.balancer("uncertainty", dict.fromkeys(TASKS, 1.0))
    groups = network.parameter_groups(learning_rate=1e-2, backbone_scale=0.1, weight_decay=0.2, balancer=balancer)
    number = sum(len(group["params"]) for group in groups)
    assert number == len([*network.parameters(), *balancer.parameters()])
    assert {group["lr"] for group in groups} == {1e-3, 1e-2} and {group["weight_decay"] for group in groups} == {0, 0.2}
    torch.optim.SGD(groups, lr=1e-2)
    assert len(network.parameter_groups()) == 2


def test_a_task_of_the_whole_image_is_not_enlarged() -> None:
    """Its name says it, or its part."""
    for wanted in (7, polyptych.task("classification", classes=7)):
        output = polyptych.network("test_resnet", {"classification": wanted})(torch.rand(2, 3, 64, 64))
        assert output["classification"].shape[-2:] != (64, 64)


@pytest.mark.parametrize("options, said", [
    ({"encoder": "mtam"}, "nearest: mtan"), ({"decoder_hed": "aspp"}, "decoder.hed"), ({"foo": 1}, "'foo'"),
    ({"backbone_output_stride": 7}, "backbone.output_stride"), ({"tasks": {}}, "at least one"),
    ({"tasks": {"depth": 0}}, "task 'depth'"), ({"tasks": {"train": 3}}, "cannot be a task's"),
    ({"backbone": "resnet51"}, "resnet50")])
def test_what_is_wrong_is_said_in_one_line(options, said) -> None:
    with pytest.raises(polyptych.InputError, match=said):
        polyptych.network(**{"backbone": "test_resnet", "tasks": {"depth": 1}, **options})


def test_the_network_of_a_run(tmp_path) -> None:
    from polyptych.prediction.model import RunModel
    from polyptych.prediction.predictor import Predictor

    network = polyptych.network("test_resnet", {"depth": 1})
    predictor = Predictor(RunModel(network, {"depth": polyptych.task("depth").task}, None, "a run"))
    assert predictor.network is network and isinstance(predictor.network, Network)
