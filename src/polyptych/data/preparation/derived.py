"""``derived.json``: how labels that were computed from other labels were made, for those who read them."""

from __future__ import annotations

import json
from pathlib import Path

from polyptych.errors import InputError
from polyptych.record import read_json

RECORD = "derived.json"
"""Name of the file, in the folder of the labels."""


def note(folder: Path) -> str:
    """What readers of results must know about the labels in a folder if they were derived; otherwise empty.

    Raises:
        InputError: ``derived.json`` is not what :func:`~polyptych.data.preparation.derivation.derive_normals` writes.
    """
    path = folder / RECORD
    if not path.is_file():
        return ""
    record = read_json(path)
    if not isinstance(record, dict) or not {"method", "parameters", "intrinsics", "version"} <= record.keys():
        raise InputError(path, "a file without method, parameters, intrinsics and version",
                         "a record written by polyptych data prepare", "derive the labels again")
    told = json.dumps({**record["parameters"], **record["intrinsics"]}).translate({ord(c): None for c in '{}"'})
    return f"derived from depth by polyptych {record['version']}: {record['method']} ({told}); not those of " \
           "published tables"
