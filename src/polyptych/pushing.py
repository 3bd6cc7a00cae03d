"""Push a run to a Hugging Face repository: weights, options, a model card, and on request an ONNX file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

from polyptych import __version__
from polyptych.checkpoint import write_tensors
from polyptych.errors import InputError, first_line
from polyptych.export.exporting import export
from polyptych.hub import BESIDE, ORIGIN, RUN, WEIGHTS, local_folder, quiet, reachable, repository_name
from polyptych.model_card import model_card
from polyptych.prediction.model import load_network
from polyptych.record import encode, read_json, write_json
from polyptych.run import Run, read_run

OWN_SERVER = "https://huggingface.co"


def push(folder: Path, name: str, *, weights: str = "", onnx: bool = False, private: bool = False,
         license: str = "") -> str:
    """Write a run to OWNER/NAME in one commit, replacing what was there.

    Only the network is uploaded: no optimizer state, and no paths of this machine.

    Args:
        weights: ``last`` or ``best``; by default what the run selects.
        onnx: also export the network to ONNX.
        private: make a new repository private.
        license: license of the weights; by default that of the authors for an imported network.

    Returns:
        The URL of the repository.

    Raises:
        InputError: no such run, nobody is logged in, the name belongs to somebody else, or there is no connection.
    """
    name = repository_name(name, "polyptych push")
    folder = local_folder(folder)
    run, tasks, network, step = load_network(folder, weights)
    facts = read_run(folder)[1]
    origin = read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}
    if not reachable(hub.ENDPOINT):
        raise InputError(f"push to {hub.ENDPOINT}", "no connection", "the server of Hugging Face",
                         "connect, or name another one with HF_ENDPOINT")
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        files = {WEIGHTS: f"the weights, after step {step}, for Polyptych {__version__} or later",
                 RUN: "every choice, and what the data say of the labels"}
        tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
        write_tensors(out / WEIGHTS, tensors, {"step": step})
        published = replace(_anonymous(run), select="last")
        write_json(out / RUN, {"version": __version__, "run": encode(published), "facts": encode(facts)})
        if origin:
            write_json(out / ORIGIN, origin)
            files[ORIGIN] = "where the weights come from"
        for file in BESIDE[1:]:
            if (folder / file).is_file():
                (out / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / file, out / file)
        if (out / "evaluation").exists():
            files["evaluation/test.json"] = "all test numbers; the ids of the test images are next to it"
        if onnx:
            export(folder, format="onnx", out=out / "model.onnx", weights=weights)
            files["model.onnx"] = "the network for onnxruntime, with preprocessing and meanings in its metadata"
        card = model_card(folder, name, run, facts, tasks, network, files=files, origin=origin,
                          license=license or str(origin.get("license", "")))
        (out / "README.md").write_text(card, encoding="utf-8")
        return _commit(name, out, private, f"{folder.resolve().name}, step {step}")


def _anonymous(run: Run) -> Run:
    """The run without paths of this machine: only the last part of each path is kept."""
    def shortened(value: Any) -> Any:
        if isinstance(value, PurePath):
            return Path(value.name) if value.is_absolute() else value
        if isinstance(value, dict):
            return {key: shortened(item) for key, item in value.items()}
        return value

    def without(config: Any) -> Any:
        return replace(config, **{key: shortened(value) for key, value in vars(config).items()
                                  if isinstance(value, PurePath | dict)})

    return replace(run, dataset=without(run.dataset), backbone=run.backbone.without_weights(), start=(),
                   loading=replace(run.loading, cache=None))


def _commit(name: str, files: Path, private: bool, message: str) -> str:
    api = huggingface_hub.HfApi()
    try:
        with quiet(), _plain_uploads():
            api.create_repo(name, private=private, exist_ok=True)
            operations = [CommitOperationAdd(path.relative_to(files).as_posix(), path)
                          for path in sorted(files.rglob("*")) if path.is_file()]
            api.create_commit(name, operations, commit_message=message)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status == 401:
            raise InputError(f"push to {name}", "no login", "a token with write access",
                             "run `hf auth login`, or set HF_TOKEN") from None
        if status in (403, 404):
            raise InputError(f"push to {name}", "a name under which you may not write", "your own name or that of an "
                             "organization of yours", "change OWNER, or use a token with write access") from None
        raise InputError(f"push to {name}", f"an error of the server ({first_line(error)})",
                         "a server that accepts the files", "try again later") from None
    except Exception as error:  # connections fail in as many ways as there are libraries
        raise InputError(f"push to {name}", f"an upload that broke off ({first_line(error)})",
                         f"a connection to {hub.ENDPOINT}", "try again: nothing was changed") from None
    return f"{hub.ENDPOINT}/{name}"


@contextmanager
def _plain_uploads() -> Iterator[None]:
    """Upload large files by Git LFS if the server is not Hugging Face's own: the client would otherwise keep trying its
    newer protocol (Xet), which mirrors do not support, for minutes."""
    before = hub.HF_HUB_DISABLE_XET
    hub.HF_HUB_DISABLE_XET = before or hub.ENDPOINT != OWN_SERVER
    try:
        yield
    finally:
        hub.HF_HUB_DISABLE_XET = before
