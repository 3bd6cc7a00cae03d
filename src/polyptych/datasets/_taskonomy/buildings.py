"""The Tiny split of Taskonomy and the classes of its segmentation.

Source: Zamir, Sax, Shen, Guibas, Malik and Savarese, CVPR 2018, arXiv 1804.08328
"""

from __future__ import annotations

BUILDINGS = {
    "train": ("allensville", "beechwood", "benevolence", "coffeen", "cosmos", "forkland", "hanson", "hiteman",
              "klickitat", "lakeville", "leonardo", "lindenwood", "marstons", "merom", "mifflinburg", "newfields",
              "onaga", "pinesdale", "pomaria", "ranchester", "shelbyville", "stockman", "tolstoy", "wainscott",
              "woodbine"),
    "val": ("collierville", "corozal", "darden", "markleeville", "wiconisco"),
    "test": ("ihlen", "mcdade", "muleshoe", "noxapater", "uvalda"),
}

# Stored as 1..17; 0 is uncertain.
CLASSES = ("background", "bottle", "chair", "couch", "plant", "bed", "dining table", "toilet", "tv", "microwave",
           "oven", "toaster", "sink", "fridge", "book", "clock", "vase")
