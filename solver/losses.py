"""Per-pair matching losses over a batch's similarities (paper, 3.3, eq. 4-8; SDM is IRRA's).

Every loss takes cosine similarities s (B images, B captions) and pids (B,), and returns (B,): pair i's loss as an image
query (row i) plus its loss as a text query (column i). Weighting and reducing is `reduce_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossSettings:
    """tau: TAL's temperature, > 0. margin: m, ≥ 0. temperature: the softmax temperature of InfoNCE and SDM, > 0."""

    tau: float = 0.015
    margin: float = 0.1
    temperature: float = 0.02


def cosine_similarity(image: Tensor, text: Tensor) -> Tensor:
    """(B, D) and (C, D) features → (B, C) cosines."""
    return F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T


def positive_similarity(s: Tensor, positive: Tensor, tau: float) -> Tensor:
    """S⁺ (B,): the mean of a row's positives, weighted by softmax(s/τ) over them; no gradient reaches the weights."""
    weights = (s / tau).masked_fill(~positive, float("-inf")).softmax(dim=1).detach()
    return (weights * s).sum(dim=1)


def _hinge(
    s: Tensor, positive: Tensor, settings: LossSettings, hardest_negative: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """[m − S⁺ + a row's hardest negative]₊ (B,); 0, with gradient 0, where a row has no negative."""
    has_negative = ~positive.all(dim=1)
    hidden = positive & has_negative[:, None]  # a row without negatives stays finite, and is dropped below
    loss = settings.margin - positive_similarity(s, positive, settings.tau) + hardest_negative(s, hidden)
    return torch.where(has_negative, loss.clamp_min(0), 0.0)


def _tal(s: Tensor, positive: Tensor, settings: LossSettings) -> Tensor:
    """Eq. 5: the hardest negative is softened to τ·log Σ e^{s/τ}; its gradient spreads over all negatives."""

    def soft_maximum(s: Tensor, hidden: Tensor) -> Tensor:
        return settings.tau * (s / settings.tau).masked_fill(hidden, float("-inf")).logsumexp(dim=1)

    return _hinge(s, positive, settings, soft_maximum)


def _trl(s: Tensor, positive: Tensor, settings: LossSettings) -> Tensor:
    """The triplet ranking loss with the hardest negative: TAL's limit as τ → 0, and never above TAL."""
    return _hinge(s, positive, settings, lambda s, hidden: s.masked_fill(hidden, float("-inf")).amax(dim=1))


def _trl_s(s: Tensor, positive: Tensor, settings: LossSettings) -> Tensor:
    """Eq. 8: the hinge summed over all negatives."""
    per_negative = settings.margin - positive_similarity(s, positive, settings.tau)[:, None] + s
    return per_negative.clamp_min(0).masked_fill(positive, 0.0).sum(dim=1)


def _info_nce(s: Tensor, _: Tensor, settings: LossSettings) -> Tensor:
    """−½ log softmax(s/T)_ii: only the pair itself is positive, whatever the pids."""
    return -0.5 * (s / settings.temperature).log_softmax(dim=1).diagonal()


def _sdm(s: Tensor, positive: Tensor, settings: LossSettings) -> Tensor:
    """Similarity distribution matching: KL(softmax(s/T) ‖ positives spread evenly)."""
    log_p = (s / settings.temperature).log_softmax(dim=1)
    target = positive.float() / positive.sum(dim=1, keepdim=True)
    return (log_p.exp() * (log_p - (target + 1e-8).log())).sum(dim=1)


_ONE_DIRECTION = {"TAL": _tal, "TRL": _trl, "TRL-S": _trl_s, "InfoNCE": _info_nce, "SDM": _sdm}
_MEAN_OVER_CLEAN = {"InfoNCE", "SDM"}
LOSSES = tuple(_ONE_DIRECTION)


def per_pair_loss(name: str, s: Tensor, pids: Tensor, settings: LossSettings) -> Tensor:
    """The loss of every pair.

    Args:
        name: one of `LOSSES`.
        s: (B, B) cosine similarities, images in rows.
        pids: (B,) identities; a caption counts as a positive of every image of its identity.

    Returns:
        (B,), ≥ 0 for the triplet losses.
    """
    positive = pids[:, None] == pids[None, :]
    one_direction = _ONE_DIRECTION[name]
    return one_direction(s, positive, settings) + one_direction(s.T, positive, settings)


def reduce_loss(name: str, per_pair: Tensor, label: Tensor) -> Tensor:
    """Σ l̂·loss over the batch, for InfoNCE and SDM divided by Σ l̂.

    Args:
        per_pair: (B,) losses.
        label: (B,) l̂ in {0, 1}: which pairs train (CCD's verdict). 0 when no pair of the batch does.
    """
    total = (label * per_pair).sum()
    return total / label.sum().clamp_min(1) if name in _MEAN_OVER_CLEAN else total
