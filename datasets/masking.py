"""Masked words, for objectives that guess them (IRRA's masked language modelling)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.tokenizer import MASK

_DRAWN = 0.15  # of the words


@dataclass(frozen=True)
class Masking:
    """What becomes of the words that are drawn, and who sees it.

    Attributes:
        mask_share, unchanged_share: of those words, in [0, 1]; the rest becomes any random word.
        all_see: every objective sees the masked captions, not only those that guess the words.
    """

    mask_share: float
    unchanged_share: float
    all_see: bool


def mask_words(
    ids: np.ndarray, rng: np.random.Generator, masking: Masking, mask: int = MASK, words: int = MASK
) -> tuple[np.ndarray, np.ndarray]:
    """Draw each word with p = 0.15, the first token where none was drawn, and change those drawn.

    Args:
        ids: (L,) token ids, zero-padded.
        mask, words: as for `augment_text`.

    Returns:
        (L,) ids with masks, and (L,) labels: the ids that were drawn, elsewhere 0.
    """
    drawn = (ids > 0) & (ids < words) & (rng.random(len(ids)) < _DRAWN)
    kind, other = rng.random(len(ids)), rng.integers(1, words, len(ids))
    masked = np.where(kind < masking.mask_share, mask, np.where(kind < 1 - masking.unchanged_share, other, ids))
    if not drawn.any():
        drawn[1], masked[1] = True, mask
    return np.where(drawn, masked, ids).astype(ids.dtype), np.where(drawn, ids, 0).astype(ids.dtype)
