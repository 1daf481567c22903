"""A run's options: defaults, overridden by a configuration file, overridden by flags; all of it checked.

Nothing heavy is imported here, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import argparse
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from utils.checks import check_together, checked
from utils.errors import OptionError
from utils.files import write_text
from utils.flags import FLAGS, GROUPS, NAMES_TOO, NAMESPACE, PATHS, READ_BY_TEST, WITHOUT_EFFECT, Flag


class _Loader(yaml.SafeLoader):
    """Besides plain values builds tuples."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))


def defaults() -> EasyDict:
    """Every flag's default."""
    return EasyDict({name: flag.default for name, flag in FLAGS.items()})


def build_parser(description: str) -> argparse.ArgumentParser:
    """train.py's parser; only flags that were given appear in its result."""
    parser = argparse.ArgumentParser(
        description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of defaults; flags override it")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_DIR",
        help="continue a run; without a folder, the newest unfinished one in output_dir",
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    group = parser.add_argument_group("without effect", "The published code takes them, and so are they here.")
    for flag in WITHOUT_EFFECT.values():
        group.add_argument(f"--{flag.name}", type=type(flag.default), metavar=flag.name.upper(), help=flag.help)
    return parser


def command_parser(name: str, doc: str, **more: str) -> argparse.ArgumentParser:
    """The parser of a command beside train.py and test.py, for `parse`.

    Args:
        name: of its module.
        doc: of its module, the help's text as it is.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        **more,
    )


def _add(group: argparse._ArgumentGroup, flag: Flag) -> None:
    name, shown = f"--{flag.name}", f"{flag.help} (default: {_shown(flag.default)})".replace("%", "%%")
    if isinstance(flag.default, bool):
        group.add_argument(name, action=argparse.BooleanOptionalAction, help=shown)
    elif isinstance(flag.default, tuple):
        group.add_argument(name, nargs=flag.length or "+", type=type(flag.default[0]), metavar="N", help=shown)
    else:
        metavar = f"{{{','.join(flag.choices)}}}" if flag.choices else flag.name.upper()
        group.add_argument(name, type=type(flag.default), metavar=metavar, help=shown)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value == "" else str(value)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The flags given on the command line, and no others.

    Raises:
        OptionError: an unknown flag or a value of the wrong type.
    """
    try:
        given, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise OptionError(str(error).removeprefix("argument ")) from None
    if unknown:
        raise OptionError(f"unknown argument {unknown[0]}; --help lists what there is")
    return vars(given)


def resolve(given: dict[str, Any]) -> EasyDict:
    """Defaults, overridden by `--config`, overridden by the flags given; checked.

    Those of `WITHOUT_EFFECT` are among them only where they were given.

    Raises:
        OptionError: an unknown key, a wrong type, a value out of range or a loss that does not exist.
    """
    options = defaults()
    if "config" in given:
        options.update(read_config(Path(given["config"])))
    for name, value in given.items():
        if name in FLAGS or name in WITHOUT_EFFECT:
            options[name] = checked(name, value, f"--{name}")
    for name in PATHS:  # a run may be looked at from another folder
        if options[name] and (name not in NAMES_TOO or Path(options[name]).is_file()):
            options[name] = str(Path(options[name]).absolute())
    check_together(options)
    return options


def resolve_run(config: Path, given: dict[str, Any]) -> EasyDict:
    """The options of a finished run, ours or the authors', overridden by the flags given.

    Keys that are no flags of ours are passed over, and so are flags of ours that only training reads.

    Raises:
        OptionError: the file is missing or no configuration.
    """
    check_root_dir(given.get("root_dir"))
    options = defaults()
    for name, value in {**read_yaml(config), **given}.items():
        if name in READ_BY_TEST:
            options[name] = checked(name, value, f"--{name}" if name in given else f"configuration {config}: {name}")
    return options


def check_root_dir(root_dir: str | None) -> None:
    """See that the folder given for a finished run's data is there: SynthPEDES would be rendered into a mistyped one.

    Raises:
        OptionError: it is not.
    """
    if root_dir is not None and not Path(root_dir).is_dir():
        raise OptionError(f"--root_dir {root_dir}: no such folder; it must be the one that holds the data set's")


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping; besides plain values only tuples (as argparse's namespaces are written) are built.

    Raises:
        OptionError: the file is missing or not such a mapping.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise OptionError(f"configuration {file} can't be read: {error.strerror}") from None
    except Exception as error:  # PyYAML's constructors raise whatever a wrong tag leads to
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"configuration {file} is not YAML: {told}") from None
    if not isinstance(content, dict):
        raise OptionError(f"configuration {file}: expected 'flag: value' lines")
    return content


def read_config(file: Path) -> dict[str, Any]:
    """A configuration file's flags, on top of those of the file its `_base_` names (relative to itself).

    A run's own `configs.yaml` is such a file; what it tells of the run stands under `_run_` and is passed over, and so
    is what the authors' file tells of how their program was started.

    Raises:
        OptionError: as `read_yaml`; a key that is no flag; a value of the wrong type; a file that is its own base.
    """
    return _read_config(file, ())


def _read_config(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in above:
        raise OptionError(f"configuration {file} is its own _base_")
    content = read_yaml(file)
    content.pop("_run_", None)
    options = {}
    if (base := content.pop("_base_", None)) is not None:
        if not isinstance(base, str) or "\0" in base:
            raise OptionError(f"configuration {file}: _base_ must name a file, found {reprlib.repr(base)}")
        options = _read_config(file.parent / base, (*above, file.resolve()))
    for key, value in content.items():
        if key in NAMESPACE:
            continue
        if key not in FLAGS and key not in WITHOUT_EFFECT:
            raise OptionError(
                f"configuration {file}: {reprlib.repr(key)} is no flag; python train.py --help lists them"
            )
        options[key] = checked(key, value, f"configuration {file}: {key}")
    return options


def run_facts(config: Path) -> dict[str, Any]:
    """What a run's `configs.yaml` says of the run beside its flags."""
    facts = read_yaml(config).get("_run_")
    return facts if isinstance(facts, dict) else {}


def write_config(file: Path, options: dict[str, Any], run: dict[str, Any]) -> None:
    """Write every resolved flag, and under `_run_` what else the run was, in one step."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    write_text(file, yaml.safe_dump({**plain, "_run_": run}, sort_keys=False, allow_unicode=True))
