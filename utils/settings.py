"""Settings own their flags: a dataclass field declares its default, range, choices and help once.

    @settings("optimizer and schedule")
    @dataclass(frozen=True)
    class OptimizerSettings:
        lr: float = option(1e-5, "learning rate of the CLIP towers", above=0)

Parser, checks, `--help`, configuration files and the typed object are derived from it. No heavy imports.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True)
class Flag:
    """One flag; its type is that of its default, a tuple takes several values.

    Attributes:
        choices: allowed values; a registry's names are looked up when a value is checked.
        low, high: inclusive bounds; `above` and `below` are exclusive.
        length: length of a tuple; None for any.
        resumable: a run may be resumed with another value, because results don't change beyond rounding.
        tested: `test.py` reads it from a run's configuration, like all settings of the run's backbone and heads.
        path: a file or folder, stored as an absolute path; "or name": a name unless such a file exists; "or folder or
            name": may also be a folder, if written with a slash.
        idle: a flag of the published code without effect here; accepted, and stored only if given.
        only: choices, one of which a run must use for the flag to have an effect; empty: always has one.
        group: its heading in `--help`.
        owner: the settings class.
    """

    name: str
    default: Any
    help: str
    choices: Collection[str] = ()
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    length: int | None = None
    resumable: bool = False
    tested: bool = False
    path: bool | str = False
    idle: bool = False
    only: Collection[str] = ()
    group: str = ""
    owner: str = ""

    @property
    def bounds(self) -> str:
        """The allowed range in words; "" if there are no bounds."""
        words = [
            f"at least {self.low:g}" if self.low > -math.inf else "",
            f"above {self.above:g}" if self.above > -math.inf else "",
            f"at most {self.high:g}" if self.high < math.inf else "",
            f"below {self.below:g}" if self.below < math.inf else "",
        ]
        return " and ".join(word for word in words if word)

    def names_path(self, value: str) -> bool:
        """Whether a value is a file or folder rather than a name."""
        if self.path is not True and not Path(value).is_file():
            folder = "folder" in str(self.path) and os.path.basename(value) != value  # noqa: PTH119
            return folder and Path(value).is_dir()
        return bool(self.path)

    def checked(self, value: Any, where: str) -> Any:
        """Convert a value to the flag's type and check it; messages name `where` it was given.

        Raises:
            OptionError: it has the wrong type, or isn't allowed.
        """
        if isinstance(self.default, tuple):
            if not isinstance(value, list | tuple) or (self.length and len(value) != self.length):
                raise OptionError(f"{where}: expected {self.length or 'some'} numbers, found {reprlib.repr(value)}")
            return tuple(self._scalar(item, self.default[0], where) for item in value)
        return self._scalar(value, self.default, where)

    def _scalar(self, value: Any, like: Any, where: str) -> Any:
        if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
            with suppress(OverflowError):
                value = float(value)
        if isinstance(like, float) and isinstance(value, str):  # YAML reads 1e-5 as a string
            with suppress(ValueError):
                value = float(value)
        if type(value) is not type(like):
            raise OptionError(f"{where}: expected {type(like).__name__}, found {reprlib.repr(value)}")
        if self.choices and value not in self.choices:
            raise OptionError(f"{where} {value}: choose from {', '.join(self.choices)}")
        if not isinstance(value, str | bool):
            if not math.isfinite(value):
                raise OptionError(f"{where} {value}: must be a finite number")
            if not (self.low <= value <= self.high and self.above < value < self.below):
                raise OptionError(f"{where} {value}: must be {self.bounds}")
        return value


_PLAIN = ("bool", "int", "float", "str")
FLAGS: dict[str, Flag] = {}  # of all declared settings


def option(default: Any, help: str, **rules: Any) -> Any:
    """Declare a field of a settings class; `rules` are attributes of `Flag`."""
    return field(default=default, metadata={"help": help, **rules})


def settings(group: str) -> Callable[[type[T]], type[T]]:
    """Decorate a dataclass to declare its fields as flags under a heading of `--help`.

    Raises:
        OptionError: another class has a flag of the same name, or a field isn't an `option`.
    """

    def declare(owner: type[T]) -> type[T]:
        name = f"{owner.__module__}.{owner.__qualname__}"
        for item in fields(owner):  # type: ignore[arg-type]
            flag = _flag(item, group, name)
            if (other := FLAGS.get(flag.name)) and other.owner != name:
                raise OptionError(f"--{flag.name} is declared twice: by {other.owner} and by {name}")
            FLAGS[flag.name] = flag
        return owner

    return declare


def _flag(item: Field, group: str, owner: str) -> Flag:
    if "help" not in item.metadata or not isinstance(item.default, int | float | str | tuple):
        raise OptionError(f"{owner}.{item.name}: declare it as option(default, help), with a plain default")
    flag = Flag(item.name, item.default, group=group, owner=owner, **item.metadata)
    flag.checked(flag.default, f"{owner}.{item.name}, its default")
    if item.type in _PLAIN and type(flag.default).__name__ != item.type:
        found = type(flag.default).__name__
        raise OptionError(f"{owner}.{item.name}: declared as {item.type}, but its default is a {found}")
    return flag


class Options(dict[str, Any]):
    """Values of all flags, also available as attributes and as typed settings objects."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def of(self, owner: type[T]) -> T:
        """The settings object of a class, with defaults for missing flags."""
        return owner(**{item.name: self[item.name] for item in fields(owner) if item.name in self})  # type: ignore[arg-type]


def own_settings(kind: Any, of: Callable[[type], Any]) -> Any:
    """The settings of a registered class, by `Options.of`; None if it has none."""
    return None if kind.Settings is None else of(kind.Settings)
