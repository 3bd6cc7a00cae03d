"""What a user must know to obtain a dataset: where it comes from, how its files are arranged on disk, how many there
are.

Each dataset states it in ``datasets/_NAME/about.py`` as ``ABOUT``; ``polyptych data info NAME`` prints it and
``polyptych data verify NAME`` checks it. Facts only: a checksum or a count that nobody has read is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Download:
    """One file that a user fetches.

    Attributes:
        file: its name.
        page: the official page that offers it.
        url: direct download link; empty if one must register, log in or click.
        size: size as the page states it, for instance ``2.8 GB``; empty if unknown.
        sha256: empty if not known.
    """

    file: str
    page: str
    url: str = ""
    size: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class LayoutFacts:
    """One way the files are arranged on disk.

    Attributes:
        looks_for: description of the paths by which it is recognized.
        counts: number of images of each official split, if known.
        note: what distinguishes its numbers from those of other layouts.
    """

    looks_for: str
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class About:
    """Where a dataset comes from and how its files are arranged.

    Attributes:
        title: full name and source.
        license: what its owners allow, in short, or where to read it.
        downloads: files to get.
        layouts: by name, as ``--dataset.layout`` has it.
        notes: what is not certain about labels, crops or counts.
    """

    title: str
    license: str
    downloads: tuple[Download, ...]
    layouts: Mapping[str, LayoutFacts]
    notes: tuple[str, ...] = ()
