"""EMA-Net (Sinodinos, Armanfard, WACV 2025, arXiv 2401.11124) on Cityscapes, as its authors train it, and at full
resolution, where one affinity matrix alone would take 64 GiB."""

from dataclasses import replace

from polyptych.datasets.cityscapes import Cityscapes
from polyptych.decoders._cross_task import CrossTaskConfig
from polyptych.decoders.ema_net import EMANet
from polyptych.decoders.ema_net_multi_scale import EMANetMultiScale
from polyptych.optim import Schedule
from polyptych.recipes.ema_net import nyuv2_ema_net
from polyptych.run import Run
from polyptych.tasks.inverse_depth import InverseDepth
from polyptych.tasks.semseg import SemanticSegmentation

SMALL, FULL = (128, 256), (1024, 2048)


def cityscapes_ema_net() -> Run:
    """Single-scale EMA-Net on Cityscapes: segmentation (19 classes) and inverse depth at 128x256, HRNet-W18-small-v2.

    Command: ``polyptych train cityscapes_ema_net --dataset.root DIR``, where DIR holds MTAN's arrays. With
    ``--decoder.fusion shared`` it is the network of the authors' code, 5,262,854 parameters; by default it has the
    paper's one filter per task, 5,301,766.

    Adam at 5e-4 with weight decay 1e-4 in the gradient, a cosine to zero, 75 epochs of 2975 images at batch 8, inverse
    depth with weight 10. Ours differs as in ``nyuv2_ema_net``. Published row: the paper's tables were not available, so
    none is quoted.
    """
    return _cityscapes("cityscapes_ema_net", EMANet.Config(size=SMALL), "mtan")


def cityscapes_ema_net_multi_scale() -> Run:
    """Multi-scale EMA-Net on Cityscapes at 128x256, trained as ``cityscapes_ema_net`` but with warm restarts after 25
    epochs, as its authors train it (the second period lasts 50).

    Command: ``polyptych train cityscapes_ema_net_multi_scale --dataset.root DIR``. 8,512,998 parameters; the authors'
    code (``--decoder.fusion shared --decoder.softmax published``) has 8,474,086. Published row: see
    ``cityscapes_ema_net``.
    """
    run = _cityscapes("cityscapes_ema_net_multi_scale", EMANetMultiScale.Config(size=SMALL), "mtan")
    return replace(run, schedule=Schedule(kind="warm_restarts", period=9_300))


def cityscapes_ema_net_full() -> Run:
    """Single-scale EMA-Net on Cityscapes at its full resolution, 1024x2048: 131,072 positions are compared with each
    other.

    Command: ``polyptych train cityscapes_ema_net_full --dataset.root DIR``, where DIR holds the official archives,
    unpacked. Trained as ``cityscapes_ema_net`` but with two images per step. No such result is published: with a stored
    affinity matrix, this network cannot be trained.
    """
    run = _cityscapes("cityscapes_ema_net_full", EMANet.Config(size=FULL), "official")
    return replace(run, size=FULL, batch_size=2, accumulate=4)


def _cityscapes(recipe: str, decoder: CrossTaskConfig, layout: str) -> Run:
    run = nyuv2_ema_net()
    return replace(
        run,
        recipe=recipe,
        dataset=Cityscapes.Config(classes=19, layout=layout),
        tasks={"semseg": SemanticSegmentation.Config(), "inverse_depth": InverseDepth.Config()},
        decoder=decoder,
        balancer=replace(run.balancer, weights={"semseg": 1.0, "inverse_depth": 10.0}),  # type: ignore[call-arg]
        size=SMALL,
        steps=27_900,
        optimizer=replace(run.optimizer, learning_rate=5e-4),
    )
