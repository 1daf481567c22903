"""Checks of option combinations that depend on components or the device; `options.py` checks the rest."""

from __future__ import annotations

import torch
from torch import nn

from model.encoder import DualEncoder
from model.heads.batch_norm import GlobalBatchNorm1d
from solver.objectives.base import PairwiseObjective, TokenObjective
from solver.objectives.training import TrainingLoss
from solver.settings import CORRESPONDENCES, OBJECTIVES, check_optimizer, split_loss_names
from utils.errors import OptionError
from utils.layers import is_dropout
from utils.ranks import world_size
from utils.settings import Options, own_settings


def check_run(options: Options, device: torch.device) -> None:
    """Check what can be checked before reading weights and data; `options.precision` must be resolved.

    Raises:
        OptionError: names the incompatible options.
    """
    check_optimizer(options.optimizer, options.precision)
    _check_scores(options)
    if options.cuda_graphs:
        _check_graphs(options, device)


def check_layers(model: DualEncoder, loss: TrainingLoss, grad_accum: int) -> None:
    """Check that dividing a batch among processes, or into parts that are encoded twice, doesn't change its gradients.

    Token objectives are part of the encoding.

    Raises:
        OptionError: names a plugin's layer that depends on the whole batch or draws random numbers.
    """
    objectives = nn.ModuleDict(loss.of(TokenObjective))
    for name, module in (*model.train().named_modules(), *objectives.train().named_modules()):
        if not module.training:
            continue
        layer = f"{name} ({type(module).__name__})"
        sees_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if grad_accum > 1 and (sees_batch or is_dropout(module)):
            raise OptionError(f"--grad_accum: {layer} must see a whole batch, and only once")
        if world_size() > 1 and sees_batch and not isinstance(module, GlobalBatchNorm1d):
            raise OptionError(f"{layer} sees a process's pairs only, use model.heads.batch_norm.GlobalBatchNorm1d")


def _check_scores(options: Options) -> None:
    """Check that the correspondence gets the scores it needs, and that its settings fit the run."""
    kind, names = CORRESPONDENCES[options.division], split_loss_names(options.loss_names)
    kind.check(own_settings(kind, options.of), options.num_epoch)
    if kind.objective and kind.objective not in names:
        raise OptionError(f"--division {options.division}: needs the objective {kind.objective} in --loss_names")
    if kind.objective and issubclass(OBJECTIVES[kind.objective], PairwiseObjective):
        hint = f"{kind.objective} is pairwise: with an empty `objective` it gets the pairs' losses"
        raise OptionError(f"--division {options.division}: {hint}")
    pairwise = any(issubclass(OBJECTIVES[name], PairwiseObjective) for name in names)
    if kind.scored and not kind.objective and not pairwise:
        raise OptionError(f"--division {options.division}: needs a pairwise objective, such as TAL, in --loss_names")


def _check_graphs(options: Options, device: torch.device) -> None:
    """Check that a captured step would have fixed shapes and run on one GPU."""
    capturable = all(OBJECTIVES[name].capturable for name in split_loss_names(options.loss_names))
    obstacles = {
        f"the device {device}": device.type != "cuda",
        "several processes": world_size() > 1,
        "--grad_accum": options.grad_accum > 1,
        f"--division {options.division}": CORRESPONDENCES[options.division].refines,
        f"--loss_names {options.loss_names}": not capturable,
    }
    if present := [obstacle for obstacle, applies in obstacles.items() if applies]:
        raise OptionError(f"--cuda_graphs: not supported with {present[0]}")
