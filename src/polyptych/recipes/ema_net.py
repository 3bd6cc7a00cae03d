"""EMA-Net (Sinodinos, Armanfard, WACV 2025, arXiv 2401.11124) as its authors train it."""

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.decoders._base import Decoder
from polyptych.decoders.ema_net import EMANet
from polyptych.decoders.ema_net_multi_scale import EMANetMultiScale
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.depth import Depth
from polyptych.tasks.normals import Normals
from polyptych.tasks.semseg import SemanticSegmentation

SIZE = (288, 384)


def nyuv2_ema_net() -> Run:
    """Single-scale EMA-Net on NYUv2: segmentation (13 classes), depth and normals at 288x384, HRNet-W18-small-v2.

    Command: ``polyptych train nyuv2_ema_net --dataset.root DIR``. With ``--decoder.fusion shared`` it is the network of
        the authors' code, 6,057,216 parameters; by default it has the paper's one filter per task, 6,444,288.
    Ablation: ``--decoder.no-affinity`` leaves out CTAL, ``--decoder.no-deep-supervision`` the initial predictions;
    ``--decoder.scale 8`` or ``16`` compares positions on a coarser grid.

    Adam at 1e-4 with weight decay 1e-4 in the gradient, a cosine to zero, 200 epochs of 795 images at batch 8, loss
    weights 1, mirrored images. Ours differs: the learning rate changes at every step, not every epoch; a tenth of the
    training images is kept for validation (``--dataset.validation 0.0`` and no validation is the authors' way); images
    are normalized as the ImageNet weights expect, where the authors' code trains and evaluates on images in [0, 1] as
    they are (weights trained there need a mean of 0 and a deviation of 1). Published row: the paper's tables were not
    available, so none is quoted.
    """
    return _nyuv2("nyuv2_ema_net", EMANet.Config(size=SIZE))


def nyuv2_ema_net_multi_scale() -> Run:
    """Multi-scale EMA-Net on NYUv2, trained as ``nyuv2_ema_net``.

    Command: ``polyptych train nyuv2_ema_net_multi_scale --dataset.root DIR``. 11,536,855 parameters; the authors' code
    (``--decoder.fusion shared --decoder.softmax published``) has 11,149,783. Ablation: ``--decoder.no-cross-scale``
    leaves out the fusion of scales, and the two of ``nyuv2_ema_net``. Published row: see ``nyuv2_ema_net``.
    """
    return _nyuv2("nyuv2_ema_net_multi_scale", EMANetMultiScale.Config(size=SIZE))


def _nyuv2(recipe: str, decoder: Decoder.Config) -> Run:
    return Run(
        recipe=recipe,
        dataset=NYUv2.Config(classes=13),
        tasks={"semseg": SemanticSegmentation.Config(), "depth": Depth.Config(),
               "normals": Normals.Config(loss="cosine")},
        backbone=Timm.Config(model="hrnet_w18_small_v2", pretrained=True, batch_norm_momentum=0.01),
        encoder=Shared.Config(),
        decoder=decoder,
        balancer=Fixed.Config(weights={"semseg": 1.0, "depth": 1.0, "normals": 1.0}),
        size=SIZE,
        steps=20_000,
        batch_size=8,
        augment=Augment(),
        optimizer=Optimizer(kind="adam", learning_rate=1e-4, weight_decay=1e-4, decay_everything=True),
        schedule=Schedule(kind="cosine"),
        loading=Loading(workers=2),
        monitoring=Monitoring(log_every=20, validate_every=1000, save_every=500),
    )
