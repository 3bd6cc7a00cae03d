"""Where NYUv2 comes from and how its files lie on disk."""

from __future__ import annotations

from polyptych.datasets._about import About, Download, LayoutFacts

_OFFICIAL = "NYU Depth Dataset V2, page of N. Silberman"
_SPLIT = {"train": 795, "test": 654}

ABOUT = About(
    title="NYU Depth v2 (Silberman, Hoiem, Kohli and Fergus, ECCV 2012)",
    license="see the pages of the data set and of each archive; ASTMT's and the survey's code is CC BY-NC 4.0",
    downloads=(
        Download("nyu_depth_v2_labeled.mat", _OFFICIAL, size="about 2.8 GB"),
        Download("splits.mat", _OFFICIAL),
        Download("normals_gt.tgz", "D. Eigen's page \"dnl\", cs.nyu.edu/~deigen/dnl/ (the host has been down; the Web "
                 "Archive has a copy of 2022-04-12)"),
        Download("NYUD_MT.tgz", "ASTMT, data.vision.ee.ethz.ch/kmaninis/share/MTL/NYUD_MT.tgz"),
        Download("NYUD_MT.tgz", "the survey and ATRC, Google Drive id 14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw"),
        Download("NYUDv2.tar.gz", "InvPT, the links in the README of Multi-Task-Transformer"),
        Download("nyuv2", "MTAN, the Dropbox folder that the README of mtan links"),
        Download("the archive with nyu_v2_3task.json", "AdaShare, the Google Drive that its README links"),
    ),
    layouts={
        "folder": LayoutFacts("images/ and gt_sets/", _SPLIT, "NYUD_MT, whichever of the three packings it is"),
        "astmt": LayoutFacts("images/, gt_sets/, segmentation/ID.mat, depth/ID.mat, normals/ID.jpg, edge/ID.png",
                             _SPLIT, "ASTMT trains 41 classes, with unlabeled pixels as class 0"),
        "survey": LayoutFacts("images/, gt_sets/, segmentation/ID.png, depth/ID.npy, normals/ID.npy, edge/ID.npy",
                              _SPLIT, "40 classes, unlabeled pixels ignored; ATRC states 425x560 as their size"),
        "invpt": LayoutFacts("images/ID.png, gt_sets/, segmentation/ID.png, depth/ID.npy, normals/ID.png, edge/ID.png",
                             _SPLIT, "40 classes, unlabeled pixels ignored; also DeMT and TaskPrompter"),
        "mtan": LayoutFacts("train/image/ and train/label/ with I.npy, counted from 0", _SPLIT,
                            "13 classes at 288x384; its val is the official test split; the script that cropped and "
                            "resized it is lost, so that nobody can make it again"),
        "official": LayoutFacts("nyu_depth_v2_labeled.mat and splits.mat; optionally normals/NNNN.png, counted from 0",
                                _SPLIT, "894 labels, mapped to 40 or 13 classes; frames have a white border "
                                "(see --dataset.crop)"),
        "adashare": LayoutFacts("nyu_v2_3task.json with img/, seg/, normal_mask/ and depth/",
                                note="its numbers use other metrics, and angles between bytes that are not decoded: "
                                "not comparable with other layouts"),
        "frames": LayoutFacts("images/ID.jpg, seg40/ID.png, depth/ID.webp, normals/ID.jpg, train.txt and test.txt",
                              _SPLIT, "8-bit depth and normals derived from it: not for published tables"),
    },
    notes=(
        "Surface normals are not official. Eigen and Fergus's and Ladicky's differ; say which ones a number uses.",
        "The shapes in the labeled file and the bounds of the two crops are from memory of those who use them.",
        "How many images the index of AdaShare lists has not been counted.",
        "Depth of NYUD_MT is in-painted and has no zeros in practice.",
    ),
)
