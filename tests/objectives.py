"""Objectives and training states for tests."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from assembly import build, build_correspondence
from processor.state import TrainState
from solver.correspondence.base import Facts
from solver.correspondence.fixed import All
from solver.objectives.base import PairwiseObjective, Sizes
from solver.objectives.training import TrainingLoss, build_loss
from solver.optimizer import build_optimizer
from solver.settings import OBJECTIVES, OptimizerSettings
from utils.settings import Options


def pairwise(name: str, **settings: float) -> PairwiseObjective:
    """A pairwise objective; unknown settings are ignored."""
    kind = OBJECTIVES[name]
    assert issubclass(kind, PairwiseObjective)
    known = {field.name for field in fields(kind.Settings)}
    return kind(kind.Settings(**{key: value for key, value in settings.items() if key in known}))


def loss_of(name: str, trained: tuple[str, ...] = ("BGE", "TSE"), **settings: float) -> TrainingLoss:
    """One pairwise objective on some embeddings."""
    return TrainingLoss({name: pairwise(name, **settings)}, trained)


def optimizer_arguments(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, float]]:
    """A model's arguments for `build_optimizer`."""
    return dict(model.named_parameters()), dict.fromkeys(model.new_parameters(), OptimizerSettings().head_lr)


def step_state(model: nn.Module, loss: TrainingLoss) -> Any:
    """The parts of a training state needed for one step's gradients, without division."""
    every = All(None, Facts("all", 1, 0.0, "made up"))
    return SimpleNamespace(model=model, loss=loss, scaler=GradScaler(enabled=False), correspondence=every, epoch=0)


def state_of(options: Options, identities: int = 12, pairs: int = 8, **parts: Any) -> TrainState:
    """The training state of a new run, with some parts replaced by `parts`."""
    model = parts.get("model") or build(options)
    sizes = Sizes(model.widths, identities, model.backbone.width, options.vocab_size, options.batch_size)
    loss = build_loss(options, sizes)
    (parameters, new), settings = optimizer_arguments(model), options.of(OptimizerSettings)
    parameters, new = parameters | dict(loss.named_parameters()), new | loss.rates(settings)
    optimizer = build_optimizer(parameters, new, settings, model.rounded_parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=options.precision == "fp16")
    defaults = {"model": model, "loss": loss, "optimizer": optimizer, "scaler": scaler}
    return TrainState(**{**defaults, "correspondence": build_correspondence(options, np.ones(pairs, bool)), **parts})
