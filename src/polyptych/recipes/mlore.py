"""MLoRE (Yang et al., CVPR 2024, arXiv 2403.17749) on ViT-L.

The decoder is the published one, parameter by parameter, but for the second channel of saliency. The backbone keeps the
class token that the authors drop (1,024 parameters). Training differs from the published code as in ``nyud_invpt``: one
process accumulates two forward passes of two images, where two processes share the statistics of BatchNorm; a tenth of
the training images is kept for validation. ``decoder.balance`` is the published weight divided by the sum of the loss
weights (:class:`polyptych.decoders.mlore.MLoRE`).

The published rows are of the protocols INVPT-N and INVPT-P (``polyptych list protocols``), from the README of the
authors' code.
"""

from dataclasses import replace

from polyptych.decoders.mlore import MLoRE
from polyptych.recipes.invpt import nyud_invpt as _nyud_invpt
from polyptych.recipes.invpt import pascal_invpt as _pascal_invpt
from polyptych.run import Run
from polyptych.tasks.boundaries import Boundaries


def nyud_mlore() -> Run:
    """MLoRE on NYUD: segmentation (40 classes), depth, normals and boundaries at 448x576, ViT-L.

    Command: ``polyptych train nyud_mlore --dataset.root DIR``. 551,626,557 parameters (551,625,533 published) and
    1,406 G multiply-adds for one image; 929 G with the experts merged, as inference computes them.

    Adam at 1e-5 with weight decay 1e-6 in the gradient, a polynomial to zero, 40,000 steps of 4 images, gradients of
    norm 10 at most, loss weights 1, 1, 10 and 50, boundaries weighed 0.88, 15% drop path.

    Published, mIoU / RMSE / mean error of normals / odsF: 55.96 / 0.5076 / 18.33 / 78.43.
    """
    run = _nyud_invpt()
    return replace(
        run,
        recipe="nyud_mlore",
        tasks=run.tasks | {"boundaries": Boundaries.Config(weight=0.88, benchmark="nyud")},
        decoder=MLoRE.Config(width=768, ranks=tuple(range(16, 241, 16)), task_rank=16, renormalize=True,
                             balance=5e-4 / 62, size=(448, 576)),
        optimizer=replace(run.optimizer, learning_rate=1e-5),
        accumulate=2,
        clip=10.0,
    )


def pascal_mlore() -> Run:
    """MLoRE on PASCAL-Context: segmentation, parts, saliency, boundaries and normals at 512x512, ViT-L.

    Command: ``polyptych train pascal_mlore --dataset.root DIR``. 407,690,977 parameters (407,690,406 published, with a
    second channel for saliency and without class token) and 827 G multiply-adds for one image; 615 G with the experts
    merged, as inference computes them. MTMamba++'s paper says 407 M and 571 G.

    Adam at 2e-5 with weight decay 1e-6 in the gradient, 40,000 steps of 4 images, loss weights 1, 2, 5, 50 and 10,
    boundaries weighed 0.925; else as ``nyud_mlore``.

    Published, mIoU / parts mIoU / saliency maxF / mean error of normals / odsF, ViT-L: 81.41 / 70.52 / 84.90 / 13.51 /
    75.42; ViT-B: 79.26 / 67.82 / 85.31 / 13.65 / 74.69.
    """
    run = _pascal_invpt()
    return replace(
        run,
        recipe="pascal_mlore",
        tasks=run.tasks | {"boundaries": Boundaries.Config(weight=0.925, benchmark="pascal")},
        decoder=MLoRE.Config(width=452, balance=3e-4 / 68),
        accumulate=2,
        clip=10.0,
    )
