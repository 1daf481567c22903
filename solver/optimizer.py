"""Optimizer and parameter groups (paper, 4.1): new heads learn fastest; biases twice as fast, without weight decay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from solver.float16_adam import Float16Adam
from solver.settings import OptimizerSettings


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], new: Mapping[str, float], settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """Parameter groups by `lr` and `weight_decay`, without frozen parameters.

    Args:
        parameters: by name; names that contain "bias" are biases.
        new: learning rates of parameters trained from scratch (biases included), by name.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        bias = "bias" in name
        lr = new.get(name, settings.lr * (settings.bias_lr_factor if bias else 1))
        weight_decay = settings.weight_decay_bias if bias else settings.weight_decay
        groups.setdefault((lr, weight_decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": wd} for (lr, wd), params in groups.items()]


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    new: Mapping[str, float],
    settings: OptimizerSettings,
    rounded: Collection[str] = (),
) -> Optimizer:
    """The optimizer over `parameter_groups`; Adam's eps is 1e-3, which damps it where gradients are small.

    It is fused if all weights are float32. On float16 weights a fused step computes v and the update in float32 and
    rounds at the end, unlike the published code's: updates vanish in different cases and differ in size. There,
    PyTorch's default is used, as in the published code: foreach on a GPU, a loop over tensors on a CPU.

    Args:
        rounded: names of the parameters whose steps `Float16Adam` rounds; empty for plain Adam.
    """
    groups = parameter_groups(parameters, new, settings)
    fused = all(parameter.dtype != torch.float16 for parameter in parameters.values()) or None
    if settings.optimizer == "SGD":  # fused, a skipped step would leave momentum uninitialised
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    betas = (settings.alpha, settings.beta)
    if settings.optimizer == "AdamW":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=1e-8, fused=fused)
    if rounded:
        return Float16Adam(groups, [parameters[name] for name in rounded], lr=settings.lr, betas=betas, eps=1e-3)
    return torch.optim.Adam(groups, lr=settings.lr, betas=betas, eps=1e-3, fused=fused)
