"""Recipes on the built-in synthetic rooms: no download, exact labels for every task."""

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.rooms import Rooms
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run, with_tasks


def rooms() -> Run:
    """All seven tasks on rendered rooms with people, from scratch, in five minutes on two CPU cores.

    Command: ``polyptych train rooms``. Its results are in docs/RESULTS.md.
    """
    run = Run(
        recipe="rooms",
        dataset=Rooms.Config(size=(128, 160)),
        tasks={},
        backbone=Timm.Config(model="resnet18"),
        encoder=Shared.Config(),
        decoder=Heads.Config(head="fpn", width=64),
        balancer=Fixed.Config(),
        size=(128, 160),
        steps=300,
        batch_size=8,
        augment=Augment(),
        optimizer=Optimizer(learning_rate=2e-3),
        schedule=Schedule(warmup=20),
        loading=Loading(workers=1),
        monitoring=Monitoring(log_every=20, validate_every=100, save_every=100),
    )
    return with_tasks(run, ["semseg", "depth", "normals", "boundaries", "parts", "saliency", "keypoints"])
