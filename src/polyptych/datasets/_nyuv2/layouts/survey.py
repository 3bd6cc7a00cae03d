"""NYUD_MT of the survey and ATRC, with .npy files."""

from polyptych.datasets._nyuv2.layouts.folder import FolderLayout


class SurveyLayout(FolderLayout):
    """``NYUD_MT.tgz`` of the survey, which ATRC uses too."""

    looks_for = "images/, gt_sets/, segmentation/*.png and normals/*.npy"
    note = "40 classes, unlabeled pixels ignored; depth/*.npy, edge/*.npy; ATRC states a size of 425x560"
    auto_order = 70  # after `folder`, which also matches: chosen by name only
    suffixes = {"image": (".jpg",), "semseg": (".png",), "depth": (".npy",),  # noqa: RUF012
                "normals": (".npy",), "boundaries": (".npy",)}
    told_by = ("semseg", "normals")
