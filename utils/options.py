"""A run's options: defaults, overridden by a configuration file, overridden by flags; all of it checked.

Nothing heavy is imported here, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import reprlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from utils.errors import OptionError
from utils.files import write_text
from utils.flags import DATASETS, FLAGS, GROUPS, LOSSES, NAMES_TOO, PATHS, READ_BY_TEST, Flag

_LABEL = re.compile(r"sr[\d.]+_tau[\d.]+_margin[\d.]+_n[\d.]+")
_NAME = re.compile(r"[\w+-][\w.+-]{0,99}")
_DIGITS = 40
_LARGEST = 1 << 20  # bytes of a configuration; one that lists skipped pairs is some hundred thousand
_TUPLE_TAG = "tag:yaml.org,2002:python/tuple"


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

    Raises:
        OptionError: an unknown key, a wrong type, a value out of range or a loss that does not exist.
    """
    options = defaults()
    if "config" in given:
        options.update(read_config(Path(given["config"])))
    for name, value in given.items():
        if name in FLAGS:
            options[name] = _checked(name, value, f"--{name}")
    for name in PATHS:  # a run may be looked at from another folder
        if options[name] and (name not in NAMES_TOO or _is_file(options[name])):
            options[name] = str(Path(options[name]).absolute())
    _check_together(options)
    return options


def resolve_run(config: Path, given: dict[str, Any]) -> EasyDict:
    """The options of a finished run, ours or the authors', overridden by the flags given.

    Keys that are no flags of ours are passed over, and so are flags of ours that only training reads.

    Raises:
        OptionError: the file is missing or no configuration.
    """
    options = defaults()
    for name, value in {**read_yaml(config), **given}.items():
        if name in READ_BY_TEST:
            options[name] = _checked(name, value, f"--{name}" if name in given else f"configuration {config}: {name}")
    return options


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping; besides plain values only tuples (as argparse's namespaces are written) are built.

    Raises:
        OptionError: the file is missing or not such a mapping.
    """

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """Merge keys (<<) unfold like aliases, without end: no configuration needs them."""
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("'<<' is not taken")

        def number(self, node: yaml.ScalarNode) -> int | float:
            """Numbers as anybody writes them, which sixties (1:30:00) and thousands of digits are not."""
            if ":" in node.value or len(node.value) > _DIGITS:
                raise yaml.YAMLError(f"{node.value[:20]} … is not taken for a number")
            real = node.tag.endswith("float")
            return self.construct_yaml_float(node) if real else self.construct_yaml_int(node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.number)
    Loader.add_constructor(_TUPLE_TAG, lambda loader, node: tuple(loader.construct_sequence(node)))
    try:
        if file.exists() and not file.is_file():
            raise OptionError(f"configuration {file} can't be read: it is no file")
        if file.stat().st_size > _LARGEST:
            raise OptionError(f"configuration {file} can't be read: it is larger than {_LARGEST:,} bytes")
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise OptionError(f"configuration {file} can't be read: {error.strerror}") from None
    except OptionError:
        raise
    except Exception as error:  # PyYAML's constructors raise whatever a wrong tag leads to
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"configuration {file} is not YAML: {told}") from None
    if not isinstance(content, dict):
        raise OptionError(f"configuration {file}: expected 'flag: value' lines")
    return content


def read_config(file: Path) -> dict[str, Any]:
    """A configuration file's flags, on top of those of the file its `_base_` names (relative to itself).

    A run's own `configs.yaml` is such a file; what it tells of the run stands under `_run_` and is passed over.

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
        if key not in FLAGS:
            raise OptionError(
                f"configuration {file}: {reprlib.repr(key)} is no flag; python train.py --help lists them"
            )
        options[key] = _checked(key, value, f"configuration {file}: {key}")
    return options


def _checked(name: str, value: Any, where: str) -> Any:
    """The value in its flag's type, if it is allowed."""
    flag = FLAGS[name]
    if isinstance(flag.default, tuple):
        if not isinstance(value, list | tuple) or (flag.length and len(value) != flag.length):
            raise OptionError(f"{where}: expected {flag.length or 'some'} numbers, found {reprlib.repr(value)}")
        return tuple(_scalar(flag, item, flag.default[0], where) for item in value)
    return _scalar(flag, value, flag.default, where)


def _scalar(flag: Flag, value: Any, like: Any, where: str) -> Any:
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):
            value = float(value)
    if isinstance(like, float) and isinstance(value, str):  # YAML reads 1e-5 as a text
        with suppress(ValueError):
            value = float(value)
    if type(value) is not type(like):
        raise OptionError(f"{where}: expected {type(like).__name__}, found {reprlib.repr(value)}")
    if flag.choices and value not in flag.choices:
        raise OptionError(f"{where} {value}: choose from {', '.join(flag.choices)}")
    if not isinstance(value, str | bool):
        if not math.isfinite(value):
            raise OptionError(f"{where} {value}: must be a finite number")
        if not (flag.low <= value <= flag.high and flag.above < value < flag.below):
            raise OptionError(f"{where} {value}: must be {flag.bounds}")
    return value


