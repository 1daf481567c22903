"""InfoNCE, CLIP's own contrastive loss."""

from __future__ import annotations

from torch import Tensor

from solver.objectives.base import TwoDirections
from solver.settings import OBJECTIVES, SoftmaxSettings


@OBJECTIVES.register("InfoNCE")
@OBJECTIVES.register("itc")
class InfoNCE(TwoDirections):
    """−½ log softmax(s/T)_ii: only the pair itself is positive, whatever the identities."""

    Settings = SoftmaxSettings
    settings: SoftmaxSettings
    reduction = "mean"

    def one_direction(self, similarity: Tensor, positive: Tensor) -> Tensor:  # noqa: ARG002
        """See `TwoDirections.one_direction`."""
        return -0.5 * (similarity / self.settings.temperature).log_softmax(dim=1).diagonal()
