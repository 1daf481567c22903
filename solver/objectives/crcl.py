"""CRCL's active complementary loss (Qin et al., NeurIPS 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from solver.objectives.base import EncodedBatch, Objective
from solver.settings import OBJECTIVES

_TEMPERATURE, _COMPLEMENTARY_WEIGHT = 0.05, 5.0


@OBJECTIVES.register("CRCL")
class CRCL(Objective):
    """Active loss of the pair, weighted by its label, plus complementary loss of all others, tempered by it; on BGE.

    Labels are the pairs' weights, in [0, 1].
    """

    needs = ("BGE",)
    scores = ("match",)

    def forward(self, batch: EncodedBatch) -> Tensor:
        """See `Objective.forward`."""
        loss = batch.weight.new_zeros(())
        for similarity in (batch.similarity("BGE"), batch.similarity("BGE").T):
            log_p = (similarity / _TEMPERATURE).log_softmax(dim=1)
            tangents = log_p.exp().tan()
            others = tangents.sum(dim=1) - tangents.diagonal()
            complementary = others / tangents.sum(dim=1) ** (1 - batch.weight)
            loss = loss + (_COMPLEMENTARY_WEIGHT * complementary - batch.weight * log_p.diagonal()).mean()
        return loss

    def score(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """A pair's match probability, averaged over both directions in its batch."""
        s = batch.similarity("BGE") / _TEMPERATURE
        return {"match": (torch.softmax(s, dim=1).diagonal() + torch.softmax(s, dim=0).diagonal()) / 2}
