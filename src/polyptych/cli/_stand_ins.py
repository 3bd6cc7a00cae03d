"""Help without the numerics: stand-ins for libraries that take seconds to import and that no help text needs.

The options of a component are the fields of its ``Config``, defined in a file that imports torch. To print them, torch
need not work; its names only have to exist, as base classes, decorators, or types. (Sphinx documents modules in the
same way, with ``autodoc_mock_imports``.) Stand-ins would break a process that goes on to compute, so they are only used
in one that prints a help text and ends.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import types
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

LIBRARIES = {"torch", "torchvision", "timm", "scipy", "matplotlib", "safetensors", "huggingface_hub"}
OFF = "POLYPTYCH_REAL_HELP"
"""Environment variable under which a help text is printed with everything imported."""


class StandIn:
    """Anything of such a library: it can be called, subscripted, inherited from and calculated with."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # As a decorator, it returns the decorated object unchanged.
        decorates = len(arguments) == 1 and not options and isinstance(arguments[0], (type, types.FunctionType))
        return arguments[0] if decorates else self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        return (type("StandInBase", (), {}),)  # a new one each time, or two such bases would be one base twice

    def __getitem__(self, key: Any) -> StandIn:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def _itself(self, *_: Any) -> StandIn:
        return self

    def _false(self, *_: Any) -> bool:
        return False

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _itself
    __or__ = __ror__ = __matmul__ = __neg__ = __enter__ = _itself
    __lt__ = __le__ = __gt__ = __ge__ = __exit__ = _false


class _Module(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012  every module may have submodules

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return importlib.metadata.version(self.__name__)
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
                  ) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in LIBRARIES else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> bool:
    """Put the stand-ins in place, unless the real libraries are wanted or already there."""
    if OFF in os.environ or LIBRARIES & set(sys.modules):
        return False
    sys.meta_path.insert(0, _Finder())
    return True


def begin_again(arguments: Sequence[str]) -> None:
    """Replace this process by one that has the real libraries: a component of another package needed them."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "polyptych", *arguments], os.environ | {OFF: "1"})
