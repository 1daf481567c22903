"""Where a run stands, kept in last.pth; best.pth is what last.pth was after the best epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
        "towers": model.towers(),
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
    try:
        if content.get("format") != CHECKPOINT_FORMAT or not {"optimizer", "options"} <= content.keys():
            raise ValueError("only a last.pth of this version of train.py can")
        kept = {**options, **content["options"]}
        if other := [name for name in options if name not in FREE and kept[name] != options[name]]:
            raise ValueError(f"it is of another run, with another {other[0]}")
        if (towers := content.get("towers", model.towers())) != model.towers():
            raise WeightsError(
                f"{source} can't be continued: its towers are {towers}, and --pretrain_choice now gives "
                f"{model.towers()}; has the configuration beside that file changed?"
            )
        progress.epoch, progress.best, progress.best_epoch = (content[name] for name in ("epoch", "best", "best_epoch"))
        if not 0 <= progress.best_epoch <= progress.epoch <= options["num_epoch"]:
            raise ValueError("its epoch can't be this run's")
        model.load_published(content["model"], str(source))
        _restore_moments(content["optimizer"], optimizer)
        scaler.load_state_dict(content["scaler"])
    except WeightsError:
        raise
    except Exception as error:  # whatever torch and Python raise over states that are not their own
        raise WeightsError(f"{source} can't be continued: {brief(error)}") from None
    best = source.parent / "best.pth"
    if progress.best_epoch == progress.epoch > 0:  # then best.pth is the same, or a kill came before it was written
        if is_main():
            save_checkpoint({name: content[name] for name in content if name not in _STATES}, best)
    elif progress.best_epoch and not best.is_file():
        raise WeightsError(f"{source} can't be continued: best.pth is missing beside it")
    elif progress.best_epoch and (found := load_checkpoint(best).get("epoch")) != progress.best_epoch:
        logger.warning("%s is of epoch %s, not %d: the best is chosen anew", best, found, progress.best_epoch)
        progress.best, progress.best_epoch = -1.0, 0


def _restore_moments(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Take over a saved optimizer's moments; how to step is the run's to say, not the file's.

    Each gets memory of its own, laid out like its parameter's: fused steps rely on that and do not check it.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError("its optimizer has other groups of parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {number: {} for number in saved["state"]}
    for number, state in saved["state"].items():
        for name, value in state.items():
            own = torch.zeros(()) if name == "step" else torch.empty_like(parameters[number])
            if value.shape != own.shape:
                raise ValueError(f"its optimizer's {name} of parameter {number} is {tuple(value.shape)}")
            moments[number][name] = own.copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
