"""Polyptych: multi-task learning of dense prediction. One image in, every panel of the scene out."""

__version__ = "0.1.0"
