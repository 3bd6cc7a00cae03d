"""NYUDv2 of InvPT, DeMT and TaskPrompter, with .png files."""

from polyptych.datasets._nyuv2.layouts.folder import FolderLayout


class InvPTLayout(FolderLayout):
    """``NYUDv2.tar.gz`` of InvPT, DeMT and TaskPrompter."""

    looks_for = "images/, gt_sets/, segmentation/*.png and normals/*.png"
    note = "40 classes, unlabeled pixels ignored; images/*.png, depth/*.npy, edge/*.png; also DeMT and TaskPrompter"
    auto_order = 80  # after `folder`, which also matches: chosen by name only
    suffixes = {"image": (".png",), "semseg": (".png",), "depth": (".npy",),  # noqa: RUF012
                "normals": (".png",), "boundaries": (".png",)}
    told_by = ("semseg", "normals")
