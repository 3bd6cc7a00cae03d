"""Predict everything that the inputs name, and write the results to files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from polyptych.errors import InputError
from polyptych.prediction.inputs import Pixels, Source, UnreadableInput, as_pixels, find_sources
from polyptych.prediction.model import open_model
from polyptych.prediction.predictor import Inference, Predictor
from polyptych.prediction.progress import Counter
from polyptych.prediction.scene import Outputs, Scene, write_picture, write_scene
from polyptych.prediction.shares import ClassShares
from polyptych.prediction.video import Moment, Writer, open_frames
from polyptych.reports.panels import contact_sheet, mosaic

SHEET_NAME = "contact_sheet.png"
SHEET = 100
"""Images on the contact sheet; a longer sheet would be unreadable and would not fit into memory."""
SHOWN = 10  # inputs that an error names
VIDEO_CELL = 640
"""Pixels of the longer side of a panel in a video."""


def predict(model: Path, inputs: Sequence[Path | str], out: Path, *, arrays: bool = False, weights: str = "",
            device: str = "auto", inference: Inference | None = None, outputs: Outputs | None = None,
            recursive: bool = False, frames: int = 0, shares: Path | None = None,
            say: Callable[[object], None] = print) -> list[Path]:
    """Predict every task on images, videos and cameras, and write pictures.

    Args:
        model: a run folder or an exported model.
        inputs: images, videos, folders of them, or ``camera:0``.
        out: receives ``NAME_TASK.png`` for every image and task and ``contact_sheet.png``, which shows the first 100
            images; for every video ``NAME_panels.mp4``, playable at any moment, even if the program is killed; and
            the files that ``outputs`` asks for, for every image and every frame of a video.
        arrays: short for ``outputs=Outputs(arrays=True)``.
        inference: how images are fed to the network.
        recursive: whether to search subfolders, too.
        frames: maximum number of frames of every video or camera; 0 takes all. Ctrl-C also stops a camera.
        shares: a .csv or .json file for the share of every class in every image and frame.

    Returns:
        The files written.

    Raises:
        InputError: no input is named, an input is missing, or the model cannot be read. An input that exists but cannot
            be read is skipped; the error comes after all others are written.
    """
    if frames < 0:
        raise InputError("--frames", str(frames), "0 or more", "use 0 for all frames")
    outputs = outputs or Outputs(arrays=arrays)
    sources = find_sources(inputs, recursive)
    predictor = Predictor(open_model(Path(model), weights, device), inference)
    if outputs.points and not any(task.has_distance for task in predictor.tasks.values()):
        raise InputError("--points", f"a model of {', '.join(predictor.tasks)}", "a task that predicts depth in meters",
                         "use a model with such a task")
    table = ClassShares(shares, predictor.tasks) if shares else None
    _spare(sources, tuple(predictor.tasks), out)
    if outputs.guessed:
        say(outputs.guessed)
    out.mkdir(parents=True, exist_ok=True)
    images, moving = [s for s in sources if not s.moves], [s for s in sources if s.moves]
    written: list[Path] = []
    unreadable: list[UnreadableInput] = []
    with Counter(say) as counter:
        for source in moving:
            try:
                written += _film(predictor, source, out, outputs, table, frames, counter, say)
            except UnreadableInput as error:
                unreadable.append(error)
        if images:
            written += _pictures(predictor, images, out, outputs, table, counter, unreadable, say)
    if table is not None and table.found:
        written.insert(0, table.write())  # the last one is what the command line names
        say(f"class shares: {table.path}")
    if unreadable and len(sources) == 1:
        raise unreadable[0]
    say(f"{counter.done} image{'s' * (counter.done != 1)} in {counter.seconds:.1f} s: {counter.speed:.2f} images/s"
        f" ({counter.done / max(predictor.seconds, 1e-9):.2f} without reading and writing)")
    if unreadable:
        for fault in unreadable:
            say(f"skipped: {fault}")
        names = ", ".join(fault.where for fault in unreadable[:SHOWN])
        more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        raise InputError("inputs", f"{len(unreadable)} of {len(sources)} that cannot be read ({names}{more})",
                         "images and videos", f"repair or remove them; all others are in {out}")
    return written


def _pictures(predictor: Predictor, sources: Sequence[Source], out: Path, outputs: Outputs,
              table: ClassShares | None, counter: Counter, unreadable: list[UnreadableInput],
              say: Callable[[object], None]) -> list[Path]:
    """Predict all images; those that cannot be read are added to ``unreadable``."""
    written: list[Path] = []
    strips: list[UInt8[np.ndarray, "_ _ 3"]] = []
    read: deque[tuple[Source, str]] = deque()  # whose scenes are still to come

    def pixels() -> Iterator[Pixels]:
        for source in sources:
            try:
                found = as_pixels(source.path)
            except UnreadableInput as error:
                unreadable.append(error)
                continue
            read.append((source, found.remark))
            yield found

    counter.begin("images", len(sources))
    for scene in predictor.predict_many(pixels()):
        source, remark = read.popleft()
        written += write_scene(scene, out, source.stem, outputs)
        if table is not None:
            table.add(str(source.path), scene)
        if len(strips) < SHEET:
            strips.append(scene.panel())
        say(f"{source.path}: {', '.join(scene.tasks)}{f' ({remark})' if remark else ''}")
        counter.step()
    if strips:
        written.append(write_picture(out / SHEET_NAME, contact_sheet(strips)))
    return written


def _film(predictor: Predictor, source: Source, out: Path, outputs: Outputs, table: ClassShares | None, limit: int,
          counter: Counter, say: Callable[[object], None]) -> list[Path]:
    """Predict one video or camera; at most a batch of frames is in memory."""
    reader = open_frames(source, limit)
    moments: deque[Moment] = deque()

    def frames() -> Iterator[Pixels]:
        for picture, moment in reader:
            moments.append(moment)
            yield Pixels(picture, "image")

    extra = outputs.arrays or outputs.maps or outputs.points
    written: list[Path] = []
    counter.begin(source.stem, reader.total)
    with ExitStack() as stack:
        stack.callback(reader.close)
        films = {kind: stack.enter_context(Writer(out / f"{source.stem}_{kind}.mp4", reader.rate))
                 for kind in ("panels", *(["overlay"] if outputs.overlay else []))}
        try:
            for index, scene in enumerate(predictor.predict_many(frames())):
                moment = moments.popleft()
                for kind, film in films.items():
                    film.write(_frame(scene, None if kind == "panels" else outputs.opacity), moment)
                if table is not None:
                    table.add(f"{source.path}#{index:06}", scene)
                if extra:
                    written += write_scene(scene, out, f"{source.stem}_{index:06}", outputs, pictures=False)
                counter.step()
        except KeyboardInterrupt:
            if not source.device:
                raise
    written += [film.path for film in films.values()]
    say(f"{source.path if not source.device else f'camera:{source.device}'}: {', '.join(predictor.tasks)}")
    return written


def _frame(scene: Scene, opacity: float | None) -> UInt8[np.ndarray, "_ _ 3"]:
    cells = scene.painted() if opacity is None else {task: scene.overlay(task, opacity) for task in scene.tasks}
    return mosaic(scene.image, cells, largest=VIDEO_CELL)


def _spare(sources: Sequence[Source], tasks: Sequence[str], out: Path) -> None:
    """Refuse to overwrite an input or another input's result: a folder may hold pictures that are named like results,
    and the task ``b_c`` of ``a.png`` has the same file name as the task ``c`` of ``a_b.png``.

    Raises:
        InputError: a result would have the path of an input, or of another result.
    """
    endings = [f"_{task}{kind}" for task in tasks for kind in (".png", "_overlay.png", "_16bit.png", ".npy")]
    names: dict[str, Source | None] = {SHEET_NAME: None}
    for source in sources:
        for ending in ("_panels.mp4", "_overlay.mp4") if source.moves else (*endings, ".ply"):
            other = names.setdefault(f"{source.stem}{ending}", source)
            if other is not source:
                raise InputError(source.path, f"an input whose result {source.stem}{ending} would overwrite "
                                 f"{f'that of {other.path}' if other else 'the contact sheet'}",
                                 "names that do not collide", "rename it, or predict it into another --out")
    place = Path(os.path.realpath(out))
    for source in sources:
        path = Path(os.path.realpath(source.path))  # resolve() refuses links that lead in circles
        if path.parent == place and path.name in names:
            raise InputError(source.path, "an input that would be overwritten", "another place for the output",
                             "choose another --out")
