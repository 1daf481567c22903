"""Where a run stands, kept in last.pth; best.pth is what last.pth was after the best epoch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from processor.types import DualEncoder
from utils.checkpoints import is_plain, load_checkpoint, save_checkpoint
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
    if _number(content, "format") != CHECKPOINT_FORMAT or "optimizer" not in content:
        raise WeightsError(f"{source} can't be continued: only a last.pth of this version of train.py can")
    kept = content.get("options")
    if not isinstance(kept, dict):
        raise WeightsError(f"{source} can't be continued: it does not say of which run it is")
    kept = {**options, **kept}
    if other := [name for name in options if name not in FREE and _differ(kept[name], options[name])]:
        raise WeightsError(f"{source} can't be continued: it is of another run, with another {other[0]}")
    if content.get("towers", model.towers()) != model.towers():
        raise WeightsError(
            f"{source} can't be continued: its towers are {content['towers']}, and --pretrain_choice now gives "
            f"{model.towers()}; has the configuration beside that file changed?"
        )
    own = model.published_state()
    if other := [name for name, value in content["model"].items() if name in own and value.dtype != own[name].dtype]:
        raise WeightsError(f"{source} can't be continued: its {other[0]} is not {own[other[0]].dtype}")
    if not all(value.isfinite().all() for value in content["model"].values() if value.is_floating_point()):
        raise WeightsError(f"{source} can't be continued: a weight is not a finite number")
    model.load_published(content["model"], str(source))
    epoch, best_epoch, best = (content.get(name) for name in ("epoch", "best_epoch", "best"))
    numbers = [type(value) for value in (epoch, best_epoch, best)] == [int, int, float]
    if not numbers or not (0 <= best_epoch <= epoch <= options["num_epoch"] and -1 <= best <= 100):
        raise WeightsError(f"{source} can't be continued: its epoch or the best so far can't be this run's")
    progress.epoch, progress.best_epoch, progress.best = epoch, best_epoch, best
    untrained = model.new_parameters() if options["trained"] == "BGE" else set()
    stepped = {value for name, value in model.named_parameters() if epoch and name not in untrained}
    try:
        _restore_moments(content["optimizer"], optimizer, stepped)
        _restore_scaler(content.get("scaler"), scaler)
    except Exception as error:  # whatever torch and Python raise over states that are not their own
        raise WeightsError(f"{source} can't be continued: its optimizer is not this run's ({brief(error)})") from None
    best = source.parent / "best.pth"
    if progress.best_epoch == progress.epoch > 0:  # then best.pth is the same, or a kill came before it was written
        if is_main():
            save_checkpoint({name: content[name] for name in content if name not in _STATES}, best)
    elif progress.best_epoch and not best.is_file():
        raise WeightsError(f"{source} can't be continued: best.pth is missing beside it")
    elif progress.best_epoch and (found := _number(load_checkpoint(best), "epoch")) != progress.best_epoch:
        logger.warning("%s is of epoch %s, not %d: the best is chosen anew", best, found, progress.best_epoch)
        progress.best, progress.best_epoch = -1.0, 0


def _restore_moments(saved: Mapping[str, Any], optimizer: Optimizer, stepped: Collection[Tensor]) -> None:
    """Take over a saved optimizer's moments; how to step is the run's to say, not the file's.

    Each gets memory of its own, laid out like its parameter's: fused steps rely on that and do not check it.

    Args:
        stepped: the parameters that have been trained.

    Raises:
        ValueError: says which is not what `optimizer` would have saved. Others: `saved` is of another structure.
    """
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("it has other groups of parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    likes = {number: _moments_like(optimizer, value) for number, value in enumerate(parameters) if value in stepped}
    likes = {number: like for number, like in likes.items() if like}
    if saved["state"].keys() != likes.keys():
        raise ValueError(f"it has moments of {len(saved['state'])} parameters, not of {len(likes)}")
    moments = {}
    for number, like in likes.items():
        state = saved["state"][number]
        if wrong := state.keys() ^ like.keys() or [name for name in like if not _fits(name, state[name], like[name])]:
            raise ValueError(f"{', '.join(map(str, wrong))} of parameter {number}")
        moments[number] = {name: torch.empty_like(like[name]).copy_(state[name].detach()) for name in like}
    optimizer.load_state_dict({"state": moments, "param_groups": own})


def _moments_like(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Tensors of the names, shapes and types that the optimizer has for a parameter after a step."""
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": parameter} if optimizer.defaults["momentum"] else {}
    return {"step": torch.zeros((), dtype=torch.float32), "exp_avg": parameter, "exp_avg_sq": parameter}


def _fits(name: str, value: object, like: Tensor) -> bool:
    if not is_plain(value) or (value.shape, value.dtype) != (like.shape, like.dtype) or not value.isfinite().all():
        return False
    if name == "step":  # float32 counts to 2²⁴
        return 0 <= value.item() <= 1 << 24 and value.item().is_integer()
    return name != "exp_avg_sq" or bool((value >= 0).all())


def _restore_scaler(saved: Mapping[str, Any], scaler: GradScaler) -> None:
    """Take over a loss scaler's state, which is empty where there is nothing to scale.

    Raises:
        ValueError: `saved` has other names or other than finite numbers. Others: it is no such state at all.
    """
    own = scaler.state_dict()
    kinds = [{name: type(value) for name, value in state.items()} for state in (saved, own)]
    if kinds[0] != kinds[1] or not all(0 <= value < math.inf for value in saved.values()):
        raise ValueError("the state of its loss scaler")
    scaler.load_state_dict(dict(saved))


def _number(content: Mapping[str, Any], name: str) -> float | None:
    """A plain number of a checkpoint; None for anything else."""
    value = content.get(name)
    return value if isinstance(value, int | float) else None


def _differ(kept: Any, own: Any) -> bool:
    return type(kept) is not type(own) or kept != own
