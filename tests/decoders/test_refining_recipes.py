"""The recipes of PAD-Net, PAP-Net, JTRL and MTI-Net: complete, recorded exactly, and alike in all but the decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transcription import HRNET_PARAMETERS, NYUV2, built, count

from polyptych.recipes._catalog import load
from polyptych.record import decode, encode
from polyptych.run import Run


@pytest.mark.parametrize(("decoder", "parameters"), [
    ("pad_net", 10_307_968), ("pap_net", 4_780_425), ("jtrl", 13_252_404), ("mti_net", 12_638_901)])
def test_recipe(decoder, parameters):
    recipe = load(f"nyuv2_{decoder}")
    run, reference = recipe(), load("nyuv2_pad_net")()
    assert run.recipe == f"nyuv2_{decoder}" and run.decoder.name == decoder
    assert decode(Run, encode(run), "run") == run
    assert replace(run, recipe=reference.recipe, decoder=reference.decoder, tasks=reference.tasks) == reference
    assert run.tasks == reference.tasks  # in any order
    assert f"polyptych train nyuv2_{decoder} " in recipe.__doc__ and f"{parameters:,} parameters" in recipe.__doc__
    channels = {task: NYUV2[task] for task in run.tasks}
    assert HRNET_PARAMETERS + count(built(run.decoder, channels)) == parameters


def test_trained_as_ema_net():
    ours, theirs = load("nyuv2_pad_net")(), load("nyuv2_ema_net")()
    assert replace(ours, recipe=theirs.recipe, decoder=theirs.decoder) == theirs
