"""A run's total loss, from `--loss_names` and `--trained`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from solver.objectives.base import (
    AnyObjective,
    EncodedBatch,
    OtherObjective,
    PairwiseObjective,
    Sizes,
    TokenObjective,
)
from solver.settings import OBJECTIVES, ObjectiveSettings, OptimizerSettings, split_loss_names
from utils.checkpoints import OBJECTIVE
from utils.errors import OptionError, UserError
from utils.settings import Options, own_settings

T = TypeVar("T", bound=AnyObjective)


class TrainingLoss(nn.Module):
    """The sum of all objectives: each pairwise one on each trained embedding, plus the others.

    Args:
        objectives: by name.
        trained: names of the embeddings that pairwise objectives are trained on.
    """

    def __init__(self, objectives: Mapping[str, AnyObjective], trained: Sequence[str]) -> None:
        super().__init__()
        self.objectives, self.trained = nn.ModuleDict(objectives), tuple(trained)

    def of(self, kind: type[T]) -> dict[str, T]:
        """The objectives of one kind, by name."""
        return {name: objective for name, objective in self.objectives.items() if isinstance(objective, kind)}

    @property
    def _scored(self) -> tuple[str, ...]:
        """The embeddings with pairwise losses."""
        return self.trained if self.of(PairwiseObjective) else ()

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that `score` returns."""
        own = [name for other in self.of(OtherObjective).values() for name in other.scores]
        return (*self._scored, *own)

    def scores_for(self, objective: str) -> tuple[str, ...]:
        """The scores that a correspondence uses: those of its `objective`, or the pairs' losses for ""."""
        return self.of(OtherObjective)[objective].scores if objective else self._scored

    def score(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """(B,) scores of a batch's pairs, from which a correspondence decides.

        They are the pairs' losses by trained embedding, and the scores of other objectives by name.
        """
        pairwise, scores = self.of(PairwiseObjective), {}
        for name in self._scored:
            similarity = batch.similarity(name)
            scores[name] = sum_of([_per_pair(loss, similarity, batch.pids) for loss in pairwise.items()])
        for other in self.of(OtherObjective).values():
            scores |= other.score(batch)
        return scores

    def forward(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """The batch's losses, scalars whose sum is minimised: pairwise ones by embedding, others by name."""
        pairwise, losses = self.of(PairwiseObjective), {}
        for name in self._scored:
            similarity = batch.similarity(name)
            losses[name] = sum_of(
                [loss[1].reduce(_per_pair(loss, similarity, batch.pids), batch.weight) for loss in pairwise.items()]
            )
        for name, other in self.of(OtherObjective).items():
            if isinstance(other, TokenObjective):
                losses[name] = other.reduce(batch.rows[name], batch.weight)
            else:
                losses[name] = other(batch)
            if not isinstance(losses[name], Tensor) or losses[name].dim():
                raise UserError(f"objective {name}: expected a scalar, found {shape_or_type(losses[name])}")
        return losses

    def rates(self, optimizer: OptimizerSettings) -> dict[str, float]:
        """The learning rate of each parameter, by its name in this module."""
        return {
            f"objectives.{name}.{parameter}": objective.learning_rate(parameter, optimizer)
            for name, objective in self.of(AnyObjective).items()
            for parameter, _ in objective.named_parameters()
        }

    def half_weight_objectives(self) -> list[AnyObjective]:
        """The objectives with `half_weights`."""
        return [objective for objective in self.of(AnyObjective).values() if objective.half_weights]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters whose gradient in each process is that of its own pairs."""
        return [parameter for objective in self.of(TokenObjective).values() for parameter in objective.parameters()]

    def whole_parameters(self) -> list[nn.Parameter]:
        """Parameters whose gradient in each process is that of the whole batch."""
        shared = {id(parameter) for parameter in self.shared_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in shared]

    def saved_names(self) -> dict[str, str]:
        """Name of every weight in `objectives` → its name in checkpoints."""
        return {
            f"{name}.{weight}": weight if objective.published else f"{OBJECTIVE}{name}.{weight}"
            for name, objective in self.of(AnyObjective).items()
            for weight in objective.state_dict()
        }


def _per_pair(named: tuple[str, PairwiseObjective], similarity: Tensor, pids: Tensor) -> Tensor:
    """An objective's per-pair losses, with their shape checked: a wrong one would be broadcast silently."""
    name, objective = named
    loss = objective.per_pair(similarity, pids)
    if not isinstance(loss, Tensor) or loss.shape != pids.shape:
        raise UserError(f"objective {name}: per_pair must give {tuple(pids.shape)} losses, found {shape_or_type(loss)}")
    if similarity.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError(f"objective {name}: per_pair gives losses without a gradient, nothing would be trained")
    return loss


def shape_or_type(value: object) -> str:
    """A plugin's result in a message: its shape, or its type."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Sum the terms in order; without `start`, `sum` would launch an extra operation to add 0."""
    return sum(terms[1:], start=terms[0])


def build_loss(options: Options, sizes: Sizes) -> TrainingLoss:
    """Build the objectives named in a run's options.

    Raises:
        OptionError: an unknown objective, or one whose name is already in use.
    """
    selection = options.of(ObjectiveSettings)
    objectives: dict[str, AnyObjective] = {}
    for name in split_loss_names(selection.loss_names):
        kind = OBJECTIVES[name]
        settings, pairwise = own_settings(kind, options.of), issubclass(kind, PairwiseObjective)
        if hasattr(nn.ModuleDict(), name) or (name in sizes.widths and not pairwise):
            raise OptionError(f"--loss_names {selection.loss_names}: {name} is taken, give the objective another name")
        if not pairwise and (missing := set(kind.needs) - sizes.widths.keys()):
            raise OptionError(f"--loss_names {name}: needs the embedding {', '.join(missing)} among --heads")
        objectives[name] = kind(settings) if pairwise else kind(settings, sizes)
    loss = TrainingLoss(objectives, selection.trained.split("+"))
    if len(set(loss.saved_names().values())) < len(loss.saved_names()):
        raise OptionError(f"--loss_names {selection.loss_names}: two objectives have weights of the same name")
    return loss
