"""Measure saved saliency maps: two folders in, every measure of the literature out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from polyptych.data._files import read_gray, read_npy
from polyptych.errors import InputError
from polyptych.metrics._paired_files import pair_files
from polyptych.metrics.saliency import SaliencyF


def evaluate_saliency_maps(predictions: Path, truths: Path, *, images: Path | None = None, ignore: int | None = None,
                           double_sigmoid: bool = False,
                           progress: Callable[[int, int], None] | None = None) -> tuple[SaliencyF, list[str]]:
    """The measures of a folder of maps, and the names of its images.

    Args:
        predictions: one .png (8 or 16 bits: the share of the highest value) or .npy (0 to 1) per image.
        truths: one .png per image with the same name: salient above the middle of the range (0 and 255), or 0 and 1.
        images: text file with the names to measure; None measures all, and every file needs its counterpart.
        ignore: a value of ground truth that is no label; those pixels do not count.
        double_sigmoid: see :class:`polyptych.metrics.saliency.SaliencyF`.
        progress: called with the number of images done and their total.

    Raises:
        InputError: files that do not pair, cannot be read, or differ in size; maps that are no probabilities.
    """
    pairs = pair_files(predictions, truths, images, ((".png", ".npy"), (".png",)))
    metric = SaliencyF(double_sigmoid)
    for done, pair in enumerate(pairs, 1):
        saliency = read_map(pair.prediction)
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


def read_map(path: Path) -> Float[np.ndarray, "h w"]:
    """Probabilities from 0 to 1, float64.

    Raises:
        InputError: not one channel of whole numbers or of floats from 0 to 1.
    """
    values = read_gray(path) if path.suffix == ".png" else read_npy(path)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "buf":
        raise InputError(path, f"{values.dtype} of shape {values.shape}", "one map (h, w) of floats, uint8 or uint16",
                         "save one map per file")
    highest = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    values = values.astype(np.float64) / highest
    if not (values.min() >= 0 and values.max() <= 1):  # false for NaN
        raise InputError(path, "values outside of 0 to 1, or NaN", "probabilities", "apply the sigmoid")
    return values


def read_truth(path: Path, ignore: int | None = None) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """What is salient, and where that is known.

    Raises:
        InputError: not one channel of whole numbers.
    """
    values = read_gray(path)
    if values.dtype.kind not in "bu" and values.min() < 0:
        raise InputError(path, f"values from {values.min():g}", "a picture of what is salient, 0 and 255 or 0 and 1",
                         "save the mask as a gray PNG")
    valid = np.ones(values.shape, bool) if ignore is None else values != ignore
    known = values[valid]
    if not known.size or known.max() <= 1:  # a mask of 0 and 1, or one in which nothing is salient
        return (values > 0) & valid, valid
    return (values > (127 if known.max() <= 255 else 32767)) & valid, valid
