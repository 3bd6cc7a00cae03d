"""Where NYUv2+kpts comes from."""

from __future__ import annotations

from polyptych.datasets._about import About, LayoutFacts

_TREE = "train.txt, test.txt and {image,keypoints,depth,normals}/SCENE/FRAME.*, optionally keypoints.json"

ABOUT = About(
    title="NYUv2+kpts (Chen, Badrinarayanan, Lee and Rabinovich, GradNorm, ICML 2018)",
    license="never released",
    downloads=(),
    layouts={
        "points": LayoutFacts(_TREE, note="keypoints/ holds arrays (k 3): x, y in pixels, visible"),
        "heat_maps": LayoutFacts(_TREE, note="keypoints/ holds heat maps (k h w) from 0 to 1, (48 80 80) in the paper"),
    },
    notes=(
        "The data of the paper is not public; this is the expected form of your own data.",
        "The paper has about 90,000 video frames, flips included, split 90 / 10 by scene, with 48 types of keypoints "
        "of RoomNet's 11 room layouts and normals computed from depth. This is from memory of the paper.",
    ),
)
