"""TaskPrompter (Ye, Xu, ICLR 2023, https://openreview.net/forum?id=-CwPopPJda) as its authors train it, on ViT-L.

The network's form is the paper's, which differs from the published code in options that
:class:`polyptych.encoders.task_prompter.TaskPrompter` lists. The code's own: ``--encoder.channel published
--encoder.scores raw --encoder.stochastic-depth separate --encoder.initial published --encoder.no-prefix-tokens
--backbone.position-resampling plain`` (with ``--backbone.image-size`` of the training images).

Training differs from the published code as in ``nyud_invpt``, but for the supervision: there are no preliminary
predictions. The published rows are of the protocols INVPT-N and INVPT-P (``polyptych list protocols``).
"""

from dataclasses import replace

from polyptych.decoders.task_prompter import TaskPrompter as Heads
from polyptych.encoders.task_prompter import TaskPrompter
from polyptych.recipes.invpt import nyud_invpt as _nyud_invpt
from polyptych.recipes.invpt import pascal_invpt as _pascal_invpt
from polyptych.run import Run


def nyud_task_prompter() -> Run:
    """TaskPrompter on NYUD: segmentation (40 classes), depth, normals and boundaries at 448x576, ViT-L.

    Command: ``polyptych train nyud_task_prompter --dataset.root DIR``. 512,473,517 parameters and 840 G
    multiply-adds for one image (the published code's form 513,506,733 parameters), of which the backbone has
    304,133,120 and 356 G.

    Adam at 1e-5 with weight decay 1e-6 in the gradient, a polynomial to zero, 40,000 steps of 6 images, gradients of
    norm 10 at most, loss weights 1, 1, 10 and 50, zooms of 0.5 to 2, mirrored images, changed colors, weights of
    ImageNet-21k at 384x384, 15% drop path. The channel attention has 4x4 windows; features are not mixed.

    Published, mIoU / RMSE / mean error of normals / odsF, ViT-L: 55.30 / 0.5152 / 18.47 / 78.20 in the paper, 55.90 /
    0.5062 / 18.58 / 77.70 of the released weights.
    """
    run = _nyud_invpt()
    return replace(
        run,
        recipe="nyud_task_prompter",
        encoder=TaskPrompter.Config(size=(448, 576), windows=4),
        decoder=Heads.Config(inner=768, width=768, reweight=False),
        optimizer=replace(run.optimizer, learning_rate=1e-5),
        clip=10.0,
    )


def pascal_task_prompter() -> Run:
    """TaskPrompter on PASCAL-Context: segmentation, parts, saliency, boundaries and normals at 512x512, ViT-L.

    Command: ``polyptych train pascal_task_prompter --dataset.root DIR``. 400,055,937 parameters and 497 G
    multiply-adds for one image. The published code's form has 401,105,537 parameters; its paper says 401 M and 497 G.

    Trained as ``nyud_task_prompter``, but at 2e-5 and with loss weights 1, 2, 5, 50 and 10. The channel attention has
    one window; tasks' features are mixed.

    Published, mIoU / parts mIoU / saliency maxF / mean error of normals / odsF, ViT-L: 80.89 / 68.89 / 84.83 / 13.72 /
    73.50 in the paper, 80.79 / 68.81 / 84.26 / 13.58 / 73.80 of the released weights.
    """
    return replace(
        _pascal_invpt(),
        recipe="pascal_task_prompter",
        encoder=TaskPrompter.Config(size=(512, 512)),
        decoder=Heads.Config(),
        clip=10.0,
    )
