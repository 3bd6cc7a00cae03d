"""Capture, policies, supermodel and compact network together, on small networks of several kinds."""

from __future__ import annotations

from random import Random

import pytest
import timm
import torch

from polyptych.search import Policy, compile, extract

TASKS = ("a", "b", "c")
SPACES = ("automtl", "tree", "partition", "skip_only")


def image(shape, seed=1):
    return torch.rand(1, *shape[1:], generator=torch.Generator().manual_seed(seed))


def tensors(result):
    return [x for value in result.values() for x in (value if isinstance(value, list) else [value])]


def supermodel(name, space, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    return model, compile(model, TASKS, space=space).eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
@pytest.mark.parametrize("space", SPACES)
@torch.no_grad()
def test_compact_equals_supermodel(name, space):
    model, searchable = supermodel(name, space)
    x = image(searchable.capture.shape)
    expected = model(x)
    for policy in (searchable.space.all_shared(), searchable.space.all_own()):
        assert all(torch.equal(y, expected) for y in searchable(x, policy).values())
    random = Random(0)
    for _ in range(5):
        policy = searchable.space.draw(random)
        searchable.space.validate(policy)
        assert Policy.decode(policy.encode()) == policy
        searchable.materialize([policy])
        for parameter in searchable.banks.copies.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        got = tensors(searchable(x, policy))
        assert all(torch.equal(a, b) for a, b in zip(got, tensors(extract(searchable, policy)(x)), strict=True))
