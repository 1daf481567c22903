"""Resolving options: defaults, overridden by a configuration file, overridden by flags.

Every value is checked by its flag; the caller (`options.py`) checks combinations.
"""

from __future__ import annotations

import argparse
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from utils.errors import OptionError
from utils.plugins import load_plugins
from utils.settings import FLAGS, Flag, Options

# Other keys in the authors' configs.yaml: how their program was launched.
_NAMESPACE = {"distributed", "training", "resume"}


class _Loader(yaml.SafeLoader):
    """A safe loader that also builds tuples."""


def _tuple(loader: _Loader, node: Any) -> tuple:
    return tuple(loader.construct_sequence(node))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def defaults() -> Options:
    """Defaults of all flags except those without effect."""
    return Options({name: flag.default for name, flag in FLAGS.items() if not flag.idle})


def add_flags(parser: argparse.ArgumentParser, headings: Sequence[str]) -> None:
    """Add all flags under their headings: the given headings in this order, then any others."""
    for heading in dict.fromkeys((*headings, *(flag.group for flag in FLAGS.values()))):
        group = parser.add_argument_group(heading)
        for flag in FLAGS.values():
            if flag.group == heading:
                _add(group, flag)


def command_parser(name: str, doc: str | None, **more: Any) -> argparse.ArgumentParser:
    """The parser of a command other than train.py and test.py, for `parse`.

    Args:
        name: the command's module.
        doc: the module's docstring, shown verbatim in the help.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        **more,
    )


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Add `--plugin` to the parser of a command that reads runs or data sets."""
    parser.add_argument("--plugin", metavar="FILE", help="your Python file, as for train.py (default: the run's)")


def add_flags_of_run(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add some flags to the parser of a command that reads a run; they are None unless given."""
    for name in names:
        _add(parser, FLAGS[name], "the run's")


def _add(group: argparse._ActionsContainer, flag: Flag, default: str = "") -> None:
    name, text = f"--{flag.name}", f"{flag.help} (default: {default or display_value(flag.default)})".replace("%", "%%")
    if isinstance(flag.default, bool):
        group.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
    elif isinstance(flag.default, tuple):
        group.add_argument(name, nargs=flag.length or "+", type=type(flag.default[0]), metavar="N", help=text)
    else:
        metavar = f"{{{','.join(flag.choices)}}}" if flag.choices else flag.name.upper()
        group.add_argument(name, type=type(flag.default), metavar=metavar, help=text)


def display_value(value: Any) -> str:
    """A flag's value as on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value == "" else str(value)


def named_plugins(argv: Sequence[str]) -> str:
    """The value of `--plugin` in some arguments; "" if absent."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", default="")
    with suppress(argparse.ArgumentError):  # reported when everything is parsed
        return parser.parse_known_args(list(argv))[0].plugin
    return ""


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The flags given on the command line, without defaults.

    Raises:
        OptionError: an unknown flag or a value of the wrong type.
    """
    load_plugins(named_plugins(argv))
    try:
        given, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise OptionError(str(error).removeprefix("argument ")) from None
    if unknown:
        raise OptionError(f"unknown argument {unknown[0]}; --help lists all flags (a plugin's flag needs --plugin)")
    return vars(given)


def resolve(
    given: Mapping[str, Any], special: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {}
) -> Options:
    """Defaults, overridden by `--config`, overridden by the given flags. Checks every value and loads plugins.

    Args:
        special: returns defaults that replace those of the flags, given the values in configuration and flags.

    Raises:
        OptionError: an unknown key, a wrong type or a value out of range.
    """
    plugins = load_plugins(given.get("plugin", ""))
    values = read_config(Path(given["config"])) if "config" in given else {}
    plugins = load_plugins(f"{values.get('plugin', '')},{plugins}")
    for name, value in given.items():
        if name in FLAGS:
            values[name] = FLAGS[name].checked(value, f"--{name}")
    options = Options({**defaults(), **special(values), **values, "plugin": plugins})
    for flag in FLAGS.values():  # a run may be read from another working directory
        if flag.path and options.get(flag.name) and flag.names_path(options[flag.name]):
            options[flag.name] = str(Path(options[flag.name]).absolute())
    return options


def forbidden_changes(options: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """The flags that a resumed run changes but mustn't; `--num_epoch` may grow."""
    changed = [name for name in options if name in old and options[name] != old[name]]
    fixed = [name for name in changed if name not in FLAGS or not FLAGS[name].resumable]
    return [name for name in fixed if name != "num_epoch" or options[name] < old[name]]


def resolve_tested(
    config: Path, given: Mapping[str, Any], owners: Callable[[Options], Iterable[type]] = lambda _: ()
) -> Options:
    """The options of a finished run, ours or the authors', that testing reads, overridden by the given flags.

    Other keys are ignored.

    Args:
        owners: returns further settings classes to read, given the options that are always read.

    Raises:
        OptionError: the file is missing or isn't a configuration.
    """
    given_plugins, content = load_plugins(given.get("plugin", "")), read_yaml(config)
    own = FLAGS["plugin"].checked(content.get("plugin", ""), f"configuration {config}: plugin")
    plugins = load_plugins(f"{load_plugins(own, config.parent)},{given_plugins}")
    content = {**content, **given}
    options = defaults()

    def read(names: Iterable[str]) -> None:
        for name in names:
            if name in content and name in FLAGS:
                where = f"--{name}" if name in given else f"configuration {config}: {name}"
                options[name] = FLAGS[name].checked(content[name], where)

    read(name for name, flag in FLAGS.items() if flag.tested)
    read(item.name for owner in owners(options) for item in fields(owner))
    options["plugin"] = plugins
    return options


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping; besides plain values only tuples (as in dumped argparse namespaces) are constructed.

    Raises:
        OptionError: the file is missing or isn't such a mapping.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise OptionError(f"configuration {file} can't be read: {error.strerror}") from None
    except Exception as error:  # PyYAML's constructors raise many types for a wrong tag
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"configuration {file} is not YAML: {reason}") from None
    if not isinstance(content, dict):
        raise OptionError(f"configuration {file}: expected 'flag: value' lines")
    return content


def read_config(file: Path) -> dict[str, Any]:
    """A configuration file's flags, overriding those of its `_base_` (a path relative to the file).

    A run's `configs.yaml` is such a file. The facts about the run under `_run_`, and launch parameters in the authors'
    files, are ignored.

    Raises:
        OptionError: see `read_yaml`; an unknown flag, a value of the wrong type, or a file that is its own base.
    """
    return _read_config(file, ())


def _read_config(file: Path, overlays: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in overlays:
        raise OptionError(f"configuration {file} is its own _base_")
    content = read_yaml(file)
    content.pop("_run_", None)
    options = {}
    if (base := content.pop("_base_", None)) is not None:
        if not isinstance(base, str) or "\0" in base:
            raise OptionError(f"configuration {file}: _base_ must name a file, found {reprlib.repr(base)}")
        options = _read_config(file.parent / base, (*overlays, file.resolve()))
    if isinstance(content.get("plugin"), str):  # its flags may be in the same file
        content["plugin"] = load_plugins(content["plugin"], file.parent)
    for key, value in content.items():
        if key in _NAMESPACE:
            continue
        if key not in FLAGS:
            raise OptionError(
                f"configuration {file}: {reprlib.repr(key)} is not a flag (see --help; a plugin's needs --plugin)"
            )
        options[key] = FLAGS[key].checked(value, f"configuration {file}: {key}")
    return options
