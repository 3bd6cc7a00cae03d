"""Cityscapes in miniature: a few made-up street scenes, which every layout writes."""

from __future__ import annotations

import numpy as np

SIZE = (64, 128)
FRAMES = {
    "train": [f"{city}_{sequence:06d}_000019" for city in ("aachen", "bochum", "jena") for sequence in range(3)],
    "val": ["frankfurt_000000_000294", "frankfurt_000001_007973", "munster_000000_000019"],
    "test": ["berlin_000000_000019"],
}
CAMERA = {
    "extrinsic": {"baseline": 0.209313, "pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.0195, "z": 1.22},
    "intrinsic": {"fx": 2262.52, "fy": 2265.3, "u0": 1096.98, "v0": 513.137},
}


class StreetScene:
    """One made-up frame. ``ids`` holds all 34 label ids, ``codes`` the disparities 0 (unknown), 1 (infinitely
    far), 257 (one pixel), 32257 (the largest), and values in between."""

    def __init__(self, frame: str):
        g = np.random.default_rng([ord(letter) for letter in frame])
        height, width = SIZE
        self.ids = np.repeat(np.repeat(g.permutation(34).repeat(2)[:64].reshape(8, 8), 8, 0), 16, 1).astype(np.uint8)
        self.ids[-1, :68] = np.arange(34).repeat(2)
        self.image = np.clip(self.ids[..., None] * [7, 5, 3] + g.integers(0, 40, (height, width, 3)), 0, 255)
        self.image = self.image.astype(np.uint8)
        ramp = np.linspace(0, 1, height)[:, None] ** 2 * 32000
        self.codes = (ramp + g.integers(258, 500, (height, width))).astype(np.uint16)
        self.codes[0, :8] = np.array([0, 1, 257, 32257]).repeat(2)
