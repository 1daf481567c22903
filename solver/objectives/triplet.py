"""The triplet alignment loss and the triplet losses it is compared with (paper, 3.3, eq. 4-8)."""

from __future__ import annotations

import torch
from torch import Tensor

from solver.objectives.base import TwoDirections
from solver.settings import OBJECTIVES, TripletSettings

_LOWEST = torch.finfo(torch.float32).min / 4  # its exponential is 0, and sums of it are finite: no NaN in gradients


def positive_similarity(s: Tensor, positive: Tensor, tau: float) -> Tensor:
    """S⁺ (B,): mean of a row's positives, weighted by softmax(s/τ) over them; weights get no gradient."""
    weights = (s / tau).masked_fill(~positive, float("-inf")).softmax(dim=1).detach()
    return (weights * s).sum(dim=1)


class _HardestNegative(TwoDirections):
    """[m − S⁺ + a row's hardest negative]₊; 0, with gradient 0, if a row has no negative."""

    Settings = TripletSettings
    settings: TripletSettings

    def one_direction(self, similarity: Tensor, positive: Tensor) -> Tensor:
        """See `TwoDirections.one_direction`."""
        positives = positive_similarity(similarity, positive, self.settings.tau)
        return (self.settings.margin - positives + self.hardest(similarity, positive)).relu()

    def hardest(self, s: Tensor, positive: Tensor) -> Tensor:
        """(B, B) similarities → (B,) hardest negative; if a row has none, far below −1, but finite."""
        raise NotImplementedError


@OBJECTIVES.register("TAL")
class TAL(_HardestNegative):
    """Eq. 5: the hardest negative is softened to τ·log Σ e^{s/τ}; its gradient spreads over all negatives."""

    def hardest(self, s: Tensor, positive: Tensor) -> Tensor:
        """See `_HardestNegative.hardest`."""
        tau = self.settings.tau
        return tau * (s / tau).masked_fill(positive, _LOWEST).logsumexp(dim=1)


@OBJECTIVES.register("TRL")
class TRL(_HardestNegative):
    """The triplet ranking loss with the hardest negative: TAL's limit as τ → 0, and never above TAL."""

    def hardest(self, s: Tensor, positive: Tensor) -> Tensor:
        """See `_HardestNegative.hardest`."""
        return s.masked_fill(positive, _LOWEST).amax(dim=1)


@OBJECTIVES.register("TRL-S")
class TRLS(TwoDirections):
    """Eq. 8: the hinge summed over all negatives."""

    Settings = TripletSettings
    settings: TripletSettings

    def one_direction(self, similarity: Tensor, positive: Tensor) -> Tensor:
        """See `TwoDirections.one_direction`."""
        positives = positive_similarity(similarity, positive, self.settings.tau)
        per_negative = self.settings.margin - positives[:, None] + similarity
        return per_negative.clamp_min(0).masked_fill(positive, 0.0).sum(dim=1)
