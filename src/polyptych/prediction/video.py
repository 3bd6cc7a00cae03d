"""Videos and cameras in, videos out: frame by frame, and playable even if the program is killed at any moment.

The output is fragmented MP4: every frame is a fragment of its own, complete in itself and handed to the operating
system at once. A program that is killed loses the frame it was writing, and nothing before it. The encoder looks at no
later frames, so it holds none back.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from polyptych.data.files import require_plain
from polyptych.data.pictures import as_rgb, open_picture, upright
from polyptych.errors import InputError
from polyptych.prediction.inputs import Source, UnreadableInput

DEFAULT_RATE = Fraction(25)  # frames per second, if a file does not state its rate
FRAGMENTS = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
QUALITY = {"libx264": {"tune": "zerolatency", "preset": "veryfast", "crf": "20"}, "mpeg4": {"qscale": "3"}}
# Files that are videos themselves; not playlists, which would make ffmpeg open what they name, here or elsewhere.
TRUSTED = {"protocol_whitelist": "file",
           "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg"}
LOST = 0.5  # seconds that may be missing at the end of a file, because headers are not exact
NEEDED = "the package av"
INSTALL = "pip install 'polyptych[video]'"


@dataclass(frozen=True)
class Moment:
    """When a frame is shown: ``count`` times ``base`` seconds after the start."""

    count: int
    base: Fraction


class Reader:
    """The frames of a video file or camera, upright, one at a time. Sound is ignored.

    Attributes:
        rate: frames per second.
        total: number of frames; 0 if unknown (cameras, some files).

    Raises:
        InputError: PyAV is not installed, nothing can be opened, or there is no picture in it.
    """

    def __init__(self, source: Source, limit: int = 0):
        self.source, self._limit = source, limit
        self._av = _import_av(source)
        name, form, options = _place(source)
        if not source.device:
            try:
                require_plain(source.path, "a video")  # opening a pipe would wait for a writer
            except InputError as error:
                raise self._fault(error.got) from None
        try:
            self._container: Any = self._av.open(name, format=form, options=options)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise self._fault(f"{'a camera' if source.device else 'a file'} that cannot be opened as video "
                              f"({_reason(error)})") from None
        if not self._container.streams.video:
            self.close()
            raise self._fault("a file without pictures that can be read")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE)
        self.total = self._count()

    def __iter__(self) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], Moment]]:
        """
        Raises:
            InputError: there is no frame, frames are damaged, or the file breaks off before its end.
        """
        number, first, last, damaged = 0, None, None, 0
        seconds = 0.0
        try:
            for frame in self._container.decode(self._stream):
                base = frame.time_base or 1 / self.rate
                count = round(number / self.rate / base) if frame.pts is None else frame.pts
                first = count if first is None else first
                # A frame that claims to come before its predecessor cannot be written; it comes right after.
                last = count - first if last is None else max(count - first, last + 1)
                damaged += bool(frame.is_corrupt)
                seconds = float((last + 1) * base)
                yield _upright(frame.to_ndarray(format="rgb24"), frame.rotation), Moment(last, base)
                number += 1
                if number == self._limit:
                    return
        except self._av.error.FFmpegError as error:
            raise self._fault(f"a video that cannot be decoded after frame {number} ({_reason(error)})") from None
        if not number:
            raise self._fault("a video without a frame that can be decoded")
        if damaged:
            raise self._fault(f"a video of which {damaged} of {number} frames are damaged")
        if seconds < (length := self._length()) - max(LOST, 2 / float(self.rate)):
            raise self._fault(f"a video that breaks off after frame {number}, at {seconds:.1f} of {length:.1f} seconds")

    def close(self) -> None:
        self._container.close()

    def _length(self) -> float:
        """Seconds that the file says the pictures last; 0 if it does not say."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration and len(self._container.streams) == 1:  # or something else may last longer
            return float(self._container.duration / self._av.time_base)
        return 0.0

    def _count(self) -> int:
        if self.source.device:
            return self._limit
        stream, found = self._stream, self._stream.frames
        if not found and stream.duration:
            found = round(stream.duration * stream.time_base * self.rate)
        elif not found and self._container.duration:
            found = round(self._container.duration / self._av.time_base * self.rate)
        return min(found, self._limit) if self._limit and found else found or self._limit

    def _fault(self, got: str) -> UnreadableInput:
        if self.source.device:
            return UnreadableInput(f"camera:{self.source.device}", got, "a connected camera that no other program uses",
                              "check its number and your rights to it")
        return UnreadableInput(self.source.path, got, "a video", "repair or remove it")


