"""Masking words, for objectives that predict them (IRRA's masked language modelling)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.tokenizer import MASK

_DRAWN = 0.15  # share of words


@dataclass(frozen=True)
class Masking:
    """How drawn words are masked, and which objectives see the result.

    Attributes:
        mask_share, unchanged_share: shares of the drawn words, in [0, 1]; the rest becomes random words.
        for_all_objectives: every objective sees the masked captions, not only those that predict the words.
    """

    mask_share: float
    unchanged_share: float
    for_all_objectives: bool


def mask_words(
    ids: np.ndarray, rng: np.random.Generator, masking: Masking, mask: int = MASK, words: int = MASK
) -> tuple[np.ndarray, np.ndarray]:
    """Draw words with p = 0.15, at least the first token, and mask them.

    Args:
        ids: (L,) token ids, zero-padded.
        mask, words: see `augment_text`.

    Returns:
        (L,) masked ids, and (L,) labels: the original ids of drawn words, 0 elsewhere.
    """
    drawn = (ids > 0) & (ids < words) & (rng.random(len(ids)) < _DRAWN)
    kind, other = rng.random(len(ids)), rng.integers(1, words, len(ids))
    masked = np.where(kind < masking.mask_share, mask, np.where(kind < 1 - masking.unchanged_share, other, ids))
    if not drawn.any():
        drawn[1], masked[1] = True, mask
    return np.where(drawn, masked, ids).astype(ids.dtype), np.where(drawn, ids, 0).astype(ids.dtype)
