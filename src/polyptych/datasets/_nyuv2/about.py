"""Where NYUv2 comes from and the layouts of its files on disk."""

from __future__ import annotations

from polyptych.datasets._about import About, Download
from polyptych.datasets._nyuv2.layouts._base import CATALOG

_OFFICIAL = "NYU Depth Dataset V2, page of N. Silberman"

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
    layouts=CATALOG.facts(),
    notes=(
        "Surface normals are not official. Those of Eigen and Fergus and those of Ladicky differ; say which you used.",
        "The shapes in the labeled file and the bounds of the two crops are quoted from memory.",
        "The images in AdaShare's index have not been counted.",
        "Depth of NYUD_MT is inpainted and has no zeros in practice.",
    ),
)
