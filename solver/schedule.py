"""The learning rate of each epoch: a warm-up, then one of five decays (paper, 4.1)."""

from __future__ import annotations

import math
from bisect import bisect_right

from torch.optim import Optimizer

from solver.settings import ScheduleSettings


def learning_rate(base_lr: float, epoch: int, settings: ScheduleSettings) -> float:
    """The learning rate in `epoch` (0 … num_epoch − 1) of a group with base rate `base_lr`."""
    if epoch < settings.warmup_epochs:
        if settings.warmup_method == "constant":
            return base_lr * settings.warmup_factor
        done = epoch / settings.warmup_epochs
        return base_lr * (settings.warmup_factor * (1 - done) + done)
    if settings.lrscheduler == "step":
        return base_lr * settings.gamma ** bisect_right(settings.milestones, epoch)
    done = (epoch - settings.warmup_epochs) / (settings.num_epoch - settings.warmup_epochs)
    if settings.lrscheduler == "exp":
        return base_lr * settings.power**done
    if settings.lrscheduler == "linear":
        return base_lr * (1 - done)
    if settings.lrscheduler == "poly":  # power^(1 − done): it rises from power to 1, in the published code too
        return settings.target_lr + (base_lr - settings.target_lr) * settings.power ** (1 - done)
    return settings.target_lr + (base_lr - settings.target_lr) * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rates(optimizer: Optimizer, epoch: int, settings: ScheduleSettings) -> None:
    """Set the learning rate of every group for `epoch`; base rates are those the optimizer was built with."""
    for group in optimizer.param_groups:
        base_lr = group.setdefault("initial_lr", group["lr"])
        group["lr"] = learning_rate(base_lr, epoch, settings)
