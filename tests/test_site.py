"""The documentation site builds without a warning and holds every component."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="needs the extra: pip install -e '.[docs]'")
    pytest.importorskip("material", reason="needs the extra: pip install -e '.[docs]'")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    decoders = (tmp_path / "site" / "reference" / "decoders" / "index.html").read_text()
    for path in (ROOT / "src/polyptych/decoders").glob("[!_]*.py"):
        assert f"<code>{path.stem}</code>" in decoders, path
    pictures = re.findall(r'src="[^"]*images/(rooms-[^"]+.png)"',
                          (tmp_path / "site" / "rooms-notebook" / "index.html").read_text())
    assert len(pictures) >= 3 and all((tmp_path / "site" / "images" / name).stat().st_size for name in pictures)
    front = re.sub(r"<[^>]+>", "", (tmp_path / "site" / "index.html").read_text())
    assert "polyptych train rooms" in front
