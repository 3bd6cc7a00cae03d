"""Recipes on NYUv2 (Silberman, Hoiem, Kohli and Fergus, ECCV 2012): real rooms, 795 training and 654 test images."""

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run, with_tasks


def nyuv2() -> Run:
    """Segmentation (40 classes), depth, normals and boundaries at 288x384, from scratch.

    Command: ``polyptych train nyuv2 --dataset.root DIR``, about 100 epochs of the 795 training images at batch 8.
    Loss weights are the customary ones (semseg 1, depth 1, normals 10, boundaries 50).
    """
    run = Run(
        recipe="nyuv2",
        dataset=NYUv2.Config(classes=40),
        tasks={},
        backbone=Timm.Config(model="resnet18"),
        encoder=Shared.Config(),
        decoder=Heads.Config(head="fpn"),
        balancer=Fixed.Config(),
        size=(288, 384),
        steps=9000,
        batch_size=8,
        augment=Augment(scales=(1.0, 1.2, 1.5), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule(warmup=200),
        loading=Loading(workers=2),
        monitoring=Monitoring(log_every=20, validate_every=500, save_every=250),
    )
    return with_tasks(run, ["semseg", "depth", "normals", "boundaries"])
