"""Predict every task on your own images, videos or a camera: polyptych predict RUN|MODEL.onnx INPUT... [--out DIR]"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from polyptych.cli._parsing import parse


@dataclass(frozen=True)
class Arguments:
    model: tyro.conf.Positional[Path]
    """Run folder, hf://OWNER/NAME, or a model that `polyptych export` wrote (.onnx, .pt2)."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, videos, folders of them, or camera:0."""
    out: Path = Path("predictions")
    """Output folder: pictures for images, NAME_panels.mp4 for videos."""
    recursive: bool = False
    """Also search subfolders."""
    frames: int = 0
    """Maximum number of frames per video or camera (0: no limit). Ctrl-C also stops a camera."""

    arrays: bool = False
    """Also write raw arrays (.npy): class ids, meters, unit vectors, probabilities, keypoints."""
    maps: bool = False
    """Also write 16-bit PNGs: depth in millimeters, class ids, probabilities."""
    overlay: bool = False
    """Also write each task overlaid on the image."""
    opacity: float = 0.6
    """Opacity of overlays, from 0 (image only) to 1 (prediction only)."""
    shares: Path | None = None
    """Also write a table of the share of each class in each image to this file (.csv or .json)."""
    points: bool = False
    """Also write a colored point cloud (.ply) from depth, with normals if they are predicted."""
    intrinsics: tuple[float, float, float, float] | None = None
    """Camera intrinsics FX FY CX CY in image pixels, for --points."""
    field_of_view: float | None = None
    """Horizontal field of view in degrees, instead of --intrinsics (default: 60)."""

    size: tuple[int, int] | None = None
    """Height and width of the network input (default: the training size)."""
    native: bool = False
    """Run each image at its own size."""
    flip: bool = False
    """Average with the prediction for the mirrored image."""
    scales: tuple[float, ...] = (1.0,)
    """Average predictions over these image scales, for example 0.75 1 1.25."""
    tile: tuple[int, int] | None = None
    """Height and width of a sliding window; without --size, the image keeps its own size."""
    overlap: float = 0.25
    """Minimum overlap of neighboring windows, as a fraction of the window; overlaps are blended smoothly."""
    batch: int = 1
    """Images (or windows) per pass of the network."""

    weights: Literal["", "last", "best"] = ""
    """Weights of a run (default: those the run selected)."""
    device: str = "auto"
    """Device for a run: auto, cpu, cuda, cuda:1, ..."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "predict")
    from polyptych.prediction.pipeline import predict as predict_inputs
    from polyptych.prediction.predictor import Inference
    from polyptych.prediction.scene import Outputs

    written = predict_inputs(
        options.model, options.inputs, options.out, weights=options.weights, device=options.device,
        recursive=options.recursive, frames=options.frames, shares=options.shares,
        outputs=Outputs(arrays=options.arrays, maps=options.maps, overlay=options.overlay, opacity=options.opacity,
                        points=options.points, intrinsics=options.intrinsics, field_of_view=options.field_of_view),
        inference=Inference(size=options.size, native=options.native, flip=options.flip, scales=options.scales,
                            tile=options.tile, overlap=options.overlap, batch=options.batch))
    print(written[-1])
