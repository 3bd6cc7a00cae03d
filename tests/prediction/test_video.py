"""Videos: every frame once, at its time, upright; files that are playable; what cannot be decoded."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
from fakes import Model
from PIL import Image

from polyptych.errors import InputError
from polyptych.prediction import pipeline
from polyptych.prediction.inputs import Source
from polyptych.prediction.predictor import Inference
from polyptych.prediction.scene import Outputs
from polyptych.prediction.video import Moment, Reader, Writer, _upright

av = pytest.importorskip("av")


def pictures(count: int, size=(48, 64)) -> list[np.ndarray]:
    """A white bar that moves to the right over a gray that grows lighter."""
    frames = []
    for index in range(count):
        frame = np.full((*size, 3), 40 + index % 100, np.uint8)
        frame[:, index % size[1]:index % size[1] + 6] = 255
        frames.append(frame)
    return frames


def make(path, count=10, size=(48, 64), rate=Fraction(25), moments=None, codec="libx264", form=None):
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if moments:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures(count, size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if moments:
                frame.pts, frame.time_base = moments[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path) -> list:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def source(path) -> Source:
    return Source(path, path.stem)


def run(monkeypatch, inputs, out, model=None, **options):
    model = model or Model("depth", "semseg")
    monkeypatch.setattr(pipeline, "open_model", lambda *_: model)
    said: list[str] = []
    written = pipeline.predict(out, inputs, out, say=lambda x: said.append(str(x)), **options)
    return written, said, model


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "mpeg4"), (".avi", "mpeg4"),
                                               (".webm", "libvpx")])
def test_every_frame_once(tmp_path, monkeypatch, suffix, codec) -> None:
    path = make(tmp_path / f"a{suffix}", 13, codec=codec)
    written, said, model = run(monkeypatch, [path], tmp_path / "out", inference=Inference(batch=4))
    assert [p.name for p in written] == ["a_panels.mp4"]
    found = frames_of(written[0])
    assert len(found) == 13 and sum(shape[0] for shape in model.seen) == 13 and model.seen[0][0] == 4
    assert said[-1].startswith("13 images in ") and "images/s" in said[-1]


def test_frames_show_the_panels(tmp_path, monkeypatch) -> None:
    """The first panel of frame i is frame i of the input."""
    path = make(tmp_path / "a.mp4", 8)
    written, *_ = run(monkeypatch, [path], tmp_path / "out")
    for before, after in zip(frames_of(path), frames_of(written[0]), strict=True):
        panel = after.to_ndarray(format="rgb24")
        assert panel.shape[0] % 2 == panel.shape[1] % 2 == 0 and panel.shape[1] > 2 * 240
        top = next(row for row in range(len(panel)) if (panel[row, 20:240].mean() < 230))
        shown = panel[top:top + 48 * 4, 17:17 + 64 * 4].reshape(48, 4, 64, 4, 3).mean((1, 3))
        # The bar: within a pixel's blur of compression.
        assert abs(shown.mean((0, 2)).argmax() - before.to_ndarray(format="rgb24").mean((0, 2)).argmax()) <= 6


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(5)])
def test_the_frame_rate_is_kept(tmp_path, monkeypatch, rate) -> None:
    written, *_ = run(monkeypatch, [make(tmp_path / "a.mp4", 12, rate=rate)], tmp_path / "out")
    with av.open(str(written[0])) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == pytest.approx(rate, rel=1e-3)
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([i / rate for i in range(12)], abs=1e-3)


def test_irregular_times_are_kept(tmp_path, monkeypatch) -> None:
    moments = [0, 40, 400, 410, 2000]
    path = make(tmp_path / "a.mkv", 5, moments=moments)
    written, *_ = run(monkeypatch, [path], tmp_path / "out")
    assert [round(1000 * frame.time) for frame in frames_of(written[0])] == moments


def test_overlays_arrays_and_maps_of_frames(tmp_path, monkeypatch) -> None:
    path = make(tmp_path / "a.mp4", 3)
    run(monkeypatch, [path], tmp_path / "out", outputs=Outputs(arrays=True, maps=True, overlay=True, points=True,
                                                              field_of_view=60))
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"a_panels.mp4", "a_overlay.mp4"} | {f"a_{i:06}{end}" for i in range(3) for end in (
        "_depth.npy", "_semseg.npy", "_depth_16bit.png", "_semseg_16bit.png", ".ply")}
    assert np.load(tmp_path / "out" / "a_000002_depth.npy").shape == (48, 64)


def test_images_and_videos_in_one_folder(tmp_path, monkeypatch) -> None:
    from PIL import Image

    make(tmp_path / "in.mp4", 2)
    Image.fromarray(pictures(1)[0]).save(tmp_path / "still.png")
    written, said, _ = run(monkeypatch, [tmp_path], tmp_path / "out")
    assert {p.name for p in written} == {"in_panels.mp4", "still_depth.png", "still_semseg.png", "contact_sheet.png"}
    assert said[-1].startswith("3 images")


def test_only_so_many_frames(tmp_path, monkeypatch) -> None:
    written, *_ = run(monkeypatch, [make(tmp_path / "a.mp4", 9)], tmp_path / "out", frames=4)
    assert len(frames_of(written[0])) == 4
    with pytest.raises(InputError, match="--frames: got -1"):
        run(monkeypatch, [tmp_path / "a.mp4"], tmp_path / "out", frames=-1)


def test_a_camera(tmp_path, monkeypatch) -> None:
    """ffmpeg's own test picture in place of a device."""
    monkeypatch.setattr("polyptych.prediction.video._place", lambda source: ("testsrc=size=64x48:rate=10", "lavfi", {}))
    written, said, _ = run(monkeypatch, ["camera:0"], tmp_path / "out", frames=5)
    assert written[0].name == "camera_0_panels.mp4" and len(frames_of(written[0])) == 5
    assert any(line.startswith("camera:0: depth, semseg") for line in said)


