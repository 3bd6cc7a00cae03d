"""InvPT (Ye, Xu, ECCV 2022, arXiv 2203.07997) as its authors train it, on ViT-L.

The network's form is the paper's, which differs from the published code in four options
(:class:`polyptych.decoders.invpt.InvPT`). The code's own: ``--decoder.scale published --decoder.encoder-features
published --decoder.drop-path 0 --decoder.unused-weights``.

Training differs from the published code in this. One process accumulates three forward passes of two images, where
three processes share the statistics of BatchNorm (``--batch-size 6 --accumulate 1`` or three processes with
``--accumulate 1 --execution.sync-batch-norm`` do that here). Images are normalized as the backbone's weights expect.
Saliency has one channel under a sigmoid instead of two under a softmax, which is the same function. No crop is drawn
again because one class fills it. A tenth of the training images is kept for validation (``--dataset.validation 0.0``
trains on all). Images are brought to the size of the training crops in the test, where the published code pads them.

The published rows are of the protocols INVPT-N and INVPT-P, read in the authors' or in others' notes
(``polyptych list protocols``). INVPT-N asks for images of their own size: ``--size 425 560``.
"""

from dataclasses import replace

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.datasets.pascal_context import PASCALContext
from polyptych.decoders.invpt import InvPT
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.boundaries import Boundaries
from polyptych.tasks.depth import Depth
from polyptych.tasks.normals import Normals
from polyptych.tasks.parts import PartSegmentation
from polyptych.tasks.saliency import Saliency
from polyptych.tasks.semseg import SemanticSegmentation


def nyud_invpt() -> Run:
    """InvPT on NYUD: segmentation (40 classes), depth, normals and boundaries at 448x576, ViT-L.

    Command: ``polyptych train nyud_invpt --dataset.root DIR``; other backbones of the paper: ``--backbone.model
    vit_base_patch16_384`` and ``swin_large_patch4_window7_224``. 400,762,318 parameters and 598 G multiply-adds for one
    image (the published code's form 402,092,888 and 597 G), of which the backbone has 304,133,120 and 356 G.

    Adam at 2e-5 with weight decay 1e-6 in the gradient, a polynomial to zero, 40,000 steps of 6 images, loss weights 1,
    1, 10 and 50 for the final and for the preliminary predictions, zooms of 0.5 to 2, mirrored images, changed colors,
    weights of ImageNet-21k at 384x384, 15% drop path.

    Published, mIoU / RMSE / mean error of normals / odsF, ViT-L: 53.56 / 0.5183 / 19.04 / 78.10 in the paper, 53.65 /
    0.5083 / 18.68 / 77.80 of the released weights. Swin-T: 44.27 / 0.5589 / 20.46 / 76.10 (plain heads 41.06 / 0.6350,
    single tasks 43.29).
    """
    return Run(
        recipe="nyud_invpt",
        dataset=NYUv2.Config(classes=40),
        tasks={"semseg": SemanticSegmentation.Config(), "depth": Depth.Config(),
               "normals": Normals.Config(loss="l1_pixel"), "boundaries": Boundaries.Config(benchmark="nyud")},
        backbone=Timm.Config(model="vit_large_patch16_384", pretrained=True, drop_path=0.15, vit_pyramid="taps",
                             image_size=(448, 576)),
        encoder=Shared.Config(),
        decoder=InvPT.Config(),
        balancer=Fixed.Config(weights={"semseg": 1.0, "depth": 1.0, "normals": 10.0, "boundaries": 50.0}),
        size=(448, 576),
        steps=40_000,
        batch_size=2,
        accumulate=3,
        augment=Augment(scales=(0.5, 2.0), continuous=True, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1,
                        color_chance=0.5),
        optimizer=Optimizer(kind="adam", learning_rate=2e-5, weight_decay=1e-6, decay_everything=True),
        schedule=Schedule(kind="polynomial", power=0.9),
        loading=Loading(workers=4),
        monitoring=Monitoring(log_every=50, validate_every=4000, save_every=1000),
    )


def pascal_invpt() -> Run:
    """InvPT on PASCAL-Context: segmentation, parts, saliency, boundaries and normals at 512x512, ViT-L.

    Command: ``polyptych train pascal_invpt --dataset.root DIR``. 421,264,934 parameters and 668 G multiply-adds for one
    image. The published code's form has 422,928,144 and 667 G, with a second channel for saliency 422,929,810; its
    paper says 423 M and 669 G.

    Trained as ``nyud_invpt``, with loss weights 1, 2, 5, 50 and 10.

    Published, mIoU / parts mIoU / saliency maxF / mean error of normals / odsF, ViT-L: 79.03 / 67.61 / 84.81 / 14.15 /
    73.00 in the paper, 79.91 / 68.54 / 84.38 / 13.90 / 72.90 of the released weights. Swin-T: 73.93 / 62.73 / 84.24 /
    14.15 / 72.60 (plain heads: mIoU 70.92, normals 14.63).
    """
    run = nyud_invpt()
    assert isinstance(run.backbone, Timm.Config)
    return replace(
        run,
        recipe="pascal_invpt",
        dataset=PASCALContext.Config(),
        tasks={"semseg": SemanticSegmentation.Config(), "parts": PartSegmentation.Config(),
               "saliency": Saliency.Config(double_sigmoid=True), "boundaries": Boundaries.Config(benchmark="pascal"),
               "normals": Normals.Config(loss="l1_pixel")},
        balancer=Fixed.Config(weights={"semseg": 1.0, "parts": 2.0, "saliency": 5.0, "boundaries": 50.0,
                                       "normals": 10.0}),
        backbone=replace(run.backbone, image_size=(512, 512)),
        size=(512, 512),
    )
