"""From a backbone to a search space: capture, units, space, supermodel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from polyptych.errors import InputError
from polyptych.search.capture import capture
from polyptych.search.policy import Compilation, Norms, SpaceName
from polyptych.search.spaces import make_space
from polyptych.search.supermodel import Supermodel
from polyptych.search.units import Granularity, find_units


def compile(backbone: nn.Module, tasks: Sequence[str], *, space: SpaceName = "tree",
            granularity: Granularity | None = None, norms: Norms | None = None, skip: bool = True,
            pinned: Mapping[str, str] | None = None, size: tuple[int, int] | None = None, whole: Sequence[str] = (),
            any_size: bool = True) -> Supermodel:
    """A supermodel of any backbone, on which policies can be run, searched for and extracted.

    The backbone's weights are used as they are and keep their names; load them before or after.

    Args:
        backbone: takes an image (b 3 h w) and returns a tensor, or lists, tuples, dicts or Features of tensors.
        tasks: names of the tasks.
        space: which policies there are, :mod:`polyptych.search.spaces`.
        granularity: of the units; ``op`` by default for the space ``automtl``, else ``region``.
        norms: ``task`` gives every task norms of its own everywhere, as AutoMTL does (the default there); ``stream``
            treats them as part of their units (the default elsewhere).
        skip: whether tasks may leave units out, where that is possible.
        pinned: for patterns of unit names (``layer1.*``), the only choice that is allowed there.
        size, whole, any_size: as of :func:`polyptych.search.capture.capture`.

    Raises:
        InputError: the backbone cannot be captured; a pattern that no unit fits.
    """
    chosen = granularity or ("op" if space == "automtl" else "region")
    how = Compilation(chosen, any_size, tuple(whole), size)
    captured = capture(backbone, size=size, whole=whole, any_size=any_size)
    units = find_units(captured, chosen)
    if not units:
        raise InputError(f"the network {type(backbone).__name__}", "no weights that its result depends on",
                         "at least one layer with weights", "choose another network")
    return Supermodel(captured, units, make_space(space, units, tuple(tasks), how, norms=norms, skip=skip,
                                                  pinned=pinned or {}))
