"""Objectives and training states for tests."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from assembly import build, build_correspondence
from processor.state import TrainState
from solver.objectives.base import PairwiseObjective, Sizes
from solver.objectives.training import TrainingLoss, build_loss
from solver.optimizer import build_optimizer
from solver.settings import OBJECTIVES, OptimizerSettings
from utils.settings import Options


def pairwise(name: str, **settings: float) -> PairwiseObjective:
    """A pairwise objective; settings that it does not have are ignored."""
    kind = OBJECTIVES[name]
    assert issubclass(kind, PairwiseObjective)
    own = {field.name for field in fields(kind.Settings)}
    return kind(kind.Settings(**{key: value for key, value in settings.items() if key in own}))


def loss_of(name: str, trained: tuple[str, ...] = ("BGE", "TSE"), **settings: float) -> TrainingLoss:
    """One pairwise objective on some embeddings."""
    return TrainingLoss({name: pairwise(name, **settings)}, {}, trained)


def named(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, float]]:
    """What `build_optimizer` takes of a model."""
    return dict(model.named_parameters()), dict.fromkeys(model.new_parameters(), OptimizerSettings().head_lr)


def state_of(options: Options, identities: int = 12, **parts: Any) -> TrainState:
    """The training state of a new run; `parts` replace some of it."""
    model = parts.get("model") or build(options)
    loss = build_loss(options, Sizes(model.widths, identities))
    optimizer = build_optimizer(*named(model), options.of(OptimizerSettings), model.rounded_parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=options.precision == "fp16")
    made = {"model": model, "loss": loss, "optimizer": optimizer, "scaler": scaler}
    return TrainState(**{**made, "correspondence": build_correspondence(options), **parts})
