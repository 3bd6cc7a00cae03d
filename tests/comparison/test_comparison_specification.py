"""Networks and balancers written in a word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyptych.cli.compare import seeds
from polyptych.comparison.specification import spell, split, with_balancer, with_network
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.errors import InputError


def test_a_part_that_is_not_named_is_the_recipes(small_run) -> None:
    run = replace(small_run, encoder=Shared.Config(), decoder=Heads.Config(head="aspp", width=8))
    assert with_network(run, "single").decoder == run.decoder
    assert with_network(run, "single").encoder == Single.Config()
    assert with_network(run, "heads:head=fpn") == replace(run, decoder=Heads.Config(head="fpn", width=8))
    assert with_network(run, "single+heads:head=fused:width=16") == replace(
        run, encoder=Single.Config(), decoder=Heads.Config(head="fused", width=16))
    assert with_network(run, "heads+single").encoder == Single.Config()


def test_spelling_is_the_inverse_of_reading(small_run) -> None:
    for decoder in (Heads.Config(), Heads.Config(head="aspp"), Heads.Config(head="fpn", width=64)):
        text = spell(Single.Config(), decoder)
        found = with_network(replace(small_run, decoder=Heads.Config()), text)
        assert (found.encoder, found.decoder) == (Single.Config(), decoder)
    weighed = with_balancer(small_run, 'fixed:weights={"semseg":2,"depth":0.5}')
    assert weighed.balancer.weights == {"semseg": 2.0, "depth": 0.5}
    assert with_balancer(small_run, spell(weighed.balancer)).balancer == weighed.balancer


def test_separators_inside_brackets_do_not_separate() -> None:
    assert split('a:x={"p":1,"q":2},b+c', ",") == ['a:x={"p":1,"q":2}', "b+c"]
    assert split('a:x={"p":1}:y=2', ":") == ["a", 'x={"p":1}', "y=2"]


@pytest.mark.parametrize(("text", "parts"), [
    ("shard", ["network 'shard': got 'shard'", "nearest: shared"]),
    ("shared+haeds", ["got 'haeds'", "nearest: heads"]),
    ("shared+single", ["a second encoder, 'single'", "one encoder"]),
    ("heads:hed=fpn", ["an unknown option 'hed'", "nearest: head"]),
    ("heads:head=fpm", ["option 'head' of 'heads:head=fpm': got 'fpm'", "fused"]),
    ("heads:width=wide", ["option 'width'", "got 'wide'", "int"]),
    ("heads:width", ["no value for 'width'", "width=VALUE"]),
    ("+", ["--networks", "empty"]),
])
def test_what_is_wrong_is_said_in_one_line(small_run, text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        with_network(small_run, text)
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in parts), said


def test_unknown_balancer(small_run) -> None:
    with pytest.raises(InputError, match=r"balancer 'equl'.*nearest: equal"):
        with_balancer(small_run, "equl")


def test_seeds() -> None:
    assert seeds("3") == [0, 1, 2] and seeds("4,7") == [4, 7] and seeds("7,") == [7]
    for wrong in ("0", "-1", "many", "1,x"):
        with pytest.raises(InputError, match="--seeds"):
            seeds(wrong)
