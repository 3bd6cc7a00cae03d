"""Left and right: which classes or keypoints a mirror image swaps."""

from __future__ import annotations

from polyptych.types import LabelInfo


def mirror_order(labels: LabelInfo) -> list[int]:
    """The type that stands in each one's place in the mirror: itself, or the other of its pair."""
    order = list(range(len(labels.classes)))
    for left, right in labels.mirror:
        order[left], order[right] = right, left
    return order
