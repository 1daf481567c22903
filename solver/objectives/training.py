"""A run's total loss, from `--loss_names` and `--trained`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from solver.objectives.base import EncodedBatch, Objective, PairwiseObjective, Sizes, TokenObjective
from solver.settings import OBJECTIVES, ObjectiveSettings, OptimizerSettings, split_loss_names
from utils.checkpoints import OBJECTIVE
from utils.errors import OptionError, UserError
from utils.settings import Options, own_settings


class TrainingLoss(nn.Module):
    """The sum of all objectives: each pairwise one on each trained embedding, and each of the others.

    Args:
        pairwise: pairwise objectives by name.
        others: other objectives by name; their parameters are this module's.
        trained: names of the embeddings that pairwise objectives are trained on.

    Attributes:
        token_objectives: the token objectives among the others.
    """

    def __init__(
        self,
        pairwise: Mapping[str, PairwiseObjective],
        others: Mapping[str, Objective | TokenObjective],
        trained: Sequence[str],
    ) -> None:
        super().__init__()
        self.pairwise, self.trained = dict(pairwise), tuple(trained)
        self._others = dict(others)
        self.token_objectives = {name: other for name, other in others.items() if isinstance(other, TokenObjective)}
        self.others = nn.ModuleDict(others)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that `score` returns."""
        own = [name for objective in self._others.values() for name in objective.scores]
        return (*(self.trained if self.pairwise else ()), *own)

    def scores_for(self, objective: str) -> tuple[str, ...]:
        """The scores used by a correspondence: those of its `objective`, or the pairs' losses for ""."""
        return self._others[objective].scores if objective else self.trained if self.pairwise else ()

    def score(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """(B,) scores by which a correspondence judges a batch's pairs.

        They are the pairs' losses by trained embedding, and the scores of other objectives by name.
        """
        scores = {}
        for name in self.trained if self.pairwise else ():
            similarity = batch.similarity(name)
            scores[name] = sum_of([_per_pair(loss, similarity, batch.pids) for loss in self.pairwise.items()])
        for objective in self._others.values():
            scores |= objective.score(batch)
        return scores

    def forward(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """The batch's losses, scalars whose sum is minimised: pairwise ones by embedding, others by name."""
        losses = {}
        for name in self.trained if self.pairwise else ():
            similarity = batch.similarity(name)
            losses[name] = sum_of(
                [
                    loss[1].reduce(_per_pair(loss, similarity, batch.pids), batch.weight)
                    for loss in self.pairwise.items()
                ]
            )
        for name, other in self._others.items():
            of_tokens = isinstance(other, TokenObjective)
            losses[name] = other.reduce(batch.rows[name], batch.weight) if of_tokens else other(batch)
            if not isinstance(losses[name], Tensor) or losses[name].dim():
                raise UserError(f"objective {name}: expected a scalar, found {_found(losses[name])}")
        return losses

    def rates(self, optimizer: OptimizerSettings) -> dict[str, float]:
        """The learning rate of each parameter, by its name in this module."""
        return {
            f"others.{name}.{parameter}": objective.learning_rate(parameter, optimizer)
            for name, objective in self._others.items()
            for parameter, _ in objective.named_parameters()
        }

    def half_weight_objectives(self) -> list[Objective | TokenObjective]:
        """The other objectives with `half_weights`."""
        return [objective for objective in self._others.values() if objective.half_weights]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters whose gradient in each process is only that of its own pairs."""
        return [parameter for objective in self.token_objectives.values() for parameter in objective.parameters()]

    def saved_names(self) -> dict[str, str]:
        """Name of every weight in `others` → its name in checkpoints."""
        return {
            f"{name}.{weight}": weight if objective.published else f"{OBJECTIVE}{name}.{weight}"
            for name, objective in self._others.items()
            for weight in objective.state_dict()
        }


def _per_pair(named: tuple[str, PairwiseObjective], similarity: Tensor, pids: Tensor) -> Tensor:
    """An objective's per-pair losses, with a check: a wrong shape would be broadcast silently."""
    name, objective = named
    loss = objective.per_pair(similarity, pids)
    if not isinstance(loss, Tensor) or loss.shape != pids.shape:
        raise UserError(f"objective {name}: per_pair must give {tuple(pids.shape)} losses, found {_found(loss)}")
    if similarity.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError(f"objective {name}: per_pair gives losses without a gradient, nothing would be trained")
    return loss


def _found(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Sum the terms, in order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def build_loss(options: Options, sizes: Sizes) -> TrainingLoss:
    """Build the objectives named in a run's options.

    Raises:
        OptionError: an unknown objective, or one whose name is already in use.
    """
    chosen = options.of(ObjectiveSettings)
    pairwise, others = {}, {}
    for name in split_loss_names(chosen.loss_names):
        kind = OBJECTIVES[name]
        settings = own_settings(kind, options.of)
        if issubclass(kind, PairwiseObjective):
            pairwise[name] = kind(settings)
        elif name in sizes.widths or name in dir(nn.ModuleDict):
            raise OptionError(f"--loss_names {chosen.loss_names}: {name} is taken, give the objective another name")
        elif missing := set(kind.needs) - sizes.widths.keys():
            raise OptionError(f"--loss_names {name}: needs the embedding {', '.join(missing)} among --heads")
        else:
            others[name] = kind(settings, sizes)
    loss = TrainingLoss(pairwise, others, chosen.trained.split("+"))
    if len(set(loss.saved_names().values())) < len(loss.saved_names()):
        raise OptionError(f"--loss_names {chosen.loss_names}: two objectives have weights of one name in checkpoints")
    return loss
