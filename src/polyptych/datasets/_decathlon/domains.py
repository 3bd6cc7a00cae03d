"""The ten domains: number of classes, mean and standard deviation of their images."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Domain:
    """``classes``: number of classes; ``mean`` and ``std`` of its images, RGB in [0, 1], as in MTAN's code."""

    classes: int
    mean: RGB
    std: RGB


DOMAINS = {
    "imagenet12": Domain(1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "aircraft": Domain(100, (0.4798, 0.5107, 0.5344), (0.2107, 0.2051, 0.2373)),
    "cifar100": Domain(100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "daimlerpedcls": Domain(2, (0.4820, 0.4820, 0.4820), (0.2361, 0.2361, 0.2361)),
    "dtd": Domain(47, (0.5270, 0.4703, 0.4240), (0.2523, 0.2409, 0.2499)),
    "gtsrb": Domain(43, (0.3392, 0.3118, 0.3205), (0.2756, 0.2658, 0.2709)),
    "omniglot": Domain(1623, (0.0810, 0.0810, 0.0810), (0.2705, 0.2705, 0.2705)),
    "svhn": Domain(10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "ucf101": Domain(101, (0.4995, 0.4988, 0.4998), (0.1090, 0.1081, 0.1068)),
    "vgg-flowers": Domain(102, (0.4341, 0.3831, 0.2971), (0.2851, 0.2384, 0.2640)),
}

REFERENCE = DOMAINS["imagenet12"]
"""The domain whose statistics pretrained backbones expect; ``match_statistics`` matches the others to it."""
