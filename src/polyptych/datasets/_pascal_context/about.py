"""Where PASCAL-Context with five tasks comes from."""

from polyptych.datasets._about import About, Download, LayoutFacts

ABOUT = About(
    title="PASCAL-Context with five tasks (Mottaghi et al., CVPR 2014; Maninis et al., CVPR 2019, arXiv 1904.08918)",
    license="see the pages of PASCAL VOC, PASCAL-Context and PASCAL-Part, whose images and labels it holds",
    downloads=(
        Download("PASCAL_MT.tgz", "the README of astmt",
                 "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz"),
    ),
    layouts={
        "pascal_mt": LayoutFacts(
            "JPEGImages/, ImageSets/Context/, pascal-context/trainval/, semseg/{VOC12,pascal-context}/, human_parts/, "
            "normals_distill/ and sal_distill/",
            {"train": 4998, "val": 5105},
            "our test is the official val"),
    },
    notes=(
        "Normals and saliency are predictions of networks, not annotations; normals are used on 170 context classes.",
        "Which axes the stored normals have is not documented; they are taken as x right, y down, z forward.",
        "The survey, ATRC and InvPT measure boundaries with a tool that takes 2498 of the 5105 test images (test_new).",
    ),
)
