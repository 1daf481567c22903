"""Every flag of train.py: one table from which the parser, the check of configuration files and of ranges are made.

Nothing heavy is imported here, so that `--help` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from utils.errors import OptionError

LOSSES = ("TAL", "TRL", "TRL-S", "InfoNCE", "SDM")
_LABEL = re.compile(r"sr[\d.]+_tau[\d.]+_margin[\d.]+_n[\d.]+")
_TUPLE_TAG = "tag:yaml.org,2002:python/tuple"


@dataclass(frozen=True)
class Flag:
    """One flag: its type is its default's; a tuple takes several values.

    Attributes:
        low, high: inclusive bounds; `above` and `below` exclude their end.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    length: int | None = None

    @property
    def bounds(self) -> str:
        """The allowed range in words, "" where everything is allowed."""
        words = [
            f"at least {self.low:g}" if self.low > -math.inf else "",
            f"above {self.above:g}" if self.above > -math.inf else "",
            f"at most {self.high:g}" if self.high < math.inf else "",
            f"below {self.below:g}" if self.below < math.inf else "",
        ]
        return " and ".join(word for word in words if word)


GROUPS: dict[str, list[Flag]] = {
    "the run": [
        Flag("name", "baseline", "a word for the run folder's name"),
        Flag("output_dir", "logs", "where run folders are made"),
        Flag("seed", 1, "of weights, order, augmentation and division", low=0),
        Flag("device", "auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps"),
        Flag("log_period", 100, "training steps between two lines of the log", low=1),
        Flag("eval_period", 1, "epochs between two validations", low=1),
        Flag("val_dataset", "val", "the split that chooses the best checkpoint", choices=("val", "test")),
        Flag("resume_ckpt_file", "", "continue from this checkpoint, in its own run folder"),
        Flag("test", False, "evaluate the starting weights and stop"),
    ],
    "data": [
        Flag("dataset_name", "CUHK-PEDES", "CUHK-PEDES, ICFG-PEDES, RSTPReid or SynthPEDES"),
        Flag("root_dir", "data", "the folder that holds the data set's folder"),
        Flag("image_cache", "", "folder for decoded images; default: beside the data, else the user's cache folder"),
        Flag("noisy_rate", 0.2, "share of captions that change places", low=0, high=1),
        Flag("noisy_file", "", "noise index (.npy); default: noiseindex/<dataset_name>_<noisy_rate>.npy or made anew"),
        Flag("batch_size", 128, "pairs in a training batch", low=1),
        Flag("test_batch_size", 512, "images or captions encoded at a time in evaluation", low=1),
        Flag("num_workers", 8, "processes that load training data", low=0),
        Flag("sampler", "random", "order of the training pairs", choices=("random", "identity")),
        Flag("num_instance", 4, "pairs of each identity in a batch (sampler identity)", low=1),
        Flag("img_aug", False, "crop and erase training images"),
        Flag("txt_aug", False, "mask, replace and remove words of training captions"),
    ],
    "model": [
        Flag("pretrain_choice", "ViT-B/16", "pretrained CLIP: a name or a file"),
        Flag("img_size", (384, 128), "height and width of the images", low=1, length=2),
        Flag("stride_size", 16, "pixels between two patches", low=1),
        Flag("text_length", 77, "tokens of a caption", low=3),
        Flag("vocab_size", 49408, "tokens there are", low=1),
        Flag("select_ratio", 0.3, "share R of tokens that TSE selects", above=0, below=1),
        Flag("tse_bn", "frozen", "TSE BatchNorm in training: frozen as for the paper, or batch", ("frozen", "batch")),
    ],
    "loss and division": [
        Flag("loss_names", "TAL", f"one of {', '.join(LOSSES)}; a label may follow: TAL+sr0.3_tau0.015_margin0.1_n0.2"),
        Flag("tau", 0.015, "TAL's temperature", above=0),
        Flag("margin", 0.1, "margin m of the triplet losses", low=0),
        Flag("temperature", 0.02, "softmax temperature of InfoNCE and SDM", above=0),
        Flag(
            "division",
            "ccd",
            "which pairs train: by CCD, all, or (an oracle) only the truly clean",
            ("ccd", "all", "oracle"),
        ),
    ],
    "optimizer and schedule": [
        Flag("optimizer", "Adam", "optimizer", choices=("Adam", "SGD", "AdamW")),
        Flag("lr", 1e-5, "learning rate of the CLIP towers", above=0),
        Flag("bias_lr_factor", 2.0, "times lr for biases", low=0),
        Flag("momentum", 0.9, "SGD's momentum", low=0, below=1),
        Flag("weight_decay", 4e-5, "of weights", low=0),
        Flag("weight_decay_bias", 0.0, "of biases", low=0),
        Flag("alpha", 0.9, "Adam's first beta", low=0, below=1),
        Flag("beta", 0.999, "Adam's second beta", low=0, below=1),
        Flag("num_epoch", 60, "epochs", low=1),
        Flag("lrscheduler", "cosine", "decay of the rate", choices=("cosine", "step", "exp", "poly", "linear")),
        Flag("warmup_epochs", 5, "epochs of warm-up", low=0),
        Flag("warmup_factor", 0.1, "share of the rate that the warm-up starts with", low=0, high=1),
        Flag("warmup_method", "linear", "warm-up", choices=("linear", "constant")),
        Flag("milestones", (20, 50), "epochs at which step decays", low=0),
        Flag("gamma", 0.1, "step's factor", above=0),
        Flag("target_lr", 0.0, "rate at the end of cosine and poly", low=0),
        Flag("power", 0.9, "base of exp and poly", above=0),
    ],
}
FLAGS: dict[str, Flag] = {flag.name: flag for flags in GROUPS.values() for flag in flags}


