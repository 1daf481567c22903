"""What a flag's value may be, whether the command line or a configuration gives it."""

from __future__ import annotations

import math
import re
import reprlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from easydict import EasyDict

from utils.errors import OptionError
from utils.flags import DATASETS, FLAGS, LOSSES, WITHOUT_EFFECT, Flag

_LABEL = re.compile(r"sr[\d.]+_tau[\d.]+_margin[\d.]+_n[\d.]+")
_NAME = re.compile(r"[\w+-][\w.+-]{0,99}")


def checked(name: str, value: Any, where: str) -> Any:
    """The value in its flag's type; `where` it stands is named in messages.

    Raises:
        OptionError: another type, or a value that is not allowed.
    """
    flag = FLAGS.get(name) or WITHOUT_EFFECT[name]
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


def check_together(options: EasyDict) -> None:
    """See that values that are allowed one by one go together.

    Raises:
        OptionError: names the flag to change.
    """
    loss_of(options.loss_names)
    if list(options.milestones) != sorted(set(options.milestones)):
        raise OptionError(f"--milestones {' '.join(map(str, options.milestones))}: must increase")
    if options.sampler == "identity" and options.batch_size % options.num_instance:
        raise OptionError(
            f"--num_instance {options.num_instance}: must divide --batch_size {options.batch_size} (sampler identity)"
        )
    if options.precision == "fp16_adam" and options.optimizer != "Adam":
        raise OptionError(f"--precision fp16_adam: needs --optimizer Adam, not {options.optimizer}")
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
    if options.dataset_name not in DATASETS and not Path(options.dataset_name).is_file():
        raise OptionError(
            f"--dataset_name {options.dataset_name}: choose from {', '.join(DATASETS)}, or give an annotation file"
        )
