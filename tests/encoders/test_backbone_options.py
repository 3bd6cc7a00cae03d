"""What is asked of a backbone reaches every encoder that is built on it; none is silently ignored."""

from __future__ import annotations

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.networks import Network
from trying_encoders import names, network_or_skip

OPTIONS = {"norm_maps": True, "drop_path": 0.9, "image_size": (32, 64), "pad": False, "vit_pyramid": "taps",
           "swin_windows": "timm"}
IGNORED = {("vit_pyramid", "task_prompter")}  # always the maps themselves, as its docstring says
SWIN = "swin_tiny_patch4_window7_224"


def network(model: str, encoder: str, **options: object) -> Network:
    torch.manual_seed(0)
    return network_or_skip(Timm.Config(model=model, **options), encoder, Heads.Config(width=8),
                           {"a": 2, "b": 1}).train()


def said(network: Network) -> torch.Tensor:
    torch.manual_seed(1)
    final = network(torch.rand(2, 3, 33, 40)).final
    return torch.cat([x.flatten() for x in final.values()])


@pytest.mark.parametrize("encoder", names())
@pytest.mark.parametrize(("option", "model"), [
    ("norm_maps", "test_vit"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (
        ("norm_maps", "test_resnet"), ("drop_path", "test_vit"), ("image_size", "test_vit"), ("pad", "test_resnet"),
        ("vit_pyramid", "test_vit"), ("norm_maps", SWIN), ("drop_path", SWIN), ("swin_windows", SWIN)))])
def test_an_option_changes_what_the_network_says(encoder, option, model):
    if (option, encoder) in IGNORED:
        pytest.skip("documented")
    small = {"vit_pyramid": "taps"} if (option, model) == ("norm_maps", "test_vit") else {}
    plain, asked = network(model, encoder, **small), network(model, encoder, **small, **{option: OPTIONS[option]})
    shapes = {name: x.shape for name, x in asked.state_dict().items()}
    same = {name: x for name, x in plain.state_dict().items() if shapes.get(name) == x.shape}
    asked.load_state_dict(same, strict=False)
    expected, found = said(plain), said(asked)
    # A norm after another differs by rounding alone.
    assert found.shape != expected.shape or not torch.equal(found, expected)
    (found * torch.randn_like(found)).sum().backward()
    assert [name for name, p in asked.named_parameters() if p.requires_grad and p.grad is None] == []
