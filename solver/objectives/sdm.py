"""Similarity distribution matching, IRRA's loss (Jiang and Ye, CVPR 2023)."""

from __future__ import annotations

from torch import Tensor

from solver.objectives.base import TwoDirections
from solver.settings import OBJECTIVES, SoftmaxSettings


@OBJECTIVES.register("SDM")
@OBJECTIVES.register("sdm")
class SDM(TwoDirections):
    """KL(softmax(s/T) ‖ uniform distribution over the positives)."""

    Settings = SoftmaxSettings
    settings: SoftmaxSettings
    reduction = "mean"

    def one_direction(self, similarity: Tensor, positive: Tensor) -> Tensor:
        """See `TwoDirections.one_direction`."""
        log_p = (similarity / self.settings.temperature).log_softmax(dim=1)
        target = positive.float() / positive.sum(dim=1, keepdim=True)
        return (log_p.exp() * (log_p - (target + 1e-8).log())).sum(dim=1)
