"""Looks at how tasks get along, beside a plain transcription in float64; what they say; that they leave no trace."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import polyptych
from polyptych import cli
from polyptych.checkpoint import read_tensors
from polyptych.reports.diagnosis import Findings, pictures
from polyptych.run import with_components, with_tasks
from polyptych.task_gradients import STEP, WHOLE, Look, cost, look

WEIGHTS = {"a": 2.0, "b": 0.5, "c": 1.0}


class Tree(nn.Module):
    """a and b share both layers of the trunk, c only the first; batch statistics and dropout would show traces."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.drop, self.heads = nn.Dropout(0.3), nn.ModuleDict({task: nn.Linear(6, 2) for task in "abc"})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.drop(self.norm(self.first(x)).tanh())
        high = self.second(low).tanh()
        return {"a": self.heads["a"](high), "b": self.heads["b"](high), "c": self.heads["c"](low)}


@pytest.fixture
def tree() -> tuple[Tree, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    return Tree().double(), {task: torch.randn(8, 2).double() for task in "abc"}, torch.randn(8, 5).double()


def losses_of(network: nn.Module, target: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    return {task: (made - target[task]).square().mean() for task, made in network(x).items()}


def test_a_look_is_what_its_equations_say(tree) -> None:
    network, target, x = tree
    found = look(lambda: losses_of(network, target, x), network, step=7, weights=WEIGHTS)

    def fresh(moved: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, nn.Parameter]]:
        twin = copy.deepcopy(network)
        parameters = {name: p for name, p in twin.named_parameters() if not name.startswith("heads")}
        with torch.no_grad():
            for name, change in (moved or {}).items():
                parameters[name] -= change
        with torch.random.fork_rng():
            return losses_of(twin, target, x), parameters

    losses, parameters = fresh()
    gradients = {}
    for task, loss in losses.items():
        found_for = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        gradients[task] = {name: g for name, g in zip(parameters, found_for, strict=True) if g is not None}
    stages = {"first": ["first.weight", "first.bias"], "norm": ["norm.weight", "norm.bias"],
              "second": ["second.weight", "second.bias"], WHOLE: list(parameters)}
    assert list(found.norms) == list(stages) and found.step == 7 and found.weights == WEIGHTS
    for stage, names in stages.items():
        for task in "abc":
            norm = math.sqrt(sum(float(gradients[task][n].square().sum()) for n in names if n in gradients[task]))
            assert found.norms[stage][task] == pytest.approx(norm, rel=1e-9)
        for one, other in ("ab", "ac", "bc"):
            both = [n for n in names if n in gradients[one] and n in gradients[other]]
            if not both:
                assert found.cosines[stage][f"{one}/{other}"] is None
                continue
            u, v = (torch.cat([gradients[task][n].flatten() for n in both]) for task in (one, other))
            assert found.cosines[stage][f"{one}/{other}"] == pytest.approx(float(u @ v / u.norm() / v.norm()), rel=1e-9)
    total = sum(WEIGHTS[task] * loss.item() for task, loss in losses.items())
    eta = STEP * total / sum(WEIGHTS[task] ** 2 * float(g.square().sum()) for task in "abc"
                             for g in gradients[task].values())
    for task in "abc":
        after, _ = fresh({name: eta * WEIGHTS[task] * g for name, g in gradients[task].items()})
        for other in "abc":
            expected = 1 - after[other].item() / losses[other].item()
            assert found.affinity[task][other] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    # To first order the steps lower the total by their own shares as promised.
    own = sum(found.affinity[task][task] * WEIGHTS[task] * losses[task].item() for task in "abc")
    assert own == pytest.approx(STEP * total, rel=0.2)


def test_a_look_leaves_no_trace(tree) -> None:
    network, target, x = tree
    losses_of(network, target, x)["a"].backward()
    before = copy.deepcopy((network.state_dict(), {n: p.grad for n, p in network.named_parameters()}))
    random = torch.get_rng_state()
    look(lambda: losses_of(network, target, x), network)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(x, network.state_dict()[name]) for name, x in before[0].items())
    assert all((p.grad is None and before[1][n] is None) or torch.equal(p.grad, before[1][n])
               for n, p in network.named_parameters())


def test_a_task_without_labels_has_no_numbers(tree) -> None:
    network, target, x = tree

    def losses() -> dict[str, Tensor]:
        made = losses_of(network, target, x)
        return {"a": made["a"], "b": made["b"], "c": made["c"] * 0, "d": torch.zeros(())}

    found = look(losses, network)
    assert found.losses["c"] is found.losses["d"] is found.cosines[WHOLE]["a/c"] is found.cosines[WHOLE]["b/d"] is None
    assert found.affinity["c"]["c"] is found.affinity["a"]["d"] is found.affinity["d"]["a"] is None
    assert found.affinity["a"]["a"] > 0 and found.cosines[WHOLE]["a/b"] is not None
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


