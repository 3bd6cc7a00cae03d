"""Encoders that can be tried without being told anything, each on a small backbone that suits it."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from polyptych.backbones._base import Backbone
from polyptych.backbones.timm import Timm
from polyptych.decoders._base import Decoder
from polyptych.encoders._base import CATALOG
from polyptych.errors import InputError
from polyptych.networks import Network


def names() -> list[str]:
    """Those whose options all have a default; others (one that reads a file, for instance) have tests of their own."""
    return [name for name in CATALOG.names()
            if all(field.default is not MISSING or field.default_factory is not MISSING
                   for field in fields(CATALOG.load(name).Config))]


def backbone(encoder: str) -> Timm.Config:
    return Timm.Config(model=CATALOG.load(encoder).example)


def network_or_skip(on: Backbone.Config, encoder: str, decoder: Decoder.Config, channels: dict[str, int],
                    **options: object) -> Network:
    """A network on a backbone that this encoder may refuse; only one that says where it works instead may do so."""
    loaded = CATALOG.load(encoder)
    try:
        return Network.build(on, loaded.Config(**options), decoder, channels)
    except InputError as error:
        if loaded.example == "test_resnet":
            raise
        pytest.skip(str(error))
