"""What a user must know to get the Visual Decathlon."""

from polyptych.datasets._about import About, Download, LayoutFacts

_PAGE = "https://www.robots.ox.ac.uk/~vgg/decathlon"

ABOUT = About(
    title="Visual Decathlon 1.0: Rebuffi, Bilen and Vedaldi, NeurIPS 2017, arXiv 1705.08045",
    license="that of each of the ten datasets; see the page",
    downloads=(
        Download("decathlon-1.0-devkit.tar.gz", _PAGE),
        Download("decathlon-1.0-data.tar.gz", _PAGE),
        Download("decathlon-1.0-data-imagenet.tar", "https://image-net.org"),
    ),
    layouts={
        "devkit": LayoutFacts(
            looks_for="annotations/DOMAIN_train.json and annotations/DOMAIN_val.json (below decathlon-1.0/ too), and "
                      "the images below DOMAIN/, data/DOMAIN/ or decathlon-1.0-data/DOMAIN/",
            note="decathlon-1.0-data.tar.gz holds one tar for each of nine domains, to be unpacked too; the images of "
                 "imagenet12 need a login"),
    },
    notes=(
        "The labels of the official test images are on the challenge's server only: here `test` is the official val, "
        "and `val` is carved out of the official training images.",
        "Images are JPEG files whose shorter side has 72 pixels.",
    ),
)
