"""An option outside its range is refused where it is set: in one line, before anything is read or made."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch

from polyptych.cli import main
from polyptych.distributed import local_device
from polyptych.errors import InputError
from polyptych.optim import Optimizer, Schedule
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, Run

NAN, INF = float("nan"), float("inf")

REFUSED = [
    ("clip", (-1.0, NAN, INF)), ("ema", (-0.1, 1.0, NAN)), ("seed", (-1,)), ("steps", (0,)), ("batch_size", (0,)),
    ("accumulate", (-1,)), ("size", ((0, 3), (10**6, 3))),
    ("optimizer.learning_rate", (-1.0, NAN, INF)), ("optimizer.backbone_scale", (-1.0, NAN)),
    ("optimizer.adapter_scale", (-1.0, NAN)), ("optimizer.decoder_scale", (-1.0, NAN)),
    ("optimizer.layer_decay", (-0.1, 1.1, NAN)),
    ("optimizer.weight_decay", (-0.1, NAN)), ("optimizer.momentum", (-0.1, 1.0, NAN)),
    ("optimizer.beta2", (1.5, 1.0, NAN)),
    ("schedule.warmup", (-1,)), ("schedule.power", (-1.0, NAN)), ("schedule.period", (0, -3)),
    ("schedule.factor", (0.0, 0.5, -2.0, NAN, INF)), ("schedule.final", (-0.1, 1.1, NAN)),
    ("loading.workers", (-1,)), ("loading.check", (-1,)), ("loading.feature_views", (-1,)),
    ("monitoring.log_every", (0,)),
    ("monitoring.validate_every", (0,)), ("monitoring.diagnose", (-0.1, 1.5, NAN)),
    ("monitoring.save_every", (-1,)), ("monitoring.examples", (-1,)), ("monitoring.trivial_samples", (0,)),
    ("execution.device", ("foo", "cuda:x", "meta", "")),
]
PARTS = {"optimizer": Optimizer, "schedule": Schedule, "loading": Loading, "monitoring": Monitoring,
         "execution": Execution}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in REFUSED for value in values])
def test_a_value_that_cannot_work_is_refused(option, value) -> None:
    part, _, name = option.rpartition(".")
    with pytest.raises(InputError, match=option.replace("_", "-")) as found:
        PARTS[part](**{name: value}) if part else dataclasses.replace(rooms(), **{name: value})
    assert "\n" not in str(found.value)


def test_every_number_is_in_the_list() -> None:
    listed = {option for option, _ in REFUSED}
    for part, owner in [("", Run), *PARTS.items()]:
        hints = typing.get_type_hints(owner)
        numbers = {f"{part}.{f.name}".lstrip(".") for f in dataclasses.fields(owner) if hints[f.name] in (int, float)}
        assert numbers <= listed


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(InputError, match="nesterov"):
        Optimizer(kind="sgd", nesterov=True, momentum=0.0)
    Optimizer(kind="adam", nesterov=True, momentum=0.0)  # says nothing there


@pytest.mark.parametrize("value", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there(value, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    Execution(device=value)  # a run of another machine can be read
    with pytest.raises(InputError, match=r"--execution\.device: got 'cuda:[27]', which is not there; needs one of "
                       "auto, cpu, cuda, cuda:0, cuda:1; choose one"):
        local_device(value)
    assert local_device("cuda:1") == torch.device("cuda:1")


def test_the_command_line_says_so_at_once(tmp_path, capsys) -> None:
    for flags in (["--schedule.kind", "warm_restarts", "--schedule.period", "0"], ["--clip", "nan"],
                  ["--execution.device", "foo"]):
        assert main(["train", "rooms", "--out", str(tmp_path / "run"), *flags]) == 2
        said = capsys.readouterr().err.strip()
        assert flags[-2] in said and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_fused_updates_are_the_same_up_to_rounding(kind) -> None:
    def trained(fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1)).double()
        optimizer = Optimizer(kind=kind, learning_rate=0.01, fused=fused).build(network, torch.nn.Module())
        for _ in range(20):
            optimizer.zero_grad()
            network(torch.randn(8, 5, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-10, atol=1e-12)
