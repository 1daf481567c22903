"""Where a run stands, kept in last.pth; best.pth is what last.pth was after the best epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from processor.types import DualEncoder
from utils.checkpoints import load_checkpoint, save_checkpoint
from utils.errors import WeightsError, brief
from utils.flags import FREE
from utils.log import logger
from utils.ranks import is_main

CHECKPOINT_FORMAT = 2
_STATES = ("optimizer", "scaler")  # of last.pth alone


@dataclass
class Progress:
    """Where a run stands: epochs done, the best R1 (percent) so far, and after which epoch that was (0: none)."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0


def save(
    model: DualEncoder,
    optimizer: Optimizer,
    scaler: GradScaler,
    progress: Progress,
    kept: dict[str, Any],
    run_dir: Path,
) -> None:
    """Write last.pth, then, after the best epoch so far, best.pth.

    In this order: after a kill between the two, last.pth holds what best.pth lacks, and `restore` makes up for it.

    Args:
        kept: the run's options, from which the model can be built again.
    """
    content = {
        "format": CHECKPOINT_FORMAT,
        "model": model.published_state(),
        "epoch": progress.epoch,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "options": kept,
    }
    states = dict(zip(_STATES, (optimizer.state_dict(), scaler.state_dict()), strict=True))
    save_checkpoint(content | states, run_dir / "last.pth")
    if progress.best_epoch == progress.epoch:
        save_checkpoint(content, run_dir / "best.pth")


def restore(
    content: dict[str, Any],
    model: DualEncoder,
    optimizer: Optimizer,
    scaler: GradScaler,
    progress: Progress,
    source: Path,
    options: Mapping[str, Any],
) -> None:
    """Put model, optimizer, scaler and progress back to where a `last.pth` was written, and best.pth beside it.

    Args:
        options: of the run; the checkpoint must have the same, but for `FREE` ones.

    Raises:
        WeightsError: the checkpoint can't be continued.
    """
    if _number(content, "format") != CHECKPOINT_FORMAT or "optimizer" not in content:
        raise WeightsError(f"{source} can't be continued: only a last.pth of this version of train.py can")
    kept = content.get("options")
    if not isinstance(kept, dict):
        raise WeightsError(f"{source} can't be continued: it does not say of which run it is")
    kept = {**options, **kept}
    if other := [name for name in options if name not in FREE and _differ(kept[name], options[name])]:
        raise WeightsError(f"{source} can't be continued: it is of another run, with another {other[0]}")
    if not all(value.isfinite().all() for value in content["model"].values() if value.is_floating_point()):
        raise WeightsError(f"{source} can't be continued: a weight is not a finite number")
    model.load_published(content["model"], str(source))
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(content["optimizer"])
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group |= {"initial_lr": own["lr"], **own}  # how to step is the run's to say, not the file's
        scaler.load_state_dict(content.get("scaler", {}))
        progress.epoch, progress.best_epoch = (int(_number(content, name)) for name in ("epoch", "best_epoch"))
        progress.best = float(_number(content, "best"))
    except Exception as error:  # whatever torch raises over states that are not its own
        raise WeightsError(f"{source} can't be continued: {type(error).__name__}, {brief(error)}") from None
    fits = all(
        value.shape in (parameter.shape, ()) and _is_moment(name, value)
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    )
    named = {frozenset(state) for state in optimizer.state.values()}
    fits = fits and named <= {frozenset(("step", "exp_avg", "exp_avg_sq")), frozenset(("momentum_buffer",))}
    fits = fits and len(named) == bool(progress.epoch) and math.isfinite(progress.best)
    if not fits or not 0 <= progress.best_epoch <= progress.epoch <= options["num_epoch"]:
        raise WeightsError(f"{source} can't be continued: its optimizer or epoch {progress.epoch} is not this run's")
    best = source.parent / "best.pth"
    if progress.best_epoch == progress.epoch > 0:  # then best.pth is the same, or a kill came before it was written
        if is_main():
            save_checkpoint({name: content[name] for name in content if name not in _STATES}, best)
    elif progress.best_epoch and not best.is_file():
        raise WeightsError(f"{source} can't be continued: best.pth is missing beside it")
    elif progress.best_epoch and (found := _number(load_checkpoint(best), "epoch")) != progress.best_epoch:
        logger.warning("%s is of epoch %s, not %d: the best is chosen anew", best, found, progress.best_epoch)
        progress.best, progress.best_epoch = -1.0, 0


def _number(content: Mapping[str, Any], name: str) -> float | None:
    """A plain number of a checkpoint; None for anything else."""
    value = content.get(name)
    return value if isinstance(value, int | float) else None


def _differ(kept: Any, own: Any) -> bool:
    return type(kept) is not type(own) or kept != own


def _is_moment(name: str, value: Tensor) -> bool:
    return bool(value.isfinite().all()) and (name != "exp_avg_sq" or bool((value >= 0).all()))