# What test.py takes from a run's configuration.
READ_BY_TEST = {
    "dataset_name",
    "root_dir",
    "image_cache",
    "img_size",
    "stride_size",
    "text_length",
    "select_ratio",
    "test_batch_size",
    "num_workers",
    "device",
}


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


def _add(group: argparse._ArgumentGroup, flag: Flag) -> None:
    name, shown = f"--{flag.name}", f"{flag.help} (default: {_shown(flag.default)})".replace("%", "%%")
    if flag.choices:
        shown = shown.replace(" (default", f": {', '.join(flag.choices)} (default")
    if isinstance(flag.default, bool):
        group.add_argument(name, action=argparse.BooleanOptionalAction, help=shown)
    elif isinstance(flag.default, tuple):
        group.add_argument(name, nargs=flag.length or "+", type=type(flag.default[0]), metavar="N", help=shown)
    else:
        group.add_argument(name, type=type(flag.default), metavar=flag.name.upper(), help=shown)


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
        pass

    Loader.add_constructor(_TUPLE_TAG, lambda loader, node: tuple(loader.construct_sequence(node)))
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise OptionError(f"configuration {file} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise OptionError(f"configuration {file} is not YAML: {' '.join(str(error).split())}") from None
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
    if base := content.pop("_base_", None):
        options = _read_config(file.parent / str(base), (*above, file.resolve()))
    for key, value in content.items():
        if key not in FLAGS:
            raise OptionError(f"configuration {file}: '{key}' is no flag; python train.py --help lists them")
        options[key] = _checked(key, value, f"configuration {file}: {key}")
    return options


def _checked(name: str, value: Any, where: str) -> Any:
    """The value in its flag's type, if it is allowed."""
    flag = FLAGS[name]
    if isinstance(flag.default, tuple):
        if not isinstance(value, list | tuple) or (flag.length and len(value) != flag.length):
            raise OptionError(f"{where}: expected {flag.length or 'some'} numbers, found {value!r}")
        return tuple(_scalar(flag, item, flag.default[0], where) for item in value)
    return _scalar(flag, value, flag.default, where)


def _scalar(flag: Flag, value: Any, like: Any, where: str) -> Any:
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(like, float) and isinstance(value, str):  # YAML reads 1e-5 as a text
        with suppress(ValueError):
            value = float(value)
    if type(value) is not type(like):
        raise OptionError(f"{where}: expected {type(like).__name__}, found {value!r}")
    if flag.choices and value not in flag.choices:
        raise OptionError(f"{where} {value}: choose from {', '.join(flag.choices)}")
    if not isinstance(value, str | bool) and not (
        flag.low <= value <= flag.high and flag.above < value < flag.below and math.isfinite(value)
    ):
        raise OptionError(f"{where} {value}: must be {flag.bounds or 'finite'}")
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
    if options.warmup_epochs >= options.num_epoch and options.num_epoch > 1:
        raise OptionError(f"--warmup_epochs {options.warmup_epochs}: must be below --num_epoch {options.num_epoch}")
    if options.sampler == "identity" and options.batch_size % options.num_instance:
        raise OptionError(
            f"--num_instance {options.num_instance}: must divide --batch_size {options.batch_size} (sampler identity)"
        )
    if not options.name or "/" in options.name or options.name.startswith("."):
        raise OptionError(f"--name '{options.name}': must be a word that can stand in a folder's name")


def write_config(file: Path, options: dict[str, Any], run: dict[str, Any]) -> None:
    """Write every resolved flag, and under `_run_` what else the run was."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    file.write_text(yaml.safe_dump({**plain, "_run_": run}, sort_keys=False, allow_unicode=True), encoding="utf-8")
