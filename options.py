"""All flags: the packages' settings, plugins, and checks of combinations.

No heavy imports, so that `--help` and a mistyped flag are answered immediately.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Importing settings declares their flags.
from datasets.settings import DATASETS, own_annotations, unknown_data_set
from model.settings import BACKBONES, HEADS, head_names
from processor.settings import SAVED, RerankSettings
from solver.settings import IRRA, check_optimizer, split_loss_names
from utils import options
from utils.errors import OptionError
from utils.plugins import load_plugins
from utils.settings import FLAGS, Options

_HEADINGS = ("the run", "data", "model", "loss and division", "optimizer and schedule")  # of --help, in order
_NAME = re.compile(r"[\w+-][\w.+-]{0,99}")


def parse(description: str, argv: Sequence[str]) -> dict[str, Any]:
    """The flags given to train.py, including those of plugins.

    Raises:
        OptionError: an unknown flag, a value of the wrong type, a plugin that fails to import.
    """
    _load_named(argv)
    return options.parse(build_parser(description), argv)


def build_parser(description: str) -> argparse.ArgumentParser:
    """train.py's parser; its result has only the given flags."""
    parser = argparse.ArgumentParser(
        description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of defaults; flags override it")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_DIR",
        help="resume a run; without a folder, the latest unfinished run in output_dir; a larger --num_epoch extends it",
    )
    options.add_flags(parser, _HEADINGS)
    return parser


def _load_named(argv: Sequence[str]) -> None:
    """Load the plugins named on the command line, or in the configuration or run that it names."""
    load_plugins(options.named_plugins(argv))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("config", "resume", "resume_ckpt_file"):
        parser.add_argument(f"--{name}", nargs="?", default="")
    with suppress(argparse.ArgumentError, OptionError):  # reported when everything is parsed and read
        given, _ = parser.parse_known_args(list(argv))
        run = given.resume or (given.resume_ckpt_file and Path(given.resume_ckpt_file).parent)
        if config := given.config or (run and Path(run, "configs.yaml")):
            options.read_config(Path(config))


def resolve(given: Mapping[str, Any]) -> Options:
    """Defaults, overridden by `--config`, overridden by the given flags; checked individually and in combination.

    Raises:
        OptionError: an unknown key, a wrong type, a value out of range, or an invalid combination.
    """
    resolved = options.resolve(given, special=_defaults_of_own_data)
    if resolved.resume_ckpt_file and not given.get("resume_ckpt_file"):
        raise OptionError(f"configuration {given['config']}: resume_ckpt_file is not allowed here, give it as a flag")
    _check_together(resolved)
    return resolved


def _defaults_of_own_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """No noise for a user's own annotation file, unless requested: the published default shuffles captions."""
    published = values.get("dataset_name", FLAGS["dataset_name"].default) in DATASETS
    return {} if published or values.get("noisy_file") else {"noisy_rate": 0.0}


def resolve_run(config: Path, given: Mapping[str, Any]) -> Options:
    """The options of a finished run, ours or the authors', that testing reads, overridden by the given flags.

    Raises:
        OptionError: the file is missing or isn't a configuration.
    """
    check_root_dir(given.get("root_dir"))
    content = options.read_yaml(config)
    names = str(content.get("loss_names", "")).split("+")
    if "heads" not in content and IRRA.issuperset(names):  # IRRA's own released runs
        given = {"heads": "BGE", **given}
    return options.resolve_tested(config, given, _settings_of_model)


def _settings_of_model(resolved: Options) -> list[type]:
    """The settings classes of the chosen backbone and heads. Imports torch."""
    kinds = [BACKBONES[resolved.backbone], *(HEADS[name] for name in head_names(resolved.heads))]
    return [kind.Settings for kind in kinds if kind.Settings is not None]


def check_root_dir(root_dir: str | None) -> None:
    """Check that the data folder given for a finished run exists; SynthPEDES would be rendered into a mistyped one.

    Raises:
        OptionError: it doesn't exist.
    """
    if root_dir is not None and not Path(root_dir).is_dir():
        raise OptionError(f"--root_dir {root_dir}: no such folder; it must be the folder that contains the data set's")


def add_rerank(parser: argparse.ArgumentParser) -> None:
    """Add `--rerank` to the parser of a command that ranks."""
    default = RerankSettings()
    parser.add_argument(
        "--rerank",
        nargs="*",
        type=float,
        metavar="N",
        help="k-reciprocal re-ranking within the gallery (Zhong et al., 2017), optionally with K1 K2 LAMBDA "
        f"(default: {default.k1} {default.k2} {default.share})",
    )


def check_rerank(values: Sequence[float] | None) -> RerankSettings | None:
    """Parse `--rerank`; None if not given.

    Raises:
        OptionError: not three numbers, or out of range.
    """
    if not values:
        return None if values is None else RerankSettings()
    k1, k2, share = values if len(values) == 3 else (0.0, 0.0, 0.0)
    if not (k1.is_integer() and k2.is_integer() and min(k1, k2) >= 1 and 0 <= share <= 1):
        given = " ".join(f"{value:g}" for value in values)
        raise OptionError(f"--rerank {given}: K1 and K2 must be whole numbers of at least 1, LAMBDA 0 to 1")
    return RerankSettings(int(k1), int(k2), share)


def check_saved(names: Sequence[str]) -> list[Path]:
    """The files of test.py's `--save`, whose names select their content.

    Raises:
        OptionError: an unknown name, or no such folder.
    """
    files = [Path(name) for name in names]
    for file in files:
        if file.name not in SAVED or file.is_dir():
            raise OptionError(f"--save {file}: must be a file named {', '.join(SAVED)}")
        if not file.parent.is_dir():
            raise OptionError(f"--save {file}: no folder {file.parent}")
    return list(dict.fromkeys(files))


def _check_together(resolved: Options) -> None:
    """Check combinations of values.

    Raises:
        OptionError: names the flag to change.
    """
    split_loss_names(resolved.loss_names)
    if list(resolved.milestones) != sorted(set(resolved.milestones)):
        raise OptionError(f"--milestones {' '.join(map(str, resolved.milestones))}: must increase")
    if resolved.sampler == "identity" and resolved.batch_size % resolved.num_instance:
        raise OptionError(
            f"--num_instance {resolved.num_instance}: must divide --batch_size {resolved.batch_size} (sampler identity)"
        )
    check_optimizer(resolved.optimizer, resolved.precision)
    if resolved.grad_accum > 1 and resolved.tse_bn == "batch":
        raise OptionError(
            f"--grad_accum {resolved.grad_accum}: with --tse_bn batch the whole batch must be encoded at once "
            "(torchrun spreads it over several GPUs)"
        )
    heads, trained = head_names(resolved.heads), resolved.trained.split("+")
    if unknown := [name for name in trained if name not in heads]:
        raise OptionError(f"--trained {resolved.trained}: '{unknown[0]}' is not one of --heads, {', '.join(heads)}")
    if len(set(trained)) < len(trained):
        raise OptionError(f"--trained {resolved.trained}: names an embedding twice")
    if not _NAME.fullmatch(resolved.name):
        raise OptionError(f"--name {resolved.name!r:.120}: must be 1 to 100 letters, digits, '_', '.', '+' or '-'")
    for name in ("root_dir", "output_dir"):
        if not resolved[name]:
            raise OptionError(f"--{name}: must not be empty")
    if resolved.dataset_name not in DATASETS and not own_annotations(resolved.dataset_name):
        raise unknown_data_set(resolved.dataset_name)
