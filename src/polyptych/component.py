"""The mechanism behind every choice: one class, its nested frozen ``Config``, and a catalog that is the folder.

A component is a class in a file of its own. Its options are the fields of its nested ``Config``; the docstring under
a field is its help on the command line. ``Config.build`` constructs the class: the user's choices live in the Config,
facts from elsewhere (channels, tasks) are arguments of ``build``. The stem of the file is the name on the command line,
so a new file in ``decoders/`` is a new decoder everywhere, and only the chosen file is imported. Other packages add
components through entry points, for instance ``[project.entry-points."polyptych.decoders"]``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from polyptych.errors import InputError, nearest

NUMERICS = 1
"""Version of the numbers that training and evaluation produce. It goes up by one when a change alters them for most
runs; the records of comparisons (``--records``) are then trained again. A change that affects one component alone
raises that component's own :attr:`Component.numerics`, so that the other rows of a table remain valid."""


class Component:
    """Base of everything that can be chosen. A subclass without options need not write a ``Config``.

    Attributes:
        numerics: version of the numbers that runs with this component produce, see :data:`NUMERICS`.
        tuned: the one option that ``polyptych compare --tune`` tunes, and the values to try, the most promising first;
            the default is always tried. None if there is no such option.
    """

    numerics: ClassVar[int] = 1
    tuned: ClassVar[tuple[str, tuple[Any, ...]] | None] = None

    @dataclass(frozen=True, kw_only=True)
    class Config:
        owner: ClassVar[type[Any]]  # the component class, which `build` constructs with arguments of its kind
        catalog: ClassVar[Catalog[Any]]

        @property
        def name(self) -> str:
            """The name on the command line and in run.json."""
            return self.owner.component_name()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "Config" not in cls.__dict__:
            inherited = cls.Config
            cls.Config = dataclass(frozen=True, kw_only=True)(  # type: ignore[misc]
                type("Config", (inherited,), {"__doc__": inherited.__doc__, "__module__": cls.__module__,
                                              "__qualname__": f"{cls.__qualname__}.Config"}))
        cls.Config.owner = cls

    @classmethod
    def tuned_option(cls, config: Any, standard_weights: Mapping[str, float]) -> tuple[str, tuple[Any, ...]] | None:
        """:attr:`tuned`; overridden if the values depend on other options or on the tasks' usual weights."""
        return cls.tuned

    @classmethod
    def component_name(cls) -> str:
        return _plugin_names.get(cls, cls.__module__.rpartition(".")[2])


Kind = TypeVar("Kind", bound=Component)
_plugin_names: dict[type, str] = {}


@dataclass(frozen=True)
class Summary:
    """One line of ``polyptych list``: what the component is and where it comes from."""

    name: str
    summary: str
    source: str


@dataclass(frozen=True)
class Catalog(Generic[Kind]):
    """The components of one kind: the modules of a package, plus other packages' entry points of the same name.

    Args:
        kind: singular noun for messages, ``decoder``.
        package: the package whose modules are the components, ``polyptych.decoders``.
    """

    kind: str
    package: str

    def names(self) -> list[str]:
        """Every valid name, without importing any of the modules. Files that begin with ``_`` are not components."""
        own = [p.stem for p in self._folder().glob("*.py") if not p.stem.startswith("_")]
        return sorted({*own, *self._plugins()})

    def load(self, name: str) -> type[Kind]:
        """Import the one module called ``name`` and return its component.

        Raises:
            InputError: no such component; the message lists the nearest names.
        """
        if name.isidentifier() and not name.startswith("_") and (self._folder() / f"{name}.py").is_file():
            module = importlib.import_module(f"{self.package}.{name}")
            found = [value for value in vars(module).values()
                     if isinstance(value, type) and issubclass(value, Component)
                     and value.__module__ == module.__name__ and not value.__name__.startswith("_")]
            if len(found) != 1:
                raise TypeError(f"{module.__file__} must define exactly one public component, defines {found}")
            return cast(type[Kind], found[0])  # a package holds components of one kind
        if plugin := self._plugins().get(name):
            component = plugin.load()
            _plugin_names[component] = name
            return component
        raise InputError(f"{self.kind} '{name}'", "an unknown name", nearest(name, self.names()),
                         f"see `polyptych list {self.package.rpartition('.')[2]}`")

    def describe(self, name: str) -> Summary:
        """First line and ``Source:`` line of the module's docstring, read without importing it."""
        path = self._folder() / f"{name}.py"
        if not path.is_file():
            path = Path(importlib.util.find_spec(self._plugins()[name].module).origin)  # type: ignore[union-attr,arg-type]
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        sources = [line.removeprefix("Source:").strip() for line in text.splitlines() if line.startswith("Source:")]
        return Summary(name, text.partition("\n")[0], "; ".join(sources))

    def _folder(self) -> Path:
        return _package_folder(self.package)

    def _plugins(self) -> dict[str, EntryPoint]:
        return _installed(self.package, tuple(sys.path))


@cache
def _installed(group: str, where: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Entry points of the packages in these folders. Finding them reads a file of every package: too slow for every
    name."""
    return {point.name: point for point in entry_points(group=group)}


@cache
def _package_folder(package: str) -> Path:
    # Without importing the package: listing must stay fast.
    relative = package.split(".")[1:]
    return Path(__file__).parent.joinpath(*relative)


