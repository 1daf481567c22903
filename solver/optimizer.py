"""Optimizer and its parameter groups (paper, 4.1): new heads learn fastest, biases twice as fast and undecayed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from solver.float16_adam import Float16Adam

HEAD_LR = 1e-3
OPTIMIZERS = ("Adam", "SGD", "AdamW")


@dataclass(frozen=True)
class OptimizerSettings:
    """lr > 0 is the towers' rate; Adam's betas are (alpha, beta); momentum is SGD's."""

    optimizer: str = "Adam"
    lr: float = 1e-5
    bias_lr_factor: float = 2.0
    weight_decay: float = 4e-5
    weight_decay_bias: float = 0.0
    momentum: float = 0.9
    alpha: float = 0.9
    beta: float = 0.999


def parameter_groups(model: nn.Module, new: set[str], settings: OptimizerSettings) -> list[dict]:
    """At most four groups with their `lr` and `weight_decay`: weights and biases of the towers and of the new heads.

    Args:
        new: names of the parameters that are trained from scratch; they get `HEAD_LR`, biases too.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        bias = "bias" in name
        lr = HEAD_LR if name in new else settings.lr * (settings.bias_lr_factor if bias else 1)
        weight_decay = settings.weight_decay_bias if bias else settings.weight_decay
        groups.setdefault((lr, weight_decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": wd} for (lr, wd), params in groups.items()]


def build_optimizer(
    model: nn.Module, new: set[str], settings: OptimizerSettings, rounded: Collection[str] = ()
) -> Optimizer:
    """The optimizer over `parameter_groups`; Adam's eps is 1e-3, which damps it where gradients are small.

    It is fused where all weights are float32. On float16 ones a fused step forms v and the step in float32 and rounds
    at the end, which the published code's does not: it vanishes in other places and moves the weights by another
    amount. Then PyTorch's own choice is taken, as there: all tensors together on a GPU, one by one on a CPU.

    Args:
        rounded: names of the parameters for which `Float16Adam` takes Adam's place and rounds.
    """
    groups = parameter_groups(model, new, settings)
    fused = all(parameter.dtype != torch.float16 for parameter in model.parameters()) or None
    if settings.optimizer == "SGD":  # fused, it would keep what is in new memory as momentum of a step left out
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    betas = (settings.alpha, settings.beta)
    if settings.optimizer == "AdamW":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=1e-8, fused=fused)
    if rounded:
        parameters = [parameter for name, parameter in model.named_parameters() if name in rounded]
        return Float16Adam(groups, parameters, lr=settings.lr, betas=betas, eps=1e-3)
    return torch.optim.Adam(groups, lr=settings.lr, betas=betas, eps=1e-3, fused=fused)
