"""Runs in Hugging Face repositories: ``hf://OWNER/NAME`` works wherever a run folder is read.

Only ``run.json``, ``origin.json`` and ``model.safetensors`` are fetched, and checked against the hash that the server
announces: nothing in them is executed. What has been fetched stays in the cache of ``huggingface_hub`` and is used when
there is no connection. Another server than Hugging Face's is named by the environment variable HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging

from polyptych.errors import InputError, first_line
from polyptych.record import read_json

WEIGHTS, RUN, ORIGIN = "model.safetensors", "run.json", "origin.json"
BESIDE = (ORIGIN, "evaluation/test.json", "evaluation/test.images.txt")
"""Optional files of a run: where imported weights come from, and its test numbers, which comparisons read."""
CONNECTION_SECONDS = 5.0
_ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def on_hub(path: Path | str) -> bool:
    """Whether this names a repository, not a folder. (A ``Path`` collapses the two slashes into one.)"""
    return str(path).startswith(("hf:/", "hf://"))


def repository_name(name: str, where: str) -> str:
    """``OWNER/NAME`` from a name with or without ``hf://`` before it.

    Raises:
        InputError: it is not such a name.
    """
    found = _ADDRESS.fullmatch(name if on_hub(name) else f"hf://{name}")
    if found is None or found["revision"]:
        raise InputError(where, f"'{name}'", "OWNER/NAME, letters, digits, '-', '_' and '.'",
                         "for instance anna/rooms-emanet")
    return found["name"]


def local_folder(path: Path) -> Path:
    """The folder of a run: the path itself, or, for ``hf://OWNER/NAME[@REVISION]``, a folder with the files fetched
    from there.

    Raises:
        InputError: there is no such repository, it is private, it holds no run, the server cannot be reached and
            nothing is in the cache, or a file does not match the hash that the server announces.
    """
    if not on_hub(path):
        return path
    found = _ADDRESS.fullmatch(str(path))
    if found is None:
        raise InputError(path, "a malformed address of a repository", "hf://OWNER/NAME or hf://OWNER/NAME@REVISION",
                         "for instance hf://anna/rooms-emanet")
    address = f"hf://{found[0].removeprefix('hf:').lstrip('/')}"
    online = not hub.HF_HUB_OFFLINE and reachable(hub.ENDPOINT)
    with quiet(), nullcontext() if online else offline():
        files = {name: _fetched(address, found["name"], found["revision"], name, online) for name in (RUN, WEIGHTS)}
        for name in BESIDE:
            with suppress(InputError):
                files[name] = _fetched(address, found["name"], found["revision"], name, online)
    return _as_run(files, found["name"], address)


def _fetched(address: str, name: str, revision: str | None, file: str, online: bool) -> Path:
    """Fetch one file of a repository into the cache, and check its contents against the announced hash."""
    try:
        path = Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
        if online:
            _check_hash(path, address, name, revision, file)
        return path
    except InputError:
        raise
    except GatedRepoError:
        raise InputError(address, "a repository that asks for its terms to be accepted", "access to it",
                         f"accept them at {hub.ENDPOINT}/{name}, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise InputError(address, "no such repository, or a private one", "a repository that you may read",
                         "check the name; for a private one log in with `hf auth login` or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise InputError(address, f"no revision '{revision}'", "a branch, a tag or a commit of it",
                         "leave @REVISION out for the newest") from None
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise _unreachable(address, online, error) from None
        raise InputError(address, f"a repository without {file}", "a run that `polyptych push` wrote",
                         "choose another repository") from None
    except HfHubHTTPError as error:
        raise InputError(address, f"an error of the server ({first_line(error)})", "a repository that you may read",
                         "log in with `hf auth login`, or try again later") from None
    except Exception as error:  # connections fail in as many ways as there are libraries
        raise _unreachable(address, online, error) from None


def _unreachable(address: str, online: bool, error: Exception) -> InputError:
    said = f"a download of {address} that broke off ({first_line(error)})" if online else "no connection"
    return InputError(address, f"{said}, and no copy in {hub.HF_HUB_CACHE}", f"a connection to {hub.ENDPOINT}",
                      "try again: what has arrived is kept" if online else "connect once, or use a run folder")


def _check_hash(path: Path, address: str, name: str, revision: str | None, file: str) -> None:
    """Compare with the server's hash: SHA-256 for large files, git's SHA-1 for small ones. Each copy is checked once,
    because the client names copies by the announced hash but checks only their length."""
    marker = path.resolve().with_name(path.resolve().name + ".checked")
    if marker.exists():
        return
    url = huggingface_hub.hf_hub_url(name, file, revision=revision)
    announced = huggingface_hub.get_hf_file_metadata(url).etag or ""
    if len(announced) not in (40, 64):
        return  # not a hash
    if len(announced) == 64:
        with open(path, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    else:
        data = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if found != announced:
        path.resolve().unlink()
        with suppress(OSError):
            path.unlink()
        raise InputError(f"{address}: {file}", f"contents with hash {found[:12]}...", f"{announced[:12]}..., which the "
                         "server announces", "try again: the damaged copy was removed")
    with suppress(OSError):
        marker.touch()


def _as_run(files: dict[str, Path], name: str, address: str) -> Path:
    """Lay out the fetched files as the folder of a run. Evaluations are written there."""
    revision = files[RUN].parent.name  # in the cache, a folder for every commit
    folder = Path(hub.HF_HOME) / "polyptych" / name.replace("/", "--") / revision / name.rpartition("/")[2]
    record = read_json(files[RUN])
    if not isinstance(record, dict) or not isinstance(record.get("run"), dict):
        raise InputError(address, "a run.json that is none", "a run that `polyptych push` wrote",
                         "choose another repository")
    select = "best" if record["run"].get("select") == "best" else "last"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for file, source in files.items():
        target = folder / file
        if file != WEIGHTS and not target.exists():  # by now it may say where the data is on this machine
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    weights = folder / "checkpoints" / f"{select}.safetensors"
    if not weights.exists():
        weights.unlink(missing_ok=True)
        try:
            weights.symlink_to(files[WEIGHTS].resolve())
        except OSError:  # no links on this disk
            shutil.copyfile(files[WEIGHTS], weights)
    return folder


def reachable(url: str) -> bool:
    """Whether a server answers at all, within seconds: the hub's client retries for most of a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECTION_SECONDS)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what the client prints about its attempts, and its progress bars if there is no terminal."""
    level = hub_logging.get_verbosity()
    bars = not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


@contextmanager
def offline() -> Iterator[None]:
    """Restrict the hub's client to its cache."""
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
