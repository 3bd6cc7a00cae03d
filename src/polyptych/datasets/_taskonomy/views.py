"""Paths of the files of Taskonomy: one picture per view and domain, in either order of folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from polyptych.data.files import file_names, is_visible, require_files
from polyptych.errors import InputError

Order = Literal["buildings", "domains"]

# The folder of each kind of picture and the end of its file names, which differ in one case.
DOMAINS = {"image": ("rgb", "rgb"), "semseg": ("segment_semantic", "segmentsemantic"), "normals": ("normal", "normal"),
           "depth": ("depth_zbuffer", "depth_zbuffer"), "keypoints2d": ("keypoints2d", "keypoints2d"),
           "edge_texture": ("edge_texture", "edge_texture")}


@dataclass(frozen=True)
class Views:
    """A root and the order of its folders: ``buildings`` is ``{building}/{domain}/``, ``domains`` is
    ``{domain}/{building}/``. A view is called ``building/point_P_view_V``."""

    root: Path
    order: Order

    def folder(self, building: str, kind: str) -> Path:
        domain = DOMAINS[kind][0]
        return self.root / building / domain if self.order == "buildings" else self.root / domain / building

    def path(self, view: str, kind: str) -> Path:
        building, name = view.split("/")
        return self.folder(building, kind) / f"{name}_domain_{DOMAINS[kind][1]}.png"

    def list(self, buildings: Iterable[str], kinds: Sequence[str]) -> list[str]:
        """The views of these buildings, by building, point and view. Lists each folder once and keeps only names,
        because Tiny alone has 381,840 views.

        Raises:
            InputError: a building is missing or empty, or a view lacks one of ``kinds``.
        """
        buildings = list(buildings)
        missing = [building for building in buildings if not self.folder(building, "image").is_dir()]
        if missing:
            raise InputError(self.root, f"{len(buildings) - len(missing)} of {len(buildings)} buildings (the first "
                             f"missing one is {self.folder(missing[0], 'image')})", "every building of the split",
                             "download the others, or name those that are here with --dataset.buildings")
        views = []
        for building in buildings:
            found = {kind: self._views(building, kind) for kind in kinds}
            here = sorted(found["image"], key=lambda view: [int(number) for number in re.findall(r"\d+", view)])
            if not here:
                raise InputError(self.folder(building, "image"), "no views",
                                 "files called point_P_view_V_domain_rgb.png", "download the building again")
            for kind in kinds:
                require_files(self.folder(building, kind), here, found[kind], partial(self.path, kind=kind))
            views += here
        return views

    def _views(self, building: str, kind: str) -> set[str]:
        """The views of a building that have this kind of picture."""
        folder = self.folder(building, kind)
        pattern = re.compile(rf"(point_\d+_view_\d+)_domain_{DOMAINS[kind][1]}\.png")
        return {f"{building}/{match[1]}" for match in map(pattern.fullmatch, file_names(folder)) if match}


def find_order(root: Path) -> Order:
    """The order of folders in ``root``."""
    if (root / DOMAINS["image"][0]).is_dir():
        return "domains"
    if any(is_visible(folder.parent.name) for folder in root.glob(f"*/{DOMAINS['image'][0]}")):
        return "buildings"
    raise InputError(f"root of taskonomy ({root})", "a folder of no known layout",
                     "BUILDING/rgb/ (buildings) or rgb/BUILDING/ (domains)", "check the path")
