"""The former name of what is in files, pictures and arrays now; goes when nothing imports it any more."""

from polyptych.data.arrays import class_ids, flat, read_npy, read_npy_color  # noqa: F401
from polyptych.data.files import files_by_stem, read_lines, reading, require_files  # noqa: F401
from polyptych.data.pictures import as_rgb, picture_size, read_color, read_gray  # noqa: F401
