"""Decoders as narrow as they may be, for tests that are about something else than a decoder's width."""

from __future__ import annotations

from typing import Any

from polyptych.decoders._base import CATALOG, Decoder

NARROW: dict[str, dict[str, Any]] = {
    "atrc": {"width": 16}, "demt": {"width": 32}, "ema_net": {"initial_width": 16}, "invpt": {"width": 64},
    "jtrl": {"width": 16}, "mlore": {"width": 24, "ranks": (4, 8, 12, 16), "task_rank": 8, "active": 3},
    "mtmamba": {"states": 4, "self_blocks": 1, "head_width": 16}, "pad_net": {"width": 32},
    "pap_net": {"width": 16, "initial_width": 16}, "task_prompter": {"inner": 24, "width": 32}}
"""Options by decoder; others have no width of their own."""


def narrow(decoder: str) -> Decoder.Config:
    return CATALOG.load(decoder).Config(**NARROW.get(decoder, {}))
