"""Folders of predictions and ground truth in every format, the command, and what both refuse."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

from polyptych.cli import main
from polyptych.data._contours import contours
from polyptych.errors import InputError
from polyptych.metrics._boundary_benchmark.folders import read_prediction, read_truths
from polyptych.metrics._boundary_benchmark.protocols import protocol
from polyptych.metrics._boundary_benchmark.thinning import thin
from polyptych.metrics.boundary_benchmark import BoundaryBenchmark, evaluate_folders

SIZE = (36, 44)
NAMES = ["0001", "0002", "0003"]


class Scene:
    """Regions of smooth noise, their contours, and a noisy 8-bit prediction."""

    def __init__(self, name: str):
        g = np.random.default_rng(int(name))
        field = ndimage.gaussian_filter(g.standard_normal(SIZE), 4)
        self.regions = np.floor(field / field.std()).astype(int) + 5
        self.edges = thin(contours(self.regions))
        soft = ndimage.gaussian_filter(self.edges.astype(float), 1) * 2 + 0.1 * g.random(SIZE)
        self.prediction = np.rint(255 * np.clip(soft, 0, 1)).astype(np.uint8)


def cell(items: list) -> np.ndarray:
    array = np.empty((1, len(items)), object)
    for k, item in enumerate(items):
        array[0, k] = item
    return array


def write_ground_truth(path: Path, scenes: list[Scene]) -> None:
    savemat(path, {"groundTruth": cell([{"Segmentation": s.regions.astype(np.uint16),
                                         "Boundaries": s.edges.astype(np.uint8)} for s in scenes])})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """PNG predictions; .mat ground truth of two annotators."""
    predictions, truths = tmp_path / "predictions", tmp_path / "truths"
    predictions.mkdir()
    truths.mkdir()
    for name in NAMES:
        Image.fromarray(Scene(name).prediction).save(predictions / f"{name}.png")
        write_ground_truth(truths / f"{name}.mat", [Scene(name), Scene("77")])
    return predictions, truths


def expected(kind="bsds", annotators: int = 2) -> dict[str, float]:
    benchmark = BoundaryBenchmark(kind)
    for name in NAMES:
        benchmark.add(Scene(name).prediction / 255, [Scene(name).edges, Scene("77").edges][:annotators])
    return benchmark.compute()


# -- formats -------------------------------------------------------------------------------------------------


def test_predictions_in_every_format_are_the_same(tmp_path: Path) -> None:
    values = Scene("1").prediction
    files = {}
    for name, array in (("a8.png", values), ("a16.png", values.astype(np.uint16) * 257)):
        Image.fromarray(array).save(tmp_path / name)
        files[name] = 255
    for name, array in (("u8.npy", values), ("u16.npy", values.astype(np.uint16) * 257), ("f64.npy", values / 255)):
        np.save(tmp_path / name, array)
    double = np.zeros((2 * SIZE[0] + 1, 2 * SIZE[1] + 1))
    double[2::2, 2::2] = values / 255
    savemat(tmp_path / "ucm.mat", {"ucm2": double})
    for path in sorted(tmp_path.iterdir()):
        assert read_prediction(path, (0.5,)) == pytest.approx(values / 255, abs=1e-12), path.name
    np.save(tmp_path / "f32.npy", (values / 255).astype(np.float32))
    assert read_prediction(tmp_path / "f32.npy", (0.5,)) == pytest.approx(values / 255, abs=1e-7)


def test_regions_of_a_contour_map(tmp_path: Path) -> None:
    """Two regions parted by a crack of 0.6, and a crack of 0.3 inside of one of them."""
    double = np.zeros((21, 25))
    double[:, 12] = 0.6
    double[10, :12] = 0.3
    savemat(tmp_path / "u.mat", {"ucm2": double})
    low, on, high = read_prediction(tmp_path / "u.mat", (0.2, 0.6, 0.7), ucm="partition")
    regions = np.zeros((10, 12), int)
    regions[:, 6:] = 2
    assert np.array_equal(on, thin(contours(regions))) and not high.any()
    regions[5:, :6] = 1
    assert np.array_equal(low, thin(contours(regions)))
    assert not read_prediction(tmp_path / "u.mat", (0.6,), strict=True, ucm="partition").any()


def test_a_cell_of_segmentations_replaces_the_thresholds(tmp_path: Path, folders) -> None:
    scene = Scene("5")
    (tmp_path / "segs").mkdir()
    for name in NAMES:
        savemat(tmp_path / f"segs/{name}.mat", {"segs": cell([Scene(name).regions, scene.regions])})
    found = evaluate_folders(tmp_path / "segs", folders[1])
    assert found.thresholds.tolist() == [1, 2]
    assert found.compute()["ods_threshold"] == 1 and found.compute()["ods_precision"] == 1
    savemat(tmp_path / "segs/0002.mat", {"segs": cell([scene.regions])})
    with pytest.raises(InputError, match=r"0002\.mat: got 1 binary maps; needs 2"):
        evaluate_folders(tmp_path / "segs", folders[1])


def test_truth_in_every_format(tmp_path: Path) -> None:
    scene = Scene("3")
    write_ground_truth(tmp_path / "g.mat", [scene, Scene("4")])
    savemat(tmp_path / "labels.mat", {"LabelMap": scene.regions})
    Image.fromarray(scene.regions.astype(np.uint8)).save(tmp_path / "regions.png")
    Image.fromarray(scene.edges.astype(np.uint8) * 255).save(tmp_path / "edges.png")
    found = read_truths(tmp_path / "g.mat")
    assert len(found) == 2 and np.array_equal(found[1], Scene("4").edges)
    for one in (found[0], read_truths(tmp_path / "g.mat", "regions")[0], *read_truths(tmp_path / "labels.mat"),
                *read_truths(tmp_path / "regions.png"), *read_truths(tmp_path / "edges.png"),
                *read_truths(tmp_path / "edges.png", "edges")):
        assert np.array_equal(one, scene.edges)
    twice = read_truths(tmp_path / "edges.png", "edges-as-regions")[0]
    band = contours(scene.edges.astype(int))
    assert np.array_equal(twice, thin(band)) and not np.array_equal(twice, scene.edges)
    assert band.sum() > 1.5 * scene.edges.sum() > 1.5 * twice.sum()


# -- whole folders -------------------------------------------------------------------------------------------


def test_folders_equal_arrays_with_any_number_of_workers(folders) -> None:
    seen = []
    one = evaluate_folders(*folders, workers=1, progress=lambda *state: seen.append(state))
    two = evaluate_folders(*folders, workers=2)
    assert one.compute() == two.compute() == expected()
    assert one.names == two.names == NAMES and np.array_equal(one.counts, two.counts)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_list_of_images(folders, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0003\n0001\n")
    (folders[0] / "0002.png").unlink()
    assert evaluate_folders(*folders, images=tmp_path / "list.txt").names == ["0003", "0001"]


def test_the_command_writes_a_report(capsys, folders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["evaluate-boundaries", *map(str, folders), "--thresholds", "9", "--out", str(out),
                 "--workers", "1"]) == 0
    said = capsys.readouterr().out
    scores = expected(protocol("bsds", thresholds=9))
    assert f"{scores['odsF']:.4f}" in said and f"AP {scores['AP']:.4f}" in said
    result = json.loads((out / "result.json").read_text())
    assert {key: result[key] for key in scores} == scores
    assert result["images"] == 3 and result["protocol"]["max_dist"] == 0.0075
    rows = list(csv.DictReader((out / "thresholds.csv").open()))
    best = max(rows, key=lambda row: float(row["F"]))
    assert len(rows) == 9 and float(best["threshold"]) == pytest.approx(scores["ods_threshold"])
    assert int(best["cntR"]) / int(best["sumR"]) == pytest.approx(scores["ods_recall"])
    images = list(csv.DictReader((out / "images.csv").open()))
    assert [row["image"] for row in images] == NAMES
    picture = np.asarray(Image.open(out / "precision_recall.png").convert("RGB")).astype(int)
    assert (abs(picture - [0x3B, 0x82, 0xC4]).sum(-1) < 20).sum() > 100  # the curve is there


def test_the_command_follows_the_protocol(capsys, folders) -> None:
    arguments = ["evaluate-boundaries", *map(str, folders), "--workers", "1"]
    assert main([*arguments, "--protocol", "pascal"]) == 0
    assert "101 thresholds, with suppression, tolerance 0.0075" in capsys.readouterr().out
    assert main([*arguments, "--protocol=nyud", "--no-nms", "--thresholds", "5", "--max-dist", "0.02"]) == 0
    assert "5 thresholds, no suppression, tolerance 0.02" in capsys.readouterr().out


# -- refusals ------------------------------------------------------------------------------------------------


def refused(capsys, *arguments: object) -> str:
    assert main(["evaluate-boundaries", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("polyptych: "), said
    return said


def test_files_that_do_not_pair(capsys, folders) -> None:
    (folders[0] / "0002.png").unlink()
    assert "predictions: got no prediction for '0002' (1 of 3 names)" in refused(capsys, *folders)
    (folders[1] / "0002.mat").unlink()
    (folders[1] / "0003.mat").unlink()
    assert "truths: got no ground truth for '0003' (1 of 2 names)" in refused(capsys, *folders)
    assert "nowhere: got no such folder" in refused(capsys, folders[0], "nowhere")
    (folders[0] / "empty").mkdir()
    assert "empty: got a folder without such files" in refused(capsys, folders[0] / "empty", folders[1])
    (folders[0] / "list.txt").write_text("0009")
    assert "no prediction for '0009'" in refused(capsys, *folders, "--images", folders[0] / "list.txt")
    (folders[0] / "list.txt").write_text("")
    assert "list.txt: got an empty list" in refused(capsys, *folders, "--images", folders[0] / "list.txt")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_file_is_named(capsys, folders, workers: int) -> None:
    path = folders[0] / "0003.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "0003.png: got an unreadable file" in refused(capsys, *folders, "--workers", workers)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("0001.npy", np.full(SIZE, 1.5), "0001.npy: got float64 values from 1.5 to 1.5; needs floats from 0 to 1"),
    ("0001.npy", np.full(SIZE, math.nan), "0001.npy: got float64 values from nan to nan"),
    ("0001.npy", np.zeros((3, *SIZE)), r"0001.npy: got an array of shape (3, 36, 44)"),
    ("0001.npy", np.zeros(SIZE, int), "0001.npy: got int64 values from 0 to 0"),
    ("0001.npy", np.array([{"a": 1}]), "0001.npy: got an unreadable file"),
    ("0001.npy", np.zeros((36, 45)), "0001.npy: got a prediction of 36x45 pixels; needs the size of its ground truth"),
    ("0001.mat", {"ucm": np.zeros(SIZE)}, "0001.mat: got the variables ucm; needs ucm2 or segs"),
    ("0001.mat", {"ucm2": np.zeros((72, 88))}, "0001.mat: got ucm2 of 72x88; needs 2h+1 x 2w+1"),
    ("0001.mat", {"segs": np.zeros(SIZE)}, "0001.mat: got an array or an empty cell"),
    ("0001.mat", b"not MATLAB", "0001.mat: got an unreadable file"),
])
def test_predictions_that_are_none(capsys, folders, file: str, content, message: str) -> None:
    (folders[0] / "0001.png").unlink()
    write(folders[0] / file, content)
    assert message in refused(capsys, *folders)


@pytest.mark.parametrize(("file", "content", "options", "message"), [
    ("0001.mat", {"labels": np.zeros(SIZE)}, [], "got the variables labels; needs groundTruth, LabelMap"),
    ("0001.mat", {"groundTruth": np.zeros(SIZE)}, [], "got an array or an empty cell"),
    ("0001.mat", {"groundTruth": cell([{"Edges": 1.0}])}, [], "needs the field 'Boundaries'"),
    ("0001.mat", {"LabelMap": np.full(SIZE, 0.5)}, [], "needs a map of region ids"),
    ("0001.png", np.eye(*SIZE, dtype=np.uint8), [], "got a picture of 0 and 1"),
    ("0001.png", np.arange(36 * 44, dtype=np.uint8).reshape(SIZE), ["--truth", "edges"], "got 256 different values"),
    ("0001.png", np.zeros((36, 45), np.uint8), [], "needs the size of its ground truth, 36x45"),
])
def test_truths_that_are_none(capsys, folders, file: str, content, options: list[str], message: str) -> None:
    (folders[1] / "0001.mat").unlink()
    write(folders[1] / file, content)
    said = refused(capsys, *folders, *options)
    assert message in said and "0001." in said


def write(path: Path, content) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".mat":
        savemat(path, content)
    elif path.suffix == ".png":
        Image.fromarray(content).save(path)
    else:
        np.save(path, content)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--protocol", "pascl"], "protocol 'pascl'"),
    (["--thresholds", "0"], "thresholds: got 0"),
    (["--max-dist", "0.5"], "max_dist: got 0.5"),
    (["--workers", "0"], "workers: got 0"),
    (["--truth", "lines"], "--truth: got 'lines'"),
])
def test_options_that_are_none(capsys, folders, arguments: list[str], message: str) -> None:
    assert message in refused(capsys, *folders, *arguments)


def test_a_place_that_cannot_be_written(capsys, folders) -> None:
    said = refused(capsys, *folders, "--thresholds", "3", "--out", folders[0] / "0001.png")
    assert "0001.png: got" in said


def test_processes_that_measure_do_not_load_torch() -> None:
    """It takes half a gigabyte in each of them, for nothing."""
    subprocess.run([sys.executable, "-c", "import sys, polyptych.metrics.boundary_benchmark; "
                    "sys.exit('torch' in sys.modules)"], check=True)
