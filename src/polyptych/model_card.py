"""The model card of a run on Hugging Face: what it predicts, how well, on which data, and how to use it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyptych.errors import InputError
from polyptych.evaluation_record import Evaluation
from polyptych.networks import Network
from polyptych.reports.tables import escape_markdown, markdown_table
from polyptych.run import Facts, Run
from polyptych.tasks._base import Task

_SHORT = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0", "CC BY 4.0": "cc-by-4.0"}
_SHOWN = 40  # class names of a task


def model_card(folder: Path, name: str, run: Run, facts: Facts, tasks: Mapping[str, Task], network: Network, *,
               license: str, origin: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Markdown with the YAML header that the hub reads.

    Args:
        folder: the run, whose evaluations are shown.
        name: OWNER/NAME.
        license: license of the weights; empty if unknown.
        origin: what an import recorded about the authors; empty for your own run.
        files: the files next to the card, with a description of each.
    """
    known = _SHORT.get(license, license.lower() if license.lower() in _SHORT.values() else "other")
    head = ["---", "library_name: polyptych", f"license: {known}"]
    if known == "other":
        head.append(f"license_name: {_yaml(license or 'not stated')}")
    head += ["pipeline_tag: image-segmentation" if _segments(tasks) else "pipeline_tag: depth-estimation",
             "tags:", "- multi-task-learning", *(f"- {task}" for task in tasks), "---", ""]
    size = "any size" if run.size is None else f"{run.size[0]}x{run.size[1]}"
    lines = [f"# {name.rpartition('/')[2]}", "",
             f"One image in, {len(tasks)} predictions out: encoder `{run.encoder.name}`, decoder `{run.decoder.name}`, "
             f"backbone `{getattr(run.backbone, 'model', run.backbone.name)}`, "
             f"{sum(p.numel() for p in network.parameters()):,} parameters.", ""]
    if origin:
        lines += [f"Weights of **{origin.get('network', 'a published network')}** from {origin.get('repository', '')} "
                  f"(file `{origin.get('file', '')}`, license: {origin.get('license', '')}), imported by `polyptych "
                  "import`.", ""]
    lines += ["## Use", "", "```python", "import polyptych", "", f'predictor = polyptych.load("hf://{name}")',
              'scene = predictor.predict("photo.jpg")', 'scene.panel()  # image and predictions, uint8 (h w 3)', "```",
              "", f"Or `polyptych predict hf://{name} photo.jpg`. `pip install polyptych` brings both.", ""]
    lines += ["## Input and outputs", "",
              f"RGB in [0, 1] of {size}, minus {_numbers(network.mean)}, divided by {_numbers(network.std)} (mean and "
              "deviation by channel; the network and its exported file do it themselves)."
              + (f" Height and width are extended to multiples of {network.encoder.multiple} by repeating the border."
                 if network.encoder.multiple > 1 else ""), "", "| output | meaning of its channels |", "|---|---|"]
    for task_name, task in tasks.items():
        lines.append(f"| {task_name} | {escape_markdown(task.meaning)} |")
    for task_name, task in tasks.items():
        if task.labels.classes:
            more = ", ..." if len(task.labels.classes) > _SHOWN else ""
            lines += ["", f"Classes of {task_name}, in order: {', '.join(task.labels.classes[:_SHOWN])}{more}."]
    lines += ["", "## Numbers", ""]
    shown = _evaluations(folder)
    for evaluation in shown:
        lines += [f"{evaluation.images} images of the {evaluation.split} split, protocol `{evaluation.protocol}`, each "
                  "metric beside what the best constant prediction scores on the same images.", "",
                  markdown_table(evaluation).strip(), ""]
    if not shown:
        lines += ["Nobody has measured this run yet: `polyptych evaluate`.", ""]
    lines += ["## Data and training", "", f"- Data: `{facts.dataset or run.dataset.name}`"
              + (f", protocol `{facts.protocol}`" if facts.protocol else ", not seen by whoever wrote this")
              + f". {_data_license(run)}", f"- Recipe `{run.recipe or 'none'}`, {run.steps} steps of "
              f"{run.batch_size * run.accumulate} images, balancer `{run.balancer.name}`"
              + (" (what continuing would do; these weights were trained by their authors)." if origin else "."),
              f"- License of the weights: {license or 'not stated'}.", "", "## Limits", "",
              "- Measured only on images like those above; on other images the quality of predictions is unknown.",
              *(f"- {task_name}: {escape_markdown(task.labels.note)}." for task_name, task in tasks.items()
                if task.labels.note), "", "## Files", "", *(f"- `{file}`: {what}" for file, what in files.items()), ""]
    return "\n".join([*head, *lines])


def _evaluations(folder: Path) -> list[Evaluation]:
    """The evaluation on the test split; on the validation split if nothing was tested."""
    for split in ("test", "val"):
        if (folder / "evaluation" / f"{split}.json").is_file():
            return [Evaluation.of_run(folder, split)]
    return []


def _segments(tasks: Mapping[str, Task]) -> bool:
    return any(task.labels.classes for task in tasks.values()) or "depth" not in tasks


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{float(value):g}" for value in values.flatten()) + ")"


def _data_license(run: Run) -> str:
    """License of the data, if known."""
    try:
        about = importlib.import_module(f"polyptych.datasets._{run.dataset.name}.about").ABOUT
    except (ImportError, AttributeError, InputError):
        return "Their license: ask their owner."
    return f"{about.title}; their license: {about.license}."


def _yaml(text: str) -> str:
    return '"' + text.replace("\\", "").replace('"', "'") + '"'
