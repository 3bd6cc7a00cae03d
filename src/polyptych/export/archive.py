"""A .pt2 archive, made harmless before torch reads it.

``torch.export.load`` trusts its file: weights marked ``use_pickle`` and custom objects are unpickled, operators are
looked up by name anywhere below ``torch``, sizes are evaluated by sympy, names of inputs and guards become Python
source.
Therefore the archive is first read here, as zip and JSON. Entries that a network needs are checked against allowlists
and copied into a new archive in memory; everything else is refused or left out. Only that copy is passed to torch.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from polyptych.errors import InputError, first_line
from polyptych.export.metadata import KEY

PLAIN = re.compile(r"[\w.\-]*\Z", re.ASCII)  # for every string and key: no quotes, brackets, spaces
SPEC = re.compile(r"[\w\s.,:\"\[\]{}]*\Z", re.ASCII)  # nested tuples and dicts as JSON
OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|torch\.(_sym_\w+|sym_(max|min|not|int|float|ite|sum))|math\.(ceil|floor|trunc)\Z", re.ASCII)
WORDS = {"Max", "Min", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "ModularIndexing", "Eq", "Ne", "True",
         "False", "floor", "ceiling", "TruncToInt", "IntTrueDiv", "ToFloat", "CeilToInt", "FloorToInt", "RoundToInt",
         "Add", "Mul", "Pow", "Integer", "Rational", "Float",
         "true", "false", "And", "Or", "Not",
         "Identity", "Where", "Piecewise", "FloatTrueDiv", "FloatPow", "PowByNatural"}
EXPRESSION = re.compile(r"[\w\s+\-*/%(),<>=.]*\Z", re.ASCII)
SYMBOL = re.compile(r"Symbol\('([suz]+\d+)'(, (positive|nonnegative|integer|real)=True)*\)", re.ASCII)
FORBIDDEN = {"as_custom_obj", "as_operator", "as_script_object", "as_opaque", "custom_obj"}
LARGEST_JSON = 256 * 2**20


def clean(path: Path) -> tuple[bytes, bytes]:
    """Check an archive and copy its safe contents.

    Returns:
        The metadata as JSON text, and an archive that torch may read.

    Raises:
        InputError: it is not a complete archive of an exported program, or holds entries that a network does not need.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _clean(archive)
    except InputError:
        raise
    except _Refused as refused:
        raise InputError(path, str(refused), "a model that `polyptych export` wrote",
                         "nothing of it was executed; export the run again") from None
    except Exception as error:  # zipfile, zlib and json raise a dozen kinds
        raise InputError(path, f"a file that is not a whole archive ({first_line(error)})",
                         "a .pt2 that `polyptych export` wrote", "export the run again") from None


def _clean(archive: zipfile.ZipFile) -> tuple[bytes, bytes]:
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise _Refused("an archive that holds a name twice")
    root = names[0].partition("/")[0] if names else ""
    members = {name.removeprefix(f"{root}/"): archive.getinfo(name) for name in names}
    if f"extra/{KEY}" not in members or "models/model.json" not in members:
        raise _Refused("an archive without the metadata of an exported model")

    def read(name: str) -> bytes:
        info = members[name]
        if name.endswith(".json") and info.file_size > LARGEST_JSON:
            raise _Refused(f"{name} of {info.file_size} bytes")
        return archive.read(info)

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as copy:
        def write(name: str, data: bytes) -> None:
            copy.writestr(f"model/{name}", data)

        for name in ("archive_format", "archive_version", "byteorder", ".data/version"):
            if name in members:
                write(name, read(name))
        write("models/model.json", json.dumps(_checked(json.loads(read("models/model.json")))).encode())
        for kind in ("weights", "constants"):
            config_name = f"data/{kind}/model_{kind}_config.json"
            config = json.loads(read(config_name))
            _checked(config)
            for entry in config["config"].values():
                name = entry["path_name"]
                if entry.get("use_pickle") is not False or not re.fullmatch(r"(weight|tensor)_\d+", name):
                    raise _Refused(f"pickled data ({name[:40]!r})")
                if f"data/{kind}/{name}" not in copy_names(copy):
                    write(f"data/{kind}/{name}", read(f"data/{kind}/{name}"))
            write(config_name, json.dumps(config).encode())
        write("data/sample_inputs/model.pt", b"")
    return read(f"extra/{KEY}"), made.getvalue()


def copy_names(copy: zipfile.ZipFile) -> set[str]:
    return {name.removeprefix("model/") for name in copy.NameToInfo}


def _checked(value: Any, key: str = "") -> Any:
    """The JSON of a program, checked, and without entries that are only for human readers."""
    if isinstance(value, dict):
        if bad := FORBIDDEN & {name for name, item in value.items() if item is not None}:
            raise _Refused(f"an object of its own ({min(bad)})")
        result = {}
        for name, item in value.items():
            if not PLAIN.match(name):
                raise _Refused(f"the name {name[:60]!r}")
            if name == "metadata" and "target" in value:
                item = {}
            elif name == "guards_code":
                item = []
            elif name == "target" and "outputs" in value and not OPERATOR.fullmatch(str(item)):
                raise _Refused(f"the operator {str(item)[:60]!r}")
            result[name] = _checked(item, name)
        return result
    if isinstance(value, list):
        return [_checked(item, key) for item in value]
    if isinstance(value, str):
        _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    if key == "expr_str":
        text = SYMBOL.sub(r"\1", text)
        words = set(re.findall(r"[^\W\d]\w*", text)) - WORDS
        good = bool(EXPRESSION.match(text)) and len(text) < 10000 and all(re.fullmatch(r"[suz]+\d+", word)
                                                                        for word in words)
        good = good and not re.search(r"\*\*\s*\(?\s*\d{3,}|\*\*.*\*\*|\.\s*[A-Za-z_]", text)
    elif key == "torch_version":
        good = bool(re.fullmatch(r"[\w.+\-]*", text, re.ASCII))
    elif key in ("in_spec", "out_spec"):
        good = bool(SPEC.match(text)) and "enum" not in text
    else:
        good = bool(PLAIN.match(text)) and not text.startswith("__")
    if not good:
        raise _Refused(f"the text {text[:60]!r} as {key or 'an entry'}")


class _Refused(Exception):
    """An entry is not one that a network needs."""
