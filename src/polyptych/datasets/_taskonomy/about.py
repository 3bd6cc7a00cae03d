"""Where Taskonomy comes from and the layouts of its files on disk."""

from __future__ import annotations

from polyptych.datasets._about import About, Download, LayoutFacts

ABOUT = About(
    title="Taskonomy, Tiny split (Zamir, Sax, Shen, Guibas, Malik and Savarese, CVPR 2018)",
    license="see taskonomy.vision",
    downloads=(
        Download("rgb, segment_semantic, normal, depth_zbuffer, keypoints2d and edge_texture of the tiny subset",
                 "StanfordVL/taskonomy, data/README: omnitools.download ... --components taskonomy --subset tiny"),
        Download("splits_taskonomy.zip", "StanfordVL/taskonomy, data/README"),
    ),
    layouts={
        "buildings": LayoutFacts("BUILDING/DOMAIN/point_P_view_V_domain_NAME.png"),
        "domains": LayoutFacts("DOMAIN/BUILDING/point_P_view_V_domain_NAME.png"),
    },
    notes=(
        "25 / 5 / 5 buildings; AdaShare counts about 275k / 52k / 54k of 381,840 images, which has not been checked.",
        "The names of the files say segmentsemantic where the folder says segment_semantic.",
        "Numbers of AdaShare and AutoMTL are at 256x256, with logarithmic depth and weighted classes.",
    ),
)
