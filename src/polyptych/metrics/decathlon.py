"""The score of the Visual Decathlon: ten accuracies as one number between 0 and 10000.

Source: Rebuffi, Bilen, Vedaldi, NeurIPS 2017, arXiv 1705.08045
"""

from __future__ import annotations

from collections.abc import Mapping

from polyptych.errors import InputError, nearest

LARGEST_ERROR = {
    "imagenet12": 0.8026, "aircraft": 0.7932, "cifar100": 0.3576, "daimlerpedcls": 0.1436, "dtd": 0.8894,
    "gtsrb": 0.0494, "vgg-flowers": 0.3718, "omniglot": 0.2462, "svhn": 0.0690, "ucf101": 0.9760,
}
"""Twice the test error (0 to 1) of the baseline that fine-tunes a network for each domain."""

_BEST = 1000  # points of a domain without errors


def decathlon_score(accuracy: Mapping[str, float]) -> float:
    """S = sum over the domains of 1000 (max(0, Emax - E) / Emax)^2 with the error E = 1 - accuracy.

    The fine-tuned baseline scores 2500. Published scores are measured on the test set, whose labels are only on the
    challenge's server; a score from local accuracies is not comparable with them.

    Args:
        accuracy: top-1 accuracy of each of the ten domains, in percent.

    Raises:
        InputError: a domain is missing or unknown, or its accuracy is not a percentage.
    """
    for domain in LARGEST_ERROR:
        if domain not in accuracy:
            raise InputError(f"accuracy of '{domain}'", "nothing", "the accuracy of all ten domains",
                             "measure it; the score of fewer domains is not defined")
    for domain, value in accuracy.items():
        if domain not in LARGEST_ERROR:
            raise InputError(f"accuracy of '{domain}'", "an unknown domain", nearest(domain, LARGEST_ERROR),
                             "remove it")
        if not 0 <= value <= 100:
            raise InputError(f"accuracy of '{domain}'", f"{value:g}", "a percentage from 0 to 100",
                             "multiply fractions by 100")
    return sum(_BEST * max(0.0, 1 - (1 - accuracy[domain] / 100) / largest) ** 2
               for domain, largest in LARGEST_ERROR.items())
