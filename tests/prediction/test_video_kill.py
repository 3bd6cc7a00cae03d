"""A long video: the program is killed in the middle and the file is playable; memory does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
pytestmark = pytest.mark.slow


def film(path: Path, count: int) -> Path:
    """Frame i is wholly of the gray 2 i (mod 200)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for index in range(count):
            picture = np.full((96, 128, 3), 20 + 2 * index % 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def start(run_folder: Path, video: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "polyptych", "predict", str(run_folder), str(video), "--out", str(out),
               "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("fragments", [1, 20, 61])
def test_killed_in_the_middle(run_folder, tmp_path, fragments: int) -> None:
    """SIGKILL, at which a program can do nothing. Every frame that was written is there, in its order."""
    out = tmp_path / "out" / "a_panels.mp4"
    process = start(run_folder, film(tmp_path / "a.mp4", 100), tmp_path / "out")
    deadline = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"moof") >= fragments):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    written = out.read_bytes().count(b"moof")
    grays = []
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            panel = frame.to_ndarray(format="rgb24")
            grays.append(int(np.median(panel[60:200, 40:200])))  # inside the first cell, which shows the input
            assert frame.time == pytest.approx((len(grays) - 1) / 25, abs=1e-3)
    assert written - 1 <= len(grays) < 100 and len(grays) >= fragments - 1
    assert np.abs(np.array(grays) - (20 + 2 * np.arange(len(grays)))).max(initial=0) <= 3


def test_a_whole_film(run_folder, tmp_path) -> None:
    process = start(run_folder, film(tmp_path / "a.mp4", 100), tmp_path / "out")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    with av.open(str(tmp_path / "out" / "a_panels.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 100
        assert container.streams.video[0].average_rate == 25


def test_memory_does_not_grow(run_folder, tmp_path) -> None:
    """Five times as many frames, no more memory: the peaks differ by less than a handful of panels."""
    program = ("import resource, sys; from pathlib import Path; import polyptych; "
               "polyptych.predict(Path(sys.argv[1]), [sys.argv[2]], Path(sys.argv[3]), device='cpu'); "
               "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    peaks = []
    for count in (60, 300):
        video = film(tmp_path / f"{count}.mp4", count)
        done = subprocess.run([sys.executable, "-c", program, run_folder, video, tmp_path / "out"], check=True,
                              capture_output=True, text=True, timeout=300)
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 25, f"{peaks} MiB; 240 more frames alone are 8 MiB, their panels 500"
