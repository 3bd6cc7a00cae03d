"""The survey of dense multi-task learning (Vandenhende et al., TPAMI 2021, arXiv 2004.13379): its comparison of ways to
share features, on a dilated ResNet with DeepLab heads.

The rows quoted below are of its protocols SURV-N and SURV-P, recalled and not re-read (our counts of parameters and
multiply-adds agree with its own); others who trained the same networks found differences of either sign. Ours differs:
the learning rate falls at every step, not every epoch; a tenth of the training images is kept for validation
(``--dataset.validation 0.0`` trains on all of them); and the last weights are tested, where the survey tests the last
ten epochs and keeps the best.
"""

from dataclasses import replace

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.datasets.pascal_context import PASCALContext
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.boundaries import Boundaries
from polyptych.tasks.depth import Depth
from polyptych.tasks.normals import Normals
from polyptych.tasks.parts import PartSegmentation
from polyptych.tasks.saliency import Saliency
from polyptych.tasks.semseg import SemanticSegmentation


def nyud_survey() -> Run:
    """The survey on NYUD: segmentation (40 classes) and depth at 480x640, ResNet-50 with ImageNet weights.

    Command: ``polyptych train nyud_survey --dataset.root DIR --encoder NAME``. Adam at 1e-4 with weight decay 1e-4 in
    the gradient, a polynomial to zero, 100 epochs of 795 images at batch 8, weights 1, mirrored images and zooms of
    1, 1.2 and 1.5. The survey trains ``cross_stitch`` and ``nddr`` otherwise: from the weights of trained single tasks,
    by SGD at 1e-3 for 50 epochs (``--start RUN --optimizer.kind sgd --optimizer.learning-rate 1e-3 --steps 5000``,
    where RUN was trained with ``--encoder single``).

    Published, mIoU / RMSE in meters, with parameters and multiply-adds for one image:

    - ``single`` 43.9 / 0.585; 79.3 M, 384 G
    - ``shared`` 44.4 / 0.587; 55.8 M, 267 G
    - ``cross_stitch`` 44.2 / 0.570; 79.3 M, 384 G
    - ``nddr`` 44.2 / 0.573; 101.6 M, 495 G
    - ``mtan`` 45.0 / 0.584; 72.1 M, 395 G
    """
    return Run(
        recipe="nyud_survey",
        dataset=NYUv2.Config(classes=40),
        tasks={"semseg": SemanticSegmentation.Config(), "depth": Depth.Config()},
        backbone=Timm.Config(model="resnet50", pretrained=True, output_stride=8),
        encoder=Shared.Config(),
        decoder=Heads.Config(head="aspp"),
        balancer=Fixed.Config(weights={"semseg": 1.0, "depth": 1.0}),
        size=(480, 640),
        steps=10_000,
        batch_size=8,
        augment=Augment(scales=(1.0, 1.2, 1.5)),
        optimizer=Optimizer(kind="adam", learning_rate=1e-4, weight_decay=1e-4, decay_everything=True),
        schedule=Schedule(kind="polynomial", power=0.9),
        loading=Loading(workers=4),
        monitoring=Monitoring(log_every=20, validate_every=1000, save_every=500),
    )


def pascal_survey() -> Run:
    """The survey on PASCAL-Context: segmentation, parts, saliency, boundaries, normals at 512x512, ResNet-18.

    Command: ``polyptych train pascal_survey --dataset.root DIR --encoder NAME``. Adam at 1e-4 with weight decay 1e-4 in
    the gradient, a polynomial to zero, 100 epochs of 4998 images at batch 6, weights 1, 2, 5, 50 and 10, mirrored
    images, zooms of 0.75 to 1.25, rotations of up to 20 degrees, ImageNet weights. The survey trains ``single`` for 60
    epochs at batch 12 (``--batch-size 12 --steps 25000``), ``mtan`` by SGD at 5e-3 (``--optimizer.kind sgd
    --optimizer.learning-rate 5e-3``), and ``cross_stitch`` and ``nddr`` from the weights of trained single tasks, with
    0.8 of a task's own features at the start, by SGD at 5e-3 for 20 epochs at batch 12 (``--start RUN --encoder.own 0.8
    --optimizer.kind sgd --optimizer.learning-rate 5e-3 --batch-size 12 --steps 8330``, where RUN was trained with
    ``--encoder single``).

    Published, mIoU / parts mIoU / saliency mIoU / mean error of normals / odsF, with parameters and multiply-adds for
    one image (79.5 M are five networks of 15.9 M, each with its head):

    - ``single`` 66.2 / 59.9 / 66.3 / 13.9 / 68.8; 79.5 M, 335 G
    - ``shared`` 63.8 / 58.6 / 65.1 / 14.9 / 69.2; 34.8 M, 142 G
    - ``cross_stitch`` 66.1 / 60.6 / 66.8 / 13.9 / 69.9; 79.5 M, 335 G
    - ``nddr`` 65.4 / 60.5 / 66.8 / 13.9 / 69.8; 88.3 M, 374 G
    - ``mtan`` 63.7 / 58.9 / 65.4 / 14.8 / 69.6; 36.6 M, 160 G
    """
    return replace(
        nyud_survey(),
        recipe="pascal_survey",
        dataset=PASCALContext.Config(),
        tasks={"semseg": SemanticSegmentation.Config(), "parts": PartSegmentation.Config(),
               "saliency": Saliency.Config(), "boundaries": Boundaries.Config(benchmark="pascal_survey"),
               "normals": Normals.Config()},
        backbone=Timm.Config(model="resnet18", pretrained=True, output_stride=8),
        balancer=Fixed.Config(weights={"semseg": 1.0, "parts": 2.0, "saliency": 5.0, "boundaries": 50.0,
                                       "normals": 10.0}),
        size=(512, 512),
        steps=83_300,
        batch_size=6,
        augment=Augment(scales=(0.75, 1.25), continuous=True, rotation=20.0),
        monitoring=Monitoring(log_every=50, validate_every=4000, save_every=1000),
    )
