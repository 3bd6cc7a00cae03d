"""How fast the boundary benchmark matches: pairs of one thinned prediction and one ground truth per second.

    python benchmarks/boundaries.py [--images 6] [--out boundaries.json]

Two made-up workloads: BSDS (321x481, five annotators, 99 thresholds, no suppression) and NYUD (425x560, one truth, 101
thresholds, suppression). Regions are those of smooth noise; annotators differ by a warp of a few pixels and by small
regions that some leave out; predictions are blurred boundaries under noise. Prints a table, then JSON: processor
seconds of everything from the probabilities to the counts, and what they project to for 200 images of BSDS on two
cores. For comparison, one thresholded pair of each also goes through the formulation of Martin et al. without its
random edges, solved by scipy's sparse assignment.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from polyptych.data._contours import contours
from polyptych.metrics._boundary_benchmark.correspondence import correspond, reach
from polyptych.metrics._boundary_benchmark.counts import count_matches
from polyptych.metrics._boundary_benchmark.protocols import PROTOCOLS, BenchmarkSettings
from polyptych.metrics._boundary_benchmark.thinning import thin

WORKLOADS = {"bsds": ((321, 481), 5), "nyud": ((425, 560), 1)}


def smooth(generator: np.random.Generator, size: tuple[int, int], sigma: float) -> np.ndarray:
    field = ndimage.gaussian_filter(generator.standard_normal(size), sigma)
    return field / field.std()


def make_image(seed: int, size: tuple[int, int], annotators: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A prediction from 0 to 1 and the truths."""
    generator = np.random.default_rng(seed)
    large = np.floor(smooth(generator, size, 24)).astype(int)
    small = smooth(generator, size, 9) > 1.8
    y, x = np.indices(size, dtype=float)
    truths = []
    for _ in range(annotators):
        where = [y + 2 * smooth(generator, size, 20), x + 2 * smooth(generator, size, 20)]
        kept = small & (smooth(generator, size, 40) > 0)
        ids = ndimage.map_coordinates(large * 2 + kept, where, order=0, mode="nearest")
        truths.append(thin(contours(ids)))
    strength = ndimage.gaussian_filter(contours(large * 2 + small).astype(float), 1.5)
    strength = strength / strength.max() * (0.6 + 0.2 * smooth(generator, size, 30))
    texture = np.maximum(0.12 * smooth(generator, size, 2), 0)
    return np.clip(strength + texture, 0, 1), truths


def measure(protocol: BenchmarkSettings, size: tuple[int, int], annotators: int, images: int) -> dict[str, Any]:
    count_matches(*make_image(0, size, annotators), protocol)  # compiles
    seconds, found = 0.0, []
    for seed in range(1, images + 1):
        prediction, truths = make_image(seed, size, annotators)
        start = time.process_time()
        counts = count_matches(prediction, truths, protocol)
        seconds += time.process_time() - start
        found.append(counts)
    pairs = images * annotators * len(protocol.thresholds)
    return {"size": size, "annotators": annotators, "thresholds": len(protocol.thresholds), "images": images,
            "pairs_per_second": pairs / seconds, "seconds_per_image": seconds / images,
            "predicted_pixels_per_map": float(np.mean([c[:, 3] for c in found])),
            "true_pixels_per_map": float(np.mean([c[:, 1] for c in found])) / annotators,
            "one_pair": compare(protocol, size, annotators)}


def compare(protocol: BenchmarkSettings, size: tuple[int, int], annotators: int) -> dict[str, float]:
    """One pair at the threshold 0.2, matched here and by scipy; both find the same number of pairs and total cost."""
    prediction, truths = make_image(1, size, annotators)
    mask = thin(prediction >= 0.2)
    correspond(mask[:9, :9], truths[0][:9, :9], 0.1)  # compiles
    start = time.process_time()
    ours = correspond(mask, truths[0], protocol.max_dist)
    here = time.process_time() - start
    start = time.process_time()
    pairs, cost = by_scipy(mask, truths[0], reach(size, protocol.max_dist))
    there = time.process_time() - start
    assert (int(ours.prediction.sum()), ours.cost) == (pairs, cost)
    return {"pairs": pairs, "milliseconds": 1e3 * here, "scipy_milliseconds": 1e3 * there}


def by_scipy(prediction: np.ndarray, truth: np.ndarray, radius: float) -> tuple[int, int]:
    """Pairs and total cost of the square assignment with one outlier node per pixel, exact and without chance."""
    rows, columns = np.argwhere(prediction), np.argwhere(truth)
    near = cKDTree(rows).sparse_distance_matrix(cKDTree(columns), radius * (1 + 1e-12), output_type="coo_matrix")
    n, m, outlier = len(rows), len(columns), math.ceil(1e4 * radius)
    cost = np.rint(100 * near.data).astype(int)
    every_row, every_column = np.arange(n), np.arange(m)
    i = np.concatenate([near.row, every_row, n + every_column, n + near.col])
    j = np.concatenate([near.col, m + every_row, every_column, m + near.row])
    weight = np.concatenate([cost, np.full(n + m + len(cost), outlier)]) + 1  # scipy drops what is zero
    left, right = min_weight_full_bipartite_matching(coo_array((weight, (i, j)), shape=(n + m, n + m)).tocsr())
    real = (left < n) & (right < m)
    distance = np.linalg.norm(rows[left[real]] - columns[right[real]], axis=1)
    return int(real.sum()), int(np.rint(100 * distance).sum())


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6, help="images to time, of each kind")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    rows = {name: measure(PROTOCOLS[name], *how, options.images) for name, how in WORKLOADS.items()}
    result = {"machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
              "workloads": rows, "minutes_for_200_bsds_images_on_two_cores":
                  200 * rows["bsds"]["seconds_per_image"] / 2 / 60}
    show(result)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def show(result: dict[str, Any]) -> None:
    table = Table("workload", "pairs/s, one core", "s per image", "pixels predicted, true", "one pair, ms (scipy)")
    for name, row in result["workloads"].items():
        one = row["one_pair"]
        table.add_row(name, f"{row['pairs_per_second']:.0f}", f"{row['seconds_per_image']:.2f}",
                      f"{row['predicted_pixels_per_map']:.0f}, {row['true_pixels_per_map']:.0f}",
                      f"{one['milliseconds']:.1f} ({one['scipy_milliseconds']:.1f})")
    console = Console(stderr=True)
    console.print(table)
    console.print(f"200 images of BSDS on two cores: {result['minutes_for_200_bsds_images_on_two_cores']:.1f} min")


if __name__ == "__main__":
    main()
