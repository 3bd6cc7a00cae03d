"""Object boundaries from a map of class ids whose objects are parted by seams of unlabeled pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage


def contours(labels: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """True where the right, lower or lower right neighbor has another label: contours one pixel wide."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return edge


def contours_across_void(labels: Integer[np.ndarray, "h w"], labeled: Bool[np.ndarray, "h w"],
                         reach: int) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Boundaries between labeled objects and the mask of where they are known.

    Annotators leave thin void seams between neighboring objects, so that a plain change of label would give
    two contours per boundary. Void is therefore filled from the nearest label, which leaves one contour along
    the middle of the seam. Deep inside large void areas, farther than ``reach`` pixels from any label, nobody
    knows what is there. These areas are invalid, and so is their rim, because an unlabeled object has its
    true boundary there.

    Args:
        labels: class ids; arbitrary where not ``labeled``.
        labeled: where they may be trusted.
        reach: half the width of the widest seam, in pixels.
    """
    void = ~labeled
    if not void.any():
        return contours(labels), labeled.copy()
    if void.all():
        return void & labeled, labeled.copy()
    # The transform alone is three times slower with distances; they follow from the indices.
    rows, columns = ndimage.distance_transform_edt(void, return_distances=False, return_indices=True)
    y, x = np.ogrid[:labels.shape[0], :labels.shape[1]]
    deep = (rows - y) ** 2 + (columns - x) ** 2 > reach**2
    unknown = ndimage.maximum_filter(deep.view(np.uint8), size=2 * reach + 5, mode="constant").view(bool)
    return contours(labels[rows, columns]), ~unknown