@pytest.mark.parametrize("losses, said", [
    (lambda made: {"a": made["a"]}, "one task"), (lambda made: {"a": made["a"], "b": made["b"].expand(2)}, "'b'"),
    (lambda made: {task: loss.detach() for task, loss in made.items()}, "no trainable parameter")])
def test_what_cannot_be_looked_at_is_said(tree, losses, said) -> None:
    network, target, x = tree
    with pytest.raises(polyptych.InputError, match=said):
        look(lambda: losses(losses_of(network, target, x)), network)


def made_look(step: int, cosine: float, harm: float, size: float = 1.0, left: float = 1.0) -> Look:
    return Look(step, {"a": left, "b": 1.0}, {"a": 1.0, "b": 2.0},
                {"stem": {"a": size, "b": 1.0}, WHOLE: {"a": size, "b": 1.0}},
                {"stem": {"a/b": cosine}, WHOLE: {"a/b": cosine}},
                {"a": {"a": 0.01, "b": harm}, "b": {"a": 0.001, "b": 0.02}}, 0.1)


def test_what_stands_out_is_said() -> None:
    quiet = Findings([made_look(step, 0.2, 0.001) for step in range(4)])
    assert quiet.words[0].startswith("Nothing stands out") and quiet.conflicts == {"a/b": 0}
    looks = [made_look(step, -0.2 if step else 0.3, -0.004 + 0.001 * (step % 2), 12, 1 / (step + 1))
             for step in range(8)]
    loud = " ".join(Findings(looks, {"b": 1.0}).words)
    assert "step for a raises the loss of b by 0.35%" in loud and "itself lowers it by 2%" in loud
    assert "gradient of a is 6 times that of b and 86% of all" in loud
    assert "a and b conflict in 88% of the looks: their mean cosine is" in loud and "a learns fastest (12%" in loud
    by_chance = Findings([made_look(step, 0.2, -0.004 if step % 2 else 0.004) for step in range(8)])
    assert "raises" not in " ".join(by_chance.words)
    assert [row.share for row in quiet.task_rows] == pytest.approx([1 / 3, 2 / 3])


def test_many_tasks_fit_the_terminal_and_the_pictures() -> None:
    tasks = ["semseg", "depth", "normals", "boundaries", "parts", "saliency", "keypoints"]
    pairs = {f"{a}/{b}": 0.1 for i, a in enumerate(tasks) for b in tasks[i + 1:]}
    stages = ["stem", "stage 1", "stage 2", "stage 3", "stage 4", WHOLE]
    looks = [Look(step, dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, 1.0),
                  {stage: dict.fromkeys(tasks, 1.0) for stage in stages}, dict.fromkeys(stages, pairs),
                  {task: dict.fromkeys(tasks, -0.001) for task in tasks}, 0.1) for step in range(50)]
    diagnosis = polyptych.Diagnosis(looks)
    lines = str(diagnosis).splitlines()
    assert max(map(len, lines)) <= 80 and any(line.split()[:3] == ["semseg", "boundaries", "0.10"] for line in lines)
    assert [drawing.startswith("<svg") for _, drawing in pictures(diagnosis.findings)] == [True] * 3
    json.dumps(diagnosis.to_json(), allow_nan=False)


def test_in_a_loop_of_ones_own(tree, tmp_path) -> None:
    network, target, x = tree
    diagnosis = polyptych.Diagnosis()
    with pytest.raises(polyptych.InputError, match="no look"):
        diagnosis.to_json()
    for _ in range(3):
        diagnosis.sample(lambda: losses_of(network, target, x), network)
    assert [one.step for one in diagnosis.looks] == [0, 1, 2]
    assert json.loads(diagnosis.write(tmp_path / "new").read_text())["looks"] == 3
    assert len(list((tmp_path / "new").glob("*.svg"))) == 3


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory) -> tuple[Path, Path]:
    """A run that looked twice, and the same run without."""
    from polyptych.backbones.timm import Timm
    from polyptych.datasets.rooms import Rooms
    from polyptych.recipes.rooms import rooms
    from polyptych.run import Execution, Loading, Monitoring
    from polyptych.training import train

    run = with_tasks(rooms(), ["semseg", "depth", "normals"])
    run = replace(run, dataset=Rooms.Config(size=(48, 64), val_frames=2, test_frames=2), size=(48, 64), steps=5,
                  backbone=Timm.Config(model="test_resnet"), batch_size=2, loading=Loading(),
                  execution=Execution(device="cpu"))
    few = Monitoring(log_every=1, validate_every=9, save_every=3, examples=0, trivial_samples=2)
    parent = tmp_path_factory.mktemp("diagnosed")
    for name, share in (("with", 1.0), ("without", 0.0)):
        train(replace(run, monitoring=replace(few, diagnose=share)), parent / name, end=lambda folder, say: folder)
    return parent / "with", parent / "without"


