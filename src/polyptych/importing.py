"""Import published checkpoints: recognize the network by keys and shapes, rename the tensors, write a run folder.

One module per repository in :mod:`polyptych.published` describes what its files look like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from polyptych.balancers.fixed import Fixed
from polyptych.checkpoint import TrainingState, fill, save_state
from polyptych.datasets._base import Dataset
from polyptych.datasets.folder import Folder
from polyptych.devices import shapes_only
from polyptych.errors import InputError, nearest
from polyptych.logbook import environment
from polyptych.networks import Network
from polyptych.passes import EpochMeans
from polyptych.prediction.model import RunModel
from polyptych.prediction.predictor import Inference, Predictor
from polyptych.published._base import CATALOG, Form, Parts, Repository, Seen, Size
from polyptych.recipes._catalog import load as load_recipe
from polyptych.record import write_json
from polyptych.renaming import pattern, renamed
from polyptych.run import Facts, Run, buildable, numerics, write_run
from polyptych.tasks._base import CATALOG as TASKS
from polyptych.tasks._base import Task
from polyptych.types import LabelInfo
from polyptych.weight_files import read_weights, without_prefixes

PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.")
"""Prefixes that training programs put before every key."""
BESIDE = ("criterion.", "logsigma", "loss.", "metrics.")
"""Beginnings of keys that training programs store next to the network, without these prefixes."""
ALSO_CALLED = {"depth": "inverse_depth"}
"""Tasks that repositories name differently: what they call depth on Cityscapes is inverse depth."""
FOLDED = {"saliency": 2}
"""Channels of a softmax that become one logit."""
UNITS = {"depth": "m"}
ORIGIN = "origin.json"
SHOWN = 8  # maximum number of keys in a message


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the user says about the file.

    Attributes:
        repository: a name in ``polyptych list published``, needed if several have networks with the same keys.
        tasks: our names in the order of the network.
        classes: their names, by task.
        size: height and width of the training images.
        assume: values that the file does not hold, under the authors' names (``chan_nheads``).
        dataset: the data that the network was trained on; None takes the authors' dataset with as many classes.
        numbered: number the classes if their names are unknown.
    """

    repository: str = ""
    tasks: tuple[str, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: Size | None = None
    assume: Mapping[str, float] = field(default_factory=dict)
    dataset: Dataset.Config | None = None
    numbered: bool = False


@dataclass
class Imported:
    """A checkpoint under our names.

    Attributes:
        tensors: of the network, ``mean`` and ``std`` among them.
        facts: facts about the labels; the protocol is empty if the data is not on this machine.
        left_out: keys of the file that are not weights of the network.
        left_over: unknown keys.
    """

    where: Path
    repository: type[Repository]
    form: Form
    run: Run
    facts: Facts
    tensors: dict[str, Tensor]
    left_out: list[str]
    left_over: list[str]

    @property
    def tasks(self) -> dict[str, Task]:
        return self.run.build_tasks(self.facts.labels)

    def network(self) -> Network:
        """The network with its weights, in evaluation mode; in double precision if the file is."""
        network = self.run.build_network(self.tasks, pretrained=False)
        if any(tensor.dtype == torch.float64 for tensor in self.tensors.values()):
            network.double()
        fill(network, self.tensors, "", self.where)
        return network.eval()

    def lines(self) -> list[str]:
        """Lines for the terminal that say what was recognized."""
        channels = {name: task.channels for name, task in self.tasks.items()}
        found = [f"{self.form.name} of {self.repository.component_name()} ({self.repository.page}): "
                 f"{', '.join(f'{name} ({number})' for name, number in channels.items())}",
                 f"data: {self.run.dataset.name}{'' if self.facts.protocol else ', not seen'}; "
                 f"images of {'any size' if self.run.size is None else '{}x{}'.format(*self.run.size)}",
                 f"license: {self.repository.license}"]
        if self.left_out:
            found.append(f"left out, no weights of the network: {_some(self.left_out)}")
        if self.left_over:
            found.append(f"left over, unknown: {_some(self.left_over)}")
        return found

    def origin(self) -> dict[str, Any]:
        """Where the weights come from, as JSON."""
        return {"file": self.where.name, "sha256": _digest(self.where) if self.where.is_file() else "",
                "repository": self.repository.page, "network": self.form.name, "license": self.repository.license,
                "rows": [asdict(row) for row in self.repository.rows if row.network.startswith(self.form.name)],
                "left_over": self.left_over}


def read_published(path: Path, said: Said | None = None) -> Imported:
    """A published checkpoint, recognized and converted.

    Raises:
        InputError: it cannot be read, is none of the known networks, lacks tensors, or is ambiguous; the message then
            names the option that settles it.
    """
    return converted(read_weights(path), path, said or Said())


def load_published(path: Path | str, *, repository: str = "", tasks: Sequence[str] = (),
                   classes: Mapping[str, Sequence[str]] | None = None, size: Size | None = None,
                   assume: Mapping[str, float] | None = None, dataset: Dataset.Config | None = None,
                   **inference: Any) -> Predictor:
    """A published checkpoint as a network that predicts: ``load_published("InvPT.pth.tar").predict("photo.jpg")``.

    Args:
        repository: a name in ``polyptych list published``, needed if networks of several have the same keys.
        tasks: this library's names in the order of the network, needed if the file does not hold them.
        classes: class names by task; by default those of the authors' data, or numbers.
        size: height and width of the training images, needed if the file does not hold them.
        assume: values that the file does not hold, under the authors' names: ``{"chan_nheads": 16}``.
        dataset: the data that the network was trained on.
        inference: see :func:`polyptych.load`.

    Raises:
        InputError: as :func:`read_published`.
    """
    found = read_published(Path(path), Said(
        repository=repository, tasks=tuple(tasks), size=size, assume=assume or {}, dataset=dataset, numbered=True,
        classes={task: tuple(names) for task, names in (classes or {}).items()}))
    model = RunModel(found.network(), found.tasks, found.run.size, f"{found.form.name} ({Path(path).name})")
    return Predictor(model, Inference(**inference))


def write_import(found: Imported, folder: Path) -> None:
    """Write a run folder that can be evaluated, used for prediction, exported, profiled, and continued from step 0
    (``polyptych resume``).

    Raises:
        InputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise InputError("--out", str(folder), "a folder that does not exist yet", "choose another name")
    run, tasks, network = found.run, found.tasks, found.network()
    (folder / "checkpoints").mkdir(parents=True)
    balancer = run.build_balancer(tasks)
    epoch = EpochMeans(tuple(tasks), torch.device("cpu"))
    save_state(folder / "checkpoints" / "last.safetensors", TrainingState(
        network=network, balancer=balancer, optimizer=run.optimizer.build(network, balancer),
        scaler=torch.amp.GradScaler("cpu", enabled=run.execution.precision == "float16"),
        average=None, progress={"epoch": epoch.saved()}))
    write_run(folder / "run.json", run, found.facts)
    write_json(folder / "environment.json", environment() | {"numerics": numerics(run)})
    write_json(folder / ORIGIN, found.origin())


def converted(state: dict[str, Tensor], where: Path, said: Said) -> Imported:
    """Turn tensors under the authors' names into a run and tensors under ours. See :func:`read_published`."""
    state, prefix = without_prefixes(state, PREFIXES, BESIDE)
    seen = Seen(where, state, said.size, said.assume)
    repository, form = _recognized(seen, prefix, said.repository)
    left = [*repository.left_out, *form.left_out]
    left_out = [key for key in state if any(pattern(text).fullmatch(key) for text in left)]
    state = {key: value for key, value in state.items() if key not in set(left_out)}
    _find_tasks(seen, repository, form, said.tasks)
    run, labels, protocol = _home(seen, repository, form, said)
    parts = form.parts(seen)
    if unknown := said.assume.keys() - seen.asked:
        raise InputError(f"--assume {min(unknown)}", f"nothing that {form.name} asks for",
                         f"one of {', '.join(sorted(seen.asked)) or '(none)'}", "leave it out")
    run = _with_parts(run, parts, labels, said.size)
    tensors, left_over = renamed(state, form.rules, seen.tasks, parts.sizes)
    if form.finish is not None:
        try:
            form.finish(tensors, seen)
        except KeyError as error:
            raise InputError(where, f"{form.name} without {error}", "all tensors of the network",
                             "use the whole file") from None
    double = any(value.dtype == torch.float64 for value in tensors.values())
    kind = torch.float64 if double else torch.float32
    mean, std = repository.normalization
    for name, values in (("mean", mean), ("std", std)):  # not via float32, which would spoil double precision
        tensors[name] = torch.tensor(values, dtype=kind).view(3, 1, 1)
    found = Imported(where, repository, form, run, Facts(protocol, labels), tensors, left_out, left_over)
    _complete(found, kind)
    return found


def _recognized(seen: Seen, prefix: str, wanted: str) -> tuple[type[Repository], Form]:
    """The network that the keys belong to."""
    if wanted and wanted not in CATALOG.names():
        raise InputError("--repository", wanted, nearest(wanted, CATALOG.names()), "see `polyptych list published`")
    fitting = [(repository, form) for repository in map(CATALOG.load, CATALOG.names()) for form in repository.forms
               if form.fits(seen)]
    if not fitting:
        raise InputError(seen.where, f"no network that is known here ({len(seen.shapes)} tensors: "
                         f"{_some(list(seen.shapes), 4)})", "a checkpoint of one that `polyptych list published` names",
                         "use the whole file as the authors' program saved it")
    chosen = [pair for pair in fitting if not wanted or pair[0].component_name() == wanted]
    if not chosen:
        names = sorted({repository.component_name() for repository, _ in fitting})
        raise InputError("--repository", wanted, f"{' or '.join(names)}, whose {fitting[0][1].name} this is",
                         "name one of these, or leave it out")
    if len(chosen) > 1:  # networks that several repositories have: the training program's prefix, or tasks, tell them
        chosen = [pair for pair in chosen if not prefix or prefix.endswith(pair[0].prefix)] or chosen
        chosen = [pair for pair in chosen if _knows_all(pair[0], pair[1], seen)] or chosen
    if len({repository for repository, _ in chosen}) > 1:
        names = sorted(repository.component_name() for repository, _ in chosen)
        raise InputError(seen.where, f"{chosen[0][1].name}, which {' and '.join(names)} have under the same keys and "
                         "train on images that are normalized differently", "the repository that trained it",
                         f"add --repository {' or --repository '.join(names)}")
    return chosen[0]


def _knows_all(repository: type[Repository], form: Form, seen: Seen) -> bool:
    named = [name for text in form.outputs if "{task}" in text for name in seen.values(text, "task")]
    return all(name in repository.order for name in named)


def _find_tasks(seen: Seen, repository: type[Repository], form: Form, wanted: tuple[str, ...]) -> None:
    """The tasks of the file, in the order of the network, with their channels."""
    first = form.outputs[0]
    if "{task}" in first:
        channels = {name: seen.shape(text.replace("{task}", name))[0]
                    for text in reversed(form.outputs) for name in seen.values(text, "task")}
        final = seen.values(first, "task")
        # The last pattern names auxiliary tasks too, so it gives the order of all tasks.
        found = [name for text in reversed(form.outputs) for name in seen.values(text, "task")]
        theirs = _in_order(list(dict.fromkeys(found)), repository.order)
    else:
        numbers = sorted(seen.values(first, "i"), key=int) if "{i}" in first else [""]
        rows = tuple(seen.shape(first.replace("{i}", number))[0] for number in numbers)
        theirs = form.tasks(rows) if form.tasks else []
        if len(theirs) != len(rows):
            theirs = [f"task {number + 1}" for number in range(len(rows))]
        channels, final = dict(zip(theirs, rows, strict=True)), theirs
    ours = [repository.names.get(name, "") for name in theirs]
    if wanted:
        if sorted(wanted) == sorted(ours):  # the same tasks: the user gives their order
            theirs = [theirs[ours.index(name)] for name in wanted]
        elif len(wanted) != len(theirs):
            raise InputError("--tasks", ",".join(wanted), f"{len(theirs)} tasks, which the file has: "
                             f"{', '.join(theirs)}", "name them in this order")
        ours = list(wanted)
    if unknown := [name for name, own in zip(theirs, ours, strict=True) if not own]:
        raise InputError(seen.where, f"{form.name} with {_some(unknown)}, whose meaning it does not say"
                         f" ({', '.join(f'{name}: {channels[name]} channels' for name in theirs)})",
                         f"a name for each task: {', '.join(sorted(set(repository.names.values())))}",
                         f"add --tasks with {len(theirs)} names, separated by commas, in this order")
    seen.tasks = dict(zip(theirs, ours, strict=True))
    seen.channels = channels
    seen.auxiliary = tuple(seen.tasks[name] for name in theirs if name not in final)


def _in_order(found: list[str], order: Sequence[str]) -> list[str]:
    """Tasks in the order of the network, which is that of the file, unless its names were sorted (safetensors does
    this)."""
    if found == sorted(found) and all(name in order for name in found):
        return sorted(found, key=list(order).index)
    return found


# -- data and training -------------------------------------------------------------------------------------------------


def _home(seen: Seen, repository: type[Repository], form: Form,
          said: Said) -> tuple[Run, dict[str, LabelInfo], str]:
    """A run that trains as the authors do on the data of the network, with the labels and the protocol of the data. If
    the data has inverse depth, that is what the task ``depth`` means."""
    recipes = [load_recipe(name)() for name in form.recipes or repository.recipes]
    wanted = said.dataset
    for recipe in recipes if not said.classes else ():
        if wanted is not None and type(wanted) is not type(recipe.dataset):
            continue
        for dataset in _variants(wanted or recipe.dataset):
            names, known = _as_in(seen.tasks, recipe), dataset.known_labels()
            if known and _mismatch(names, seen.channels, known, recipe) is None:
                seen.rename(names)
                return replace(recipe, dataset=dataset), *_labels_on_disk(dataset, names, known, wanted is not None)
    recipe = next((each for each in recipes if set(_as_in(seen.tasks, each).values()) <= each.tasks.keys()), recipes[0])
    if wanted is not None:
        seen.rename(_as_in(seen.tasks, recipe) if type(wanted) is type(recipe.dataset) else seen.tasks)
        opened = wanted.build(split="train", tasks=tuple(seen.tasks.values()))
        if (wrong := _mismatch(seen.tasks, seen.channels, opened.labels, recipe)) is not None:
            raise InputError(seen.where, f"{wrong[1]} channels for '{wrong[0]}'", f"{wrong[2]}, as the data "
                             f"({wanted.name}) have", "choose the data that it was trained on with --dataset")
        return (replace(recipe, dataset=wanted), {name: opened.labels[name] for name in seen.tasks.values()},
                opened.protocol)
    return replace(recipe, dataset=Folder.Config()), _numbered(seen, form, recipe, recipes, said), ""


def _variants(dataset: Dataset.Config) -> Iterable[Any]:
    """The dataset as it is, then with every other number of classes that it offers."""
    yield dataset
    options = get_args(get_type_hints(type(dataset)).get("classes"))
    yield from (replace(dataset, classes=number) for number in options)  # type: ignore[call-arg]


def _as_in(tasks: Mapping[str, str], recipe: Run) -> dict[str, str]:
    """Tasks under the names of a recipe."""
    def name_in(own: str) -> str:
        other = ALSO_CALLED.get(own, own)
        return other if other in recipe.tasks and own not in recipe.tasks else own

    return {name: name_in(own) for name, own in tasks.items()}


def _kind(name: str, recipe: Run) -> type[Task]:
    config = recipe.tasks.get(name)
    return config.owner if config is not None else TASKS.load(recipe.dataset.kinds().get(name, name))


def _mismatch(tasks: Mapping[str, str], channels: Mapping[str, int], known: Mapping[str, LabelInfo],
              recipe: Run) -> tuple[str, int, int] | None:
    """The first task whose labels do not fit: its name, its channels in the file, and the channels needed."""
    for name, own in tasks.items():
        if own not in known:
            return own, channels[name], 0
        needed = getattr(_kind(own, recipe), "channels", None) or len(known[own].classes)
        if channels[name] not in (needed, FOLDED.get(own)):
            return own, channels[name], needed
    return None


def _labels_on_disk(dataset: Dataset.Config, tasks: Mapping[str, str], known: Mapping[str, LabelInfo],
                    asked: bool) -> tuple[dict[str, LabelInfo], str]:
    """Labels and protocol of data on this machine; otherwise the known labels and no protocol."""
    try:
        opened = dataset.build(split="train", tasks=tuple(tasks.values()))
    except InputError:
        if asked and getattr(dataset, "root", None) != getattr(type(dataset)(), "root", None):
            raise  # a place that the user named
        return {own: known[own] for own in tasks.values()}, ""
    return {own: opened.labels[own] for own in tasks.values()}, opened.protocol


def _numbered(seen: Seen, form: Form, recipe: Run, recipes: Sequence[Run], said: Said) -> dict[str, LabelInfo]:
    """Labels without data: with class names that the user gives, or else with numbers."""
    labels, with_classes = {}, {}
    for name, own in seen.tasks.items():
        fixed = getattr(_kind(own, recipe), "channels", None)
        channels = seen.channels[name]
        if fixed is None:
            with_classes[own] = channels
        elif channels not in (fixed, FOLDED.get(own)):
            raise InputError(seen.where, f"{channels} channels for '{own}'", str(fixed), "name the tasks with --tasks, "
                             "in the order of the file")
        names = said.classes.get(own, tuple(f"class {n}" for n in range(channels)) if fixed is None else ())
        if fixed is None and len(names) != channels:
            raise InputError(f"--classes {own}", f"{len(names)} names", f"{channels}, the channels of its prediction",
                             "name every class once")
        labels[own] = LabelInfo(classes=names, unit=UNITS.get(own, ""))
    if unknown := said.classes.keys() - with_classes.keys():
        raise InputError(f"--classes {min(unknown)}", "no task with classes", f"one of {', '.join(with_classes)}",
                         "name one of these tasks, or leave it out")
    if not (said.numbered or said.classes):
        have = "; ".join(f"{each.dataset.name} " + ", ".join(
            f"{len(info.classes)} of {task}" for task, info in each.dataset.known_labels().items() if info.classes)
            for each in recipes)
        came = ", ".join(f"{number} classes of {task}" for task, number in with_classes.items())
        example = next(iter(with_classes), "semseg")
        raise InputError(seen.where, f"{form.name} with {came or 'tasks'} that none of its authors' data have ({have})",
                         "the data that it was trained on", "add --dataset NAME (your own: --dataset folder "
                         f"--dataset.root DIR), --classes {example}=NAME,NAME,..., or --dataset none, which numbers "
                         "the classes")
    return labels


def _with_parts(run: Run, parts: Parts, labels: Mapping[str, LabelInfo], size: Size | None) -> Run:
    """The run with the network of the file."""
    tasks = {name: run.tasks.get(name) or _kind(name, run).Config() for name in labels}
    balancer = run.balancer
    if isinstance(balancer, Fixed.Config):
        balancer = replace(balancer, weights={task: weight for task, weight in balancer.weights.items()
                                              if task in tasks})
    return replace(run, tasks=tasks, backbone=parts.backbone, encoder=parts.encoder, decoder=parts.decoder,
                   balancer=balancer, size=parts.size or size or run.size)


def _complete(found: Imported, kind: torch.dtype) -> None:
    """Fill in tensors that a file may lack, and refuse an incomplete network.

    Raises:
        InputError: tensors are missing or of another shape.
    """
    expected = _shapes(found)
    for name, value in expected.items():
        if name in found.tensors:
            continue
        if name.endswith("num_batches_tracked"):  # older than torch 0.4.1
            found.tensors[name] = torch.zeros((), dtype=torch.int64)
        elif name in found.form.invented:
            found.tensors[name] = torch.zeros(value.shape, dtype=kind)
    missing = [name for name in expected if name not in found.tensors]
    if missing:
        raise InputError(found.where, f"{found.form.name} without {len(missing)} of {len(expected)} tensors: "
                         f"{_some(missing, 3)}" + (f"; it has {_some(found.left_over, 3)}" if found.left_over else ""),
                         "all tensors of the network", "use the whole file")
    wrong = [name for name, value in expected.items() if found.tensors[name].shape != value.shape]
    if wrong:
        raise InputError(found.where, f"'{wrong[0]}' of shape {tuple(found.tensors[wrong[0]].shape)}"
                         f" ({len(wrong)} of {len(expected)} tensors do not fit)",
                         f"shape {tuple(expected[wrong[0]].shape)} in {found.form.name} for "
                         f"{', '.join(found.run.tasks)}", "use a file whose tasks and sizes go together")
    found.left_over += [name for name in found.tensors if name not in expected]
    found.tensors = {name: _plain(found.tensors[name], value) for name, value in expected.items()}


def _shapes(found: Imported) -> dict[str, Tensor]:
    """The tensors that the network has, without memory if it can be built that way (MTAN's encoder cannot: it compares
    values)."""
    with buildable(found.where):
        try:
            with shapes_only():
                return found.run.build_network(found.tasks, pretrained=False).state_dict()
        except NotImplementedError:
            return found.run.build_network(found.tasks, pretrained=False).state_dict()


def _plain(tensor: Tensor, expected: Tensor) -> Tensor:
    """Convert half precision to single, keep double, and give integers the type of ours."""
    if not expected.is_floating_point():
        return tensor.to(expected.dtype)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _some(names: Sequence[str], most: int = SHOWN) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
