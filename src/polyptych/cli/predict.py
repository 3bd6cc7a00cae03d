"""Paint every task of your own images, videos, camera: polyptych predict RUN|MODEL.onnx INPUT... [--out DIR]"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from polyptych.cli._parsing import parse


@dataclass(frozen=True)
class Arguments:
    model: tyro.conf.Positional[Path]
    """Run folder, or a model that `polyptych export` wrote (.onnx, .pt2)."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, videos, folders of them, or camera:0."""
    out: Path = Path("predictions")
    """Folder that receives what is written: pictures of images, NAME_panels.mp4 of videos."""
    recursive: bool = False
    """Also take what lies in folders within folders."""
    frames: int = 0
    """The most that are taken of every video or camera; 0 takes all. Ctrl-C also stops a camera."""

    arrays: bool = False
    """Also write raw arrays (.npy): class ids, meters, unit vectors, probabilities, keypoints."""
    maps: bool = False
    """Also write 16-bit PNGs: depth in millimeters, class ids, probabilities."""
    overlay: bool = False
    """Also write every task laid over the image."""
    opacity: float = 0.6
    """How much of the image an overlay covers, from 0 to 1."""
    points: bool = False
    """Also write a colored point cloud (.ply) from depth, with normals where they are predicted."""
    intrinsics: tuple[float, float, float, float] | None = None
    """FX FY CX CY of the camera in pixels of the image, for --points."""
    field_of_view: float | None = None
    """Instead: degrees from the left to the right border of the image; 60 if nothing is said."""

    size: tuple[int, int] | None = None
    """Height and width that the network works at; by default that of its training."""
    native: bool = False
    """Work at each image's own size."""
    flip: bool = False
    """Average with the prediction of the mirror image."""
    scales: tuple[float, ...] = (1.0,)
    """Average over these enlargements of the image, for instance 0.75 1 1.25."""
    tile: tuple[int, int] | None = None
    """Height and width of a sliding window; without --size the image keeps its own size."""
    overlap: float = 0.25
    """Least share of the window that two neighbors have in common; they are blended smoothly."""
    batch: int = 1
    """Images (or windows) per pass of the network."""

    weights: Literal["", "last", "best"] = ""
    """Weights of a run; empty takes what the run selects."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; of a run."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "predict")
    from polyptych.prediction.scene import Outputs
    from polyptych.prediction.pipeline import predict as predict_inputs
    from polyptych.prediction.predictor import Inference

    written = predict_inputs(
        options.model, options.inputs, options.out, weights=options.weights, device=options.device,
        recursive=options.recursive, frames=options.frames,
        outputs=Outputs(arrays=options.arrays, maps=options.maps, overlay=options.overlay, opacity=options.opacity,
                        points=options.points, intrinsics=options.intrinsics, field_of_view=options.field_of_view),
        inference=Inference(size=options.size, native=options.native, flip=options.flip, scales=options.scales,
                            tile=options.tile, overlap=options.overlap, batch=options.batch))
    print(written[-1])
