"""Starting from trained networks: what a soft-sharing run takes over of single-task runs, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.beginning import begin
from polyptych.checkpoint import TrainingState, read_tensors, save_state
from polyptych.cli import main
from polyptych.datasets.rooms import Rooms
from polyptych.decoders.heads import Heads
from polyptych.decoders.mti_net import MTINet
from polyptych.encoders.cross_stitch import CrossStitch
from polyptych.encoders.mtan import Mtan
from polyptych.encoders.nddr import Nddr
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.errors import InputError
from polyptych.run import Facts, with_components, with_tasks, write_run
from polyptych.training import Trainer

STITCH = CrossStitch.Config(own=1.0)


@pytest.fixture
def base(small_run):
    run = with_tasks(with_components(small_run, {"balancer": "equal"}), ["semseg", "depth"])
    return replace(run, encoder=Single.Config(), decoder=Heads.Config(), steps=2)


@pytest.fixture
def trained(tmp_path):
    """Writes the folder of a run as it is after training, with random weights and batch statistics."""
    def write(run, name, seed=1, mean=0.5):
        dataset = run.build_dataset("train")
        torch.manual_seed(seed)
        network = build(run)
        network.mean.fill_(mean)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        write_run(folder / "run.json", run, Facts.of(dataset))
        save_state(folder / "checkpoints/last.safetensors", TrainingState(
            network, torch.nn.Module(), torch.optim.SGD(network.parameters(), lr=1.0),
            torch.amp.GradScaler(enabled=False)))
        return folder, network.eval()
    return write


def tasks_of(run):
    return run.build_tasks(run.build_dataset("train").labels)


def build(run):
    return run.build_network(tasks_of(run))


def predicted(network, size=(48, 64)):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return network.eval()(image).final


@pytest.mark.parametrize("several", [False, True], ids=["one run of all", "one run of each"])
def test_identity_stitching_begins_as_the_trained_networks_to_the_bit(base, trained, several):
    if several:
        alone = {"semseg": Shared.Config(), "depth": Single.Config()}
        runs = [trained(with_tasks(replace(base, encoder=encoder), [task]), task, seed)
                for seed, (task, encoder) in enumerate(alone.items())]
    else:
        runs = [trained(base, "single")]
    expected = {task: x for _, network in runs for task, x in predicted(network).items()}
    run = replace(base, encoder=STITCH, start=tuple(folder for folder, _ in runs))
    network = build(run)
    assert not torch.equal(predicted(network)["depth"], expected["depth"])
    said = begin(network, tasks_of(run), run.start)
    assert said.startswith("backbones of semseg, depth begin as in ") and said.endswith("; their heads too")
    got = predicted(network)
    assert all(torch.equal(got[task], x) for task, x in expected.items())


def test_nddr_and_other_decoders(base, trained):
    folder, source = trained(base, "single")
    for decoder, ending in ((Heads.Config(), "their heads too"), (MTINet.Config(), "heads begin anew")):
        run = replace(base, encoder=Nddr.Config(), decoder=decoder, start=(folder,))
        network = build(run)
        units = {k: v.clone() for k, v in network.encoder.units.state_dict().items()}
        assert begin(network, tasks_of(run), run.start).endswith(ending)
        for name, value in source.encoder.backbones.state_dict().items():
            assert torch.equal(network.encoder.backbones.state_dict()[name], value)
        assert all(torch.equal(v, units[k]) for k, v in network.encoder.units.state_dict().items())


def test_normalization_of_the_image_comes_along(base, trained):
    folder, _ = trained(base, "single", mean=0.3)
    network = build(replace(base, encoder=STITCH))
    begin(network, tasks_of(base), [folder])
    assert (network.mean == 0.3).all()
    alone = [trained(with_tasks(base, [task]), task, mean=mean)[0] for task, mean in (("semseg", 0.3), ("depth", 0.4))]
    with pytest.raises(InputError, match=r"--start: got different normalization of images in .*semseg and "):
        begin(network, tasks_of(base), alone)


def test_train_begins_there_and_resumes_without_the_runs(base, trained, tmp_path):
    """A learning rate of zero: the weights after a step are those of the start."""
    folder, source = trained(base, "single")
    still = replace(base, encoder=STITCH, start=(folder,), ema=0.5,
                    optimizer=replace(base.optimizer, learning_rate=0.0))
    trainer = Trainer(still, tmp_path / "run", resume=False)
    trainer.step([next(iter(trainer.batches))])
    trainer._save()
    tensors, _ = read_tensors(tmp_path / "run/checkpoints/last.safetensors")
    for name, value in source.named_parameters():
        assert torch.equal(tensors[f"network.{name}"], value) and torch.equal(tensors[f"average.{name}"], value)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    trainer = Trainer(replace(still, steps=3), tmp_path / "run", resume=True)
    assert trainer.state.step == 1 and trainer.started == ""


@pytest.mark.parametrize(("changes", "source", "said"), [
    ({"encoder": Mtan.Config()}, {}, "--start: got --encoder mtan, whose tasks share a backbone"),
    ({"encoder": Shared.Config()}, {}, "--start: got --encoder shared, whose tasks share a backbone"),
    ({}, {"encoder": Shared.Config()}, "a run with --encoder shared, whose tasks are connected"),
    ({}, {"encoder": CrossStitch.Config()}, "a run with --encoder cross_stitch, whose tasks are connected"),
    ({}, {"backbone": Timm.Config(model="test_convnext")}, "got no tensor stages.0."),
    ({}, {"decoder": Heads.Config(head="aspp")}, "use a checkpoint of the same network"),
], ids=["mtan", "shared", "from shared", "from stitched", "backbone", "head"])
def test_refusals(base, trained, changes, source, said):
    folder, _ = trained(replace(base, **source), "source")
    run = replace(base, **({"encoder": STITCH} | changes))
    with pytest.raises(InputError) as error:
        begin(build(run), tasks_of(run), [folder])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_task_once(base, trained):
    depth, _ = trained(with_tasks(base, ["depth"]), "depth")
    both, _ = trained(base, "both")
    network, tasks = build(replace(base, encoder=STITCH)), tasks_of(base)
    with pytest.raises(InputError, match=r"--start: got no run with task 'semseg' \(found: depth\)"):
        begin(network, tasks, [depth])
    with pytest.raises(InputError, match=r"--start: got task 'depth' in .*both and in .*depth; needs every task once"):
        begin(network, tasks, [both, depth])


def test_classes_must_be_the_same(base, trained):
    folder, _ = trained(base, "single")
    tasks = tasks_of(base)
    tasks["semseg"].labels = replace(tasks["semseg"].labels, classes=tuple(reversed(tasks["semseg"].labels.classes)))
    with pytest.raises(InputError, match="other labels of task 'semseg'"):
        begin(build(replace(base, encoder=STITCH)), tasks, [folder])


def test_command_line_says_it_in_one_line_before_it_reads_images(tmp_path, capsys, monkeypatch):
    def read(self, index):
        raise AssertionError(f"read image {index}")

    monkeypatch.setattr(Rooms, "read", read)
    assert main(["train", "rooms", "--encoder", "cross_stitch", "--start", str(tmp_path / "nothing"), "--out",
                 str(tmp_path / "run"), "--backbone.model", "test_resnet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("polyptych: ") and "nothing" in line and not (tmp_path / "run").exists()
