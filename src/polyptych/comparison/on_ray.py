"""The runs of a comparison on a Ray cluster: one task per run, with the processors and the GPU that it needs.

All nodes must see the comparison's folder under the same path (a shared file system): that is where checkpoints,
progress and results are. A task whose worker dies is started again, wherever there is room, and continues from the last
checkpoint of its run.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from polyptych.comparison.board import LOOK_EVERY, Board
from polyptych.comparison.progress import Progress
from polyptych.comparison.worker import LOG, Request, work
from polyptych.errors import InputError
from polyptych.run import Run

RETRIES = 5  # for a task whose worker dies


def require_ray() -> Any:
    """The ray package.

    Raises:
        InputError: it is not installed.
    """
    # Ray reports usage to its makers unless told otherwise; the user decides that, not we.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--on ray", "no ray package", "the cluster extra",
                         "run `pip install 'polyptych[cluster]'`") from None
    return ray


def connect() -> float:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; returns its number of processors."""
    ray = require_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    return float(ray.cluster_resources().get("CPU", 1))


def resources(run: Run, nodes: list[dict[str, float]]) -> dict[str, float]:
    """The resources that one run requests: a processor for itself and for each loading process, but no more than the
    largest node has (or it would wait forever), and a GPU if the run may use one and the cluster has any."""
    largest = max((node.get("CPU", 1.0) for node in nodes), default=1.0)
    gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    return {"num_cpus": min(1.0 + run.loading.workers, largest),
            "num_gpus": 1.0 if gpus and run.execution.device != "cpu" else 0.0}


def side_by_side(request: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """How many runs with this request fit on the cluster at once."""
    needs = {"CPU": request["num_cpus"], "GPU": request["num_gpus"]}
    return max(1, sum(int(min(node.get(kind, 0) / need for kind, need in needs.items() if need)) for node in nodes))


def run_all(board: Board) -> None:
    """Submit everything that is waiting on the board, and watch until it has ended."""
    ray = require_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    request = resources(board.runs[0].entry.method.run, nodes)
    board.at_once = side_by_side(request, nodes)
    # max_calls: a worker process ends with its run, which gives all memory back.
    task = ray.remote(max_retries=RETRIES, max_calls=1, **request)(_train)
    going = {task.remote(Request.of(run.entry)): run
             for run in board.runs if run.state == "waiting"}
    logs = {run.entry.folder: _size(run.entry.folder / LOG) for run in going.values()}
    while going:
        for run in going.values():
            if run.state == "waiting" and _size(run.entry.folder / LOG) > logs[run.entry.folder]:
                run.state = "training"
        done, _ = ray.wait(list(going), timeout=0)
        for reference in done:
            _end(going.pop(reference), reference, ray)
        board.refresh()
        time.sleep(LOOK_EVERY)


def _end(run: Progress, reference: Any, ray: Any) -> None:
    run.look()
    try:
        error = ray.get(reference)
    except ray.exceptions.RayError as failure:
        error = str(failure).strip().splitlines()[-1]
    run.state, run.error = ("finished", "") if not error and run.entry.finished else ("failed", error or "no result")


def _train(request: Request) -> str:
    """Train a run in a Ray worker. Returns its error if the run itself fails, because a retry would not help."""
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", buffering=1, encoding="utf-8") as log, contextlib.redirect_stdout(log), \
            contextlib.redirect_stderr(log):
        print(f"Ray worker, process {os.getpid()}")
        try:
            work(request)
        except Exception as error:  # whatever it is, the board shows it in one line
            print(repr(error))
            return (str(error) if isinstance(error, InputError) else repr(error)).replace("\n", " ")
    return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
