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


def winner(networks: list[Network], folder: Path, seeds: tuple[int, ...]) -> str:
    """The finalist with the highest mean skill on the validation split over all seeds. A finalist that is no network of
    its own counts as the one that it equals."""
    skills = {}
    for network in networks:
        if network.candidate.kind == "searched":
            name = network.candidate.same_as or network.candidate.name
            records = [read_json(run_folder(folder, name, seed) / "evaluation" / "val.json") for seed in seeds]
            skills[network.candidate.name] = sum(float(record["skill"]) for record in records) / len(records)
    return max(skills, key=skills.__getitem__)
