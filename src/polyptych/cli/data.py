"""Get data, describe your own, make it fast: polyptych data list | info | describe | verify | prepare | convert |
fixture"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from polyptych.cli._parsing import parse
from polyptych.datasets._base import Dataset
from polyptych.errors import InputError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from polyptych.data.preparation.verification import Verification

_PICTURED = 4  # samples of each split on the sheet

USAGE = """  polyptych data list                     every dataset: tasks, license, where to get it
  polyptych data info folder              every key of dataset.toml, which describes a folder of your own
  polyptych data info NAME                files to download, layouts on disk, counts, what is uncertain
  polyptych data describe DIR             look at a folder of your own and write a first dataset.toml into it
  polyptych data verify NAME --root DIR   open and check every file; a table of what is damaged or missing
  polyptych data prepare NAME --root DIR  unpack, verify, derive normals, write the folder that training reads fastest
  polyptych data convert FORMAT FROM DIR  draw annotations (labelme, coco, coco_panoptic, cvat, class_pictures) as masks
  polyptych data fixture NAME DIR         the dataset in miniature, with made-up images, to try things out

`polyptych data verify NAME --help` and `polyptych data prepare NAME --help` list the options."""


@dataclass(frozen=True)
class VerifyArguments:
    dataset: Dataset.Config
    """Options of the dataset."""
    root: Path | None = None
    """Folder of the dataset; short for --dataset.root."""
    tasks: tuple[str, ...] = ()
    """Tasks whose labels are used, as A,B (default: all that the dataset has labels for)."""
    quick: bool = False
    """Open only 20 samples of each split."""
    subset: bool = False
    """Accept fewer images than published."""
    pictures: Path | None = None
    """Write a sheet of samples of every split, with their labels laid over them, to this file (.png)."""


@dataclass(frozen=True)
class PrepareArguments(VerifyArguments):
    archives: Annotated[tuple[Path, ...], tyro.conf.arg(name="from")] = ()
    """Archives to unpack into the root first (.zip, .tar, .tar.gz, ...)."""
    download: bool = False
    """Download the archives that have a direct URL to archives/ in the root, and unpack them."""
    out: Path | None = None
    """Output folder for the prepared dataset (default: ROOT-prepared)."""
    size: tuple[int, int] | None = None
    """Height and width of images and labels (default: their own size, which must be the same for all)."""
    normals: bool = True
    """Derive normals from depth if the dataset has none and its camera is known."""
    intrinsics: tuple[float, float, float, float] | None = None
    """Camera intrinsics fx, fy, cx, cy of the depth maps, in pixels, if the dataset does not know them."""
    window: int = 21
    """Side of the square, in pixels, in which a plane is fitted to find a normal."""


@dataclass(frozen=True)
class DescribeArguments:
    folder: tyro.conf.Positional[Path]
    """Folder with images and labels; dataset.toml is written into it, if there is none."""


@dataclass(frozen=True)
class ConvertArguments:
    format: tyro.conf.Positional[Literal["labelme", "coco", "coco_panoptic", "cvat", "class_pictures"]]
    """Format of the annotations."""
    source: tyro.conf.Positional[Path]
    """The annotations: a folder (labelme, class_pictures) or a file."""
    out: tyro.conf.Positional[Path]
    """Folder of the dataset: gets semseg/, instances/ and, if it has none, dataset.toml."""
    classes: tuple[str, ...] = ()
    """Order of the classes, as A,B; others have no label (default: all classes, in the order of the file or the
    alphabet)."""
    unlabeled: bool = False
    """Pixels that no region covers have no label; otherwise they are the class background."""
    images: Path | None = None
    """Folder of the images, for dataset.toml (default: searched near the annotations)."""
    files: str = "{id}/{class}.png"
    """Where the pictures of class_pictures are in their folder."""


@dataclass(frozen=True)
class FixtureArguments:
    folder: tyro.conf.Positional[Path]
    """Output folder; must be new or empty."""
    layout: str = field(default="")
    """Layout of the files on disk (default: the first one in `polyptych data info NAME`)."""


def main(arguments: list[str]) -> None:
    commands = {"list": _list, "info": _info, "describe": _describe, "verify": _verify, "prepare": _prepare,
                "convert": _convert, "fixture": _fixture}
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if not arguments or name in ("-h", "--help"):
        print(f"{sys.modules[__name__].__doc__}\n\n{USAGE}")
        raise SystemExit(0)
    if name not in commands:
        raise InputError(f"polyptych data {name}", "an unknown name", nearest(name, commands),
                         "see `polyptych data --help`")
    commands[name](rest)


def _list(rest: list[str]) -> None:
    from polyptych.cli._data_tables import dataset_table

    if rest:
        raise InputError("polyptych data list", f"'{rest[0]}'", "no argument", "leave it out")
    _console().print(dataset_table())


def _info(rest: list[str]) -> None:
    from polyptych.cli._data_tables import print_info, print_reference

    name = _name(rest, "info")
    if rest:
        raise InputError("polyptych data info", f"'{rest[0]}' after the name", "one name", "leave it out")
    if name == "folder":
        print_reference(_console())
    else:
        print_info(name, _console())


def _describe(rest: list[str]) -> None:
    from polyptych.datasets._folder.describing import describe
    from polyptych.datasets.folder import Folder
    from polyptych.record import write_whole

    options = parse(DescribeArguments, rest, "data")
    root, path = options.folder, options.folder / "dataset.toml"
    if not root.is_dir():
        raise InputError(root, "no such folder", "the folder of your images and labels", "correct the path")
    if path.exists():
        raise InputError(path, "a file that exists", "a folder without a description, because nothing is overwritten",
                         "rename it, or edit it by hand")
    first = describe(root)
    write_whole(path, first.text.encode())
    for line in first.seen:
        print(line)
    try:
        config = Folder.Config(root=root)
        config.build(split="train", tasks=tuple(config.kinds()))
    except InputError as error:
        print(f"does not read yet: {error}")
    print(f"{path}: look at the lines with \"guess\", then")
    print(f"polyptych data verify folder --root {root}")
    print(f"polyptych train {root}")


def _verify(rest: list[str]) -> None:
    config, options = _options(VerifyArguments, rest, "verify")
    _verified(config, options)


def _prepare(rest: list[str]) -> None:
    from polyptych.data.preparation import conversion, derivation
    from polyptych.data.preparation.facts import offered
    from polyptych.data.preparation.normals import PlaneFit
    from polyptych.types import Intrinsics

    config, options = _options(PrepareArguments, rest, "prepare")
    fit = PlaneFit(window=options.window, stride=2 if options.window > 9 else 1)
    out = options.out or Path(f"{config.root}-prepared")
    conversion.require_new(out)
    archives = [*(_fetch(config) if options.download else []), *options.archives]
    for archive in archives:
        _unpack(archive, config.root)
    config = _found(config) if archives else config
    # Refuse what can be refused before anything that takes long.
    lens = None
    if options.normals and derivation.lacks_normals(config):
        lens = Intrinsics(*options.intrinsics) if options.intrinsics else derivation.find_camera(config)
    _verified(config, options)
    if lens is not None:
        with _progress("normals from depth") as report:
            print(f"normals, derived from depth: {derivation.derive_normals(config, fit, lens, report)}")
    tasks = options.tasks or tuple(offered(config).labels)
    with _progress("converting") as report:
        manifest = conversion.convert(config, out, tasks, options.size,
                                      lambda split, done, total: report(done, total))
    size = sum(manifest.files.values()) / 2**20
    print(f"{out}: {size:.1f} MiB, protocol {manifest.protocol}")
    print(f"polyptych train RECIPE --dataset prepared --dataset.root {out} --tasks {','.join(tasks)}")


def _convert(rest: list[str]) -> None:
    from polyptych.data.preparation.annotation_files import Options
    from polyptych.data.preparation.annotation_masks import convert_annotations

    options = parse(ConvertArguments, rest, "data", note="Options of `polyptych data convert FORMAT SOURCE DIR`:")
    classes = tuple(name for part in options.classes for name in part.split(",") if name)
    with _progress("drawing") as report:
        done = convert_annotations(options.format, options.source, options.out, Options(classes, options.files),
                                   options.unlabeled, options.images, report)
    print(f"{options.out}: {done.images} images, {len(done.classes)} classes ({', '.join(done.classes[:8])}"
          f"{', ...' if len(done.classes) > 8 else ''})")
    if done.left_out:
        print("left out: " + ", ".join(f"{count} x {what}" for what, count in sorted(done.left_out.items())))
    path = options.out / "dataset.toml"
    if done.written:
        print(f"{path}: written; look at it, then run\npolyptych data verify folder --root {options.out}")
    else:
        print(f"{path} exists and was not changed; it needs:\n\n{done.description}")


def _fixture(rest: list[str]) -> None:
    from polyptych.data.preparation.facts import fixtures

    name = _name(rest, "fixture")
    options = parse(FixtureArguments, rest, "data")
    layouts = fixtures(name)
    if not layouts:
        raise InputError(f"dataset {name}", "one without a miniature", "a dataset that has files", "choose another")
    layout = options.layout or next(iter(layouts))
    if layout not in layouts:
        raise InputError("--layout", f"'{layout}'", nearest(layout, layouts), "choose one")
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        raise InputError(options.folder, "something that exists", "a new or empty folder", "name another")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        layouts[layout](options.folder)
    except OSError as error:
        raise InputError(options.folder, f"{error.strerror or error} while writing", "a writable folder",
                         "name another") from error
    print(f"{options.folder}: {name}, layout {layout}, made-up images")
    undescribed = name == "folder" and not (options.folder / "dataset.toml").exists()
    print(f"polyptych data describe {options.folder}" if undescribed else
          f"polyptych data verify {name} --root {options.folder} --subset")


# -- steps -------------------------------------------------------------------------------------------------


def _verified(config: Any, options: VerifyArguments) -> Verification:
    """Verify and show the result.

    Raises:
        InputError: something is wrong; the table says what.
    """
    from polyptych.cli._data_tables import print_verification
    from polyptych.data.preparation.verification import merged, verify

    with _progress("opening files") as report:
        found = verify(config, options.tasks, options.quick, options.subset,
                       kept=_PICTURED if options.pictures else 0, progress=report)
    print_verification(config, found, _console())
    if options.pictures and found.samples:
        _write_sheet(config, found, options.pictures)
    if found.faults:
        count = len(found.faults)
        raise InputError(f"root of {config.name} ({config.root})",
                         f"{count} fault{'s' * (count > 1)} (the table above)", "all files, complete and undamaged",
                         " | ".join(dict.fromkeys(fault.do for fault, _ in merged(found.faults)[:3] if fault.do)))
    return found


def _write_sheet(config: Any, found: Verification, path: Path) -> None:
    from PIL import Image

    from polyptych.data.preparation.facts import offered
    from polyptych.data.preparation.verification import build_tasks
    from polyptych.record import writing
    from polyptych.reports.label_sheet import label_sheet

    tasks = build_tasks(config, offered(config), found.tasks)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label_sheet(found.samples, tasks)).save(path, format="PNG")
    print(f"{path}: {len(found.samples)} samples with their labels")


def _fetch(config: Any) -> list[Path]:
    from polyptych.data.preparation.downloads import download
    from polyptych.data.preparation.facts import about

    stated = about(config.name)
    plain = [file for file in stated.downloads if file.url] if stated else []
    if not plain:
        raise InputError("--download", f"{config.name}, whose files have no plain address", "files fetched by hand",
                         f"see `polyptych data info {config.name}`, then give them to --from")
    with _progress("downloading") as report:
        return [download(file.url, config.root / "archives" / file.file, file.sha256, report) for file in plain]


def _unpack(archive: Path, root: Path) -> None:
    from polyptych.data.preparation.archives import extract

    done = 0
    with _progress(f"unpacking {archive.name}") as report:
        def count(size: int) -> None:
            nonlocal done
            done += size
            report(done, 0)

        files = extract(archive, root, progress=count)
    print(f"{archive}: {len(files)} files")


def _found(config: Any) -> Any:
    """The dataset where it is after unpacking: at the root, or in a subfolder of it (NYUD_MT/)."""
    from polyptych.data.preparation.facts import offered

    try:
        offered(config)
        return config
    except InputError:
        for folder in sorted(path for path in config.root.iterdir() if path.is_dir()):
            below = dataclasses.replace(config, root=folder)
            try:
                offered(below)
            except InputError:
                continue
            return below
        raise


# -- the command line --------------------------------------------------------------------------------------


def _options(kind: Any, rest: list[str], command: str) -> tuple[Any, Any]:
    """The dataset's options and the command's, for ``polyptych data COMMAND NAME ...``."""
    from polyptych.data.preparation.facts import configure

    if rest and rest[0] in ("-h", "--help"):
        rest = ["nyuv2", *rest]  # options of the command are the same for all datasets
    name = _name(rest, command)
    options = parse(kind, rest, "data", default=kind(configure(name)),
                    note=f"Options of `polyptych data {command} {name}`:")
    config: Any = options.dataset
    tasks = tuple(task for part in options.tasks for task in part.split(",") if task)
    root = options.root or config.root
    if root is None:
        raise InputError(f"polyptych data {command} {name}", "no root", "--root, the folder of the data",
                         f"for instance `polyptych data {command} {name} --root data/{name}`")
    return dataclasses.replace(config, root=Path(root)), dataclasses.replace(options, tasks=tasks)


def _name(rest: list[str], command: str) -> str:
    """Take the name of a dataset from the arguments."""
    from polyptych.datasets._base import CATALOG

    if not rest or rest[0].startswith("-"):
        raise InputError(f"polyptych data {command}", "no dataset", f"one of {', '.join(CATALOG.names())}",
                         "see `polyptych data list`")
    if rest[0] not in CATALOG.names():
        raise InputError(f"dataset '{rest[0]}'", "an unknown name", nearest(rest[0], CATALOG.names()),
                         "see `polyptych data list`")
    return rest.pop(0)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _progress(title: str) -> Any:
    from polyptych.progress import counting

    return counting(title)
