"""What `import polyptych` offers, pinned: a new name is a promise."""

from __future__ import annotations

import subprocess
import sys

import polyptych


def test_public_names() -> None:
    assert polyptych.__all__ == [
        "Comparison", "InputError", "Predictor", "Profile", "Run", "Scene", "compare", "evaluate", "load", "predict",
        "profile", "train",
    ]
    for name in polyptych.__all__:
        value = getattr(polyptych, name)
        assert value.__name__ == name and value.__doc__, name
    assert set(polyptych.__all__) <= set(dir(polyptych))


def test_importing_is_cheap() -> None:
    program = "import sys, polyptych; assert 'torch' not in sys.modules; polyptych.InputError; polyptych.train"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(polyptych, "trian")
