"""MTAN (Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704) as its authors train it, on SegNet.

Images are not normalized and no weights are pretrained, as published. Ours differs: a tenth of the training images is
kept for validation (``--dataset.validation 0.0`` trains on all of them), while the number of steps stays that of all;
and the last weights are tested, where the published numbers are means over the last ten epochs. The authors' random
crops interpolate differently: images bilinearly with aligned corners, labels by the nearest pixel rounded down, normals
bilinearly without normalizing them again; ours use half-pixel centers, and the nearest pixel for every label. Their
metrics use the predicted depth as it is, ours clip it to 1 mm .. 1 km, and their mask drops valid normals whose
components sum to zero.

The rows quoted below are recalled from the papers, not re-read; each names its protocol (``polyptych list protocols``).
"""

from dataclasses import replace

from polyptych.backbones.segnet import SegNet
from polyptych.balancers.equal import Equal
from polyptych.data.transforms import Augment
from polyptych.datasets.cityscapes import Cityscapes
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.decoders.heads import Heads
from polyptych.encoders.mtan import Mtan
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.depth import Depth
from polyptych.tasks.inverse_depth import InverseDepth
from polyptych.tasks.normals import Normals
from polyptych.tasks.semseg import SemanticSegmentation


def nyuv2_mtan() -> Run:
    """MTAN on NYUv2: segmentation (13 classes), depth and normals at 288x384, SegNet.

    Command: ``polyptych train nyuv2_mtan --dataset.root DIR``; the protocols below need MTAN's arrays in DIR.
    44,229,073 parameters (the authors' 44,229,076 count three of their uncertainty weighting) and 216 G multiply-adds
    for one image, 3.1 times those of ``--encoder shared`` (69 G, 25,055,185 parameters). Trained alike, the paper's
    other rows: ``--encoder single``, ``stan``, ``dense``, ``cross_stitch --encoder.weights source
    --encoder.no-after-last``, and ``shared`` with ``--backbone.bottom-width 1024`` (split, wide) or
    ``--backbone.doubled`` (split, deep); ``--balancer uncertainty`` and ``dwa``.

    Adam at 1e-4, halved after 100 of 200 epochs of 795 images at batch 2, equal weights, mirrored images and zooms of
    1, 1.2 and 1.5, as in the authors' later code and in CAGrad; the paper itself augments nothing
    (``--augment.no-mirror --augment.scales 1``).

    Published, mIoU, pixel accuracy / abs, rel / mean, median, within 11.25, 22.5, 30 degrees. CAG (this setting, in
    CAGrad's paper): 39.29 65.33 / 0.5493 0.2263 / 28.15 23.96 22.09 47.50 61.08; its single tasks: 38.30 63.76 /
    0.6754 0.2780 / 25.01 19.21 30.14 57.20 69.15. MTAN-19 (without augmentation, an older metric that gives about 8
    points of mIoU less): 17.72 55.32 / 0.5906 0.2577 / 31.44 25.37 23.17 45.65 57.48; single tasks 15.10 51.54 /
    0.7508 0.3266 / 31.76 25.51 22.12 45.33 57.13. Repetitions by others spread over most of the published gaps.
    """
    return Run(
        recipe="nyuv2_mtan",
        dataset=NYUv2.Config(classes=13),
        tasks={"semseg": SemanticSegmentation.Config(), "depth": Depth.Config(accumulation="batch"),
               "normals": Normals.Config(loss="cosine", accumulation="batch")},
        backbone=SegNet.Config(),
        encoder=Mtan.Config(),
        decoder=Heads.Config(head="linear", width=64),
        balancer=Equal.Config(),
        size=(288, 384),
        steps=79_600,
        batch_size=2,
        augment=Augment(scales=(1.0, 1.2, 1.5)),
        optimizer=Optimizer(kind="adam", learning_rate=1e-4, weight_decay=0.0),
        schedule=Schedule(kind="step", period=39_800, factor=2.0),
        loading=Loading(workers=2),
        monitoring=Monitoring(log_every=50, validate_every=4000, save_every=1000),
    )


def cityscapes_mtan() -> Run:
    """MTAN on Cityscapes: segmentation (7 classes) and inverse depth at 128x256, SegNet.

    Command: ``polyptych train cityscapes_mtan --dataset.root DIR``; the protocols below need MTAN's arrays in DIR.
    41,206,984 parameters and 48 G multiply-adds for one image, against 25,017,672 and 19 G of ``--encoder shared``.

    Trained as ``nyuv2_mtan``, 200 epochs of 2975 images at batch 8. A zoom multiplies inverse depth; CAGrad's code
    divides it (``--tasks.inverse_depth.zoom divide``).

    Published, mIoU, pixel accuracy / abs, rel (a raw mean that distant pixels dominate). CAG-CS: 75.18 93.49 /
    0.0155 46.77; its single tasks: 74.01 93.16 / 0.0125 27.77. MTAN-19-CS (without augmentation, the older metric):
    53.04 91.11 / 0.0144 33.63; single tasks 51.09 90.69 / 0.0158 34.17.
    """
    return replace(
        nyuv2_mtan(),
        recipe="cityscapes_mtan",
        dataset=Cityscapes.Config(classes=7),
        tasks={"semseg": SemanticSegmentation.Config(), "inverse_depth": InverseDepth.Config(accumulation="batch")},
        size=(128, 256),
        steps=74_400,
        batch_size=8,
        schedule=Schedule(kind="step", period=37_200, factor=2.0),
    )
