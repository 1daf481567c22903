"""Cross-modal projection matching, also offered by IRRA (Zhang and Lu, ECCV 2018)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from solver.objectives.base import EncodedBatch, Objective
from solver.settings import OBJECTIVES


@OBJECTIVES.register("cmpm")
class CMPM(Objective):
    """KL divergence of softmax(f·ĝ), f unnormalised and ĝ normalised, from the positives, in both directions; on BGE.

    As published, positives are divided by the Euclidean norm of their row, not by their number.
    """

    needs = ("BGE",)

    def forward(self, batch: EncodedBatch) -> Tensor:
        """See `Objective.forward`."""
        image, text = batch.image["BGE"], batch.text["BGE"]
        positive = (batch.pids[:, None] == batch.pids[None, :]).float()
        return batch.mean(_one_direction(image, text, positive) + _one_direction(text, image, positive))


def _one_direction(queries: Tensor, others: Tensor, positive: Tensor) -> Tensor:
    """(B, D) embeddings of both modalities and (B, B) positives → (B,)."""
    log_p = (queries @ F.normalize(others, dim=1).T).log_softmax(dim=1)
    return (log_p.exp() * (log_p - (F.normalize(positive, dim=1) + 1e-8).log())).sum(dim=1)
