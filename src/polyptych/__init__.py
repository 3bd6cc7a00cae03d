"""Polyptych: multi-task learning of dense prediction. One image in, every panel of the scene out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyptych.balancers._base import Balancer
    from polyptych.comparison.compare import Comparison, compare
    from polyptych.data.own_samples import OwnSamples, samples
    from polyptych.data.transforms import Augment
    from polyptych.diagnosis import Diagnosis, diagnose
    from polyptych.errors import InputError
    from polyptych.evaluation import evaluate
    from polyptych.importing import load_published
    from polyptych.networks import Network
    from polyptych.parts import SampleDataset, balancer, dataset, losses, network
    from polyptych.prediction.pipeline import predict
    from polyptych.prediction.predictor import Predictor, load
    from polyptych.prediction.scene import Scene
    from polyptych.profiling.profile import Profile, profile
    from polyptych.run import Run
    from polyptych.task_parts import TaskMetric, TaskPart, task
    from polyptych.training import train
    from polyptych.types import Batch, Output

__version__ = "0.2.0"

__all__ = ["Augment", "Balancer", "Batch", "Comparison", "Diagnosis", "InputError", "Network", "Output", "OwnSamples",
           "Predictor", "Profile", "Run", "SampleDataset", "Scene", "TaskMetric", "TaskPart", "balancer", "compare",
           "dataset", "diagnose", "evaluate", "load", "load_published", "losses", "network", "predict", "profile",
           "samples", "task", "train"]

_HOMES = {
    "Augment": "data.transforms",
    "Balancer": "balancers._base",
    "Batch": "types",
    "Comparison": "comparison.compare",
    "Diagnosis": "diagnosis",
    "InputError": "errors",
    "Network": "networks",
    "Output": "types",
    "OwnSamples": "data.own_samples",
    "Predictor": "prediction.predictor",
    "Profile": "profiling.profile",
    "Run": "run",
    "SampleDataset": "parts",
    "Scene": "prediction.scene",
    "TaskMetric": "task_parts",
    "TaskPart": "task_parts",
    "balancer": "parts",
    "compare": "comparison.compare",
    "dataset": "parts",
    "diagnose": "diagnosis",
    "evaluate": "evaluation",
    "load": "prediction.predictor",
    "load_published": "importing",
    "losses": "parts",
    "network": "parts",
    "predict": "prediction.pipeline",
    "profile": "profiling.profile",
    "samples": "data.own_samples",
    "task": "task_parts",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `polyptych list` should not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'polyptych' has no attribute '{name}'")
    return getattr(importlib.import_module(f"polyptych.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
