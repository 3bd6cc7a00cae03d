"""What each pixel sees: computed once, and used for the picture and all labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from polyptych.datasets._rooms.arrangement import Room
from polyptych.datasets._rooms.casting import Camera, cast, cast_room, surface_normals


@dataclass(frozen=True)
class View:
    """Per pixel: inverse depth ``w``, visible surface ``ids``, unit ``normals`` in the camera's frame and the face of
    the solid; per column and row the slopes ``u`` (X/Z) and ``v`` (Y/Z) of the rays. ``fine_w`` and ``fine_ids`` are
    samples at half the spacing (:meth:`Camera.grid`), of which the pixels are every second one."""

    camera: Camera
    u: Float32[np.ndarray, w]
    v: Float32[np.ndarray, h]
    w: Float32[np.ndarray, "h w"]
    ids: Int32[np.ndarray, "h w"]
    normals: Float32[np.ndarray, "3 h w"]
    faces: Int32[np.ndarray, "h w"]
    fine_w: Float32[np.ndarray, "2*h+1 2*w+1"]
    fine_ids: Int32[np.ndarray, "2*h+1 2*w+1"]

    @property
    def depth(self) -> Float32[np.ndarray, "h w"]:
        """Distance along the optical axis in meters."""
        return 1 / self.w


def observe(room: Room, size: tuple[int, int]) -> View:
    """Look at the room at a resolution (height, width)."""
    camera = room.camera(size)
    grid = camera.grid()
    fine_w, fine_ids = cast_room(room.extent, grid)
    cast(room.solids, grid, fine_w, fine_ids)
    w, ids = fine_w[1::2, 1::2].copy(), fine_ids[1::2, 1::2].copy()
    u, v = camera.pixels()
    flat_u, flat_v = (x.ravel() for x in np.broadcast_arrays(u, v[:, None]))
    normals, faces = surface_normals(room.solids, room.extent, camera, ids.ravel(), flat_u, flat_v, w.ravel())
    return View(camera, u, v, w, ids, normals.reshape(3, *size), faces.reshape(size), fine_w, fine_ids)
