"""ATRC (Brüggemann et al., ICCV 2021, arXiv 2104.13874) on HRNet, with the contexts that its authors' search found.

Search again with ``--decoder.contexts search``: ``polyptych.load(RUN).network.decoder.genotype()`` is what a second run
takes as ``--decoder.contexts``. ``--decoder.contexts global`` (or local, target_label, source_label) are the paper's
baselines, and ``--decoder heads --decoder.head convolution`` is the one without contexts.

Differences from the published code: regions of depth and normals are learned from these tasks' own losses
(:class:`polyptych.decoders.atrc.ATRC`), no crop is drawn again because one class fills it, and a tenth of the training
images is kept for validation (``--dataset.validation 0.0`` trains on all). Several processes share the statistics of
BatchNorm with ``--execution.sync-batch-norm``, as theirs do.

The published rows are of the protocols ATRC-N and ATRC-P (``polyptych list protocols``).
"""

from dataclasses import replace

from polyptych.backbones.timm import Timm
from polyptych.decoders.atrc import ATRC
from polyptych.recipes.demt import nyud_demt as _nyud_demt
from polyptych.recipes.demt import pascal_demt as _pascal_demt
from polyptych.run import Run


def _on_hrnet(run: Run, model: str, decoder: ATRC.Config, learning_rate: float) -> Run:
    return replace(run, backbone=Timm.Config(model=model, pretrained=True, batch_norm_momentum=0.01, pad=False),
                   decoder=decoder, optimizer=replace(run.optimizer, learning_rate=learning_rate))


def nyud_atrc() -> Run:
    """ATRC on NYUD: segmentation (40 classes), depth, normals and boundaries at 425x560, HRNet-W48.

    Command: ``polyptych train nyud_atrc --dataset.root DIR``; on the small backbone ``--backbone.model
    hrnet_w18_small_v2 --decoder.contexts '3344 4344 4334 3313'``. 72,478,949 parameters, of which the backbone has
    65,325,120 and the published head 7,153,827 (the rest are the values of two regions), and 181 G multiply-adds for
    one image.

    SGD at 0.01 with momentum 0.9 and weight decay 5e-4, a polynomial to zero, 40,000 steps of 8 images, loss weights 1,
    1, 10 and 50 for the final and the auxiliary predictions, boundaries weighed 0.8.

    Published, mIoU / RMSE / mean error of normals / odsF: 46.33 / 0.5363 / 20.18 / 77.94.
    """
    decoder = ATRC.Config(contexts="3004 4114 4114 3333", gain=0.0,
                          regions={"depth": 40, "normals": 40, "boundaries": 2})
    return replace(_on_hrnet(_nyud_demt(), "hrnet_w48", decoder, 0.01), recipe="nyud_atrc")


def pascal_atrc() -> Run:
    """ATRC on PASCAL-Context: segmentation, parts, saliency, normals and boundaries at 512x512, HRNet-W18-small-v2.

    Command: ``polyptych train pascal_atrc --dataset.root DIR``. 5,382,925 parameters (of the published head 1,522,422,
    with a second channel for saliency) and 32 G multiply-adds for one image. Trained as ``nyud_atrc``, at 0.005, with
    loss weights 1, 2, 5, 10 and 50, boundaries weighed 0.95.

    Published, mIoU / parts mIoU / saliency maxF / mean error of normals / odsF, on HRNet-W48 with an encoder (BMTAS)
    that is not here: 67.67 / 62.93 / 82.29 / 14.24 / 72.42.
    """
    run = _pascal_demt()
    decoder = ATRC.Config(contexts="33404 33434 33343 33334 33313", gain=0.0,
                          regions={"normals": 40, "boundaries": 2})
    run = _on_hrnet(run, "hrnet_w18_small_v2", decoder, 0.005)
    order = ("semseg", "parts", "saliency", "normals", "boundaries")  # in which the contexts stand
    return replace(run, recipe="pascal_atrc", tasks={task: run.tasks[task] for task in order})
