"""All objectives of a run together: what `--loss_names` and `--trained` ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from solver.objectives.base import EncodedBatch, Objective, PairwiseObjective, Sizes, cosine_similarity
from solver.settings import OBJECTIVES, ObjectiveSettings, split_loss_names
from utils.errors import OptionError, UserError
from utils.settings import Options


class TrainingLoss(nn.Module):
    """The sum of all objectives: each pairwise one on each trained embedding, and each of the others.

    Args:
        pairwise: by name.
        others: by name; their parameters are this module's.
        trained: names of the embeddings that pairwise objectives are trained on.
    """

    def __init__(
        self, pairwise: Mapping[str, PairwiseObjective], others: Mapping[str, Objective], trained: Sequence[str]
    ) -> None:
        super().__init__()
        self.pairwise, self.trained = dict(pairwise), tuple(trained)
        self._others = dict(others)
        self.others = nn.ModuleDict(others)

    def score(self, image: Mapping[str, Tensor], text: Mapping[str, Tensor], pids: Tensor) -> dict[str, Tensor]:
        """For each trained embedding the (B,) losses of a batch's pairs, by which a correspondence judges them."""
        scores = {}
        for name in self.trained:
            similarity = cosine_similarity(image[name], text[name])
            scores[name] = sum_of([_per_pair(loss, similarity, pids) for loss in self.pairwise.items()])
        return scores

    def forward(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """The batch's losses, scalars whose sum is trained: by embedding, and by name those of other objectives."""
        losses = {}
        if self.pairwise:
            for name in self.trained:
                similarity = cosine_similarity(batch.image[name], batch.text[name])
                losses[name] = sum_of(
                    [
                        loss[1].reduce(_per_pair(loss, similarity, batch.pids), batch.weight)
                        for loss in self.pairwise.items()
                    ]
                )
        for name, objective in self._others.items():
            losses[name] = objective(batch)
            if not isinstance(losses[name], Tensor) or losses[name].dim():
                raise UserError(f"objective {name}: expected a scalar, found {_found(losses[name])}")
        return losses

    def rates(self, head_lr: float) -> dict[str, float]:
        """The learning rate of each parameter, by its name here."""
        return {
            f"others.{name}.{parameter}": objective.learning_rate(head_lr)
            for name, objective in self._others.items()
            for parameter, _ in objective.named_parameters()
        }


def _per_pair(named: tuple[str, PairwiseObjective], similarity: Tensor, pids: Tensor) -> Tensor:
    """An objective's loss of every pair, checked: a wrong shape would be broadcast in silence."""
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
    """Their sum, in order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def build_loss(options: Options, sizes: Sizes) -> TrainingLoss:
    """The objectives that a run's options name.

    Raises:
        OptionError: an unknown objective, or one whose name is taken.
    """
    chosen = options.of(ObjectiveSettings)
    pairwise, others = {}, {}
    for name in split_loss_names(chosen.loss_names):
        kind = OBJECTIVES[name]
        settings = options.of(kind.Settings) if kind.Settings else None
        if issubclass(kind, PairwiseObjective):
            pairwise[name] = kind(settings)
        elif name in sizes.widths or name in dir(nn.ModuleDict):
            raise OptionError(f"--loss_names {chosen.loss_names}: {name} is taken, give the objective another name")
        else:
            others[name] = kind(settings, sizes)
    return TrainingLoss(pairwise, others, chosen.trained.split("+"))
