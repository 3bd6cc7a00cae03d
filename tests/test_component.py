"""The catalog is the folder, plus what other packages register."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polyptych.cli import main
from polyptych.component import Catalog
from polyptych.decoders._base import CATALOG, Decoder
from polyptych.errors import InputError
from polyptych.record import decode, encode

PLUGIN = '''
"""A decoder from elsewhere.

Source: Nobody, 2026
"""
from polyptych.decoders.heads import Heads


class Elsewhere(Heads):
    """As heads."""
'''


def test_names_are_the_files_of_the_folder() -> None:
    folder = Path(sys.modules[Decoder.__module__].__file__ or "").parent
    assert CATALOG.names() == sorted(p.stem for p in folder.glob("[!_]*.py"))


@pytest.mark.parametrize("kind", ["tasks", "datasets", "backbones", "encoders", "decoders", "balancers"])
def test_every_component_loads_and_its_config_knows_it(kind: str) -> None:
    catalog: Catalog = Catalog(kind.removesuffix("s"), f"polyptych.{kind}")
    for name in catalog.names():
        component = catalog.load(name)
        assert component.Config.owner is component
        assert component.component_name() == name
        assert component.__doc__


@pytest.mark.parametrize("name", ["headz", "_blocks", "../heads", "../decoders/heads", ""])
def test_unknown_names_are_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match=r"got an unknown name; needs one of .*; see `polyptych list decoders`"):
        CATALOG.load(name)


def test_another_package_adds_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    """A real distribution on the path: it is listed, chosen by its entry point's name, recorded and read back."""
    (tmp_path / "elsewhere.py").write_text(PLUGIN)
    information = tmp_path / "elsewhere-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[polyptych.decoders]\nfrom_elsewhere = elsewhere:Elsewhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    try:
        assert main(["list", "decoders"]) == 0
        config = CATALOG.load("from_elsewhere").Config(head="fpn")
        record = encode(config)
        assert record["name"] == "from_elsewhere" and decode(Decoder.Config, record, "x") == config, record
    finally:
        sys.modules.pop("elsewhere", None)
    said = capsys.readouterr().out
    for part in ("from_elsewhere", "A decoder from elsewhere.", "Nobody, 2026"):
        assert part in said
