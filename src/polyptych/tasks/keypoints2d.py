"""2D keypoints: how strongly a detector of interest points responds at every pixel (Taskonomy).

Source: Zamir, Sax, Shen, Guibas, Malik and Savarese, CVPR 2018, arXiv 1804.08328
"""

from polyptych.tasks._heat_map import HeatMap


class Keypoints2D(HeatMap):
    """Absolute error of the response map, -1 to 1. Not to be confused with the task ``keypoints``, which finds
    named points such as joints."""
