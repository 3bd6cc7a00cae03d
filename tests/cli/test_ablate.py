"""polyptych ablate: the decoder without its parts, and with one more at a time."""

from __future__ import annotations

import dataclasses

import pytest

from polyptych.cli import main
from polyptych.comparison.specification import spell, with_network
from polyptych.decoders.ema_net import EMANet
from polyptych.decoders.ema_net_multi_scale import EMANetMultiScale
from polyptych.encoders.shared import Shared

ON_ROOMS = ("rooms", "--tasks", "semseg,depth", "--decoder", "ema_net", "--decoder.size", "48", "64", "--size", "48",
            "64", "--decoder.width", "16", "--decoder.initial-width", "16", "--backbone.model", "test_resnet")


@pytest.mark.parametrize("decoder", [EMANet.Config(), EMANetMultiScale.Config(), EMANet.Config(scale=8),
                                     EMANet.Config(affinity=False, gamma=0.1)])
def test_each_step_adds_one_part_and_the_text_says_it_all(small_run, decoder) -> None:
    run = dataclasses.replace(small_run, decoder=decoder)
    steps = list(decoder.ablation().values())
    parts = list(decoder.parts().values())
    for number, step in enumerate(steps[:len(parts) + 1]):
        assert [getattr(step, part) for part in parts] == [True] * number + [False] * (len(parts) - number)
    assert {step.scale for step in steps} == {4, 8, 16}
    assert len(set(steps)) == len(steps)
    for step in steps:
        assert with_network(run, spell(Shared.Config(), step, given=decoder)).decoder == step


def test_costs_without_training(capsys, monkeypatch) -> None:
    monkeypatch.setattr("polyptych.profiling.timing.LARGEST_BATCH", 1)  # throughput has tests of its own
    assert main(["ablate", *ON_ROOMS, "--costs"]) == 0
    said = capsys.readouterr().out
    for row in ("none of its parts", "+ CTAL", "+ deep supervision", "positions compared at 1/16"):
        assert row in said


@pytest.mark.slow
def test_trains_every_step(tmp_path, capsys) -> None:
    small = ("--steps", "1", "--batch-size", "2", "--seeds", "1", "--out", str(tmp_path / "out"),
             "--dataset.test-frames", "2", "--dataset.val-frames", "2", "--monitoring.trivial-samples", "2")
    assert main(["ablate", *ON_ROOMS, *small]) == 0
    said = capsys.readouterr().out
    assert "shared+ema_net:affinity=false:deep_supervision=false: none of its parts" in said
    assert (tmp_path / "out" / "comparison.html").exists()


def test_a_decoder_without_parts_is_refused(capsys) -> None:
    assert main(["ablate", "rooms", "--costs"]) == 2
    assert "decoder heads" in capsys.readouterr().err
