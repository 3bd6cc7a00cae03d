"""The type checker that tests put behind every annotation of the package, shapes included."""

from functools import wraps

from beartype import BeartypeConf, beartype
from torch import fx


def check(function):
    """Checks every call, but for those of a network that is being captured: a proxy is no tensor."""
    checked = beartype(function, conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for static checkers

    @wraps(function)
    def call(*args, **kwargs):
        return (function if holds_proxy((args, kwargs)) else checked)(*args, **kwargs)

    return call


def holds_proxy(value) -> bool:
    if isinstance(value, fx.Proxy):
        return True
    if isinstance(value, list | tuple):
        return any(map(holds_proxy, value))
    if isinstance(value, dict):
        return any(map(holds_proxy, value.values()))
    return holds_proxy(getattr(value, "maps", None)) if hasattr(value, "__dataclass_fields__") else False
