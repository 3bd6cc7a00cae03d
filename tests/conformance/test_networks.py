"""What every encoder and every decoder must do, whatever they are: run over the catalogs.

Every encoder is tried with plain heads and every decoder with plain sharing; all pairs are tried in the slow set.
"""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import cache

import pytest
import torch

from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.networks import Network
from trying_decoders import narrow
from trying_encoders import backbone, names

CHANNELS = {"semseg": 5, "depth": 1, "normals": 3}
SIZE = (33, 40)  # odd, more than one position at the coarsest stride

FAST = sorted({*((e, "heads") for e in names()), *(("shared", d) for d in DECODERS.names())})
REST = [(e, d) for e in names() for d in DECODERS.names() if (e, d) not in FAST]
# MTLoRA's common update in the last layer of the last block, which only the common features have that end there.
UNUSED = {"mtlora": "encoder.backbone.stages.4.blocks.1.mlp.fc2.lora_shared_"}
pairs = pytest.mark.parametrize(("encoder", "decoder"), [
    *FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)])


def build(encoder: str, decoder: str, channels: dict[str, int]) -> Network:
    torch.manual_seed(0)
    return Network.build(backbone(encoder), ENCODERS.load(encoder).Config(), narrow(decoder), channels)


@cache
def built(encoder: str, decoder: str) -> Network:
    """Not to be changed by a test."""
    return build(encoder, decoder, CHANNELS).eval()


@cache
@torch.no_grad()
def expected(encoder: str, decoder: str) -> dict[str, torch.Tensor]:
    return built(encoder, decoder)(image()).final


def image(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pairs
def test_trains_at_odd_sizes_and_every_parameter_learns(encoder, decoder):
    network = deepcopy(built(encoder, decoder)).train()
    output = network(image(2))
    assert {task: tuple(x.shape) for task, x in output.final.items()} == {
        task: (2, c, *SIZE) for task, c in CHANNELS.items()}
    predictions = [*output.final.values(), *(x for extra in output.auxiliary for x in extra.prediction.values())]
    assert all(x.isfinite().all() for x in predictions)
    for extra in output.auxiliary:
        assert set(extra.prediction) <= set(CHANNELS) and extra.weight > 0
        assert all(x.shape[1] == CHANNELS[task] for task, x in extra.prediction.items())
    torch.manual_seed(2)
    sum((x * torch.randn_like(x)).mean() for x in predictions).backward()
    learning = {name: p for name, p in network.named_parameters()
                if p.requires_grad and not name.startswith(UNUSED.get(encoder, " "))}
    assert [name for name, p in learning.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in learning.values())
    assert all(x.requires_grad for x in output.shared)
    with torch.no_grad():
        alone = network(image())  # a batch of one, still in training
    assert all(x.shape[0] == 1 and x.isfinite().all() for x in alone.final.values())


@pairs
def test_one_task_one_image(encoder, decoder):
    network = build(encoder, decoder, {"depth": 1}).train()
    final = network(image()).final
    assert set(final) == {"depth"} and final["depth"].shape == (1, 1, *SIZE) and final["depth"].isfinite().all()
    final["depth"].mean().backward()


@pairs
@torch.no_grad()
def test_evaluation_is_deterministic_and_a_copy_a_pickle_or_a_checkpoint_gives_the_same(encoder, decoder, tmp_path):
    network = built(encoder, decoder)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(7)
    restored = Network.build(backbone(encoder), ENCODERS.load(encoder).Config(), narrow(decoder), CHANNELS)
    restored.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    for twin in (network, deepcopy(network), pickle.loads(pickle.dumps(network)), restored.eval()):
        found = twin(image()).final
        assert all(torch.equal(found[task], x) for task, x in expected(encoder, decoder).items())


@pairs
@torch.no_grad()
def test_bytes_and_the_images_of_a_batch_are_independent(encoder, decoder):
    network = built(encoder, decoder)
    images = (image(2) * 255).to(torch.uint8)
    both, first = network(images).final, network(images[:1]).final
    assert all(torch.allclose(both[task][:1], x, atol=1e-4, rtol=1e-3) for task, x in first.items())


@pairs
@torch.no_grad()
def test_bfloat16_autocast(encoder, decoder):
    network = built(encoder, decoder)
    with torch.autocast("cpu", torch.bfloat16):
        final = network(image()).final
    assert all(tuple(x.shape[2:]) == SIZE and x.isfinite().all() for x in final.values())


@pytest.mark.parametrize("decoder", DECODERS.names())
def test_a_decoder_says_whether_tasks_read_each_other(decoder):
    """On a network per task, a prediction depends on another task's features if and only if the decoder refines."""
    network = built("single", decoder)
    features = network.encoder(network.pad(network.normalize(image())))
    predictions = network.decoder(features).final
    (first, *_), (*_, last) = predictions, predictions
    gradients = torch.autograd.grad(predictions[last].sum(), features[first].maps, allow_unused=True)
    reads = any(g is not None and bool(g.any()) for g in gradients)
    assert reads == DECODERS.load(decoder).refines
