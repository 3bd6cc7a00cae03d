"""What the checks behind every annotation catch, in a module that stands for one of the package."""

import sys

import pytest
import torch
from jaxtyping import TypeCheckError

import check_imports

MODULE = '''
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from nowhere import Unknown

@dataclass(frozen=True)
class Size:
    height: int
    width: float = 1

class Maps:
    def __init__(self, count: int, other: Unknown | None = None):
        self.count = count

    @property
    def name(self) -> str:
        return self.count

    @classmethod
    def of(cls, number: int) -> Maps:
        return cls(number)

    @torch.no_grad()
    def product(self, a: Float[Tensor, "h w"], b: Float[Tensor, "w c"], *, loss: Tensor = None) -> Float[Tensor, "h c"]:
        return a @ b if b.shape[1] > 1 else a

def parts(x: Float[Tensor, "n"]) -> Iterator[Float[Tensor, ""]]:
    yield from x

@no_type_check
def anything(x: int) -> int:
    return x
'''


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    (folder / "checked_by_tests.py").write_text(MODULE)
    before = list(sys.meta_path)
    sys.path.insert(0, str(folder))
    check_imports.install("checked_by_tests")
    import checked_by_tests
    yield checked_by_tests
    sys.path.remove(str(folder))
    sys.meta_path[:] = before
    del sys.modules["checked_by_tests"]


def test_what_fits_passes(module) -> None:
    maps = module.Maps.of(3)
    assert maps.product(torch.ones(2, 3), b=torch.ones(3, 4)).shape == (2, 4)
    assert maps.product(torch.ones(5, 1), torch.ones(1, 4)).shape == (5, 4)  # other sizes in another call
    assert module.Size(1, 2) == module.Size(1, 2.0) and module.anything("x") == "x"
    assert len(list(module.parts(torch.ones(3)))) == 3


@pytest.mark.parametrize("wrong", [
    lambda m: m.Size("1"), lambda m: m.Maps("1"), lambda m: m.Maps(1).name, lambda m: m.Maps.of(1.5),
    lambda m: m.Maps(1).product(torch.ones(2), torch.ones(3, 4)),
    lambda m: m.Maps(1).product(torch.ones(2, 3), torch.ones(3, 4).int()),
    lambda m: m.Maps(1).product(torch.ones(2, 3), torch.ones(4, 3)),  # one letter, two sizes
    lambda m: m.Maps(1).product(torch.ones(2, 3), torch.ones(3, 1)),  # also in what comes back
    lambda m: list(m.parts(torch.ones(3, 3))),
], ids=range(9))
def test_what_does_not_is_caught(module, wrong) -> None:
    with pytest.raises(TypeCheckError):
        wrong(module)