class AnimationReader:
    """The frames of an animated GIF, WebP or APNG, as :class:`Reader` gives those of a video.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, source: Source, limit: int = 0):
        self.source, self._limit = source, limit
        _import_av(source)  # to write with; better missed before the work
        with self._reading(), open_picture(source.path, "an image") as picture:
            frames = int(getattr(picture, "n_frames", 1))
            self.total = min(limit, frames) if limit else frames
            self.rate = Fraction(1000, _duration(picture))

    def __iter__(self) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], Moment]]:
        time = 0
        with self._reading(), open_picture(self.source.path, "an image") as picture:
            for number in range(self.total):
                picture.seek(number)
                picture.load()  # which a WebP needs before it knows the duration of a frame
                shown = _duration(picture)
                yield np.array(as_rgb(upright(picture), self.source.path)), Moment(time, Fraction(1, 1000))
                time += shown

    def close(self) -> None:
        """Nothing stays open between frames."""

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (InputError, EOFError) as error:
            got = error.got if isinstance(error, InputError) else "an animation that breaks off"
            raise UnreadableInput(self.source.path, got, "an image", "repair or remove it") from None


def open_frames(source: Source, limit: int) -> Reader | AnimationReader:
    """A reader of the frames of a video, a camera or an animation."""
    return AnimationReader(source, limit) if source.animated else Reader(source, limit)


def _duration(picture: Image.Image) -> int:
    """Milliseconds for which a frame is shown. Like browsers, it takes a tenth of a second for at most 10 ms."""
    stated = round(float(picture.info.get("duration", 0)))
    return stated if stated > 10 else 100


class Writer:
    """A video file that is playable from the first frame on, whatever happens.

    Args:
        rate: frames per second, for players that ask for it; every frame has its own time stamp.
    """

    def __init__(self, path: Path, rate: Fraction):
        self.path, self._rate = path, rate
        self._av = _import_av(path)
        self._container: Any = self._av.open(str(path), "w", format="mp4", options=FRAGMENTS)
        self._stream: Any = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def write(self, picture: UInt8[np.ndarray, "h w 3"], moment: Moment) -> None:
        """Append a picture. All have the size of the first one, or are resized to it.

        Raises:
            InputError: the file cannot be written.
        """
        if self._stream is None:
            self._start(picture, moment)
        height, width = self._stream.height, self._stream.width
        frame = self._av.VideoFrame.from_ndarray(_even(picture), format="rgb24")
        if (frame.height, frame.width) != (height, width):
            frame = frame.reformat(width=width, height=height)
        frame.pts, frame.time_base = moment.count, moment.base
        self._mux(frame)

    def close(self) -> None:
        """Write what the encoder still holds."""
        try:
            if self._stream is not None:
                self._mux(None)
        finally:
            with contextlib.suppress(OSError):  # a full disk was reported before
                self._container.close()

    def _start(self, picture: UInt8[np.ndarray, "h w 3"], moment: Moment) -> None:
        codec = next(name for name in QUALITY if name in self._av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=self._rate)
        self._stream.height, self._stream.width = _even(picture).shape[:2]
        self._stream.pix_fmt, self._stream.time_base = "yuv420p", moment.base
        self._stream.codec_context.time_base = moment.base
        # A key frame every two seconds lets a player jump.
        self._stream.options = {**QUALITY[codec], "g": str(max(1, round(2 * self._rate)))}

    def _mux(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except OSError as error:
            raise InputError(self.path, f"'{_reason(error)}' while writing", "free, writable disk",
                             "free some space; what was written is playable") from None


def _import_av(where: Source | Path) -> Any:
    try:
        import av
    except ImportError:
        place = where if isinstance(where, Path) else where.path
        raise InputError(place, "a video, which needs another package", NEEDED, INSTALL) from None
    av.logging.set_level(av.logging.PANIC)  # we report errors ourselves, once
    return av


def _place(source: Source) -> tuple[str, str | None, dict[str, str]]:
    """Name, format and options by which ffmpeg opens a source."""
    if not source.device:
        return str(source.path), None, TRUSTED
    if sys.platform == "darwin":
        return source.device, "avfoundation", {"framerate": "30"}
    if sys.platform == "win32":
        return f"video={source.device}", "dshow", {}
    return f"/dev/video{source.device}" if source.device.isdigit() else source.device, "v4l2", {}


def _upright(picture: UInt8[np.ndarray, "h w 3"], degrees: float) -> UInt8[np.ndarray, "_ _ 3"]:
    """The picture, rotated counterclockwise as the file tells players to do: phones store their frames lying on the
    side."""
    return np.ascontiguousarray(np.rot90(picture, round(degrees / 90) % 4))


def _even(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """The picture padded to an even height and width, because colors are stored for every second pixel."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", "") or error)
