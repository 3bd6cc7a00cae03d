"""Measure saved saliency maps: two folders in, every measure of the literature out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from polyptych.data.pictures import read_levels
from polyptych.errors import InputError
from polyptych.metrics._saved_maps import pair_files, read_probabilities
from polyptych.metrics.saliency import SaliencyF


def evaluate_saliency_maps(predictions: Path, truths: Path, *, images: Path | None = None, ignore: int | None = None,
                           double_sigmoid: bool = False,
                           progress: Callable[[int, int], None] | None = None) -> tuple[SaliencyF, list[str]]:
    """Compute the measures of a folder of maps; also returns the names of its images.

    Args:
        predictions: one .png or .npy per image, see :func:`polyptych.metrics._saved_maps.read_probabilities`.
        truths: one .png per image with the same name: salient above half the range (0 and 255), or 0 and 1.
        images: text file with the names to measure; None measures all, and every file needs its counterpart.
        ignore: ground-truth value that means no label; those pixels do not count.
        double_sigmoid: see :class:`polyptych.metrics.saliency.SaliencyF`.
        progress: called with the number of images done and their total.

    Raises:
        InputError: files without a counterpart, unreadable files, different sizes, or maps that are not probabilities.
    """
    pairs = pair_files(predictions, truths, images, ((".png", ".npy"), (".png",)))
    metric = SaliencyF(double_sigmoid)
    for done, pair in enumerate(pairs, 1):
        saliency = read_probabilities(pair.prediction)
        salient, valid = read_truth(pair.truth, ignore)
        if saliency.shape != salient.shape:
            raise InputError(pair.prediction, f"a map of {'x'.join(map(str, saliency.shape))} pixels",
                             f"the size of its ground truth, {'x'.join(map(str, salient.shape))}",
                             "resize the map to the native size of the image")
        metric.update(torch.from_numpy(saliency)[None], torch.from_numpy(salient)[None].float(),
                      torch.from_numpy(valid)[None])
        if progress is not None:
            progress(done, len(pairs))
    return metric, [pair.name for pair in pairs]


def read_truth(path: Path, ignore: int | None = None) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The salient pixels, and the mask of labeled pixels.

    Raises:
        InputError: not a picture of one channel.
    """
    stored, highest = read_levels(path)
    values = stored.astype(np.int64)
    valid = np.ones(values.shape, bool) if ignore is None else values != ignore
    largest = values[valid].max(initial=0)
    if largest <= 1:  # a mask of 0 and 1, or one in which nothing is salient
        return (values > 0) & valid, valid
    highest = 255 if largest <= 255 < highest else highest  # 8-bit values in a 16-bit file
    return (values > highest // 2) & valid, valid
