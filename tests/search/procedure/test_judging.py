"""Statistics before judging, and conflicts of gradients, against plain transcriptions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.loading import TrainingBatches
from polyptych.passes import total_loss
from polyptych.run import Run
from polyptych.search.procedure.conflicts import count_conflicts
from polyptych.search.procedure.judging import Judge, estimate_statistics
from polyptych.search.procedure.phases import phase_run, with_plain_balancer
from polyptych.search.procedure.settings import Search
from polyptych.search.procedure.super_encoder import build_supernetwork, encoder_of
from polyptych.types import Batch


@pytest.fixture
def run(small_run) -> Run:
    from polyptych.run import with_tasks

    return with_tasks(small_run, ["semseg", "depth", "normals"])


def tasks_of(run: Run) -> dict:
    return run.build_tasks(run.build_dataset("train").labels)


def batches_of(run: Run, number: int) -> list[Batch]:
    stream = iter(TrainingBatches(run.build_dataset("train"), tasks_of(run), run.augment, run.size, run.batch_size, 1))
    return [next(stream) for _ in range(number)]


def test_statistics_are_the_means_over_the_batches() -> None:
    """Of a linear network, by hand: the mean of batch means, the mean of unbiased batch variances."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.9)).train()
    network[1].running_mean.fill_(7)
    images = [torch.rand(2, 3, 4, 5) for _ in range(3)]
    estimate_statistics(network, [Batch(x, {}, {}, []) for x in images])
    with torch.no_grad():
        made = [network[0](x) for x in images]
    mean = torch.stack([x.mean((0, 2, 3)) for x in made]).mean(0)
    variance = torch.stack([x.permute(1, 0, 2, 3).flatten(1).var(1) for x in made]).mean(0)
    torch.testing.assert_close(network[1].running_mean, mean)
    torch.testing.assert_close(network[1].running_var, variance)
    assert network[1].momentum == 0.1 and not any(module.training for module in network.modules())


def test_a_score_does_not_depend_on_what_ran_before(run: Run) -> None:
    tasks = tasks_of(run)
    torch.manual_seed(0)
    network = build_supernetwork(run, Search(), tasks, pretrained=False)
    supermodel = encoder_of(network).supermodel
    supermodel.materialize()
    judge = Judge(run, tasks, torch.device("cpu"), 2, 2)
    assert len(judge.validation) == 1 and len(judge.calibration) == 2
    one, other = supermodel.space.all_shared(), supermodel.space.bottom_shared(3)
    first = judge.score(network, one)
    with torch.no_grad():  # as training on other policies leaves it
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_()
                module.running_var.fill_(100.0)
    judge.score(network, other)
    assert judge.score(network, one) == first
    assert set(first) == {"semseg", "depth", "normals"} and all(value < 1 for value in first.values())


def test_conflicts_are_counted_as_a_loop_counts_them(run: Run) -> None:
    tasks = tasks_of(run)
    torch.manual_seed(0)
    network = build_supernetwork(run, Search(skip=False), tasks, pretrained=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = batches_of(run, 2)
    found = count_conflicts(network, tasks, batches, torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    supermodel = encoder_of(network).supermodel
    network.train()
    for index, unit in enumerate(supermodel.units):
        shared = [p for name, p in supermodel.backbone.named_parameters()
                  if any(name == target or name.startswith(f"{target}.") for target in unit.targets)]
        negative, cosines, number = 0, 0.0, 0
        for batch in batches:
            vectors = []
            for name, task in tasks.items():
                gradients = torch.autograd.grad(total_loss(task, name, network(batch.image), batch).mean(), shared,
                                                allow_unused=True)
                vectors.append(torch.cat([g.flatten().double() for g in gradients if g is not None]))
            for i in range(3):
                for j in range(i):
                    cosine = float(vectors[i] @ vectors[j] / vectors[i].norm() / vectors[j].norm())
                    negative, cosines, number = negative + (cosine < 0), cosines + cosine, number + 1
        assert found[index] == pytest.approx(negative / number - cosines / number / (4 * number), abs=1e-3)


def test_state_dicts_of_the_supermodel_do_not_depend_on_what_was_sampled(run: Run) -> None:
    """So that a checkpoint fits a supermodel that has run nothing yet."""
    torch.manual_seed(0)
    network = build_supernetwork(run, Search(), tasks_of(run), pretrained=False)
    supermodel = encoder_of(network).supermodel
    supermodel.materialize()
    names = list(network.state_dict())
    encoder_of(network).policy = supermodel.space.bottom_shared(2).with_choices({(6, 0): "shared", (6, 1): "shared"})
    network.train()(torch.rand(2, 3, 48, 64))
    assert list(network.state_dict()) == names
    assert any(".streams." in name for name, _ in network.named_buffers()) or not supermodel.banks.streams


def test_balancers_that_need_constant_sharing_are_replaced_while_searching(run: Run) -> None:
    from polyptych.balancers.gradnorm import GradNorm
    from polyptych.balancers.mgda import MGDA

    plain, said = with_plain_balancer(run)
    assert plain is run and not said
    for kind in (MGDA, GradNorm):
        changed, said = with_plain_balancer(replace(run, balancer=kind.Config()))
        assert isinstance(changed.balancer, Fixed.Config) and kind.Config().name in said
    assert phase_run(replace(run, ema=0.9), 7).ema == 0 and phase_run(run, 7).steps == 7


def test_the_backbone_of_a_phase_is_the_recipes(run: Run) -> None:
    network = build_supernetwork(run, Search(), tasks_of(run), pretrained=False)
    alone = Timm.Config(model="test_resnet").build()
    assert {name for name, _ in encoder_of(network).supermodel.backbone.named_parameters()} == {
        name for name, _ in alone.named_parameters()}
