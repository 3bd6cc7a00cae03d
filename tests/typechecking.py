"""The type checker that tests put behind every annotation of the package, shapes included."""

from functools import wraps
from itertools import islice

from beartype import BeartypeConf, beartype
from torch import fx
from torch.fx._symbolic_trace import is_fx_tracing


def check(function):
    """Checks every call, but for those of a network that is being captured: a proxy is no tensor."""
    checked = beartype(function, conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for static checkers

    @wraps(function)
    def call(*args, **kwargs):
        traced = is_fx_tracing() and holds_proxy((args, kwargs))
        return (function if traced else checked)(*args, **kwargs)

    return call


def holds_proxy(value, depth=3) -> bool:
    """Whether there is one among the first parts of the value, or of its parts."""
    if isinstance(value, fx.Proxy):
        return True
    if isinstance(value, dict):
        value = value.values()
    elif hasattr(value, "maps"):
        value = value.maps
    elif not isinstance(value, list | tuple):
        return False
    return depth > 0 and any(holds_proxy(part, depth - 1) for part in islice(value, 8))
