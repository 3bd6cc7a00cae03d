"""NYUD_MT of ASTMT, with .mat files."""

from polyptych.datasets._nyuv2.layouts.folder import FolderLayout


class ASTMTLayout(FolderLayout):
    """``NYUD_MT.tgz`` of ASTMT."""

    looks_for = "images/, gt_sets/, segmentation/*.mat and normals/*.jpg"
    note = "ASTMT trains 41 classes, with unlabeled pixels as class 0; depth/*.mat, edge/*.png"
    auto_order = 60  # after `folder`, which also matches: chosen by name only
    suffixes = {"image": (".jpg",), "semseg": (".mat",), "depth": (".mat",),  # noqa: RUF012
                "normals": (".jpg",), "boundaries": (".png",)}
    told_by = ("semseg", "normals")
