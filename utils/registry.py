"""Registries of classes that are chosen by name on the command line: built-in ones and those of plugins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from utils.errors import OptionError

T = TypeVar("T")


class Registry(Mapping[str, type[T]]):
    """Classes by name. Built-in ones are imported on first use, so that listing names is cheap.

    Args:
        kind: what the names denote, for messages.
        built_in: the module that registers each built-in name.
        variants: whether a name may be followed by a colon and a variant, which the class interprets itself.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str], *, variants: bool = False) -> None:
        self.kind, self._variants = kind, variants
        self._modules = dict(built_in)
        self._found: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorate a class to add it.

        Raises:
            OptionError: the name is taken, or has characters not allowed in a flag's value.
        """
        if not name.replace("-", "").replace("_", "").isalnum():
            raise OptionError(f"{self.kind} {name!r}: names consist of letters, digits, '-' and '_'")

        def add(new: type[T]) -> type[T]:
            if name in self and self._modules.get(name) != new.__module__:
                raise OptionError(
                    f"{_where(new)} registers {self.kind} {name}, which already exists: {self._origin(name)}"
                )
            self._found[name] = new
            return new

        return add

    def _origin(self, name: str) -> str:
        return _where(self._found[name]) if name in self._found else self._modules[name].rpartition(".")[2] + ".py"

    def __getitem__(self, name: str) -> type[T]:
        """The class; an unknown name is an OptionError that lists the choices."""
        name = self._without_variant(name)
        if name not in self._found and name in self._modules:
            import_module(self._modules[name])
        if name not in self._found:
            raise OptionError(f"{self.kind} {name}: choose from {', '.join(self)}")
        return self._found[name]

    def _without_variant(self, name: str) -> str:
        return name.partition(":")[0] if self._variants else name

    def __contains__(self, name: object) -> bool:
        name = self._without_variant(str(name))
        return name in self._found or name in self._modules

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self._modules, *self._found))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _where(found: type) -> str:
    """The file that a class is defined in."""
    try:
        return Path(inspect.getfile(found)).name
    except (OSError, TypeError):
        return found.__module__
