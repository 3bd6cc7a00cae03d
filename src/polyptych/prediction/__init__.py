"""Prediction on the user's own images, videos and cameras: models, scenes, files."""

from polyptych.prediction.model import Model, load_network, open_model
from polyptych.prediction.predictor import Inference, Predictor, load
from polyptych.prediction.scene import Scene

__all__ = ["Inference", "Model", "Predictor", "Scene", "load", "load_network", "open_model"]