def loss_of(loss_names: str) -> str:
    """The loss in `loss_names`: what stands before "+"; what follows is a label of the published script's form.

    Raises:
        OptionError: an unknown loss, or anything else after the "+".
    """
    loss, plus, label = loss_names.partition("+")
    if loss not in LOSSES:
        raise OptionError(f"--loss_names {loss_names}: '{loss}' is not one of {', '.join(LOSSES)}")
    if plus and not _LABEL.fullmatch(label):
        raise OptionError(
            f"--loss_names {loss_names}: one loss is trained, and '{label}' is no label (sr0.3_tau0.015_margin0.1_n0.2)"
        )
    return loss


def _check_together(options: EasyDict) -> None:
    loss_of(options.loss_names)
    if list(options.milestones) != sorted(set(options.milestones)):
        raise OptionError(f"--milestones {_shown(options.milestones)}: must increase")
    if options.warmup_epochs > options.num_epoch:
        raise OptionError(f"--warmup_epochs {options.warmup_epochs}: must be at most --num_epoch {options.num_epoch}")
    if options.sampler == "identity" and options.batch_size % options.num_instance:
        raise OptionError(
            f"--num_instance {options.num_instance}: must divide --batch_size {options.batch_size} (sampler identity)"
        )
    if options.grad_accum > 1 and options.tse_bn == "batch":
        raise OptionError(
            f"--grad_accum {options.grad_accum}: with --tse_bn batch the whole batch must be encoded at once "
            "(torchrun spreads it over several GPUs)"
        )
    if not _NAME.fullmatch(options.name):
        raise OptionError(f"--name {options.name!r:.120}: must be 1 to 100 letters, digits, '_', '.', '+' or '-'")
    for name in ("root_dir", "output_dir"):
        if not options[name]:
            raise OptionError(f"--{name}: must not be empty")
    if options.dataset_name not in DATASETS and not _is_file(options.dataset_name):
        raise OptionError(
            f"--dataset_name {options.dataset_name}: choose from {', '.join(DATASETS)}, or give an annotation file"
        )


def _is_file(name: str) -> bool:
    """Whether there is such a file; whatever the name is, this is no error."""
    return os.path.isfile(name)  # noqa: PTH113


def run_facts(config: Path) -> dict[str, Any]:
    """What a run's `configs.yaml` says of the run beside its flags."""
    facts = read_yaml(config).get("_run_")
    return facts if isinstance(facts, dict) else {}


def write_config(file: Path, options: dict[str, Any], run: dict[str, Any]) -> None:
    """Write every resolved flag, and under `_run_` what else the run was, in one step."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    write_text(file, yaml.safe_dump({**plain, "_run_": run}, sort_keys=False, allow_unicode=True))
