"""The runs of a search's networks: their encoders, their folders, and which finalist won."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyptych.encoders.searched import Searched
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.record import read_json
from polyptych.search.baselines import Candidate
from polyptych.search.record_book import Network


def encoder_for(candidate: Candidate) -> Any:
    """The encoder of a candidate's runs."""
    if candidate.kind == "single":
        return Single.Config()
    if candidate.kind == "shared":
        return Shared.Config()
    return Searched.Config(policy=json.dumps(candidate.policy.encode(), separators=(",", ":")))


def run_folder(folder: Path, name: str, seed: int) -> Path:
    return folder / "runs" / f"{name}--seed{seed}"


def winner(networks: list[Network], folder: Path, seed: int) -> str:
    """The finalist with the highest skill on the validation split after its training with the first seed. Of finalists
    that are no networks of their own, the ones that they equal count."""
    skills = {}
    for network in networks:
        if network.candidate.kind == "searched":
            path = run_folder(folder, network.candidate.same_as or network.candidate.name, seed)
            skills[network.candidate.name] = float(read_json(path / "evaluation" / "val.json")["skill"])
    return max(skills, key=skills.__getitem__)
