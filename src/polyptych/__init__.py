"""Polyptych: multi-task learning of dense prediction. One image in, every panel of the scene out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyptych.comparison.compare import Comparison, compare
    from polyptych.errors import InputError
    from polyptych.evaluation import evaluate
    from polyptych.prediction.pipeline import predict
    from polyptych.prediction.predictor import Predictor, load
    from polyptych.prediction.scene import Scene
    from polyptych.profiling.profile import Profile, profile
    from polyptych.run import Run
    from polyptych.training import train

__version__ = "0.1.0"

__all__ = ["Comparison", "InputError", "Predictor", "Profile", "Run", "Scene", "compare", "evaluate", "load", "predict",
           "profile", "train"]

_HOMES = {
    "Comparison": "comparison.compare",
    "InputError": "errors",
    "Predictor": "prediction.predictor",
    "Profile": "profiling.profile",
    "Run": "run",
    "Scene": "prediction.scene",
    "compare": "comparison.compare",
    "evaluate": "evaluation",
    "load": "prediction.predictor",
    "predict": "prediction.pipeline",
    "profile": "profiling.profile",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `polyptych list` should not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'polyptych' has no attribute '{name}'")
    return getattr(importlib.import_module(f"polyptych.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
