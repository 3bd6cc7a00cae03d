"""Where Cityscapes comes from."""

from polyptych.datasets._about import About, Download
from polyptych.datasets._cityscapes.layouts._base import CATALOG

_SITE = "cityscapes-dataset.com"
_MTAN = "the README of mtan (Dropbox)"

ABOUT = About(
    title="Cityscapes (Cordts et al., CVPR 2016, arXiv 1604.01685)",
    license=f"see {_SITE}; downloading needs a registration",
    downloads=(
        Download("leftImg8bit_trainvaltest.zip", _SITE),
        Download("gtFine_trainvaltest.zip", _SITE),
        Download("disparity_trainvaltest.zip", _SITE),
        Download("camera_trainvaltest.zip", _SITE),
        Download("Cityscapes of MTAN, 128x256", _MTAN, size="651 MB"),
        Download("Cityscapes of MTAN, 256x512", _MTAN, size="2.42 GB"),
    ),
    layouts=CATALOG.facts(),
    notes=(
        "MTAN's inverse depth is taken for the 16-bit code of the disparity / 65535: inferred from one reported "
        "maximum, 0.4922 = 32257 / 65535.",
        "Its rel is the mean of |p - y| / y, not a percentage; pixels with code 1 (infinitely far) dominate it. "
        "AdaShare leaves them out (inverse depth above 3e-5), so the two numbers cannot be compared.",
        "The order of MTAN's 7 classes and the grouping of its 2 are from memory; the official layout follows the "
        "official categories.",
    ),
)
