"""DECL: evidential learning, and a triplet loss with progressively harder negatives (Qin et al., ACM MM 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from solver.objectives.base import EncodedBatch, Objective, Sizes
from solver.settings import OBJECTIVES

_TAU, _KL_WEIGHT = 0.1, 0.1
_TRIPLET_WEIGHT, _MARGIN = 0.8, 0.2
_DROPPED_PER_STEP, _MIN_NEGATIVES = 0.025, 5


def evidence(similarity: Tensor) -> Tensor:
    """(B, B) cosines → evidence exp(tanh(s)/τ) for a match."""
    return (similarity.tanh() / _TAU).exp()


def evidential(similarity: Tensor, target: Tensor) -> Tensor:
    """Evidential loss of each row's Dirichlet: squared error, variance, and KL divergence of the wrong classes from
    zero evidence.

    Args:
        similarity: (B, B) cosines, queries in rows.
        target: (B, B) one-hot rows; a row of zeros if no match is known.

    Returns:
        (B,)
    """
    alpha = evidence(similarity) + 1
    total = alpha.sum(dim=1, keepdim=True)
    error = (target - alpha / total).square() + alpha * (total - alpha) / (total.square() * (total + 1))
    return error.sum(dim=1) + _KL_WEIGHT * _divergence(target + (1 - target) * alpha)


def _divergence(alpha: Tensor) -> Tensor:
    """(B, B) → (B,): KL(Dir(α) ‖ Dir(1)) of each row."""
    total, classes = alpha.sum(dim=1, keepdim=True), torch.tensor(float(alpha.shape[1]), device=alpha.device)
    expected = (alpha - 1) * (alpha.digamma() - total.digamma())
    return total.lgamma().squeeze(1) - alpha.lgamma().sum(dim=1) - classes.lgamma() + expected.sum(dim=1)


def hardness_triplet(similarity: Tensor, hardest: int) -> Tensor:
    """(B, B) cosines → (B,): mean of the `hardest` largest hinge losses in a row, plus the same for its column."""
    s = similarity.tanh()
    hinge = (_MARGIN + s - s.diagonal()[:, None]).clamp_min(0).fill_diagonal_(0)
    other = (_MARGIN + s - s.diagonal()[None, :]).clamp_min(0).fill_diagonal_(0)
    return (hinge.topk(hardest, dim=1).values.sum(dim=1) + other.topk(hardest, dim=0).values.sum(dim=0)) / hardest


@OBJECTIVES.register("DECL")
class DECL(Objective):
    """The evidential loss of both directions, and the triplet loss of the clean pairs, on BGE.

    Only the pair itself is positive, whatever the identities; a pair of weight 0 has no positive.
    """

    capturable = False  # reads the number of steps
    needs = ("BGE",)
    scores = ("uncertainty", "belief", "clean")

    def __init__(self, settings: None, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, batch: EncodedBatch) -> Tensor:
        """See `Objective.forward`."""
        similarity, count = batch.similarity("BGE"), len(batch.pids)
        target = torch.diag(batch.weight)
        loss = (evidential(similarity, target) + evidential(similarity.T, target)).mean()
        if count > 1:
            negatives = int(self.sizes.batch_size - _DROPPED_PER_STEP * int(self.steps))
            hardest = min(max(negatives, _MIN_NEGATIVES), count - 1)
            loss = loss + _TRIPLET_WEIGHT * (batch.weight * hardness_triplet(similarity, hardest)).sum()
        self.steps += 1
        return loss

    def score(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Uncertainty in (0, 2], the expected match probability in (0, 1), and whether a pair's evidence is the largest
        in its batch."""
        e = evidence(batch.similarity("BGE"))
        count, own = len(e), e.diagonal() + 1
        totals = [(e + 1).sum(dim=dim) for dim in (1, 0)]
        both = e + e.T
        return {
            "uncertainty": count / totals[0] + count / totals[1],
            "belief": (own / totals[0] + own / totals[1]) / 2,
            "clean": (both.argmax(dim=1) == torch.arange(count, device=both.device)).float(),
        }
