"""The boundary benchmark: odsF, oisF and average precision as in published tables, without MATLAB.

Source: Martin, Fowlkes and Malik, TPAMI 2004; Arbelaez, Maire, Fowlkes and Malik, TPAMI 2011
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from polyptych.errors import InputError
from polyptych.metrics._boundary_benchmark.counts import count_matches
from polyptych.metrics._boundary_benchmark.curve import (
    Best,
    Curve,
    average_precision,
    best,
    best_between,
    best_per_image,
    trace,
)
from polyptych.metrics._boundary_benchmark.folders import (
    TruthKind,
    UCMKind,
    count_segmentations,
    read_prediction,
    read_truths,
)
from polyptych.metrics._boundary_benchmark.protocols import BenchmarkSettings
from polyptych.metrics._boundary_benchmark.protocols import protocol as named_protocol
from polyptych.metrics._saved_maps import Pair, pair_files

_IMAGES_PER_WORKER = 16  # starting a process takes about as long as measuring this many


class BoundaryBenchmark:
    """Streaming accumulator of boundary scores: integer counts of every image, from which all scores follow.

    Predictions are thinned at every threshold and matched one to one with the truth, within a tolerance: as many pairs
    as possible and, with several truths, at the least total distance. The matching is exact and deterministic. The
    original approximates it on a random graph seeded by the clock; its recall is lower by 0.0003 to 0.0005, and two of
    its runs differ by 0.0001.

    Args:
        protocol: a name in :data:`polyptych.metrics._boundary_benchmark.protocols.PROTOCOLS` (``bsds``, ``nyud``,
            ``pascal``, ``nyud_survey``, ``pascal_survey``), or a protocol. Scores of different protocols must not be
            compared.

    Raises:
        InputError: an unknown protocol.
    """

    def __init__(self, protocol: str | BenchmarkSettings = "bsds"):
        self.protocol = named_protocol(protocol) if isinstance(protocol, str) else protocol
        self.names: list[str] = []
        self.counts: list[Int[np.ndarray, "t 4"]] = []

    @property
    def thresholds(self) -> Float[np.ndarray, " t"]:
        return np.array(self.protocol.thresholds, float)

    def add(self, prediction: Float[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"],
            truths: Sequence[Bool[np.ndarray, "h2 w2"]], name: str = "") -> None:
        """Measure one image.

        Args:
            prediction: probabilities of a boundary from 0 to 1 at the native size of the image; or one binary map
                for every threshold, which is not suppressed but thinned.
            truths: maps of true boundaries of the same size, one for each annotator.
            name: name of the image in reports and errors.

        Raises:
            InputError: different sizes, no truth, values outside of 0 to 1, or a wrong number of binary maps.
        """
        name = name or f"image {len(self.names)}"
        self.add_counts(_count(prediction, truths, self.protocol, name), name)

    def add_counts(self, counts: Int[np.ndarray, "t 4"], name: str) -> None:
        """Add an image that was measured elsewhere: matched and all true pixels, matched and all predicted ones."""
        self.counts.append(counts)
        self.names.append(name)

    def merge(self, other: BoundaryBenchmark) -> None:
        """Add the images of another benchmark.

        Raises:
            InputError: it has another protocol.
        """
        if other.protocol != self.protocol:
            raise InputError("boundary scores", f"those of '{other.protocol.name}' and '{self.protocol.name}'",
                             "one protocol with the same options", "measure both with the same protocol")
        self.names += other.names
        self.counts += other.counts

    def compute(self) -> dict[str, float]:
        """The scores, 0 to 1; NaN before the first image.

        ``odsF`` is F at the best threshold for all images, ``oisF`` with the best of every image (``ois_threshold``
        is their mean), ``AP`` the average precision. ``odsF_interpolated`` also looks between thresholds, as the
        files of BSDS do, and is higher by about 0.00002.
        """
        none = Best(*[float("nan")] * 4)
        if self.counts:
            curve, empty = self.curve(), self.protocol.empty
            ods, between = best(curve, self.thresholds), best_between(curve, self.thresholds)
            ois, precision = best_per_image(np.stack(self.counts), self.thresholds, empty), average_precision(curve)
        else:
            ods, between, ois, precision = none, none, none, float("nan")
        return {"odsF": ods.F, "ods_recall": ods.recall, "ods_precision": ods.precision,
                "ods_threshold": ods.threshold, "odsF_interpolated": between.F,
                "ods_interpolated_threshold": between.threshold, "oisF": ois.F, "ois_recall": ois.recall,
                "ois_precision": ois.precision, "ois_threshold": ois.threshold, "AP": precision}

    def curve(self) -> Curve:
        """Recall, precision and F of all images at every threshold; there must be an image."""
        return trace(np.sum(self.counts, axis=0), self.protocol.empty)

    def best_of_images(self) -> dict[str, Best]:
        """The best threshold of every image, with its recall, precision and F."""
        return {name: best(trace(counts, self.protocol.empty), self.thresholds)
                for name, counts in zip(self.names, self.counts, strict=True)}


def evaluate_folders(predictions: Path, truths: Path, protocol: str | BenchmarkSettings = "bsds", *,
                     images: Path | None = None, truth: TruthKind = "auto", ucm: UCMKind = "contours",
                     workers: int | None = None,
                     progress: Callable[[int, int], None] | None = None) -> BoundaryBenchmark:
    """Measure a folder of predictions; the result does not depend on the number of workers.

    Args:
        predictions: one .png (8 or 16 bits), .npy or .mat (``ucm2``, ``segs``) per image, see
            :func:`polyptych.metrics._boundary_benchmark.folders.read_prediction`. With ``segs``, the segmentations
            replace the protocol's thresholds, numbered from 1.
        truths: one .mat or .png per image with the same name, see
            :func:`polyptych.metrics._boundary_benchmark.folders.read_truths`.
        images: text file with the names to measure; None measures all, and every file needs its counterpart.
        truth: what ground-truth pictures show.
        ucm: how a contour map of double size is read.
        workers: number of processes; None uses the cores, but no more than pay for their startup. More than one needs
            the ``if __name__ == "__main__"`` of Python's multiprocessing in the script that calls this.
        progress: called with the number of images done and their total.

    Raises:
        InputError: files without a counterpart, unreadable files, or different sizes.
    """
    pairs = pair_files(predictions, truths, images)
    benchmark = BoundaryBenchmark(protocol)
    if count := count_segmentations(pairs[0].prediction):
        benchmark.protocol = replace(benchmark.protocol, thresholds=tuple(float(k) for k in range(1, count + 1)))
    if workers is None:
        workers = min(os.cpu_count() or 1, -(-len(pairs) // _IMAGES_PER_WORKER))
    elif workers < 1:
        raise InputError("workers", str(workers), "1 or more", "leave it out to use all cores")
    measure = partial(_count_files, protocol=benchmark.protocol, truth=truth, ucm=ucm)
    for done, (pair, counts) in enumerate(zip(pairs, _in_order(measure, pairs, workers), strict=True), 1):
        benchmark.add_counts(counts, pair.name)
        if progress is not None:
            progress(done, len(pairs))
    return benchmark


def _in_order(measure: Callable[[Pair], np.ndarray], pairs: list[Pair], workers: int) -> Iterator[np.ndarray]:
    # The first image is measured here: an error common to all images then shows before processes start, and these find
    # the native code already compiled.
    yield measure(pairs[0])
    if workers == 1 or len(pairs) == 1:
        yield from map(measure, pairs[1:])
        return
    with ProcessPoolExecutor(min(workers, len(pairs) - 1), get_context("spawn")) as pool:
        try:
            yield from pool.map(measure, pairs[1:])
        finally:
            pool.shutdown(cancel_futures=True)


def _count_files(pair: Pair, protocol: BenchmarkSettings, truth: TruthKind, ucm: UCMKind) -> np.ndarray:
    prediction = read_prediction(pair.prediction, protocol.thresholds, strict=protocol.strict, ucm=ucm)
    truths = read_truths(pair.truth, truth)
    return _count(prediction, truths, protocol, str(pair.prediction))


def _count(prediction: np.ndarray, truths: Sequence[np.ndarray], protocol: BenchmarkSettings, where: str) -> np.ndarray:
    if not truths:
        raise InputError(where, "no map of true boundaries", "one or more", "leave the image out")
    shape = prediction.shape[-2:]
    for truth in truths:
        if truth.shape != shape:
            raise InputError(where, f"a prediction of {'x'.join(map(str, shape))} pixels",
                             f"the size of its ground truth, {'x'.join(map(str, truth.shape))}",
                             "resize the prediction to the native size of the image")
    if min(shape) < 2:
        raise InputError(where, f"a map of {'x'.join(map(str, shape))} pixels", "at least 2x2", "leave the image out")
    if prediction.ndim == 3 and len(prediction) != len(protocol.thresholds):
        raise InputError(where, f"{len(prediction)} binary maps", f"{len(protocol.thresholds)}, one per threshold",
                         "give every image as many maps as the first one")
    if prediction.ndim == 2 and not (prediction.min() >= 0 and prediction.max() <= 1):  # false for NaN
        raise InputError(where, "values outside of 0 to 1, or NaN", "probabilities", "apply the sigmoid")
    return count_matches(prediction, truths, protocol)
