"""Names that a module keeps for itself are refused where networks are built."""

from __future__ import annotations

import pytest

from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.networks import Network


@pytest.mark.parametrize("name", ["type", "keys", "train", "training", "a.b", "", "1st", "semantic segmentation"])
def test_refused(name):
    with pytest.raises(InputError) as error:
        Network.build(Timm.Config(model="test_resnet"), Shared.Config(), Heads.Config(), {name: 1, "depth": 1})
    assert f"'{name}'" in str(error.value) and "\n" not in str(error.value)
