"""Texture edges: how strongly an edge detector on the colors responds at every pixel (Taskonomy).

Source: Zamir, Sax, Shen, Guibas, Malik and Savarese, CVPR 2018, arXiv 1804.08328
"""

from polyptych.tasks._heat_map import HeatMap


class EdgeTexture(HeatMap):
    """Absolute error of the response map, -1 to 1. Unlike in the task ``boundaries``, every texture edge counts, not
    only edges of objects."""