def test_looks_change_no_number_of_the_training(diagnosed) -> None:
    one, other = (load_file(folder / "checkpoints/last.safetensors") for folder in diagnosed)
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    steps = [event["step"] for line in (diagnosed[0] / "metrics.jsonl").read_text().splitlines()
             if (event := json.loads(line))["event"] == "diagnosis"]
    assert steps == [cost(3)] == [4]


def test_the_command_fills_the_report(diagnosed, capsys, without_curves) -> None:
    folder, _ = diagnosed
    weights = read_tensors(folder / "checkpoints/last.safetensors")[0]
    assert cli.main(["diagnose", str(folder), "--batches", "2", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "cosine of" in shown and "stage" in shown and "normals" in shown
    record = json.loads((folder / "diagnosis.json").read_text())
    assert record["looks"] == 2 and record["tasks"]["depth"]["left"] > 0 and set(record["first"]) == {
        "semseg", "depth", "normals"}
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "While it trained, step 4, 1 batch" in page and "With the weights of step 5, 2 batches" in page
    assert "## How the tasks affect each other" in text and "| depth, normals |" in text
    assert all(torch.equal(x, weights[n]) for n, x in read_tensors(folder / "checkpoints/last.safetensors")[0].items())
    assert cli.main(["diagnose", str(folder), "--batches", "1", "--device", "cpu", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["looks"] == 1
    (folder / "diagnosis.json").write_text('{"samples": [{"step": "x"}]}')
    assert cli.main(["report", str(folder)]) == 2
    assert "diagnosis.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [(["nowhere"], "nowhere"), (["RUN", "--batches", "0"], "--batches"),
                                             (["RUN", "--device", "tpu"], "--device")])
def test_wrong_words_are_one_line(diagnosed, arguments, said, capsys) -> None:
    assert cli.main(["diagnose", *[str(diagnosed[1]) if word == "RUN" else word for word in arguments]]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda run: with_tasks(run, ["depth"]),
                                    lambda run: with_components(run, {"encoder": "single"})])
def test_where_nothing_is_shared_nothing_is_looked_at(small_run, change, tmp_path) -> None:
    from polyptych.training import Trainer

    run = replace(change(with_tasks(small_run, ["semseg", "depth"])), steps=1,
                  monitoring=replace(small_run.monitoring, diagnose=1.0))
    assert Trainer(run, tmp_path / "run", resume=False)._look_every() == 0


PROGRAM = """
import json, sys, torch
from polyptych import distributed
from polyptych.task_gradients import look
sys.path.insert(0, sys.argv[2])
from test_diagnosis import Tree, losses_of
torch.manual_seed(0)
network, target, x = Tree().double().eval(), {task: torch.randn(8, 2).double() for task in "abc"}, None
x = torch.randn(8, 5).double()
with distributed.group(torch.device("cpu")):
    world, rank = distributed.world(), distributed.rank()
    def losses():
        parts = losses_of(network, {t: y.chunk(world)[rank] for t, y in target.items()}, x.chunk(world)[rank])
        if world > 1:  # task c has labels in the first process only
            parts["c"] = 2 * losses_of(network, target, x)["c"] if rank == 0 else torch.zeros(()).double()
        return parts
    found = look(losses, network)
    if distributed.is_main():
        open(sys.argv[1], "w").write(json.dumps(found.to_json()))
"""


@pytest.mark.slow
def test_two_processes_see_what_one_does(tmp_path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment, here = {**os.environ, "OMP_NUM_THREADS": "1"}, str(Path(__file__).parent)
    subprocess.run([sys.executable, tmp_path / "program.py", tmp_path / "1.json", here], check=True, env=environment)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    tmp_path / "program.py", tmp_path / "2.json", here], check=True, env=environment, timeout=240)
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    for name in ("losses", "norms", "cosines", "affinity"):
        for (key, x), (other, y) in zip(leaves(one[name]), leaves(two[name]), strict=True):
            assert key == other and (x is y is None or x == pytest.approx(y, rel=1e-9, abs=1e-12)), (name, key)


def leaves(value: dict, before: str = "") -> list[tuple[str, float | None]]:
    return [leaf for key, item in value.items() for leaf in
            (leaves(item, f"{before}/{key}") if isinstance(item, dict) else [(f"{before}/{key}", item)])]
