"""Checkpoints: exact, atomic, and suspicious of what they read."""

from __future__ import annotations

import random
import resource
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polyptych.checkpoint import TrainingState, load_state, load_weights, read_tensors, save_state, write_tensors
from polyptych.errors import InputError
from polyptych.optim import Optimizer


def make_state(seed: int, width: int = 4, average: bool = True) -> TrainingState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 1))
    balancer = nn.Module()
    balancer.register_parameter("weight", nn.Parameter(torch.rand(2)))
    mean = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 1))
    return TrainingState(network, balancer, Optimizer(learning_rate=0.01).build(network, balancer),
                         torch.amp.GradScaler("cpu", enabled=True, init_scale=4.0), mean if average else None)


def steps(state: TrainingState, number: int) -> list[float]:
    losses = []
    for _ in range(number):
        noise = random.random() + np.random.rand()
        loss = state.network(torch.randn(5, 3)).square().mean() * state.balancer.weight.sum() + noise
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        losses.append(float(loss.detach()))
    return losses


def test_a_resumed_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    state = make_state(1)
    steps(state, 5)
    state.progress["best_skill"] = 0.25
    save_state(tmp_path / "last.safetensors", state)
    expected, weights = steps(state, 5), {k: v.clone() for k, v in state.network.state_dict().items()}

    other = make_state(2)
    random.seed(99)
    load_state(tmp_path / "last.safetensors", other)
    assert (other.step, other.progress) == (5, {"best_skill": 0.25})
    assert steps(other, 5) == expected
    assert all(torch.equal(value, weights[name]) for name, value in other.network.state_dict().items())
    assert other.scaler.get_scale() == 4.0


def test_weights_prefer_the_moving_average(tmp_path: Path) -> None:
    state = make_state(1)
    state.step = 7
    save_state(tmp_path / "a.safetensors", state)
    network = make_state(3).network
    assert load_weights(tmp_path / "a.safetensors", network) == 7
    assert torch.equal(network[0].weight, state.average[0].weight)
    assert not torch.equal(network[0].weight, state.network[0].weight)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a whole checkpoint"),
    (b"\x80\x04\x95 pickled", "not a whole checkpoint"),
    (struct.pack("<Q", 2**62) + b"{}", "not a whole checkpoint"),
    (struct.pack("<Q", 2) + b"{}", "not a whole checkpoint"),
])
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        load_state(path, make_state(1))
    assert message in str(refusal.value) and "bad.safetensors" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_state(path, make_state(1))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"last\.safetensors: got a file that is not a whole checkpoint"):
        load_state(path, make_state(1))


def test_another_network_is_refused_by_name_of_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_state(path, make_state(1, width=4))
    with pytest.raises(InputError, match=r"network\.0\.weight of shape \(4, 3\); needs shape \(6, 3\)"):
        load_state(path, make_state(1, width=6))


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    network = make_state(1).network
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    write_tensors(path, {**tensors, "network.more": torch.zeros(1)}, {"step": 1})
    with pytest.raises(InputError, match=r"1 unknown tensors, for instance network\.more"):
        load_weights(path, network)
    write_tensors(path, {k: v for k, v in tensors.items() if k != "network.3.bias"}, {"step": 1})
    with pytest.raises(InputError, match=r"no tensor network\.3\.bias"):
        load_weights(path, network)


def test_tensors_are_written_from_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that share memory with others, or are not contiguous, are copied."""
    whole, transposed = torch.arange(12.0), torch.arange(6.0).view(2, 3).t()
    tensors = {"whole": whole, "tied": whole.view(3, 4), "part": whole[3:6], "transposed": transposed}
    written = {}
    monkeypatch.setattr("polyptych.checkpoint.save_file",
                        lambda found, path, values: written.update(found) or save_file(found, path, values))
    write_tensors(tmp_path / "a", tensors, {"step": 1})
    assert written["whole"].data_ptr() == whole.data_ptr()
    found, values = read_tensors(tmp_path / "a")
    assert values == {"step": 1} and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """A real limit of the operating system on file size stands in for the full disk: the write itself fails."""
    path = tmp_path / "last.safetensors"
    write_tensors(path, {"a": torch.zeros(10)}, {"step": 1})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InputError, match="'File too large' while writing; needs free, writable disk") as refusal:
            write_tensors(path, {"a": torch.zeros(100_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "what was there before is untouched" in str(refusal.value)
    tensors, values = read_tensors(path)
    assert values["step"] == 1 and tensors["a"].sum() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]