def test_a_camera_is_stopped_by_ctrl_c(tmp_path, monkeypatch) -> None:
    class Interrupted(Model):
        def raw(self, images):
            if len(self.seen) == 3:
                raise KeyboardInterrupt
            return super().raw(images)

    monkeypatch.setattr("polyptych.prediction.video._place", lambda source: ("testsrc=size=64x48:rate=10", "lavfi", {}))
    written, said, _ = run(monkeypatch, ["camera:0"], tmp_path / "out", model=Interrupted("depth"))
    assert len(frames_of(written[0])) == 3 and said[-1].startswith("3 images")
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, [make(tmp_path / "a.mp4", 9)], tmp_path / "out", model=Interrupted("depth"))
    assert len(frames_of(tmp_path / "out" / "a_panels.mp4")) == 3


def test_a_camera_that_is_not_there(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"camera:97: got a camera that cannot be opened.*a connected camera"):
        run(monkeypatch, ["camera:97"], tmp_path / "out")


def test_a_telephone_films_lying_down(tmp_path) -> None:
    """A file that asks to be turned by 90 degrees clockwise, as its track header says."""
    path = make(tmp_path / "a.mp4", 2, size=(48, 64))
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of times and numbers
    assert struct.unpack(">9i", data[place:place + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    data[place:place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    reader = Reader(source(path))
    lying = pictures(1)[0]
    (first, _), *_ = list(reader)
    reader.close()
    assert first.shape == (64, 48, 3)
    # Clockwise: what was at the left is at the top.
    assert first.mean((1, 2)).argmax() < 6 and np.abs(first.astype(int) - np.rot90(lying, -1)).mean() < 8


def test_upright() -> None:
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(_upright(picture, 0), picture)
    assert np.array_equal(_upright(picture, 90)[:, 0], picture[0, ::-1]), "counter-clockwise: the top goes left"
    assert np.array_equal(_upright(picture, -180), picture[::-1, ::-1])


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 5000, np.random.default_rng(0).bytes(5000)])
def test_what_is_no_video(tmp_path, monkeypatch, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4: got .*; needs a video") as error:
        run(monkeypatch, [tmp_path / "a.mp4"], tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("playlist", [
    "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{0}'\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.mp4\n#EXT-X-ENDLIST\n"])
def test_a_playlist_in_the_guise_of_a_video(tmp_path, monkeypatch, playlist: str) -> None:
    """It names another file that ffmpeg would open."""
    make(tmp_path / "secret.mp4", 3)
    (tmp_path / "a.mp4").write_text(playlist.format(tmp_path / "secret.mp4"))
    with pytest.raises(InputError, match=r"a\.mp4: got a file that cannot be opened as video"):
        run(monkeypatch, [tmp_path / "a.mp4"], tmp_path / "out")


def test_a_video_cut_off_before_its_index(tmp_path, monkeypatch) -> None:
    path = make(tmp_path / "a.mp4", 20)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"a\.mp4: got a file without pictures that can be read"):
        run(monkeypatch, [path], tmp_path / "out")


def test_a_video_cut_off_where_no_decoder_sees_it(tmp_path, monkeypatch) -> None:
    path = make(tmp_path / "a.mkv", 60, rate=Fraction(10))
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.mkv: got a video that breaks off after frame \d+, at .* of 6\.0 seconds"):
        run(monkeypatch, [path], tmp_path / "out")
    assert 10 < len(frames_of(tmp_path / "out" / "a_panels.mp4")) < 50


def test_sound_alone(tmp_path, monkeypatch) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="a file without pictures"):
        run(monkeypatch, [tmp_path / "a.mp4"], tmp_path / "out")


def test_a_break_in_the_middle_keeps_what_was_written(tmp_path, monkeypatch) -> None:
    """A PNG stream whose fourth picture is damaged: three frames are written, and the error says where."""
    path = make_png_stream(tmp_path / "a.mov", 6, damaged=3)
    with pytest.raises(InputError, match="cannot be decoded after frame 3"):
        run(monkeypatch, [path], tmp_path / "out")
    assert len(frames_of(tmp_path / "out" / "a_panels.mp4")) == 3


def make_png_stream(path, count, damaged):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        packets = []
        for picture in pictures(count):
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        packets += stream.encode(None)
        for index, packet in enumerate(packets):
            if index == damaged:
                broken = av.Packet(b"\x89PNG\r\n\x1a\n" + b"\0" * 60)
                broken.pts, broken.dts, broken.stream = packet.pts, packet.dts, packet.stream
                broken.time_base = packet.time_base
                packet = broken
            container.mux(packet)
    return path


def test_the_output_is_not_the_input(tmp_path, monkeypatch) -> None:
    make(tmp_path / "a_panels.mp4", 2)
    before = (tmp_path / "a_panels.mp4").read_bytes()
    monkeypatch.setattr(pipeline, "find_sources", lambda *_: [Source(tmp_path / "a_panels.mp4", "a")])
    with pytest.raises(InputError, match="an input that would be overwritten"):
        run(monkeypatch, [], tmp_path)
    assert (tmp_path / "a_panels.mp4").read_bytes() == before


def test_pictures_that_are_called_like_results_are_spared(tmp_path, monkeypatch) -> None:
    for name in ("photo.png", "photo_depth.png"):
        Image.fromarray(pictures(1)[0]).save(tmp_path / name)
    before = (tmp_path / "photo_depth.png").read_bytes()
    with pytest.raises(InputError, match=r"photo_depth\.png: got an input that would be overwritten"):
        run(monkeypatch, [tmp_path], tmp_path)
    assert (tmp_path / "photo_depth.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_points_of_a_model_without_depth(tmp_path, monkeypatch) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    monkeypatch.setattr(pipeline, "open_model", lambda *_: Model("semseg", "inverse_depth"))
    with pytest.raises(InputError, match="--points: got a model of semseg, inverse_depth; needs a task that predicts"):
        pipeline.predict(tmp_path / "model", [tmp_path / "a.png"], tmp_path / "out", outputs=Outputs(points=True))
    assert not (tmp_path / "out").exists()


def test_pictures_of_another_size_are_resized(tmp_path) -> None:
    with Writer(tmp_path / "a.mp4", Fraction(10)) as writer:
        for index, size in enumerate(((31, 45), (31, 45), (62, 90))):
            writer.write(np.full((*size, 3), 200, np.uint8), Moment(index, Fraction(1, 10)))
    found = frames_of(tmp_path / "a.mp4")
    assert [(f.height, f.width) for f in found] == [(32, 46)] * 3


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    with pytest.raises(InputError, match=r"gone/a\.mp4: got 'No such file or directory' while writing"), \
            Writer(tmp_path / "gone" / "a.mp4", Fraction(10)) as writer:
        writer.write(pictures(1)[0], Moment(0, Fraction(1, 10)))


def test_without_pyav(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match=r"needs the package av; pip install 'polyptych\[video\]'"):
        Reader(source(tmp_path / "a.mp4"))


@pytest.mark.parametrize("suffix", ["gif", "webp", "apng"])
def test_animations_are_videos(tmp_path, monkeypatch, suffix: str) -> None:
    first, *others = (Image.fromarray(picture) for picture in pictures(4))
    form = "PNG" if suffix == "apng" else suffix
    first.save(tmp_path / f"a.{suffix}", form, save_all=True, append_images=others, duration=[40, 200, 40, 40],
               lossless=True)
    first.save(tmp_path / f"still.{suffix}", form)
    written, *_ = run(monkeypatch, [tmp_path], tmp_path / "out")
    names = [path.name for path in written]
    assert "a_panels.mp4" in names and "still_depth.png" in names and "a_depth.png" not in names
    assert [round(1000 * frame.time) for frame in frames_of(tmp_path / "out/a_panels.mp4")] == [0, 40, 240, 280]


def test_a_damaged_animation_is_left_out(tmp_path, monkeypatch) -> None:
    first, *others = (Image.fromarray(picture) for picture in pictures(9))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others)
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[:len(content) // 2] + b"\x2c" + bytes(40))
    first.save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"1 of 2 that cannot be read|a\.gif"):
        run(monkeypatch, [tmp_path], tmp_path / "out")
