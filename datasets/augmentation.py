"""Training augmentations (paper, 4.1): drawn per pair in the data loader, applied to batches on the device.

The draws depend only on a pair's generator, never on its batch or worker.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datasets.tokenizer import MASK

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_PAD = 10
_AREA = (0.02, 0.4)
_LOG_ASPECT = (math.log(0.3), math.log(3.3))


def draw_image(rng: np.random.Generator, size: tuple[int, int], img_aug: bool) -> np.ndarray:
    """Draw the augmentation of one image of (height, width): (7,) int32.

    flip; top and left of the crop from the image zero-padded by 10; top, left, height and width of the erased
    rectangle (height 0 for none). Flip and erasing have p = 0.5; crop and erasing need `img_aug`.
    """
    height, width = size
    flip = int(rng.random() < 0.5)
    if not img_aug:
        return np.array([flip, _PAD, _PAD, 0, 0, 0, 0], np.int32)
    top, left = rng.integers(0, 2 * _PAD + 1, 2)
    erased = _draw_rectangle(rng, height, width) if rng.random() < 0.5 else (0, 0, 0, 0)
    return np.array([flip, top, left, *erased], np.int32)


def _draw_rectangle(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Rectangle for random erasing; none if none of ten attempts fits."""
    for _ in range(10):
        area = rng.uniform(*_AREA) * height * width
        aspect = math.exp(rng.uniform(*_LOG_ASPECT))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return 0, 0, 0, 0


@lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1) tensor, cached per device: creating it again would wait for the device."""
    return torch.tensor(values, device=device).view(3, 1, 1)


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 → float32, normalised with CLIP's mean and standard deviation."""
    mean, std = (_per_channel(values, images.device) for values in (MEAN, STD))
    return images.float().div_(255).sub_(mean).div_(std)


def apply_image(images: Tensor, draws: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 and (B, 7) draws → augmented, normalised float32 images of the same shape.

    The crop's padding is black; the erased rectangle is filled with CLIP's mean after normalising, as published.
    """
    B, _, H, W = images.shape
    flip, top, left, *rectangle = draws.to(images.device, torch.long).unbind(1)
    padded = images.new_zeros(B, 3, H + 2 * _PAD, W + 2 * _PAD)
    padded[:, :, _PAD:-_PAD, _PAD:-_PAD] = torch.where(flip.view(B, 1, 1, 1) == 1, images.flip(3), images)
    windows = padded.unfold(2, H, 1).unfold(3, W, 1)  # (B, 3, 21, 21, H, W), a view
    normalised = normalise(windows[torch.arange(B, device=images.device), :, top, left])  # (B, 3, H, W)
    e_top, e_left, e_height, e_width = rectangle
    row, column = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    rows = (row >= e_top[:, None]) & (row < (e_top + e_height)[:, None])  # (B, H)
    columns = (column >= e_left[:, None]) & (column < (e_left + e_width)[:, None])  # (B, W)
    erased = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, W)
    return torch.where(erased, _per_channel(MEAN, images.device), normalised, out=normalised)


def augment_text(ids: np.ndarray, rng: np.random.Generator, mask: int = MASK, words: int = MASK) -> np.ndarray:
    """Change each word token with p = 0.2: 60% become the mask, 20% a random word, 20% are removed.

    Args:
        ids: (L,) token ids, zero-padded.
        mask, words: the tokenizer's mask id, and the exclusive upper bound of its word ids.

    Returns:
        (L,) of the same dtype; later tokens move up after a removed one, and zeros fill the end.
    """
    word = (ids > 0) & (ids < words)
    changed = word & (rng.random(len(ids)) < 0.2)
    kind = rng.random(len(ids))
    result = np.where(changed & (kind < 0.6), mask, ids)
    result = np.where(changed & (kind >= 0.6) & (kind < 0.8), rng.integers(1, words, len(ids)), result)
    kept = result[~(changed & (kind >= 0.8))]
    return np.pad(kept, (0, len(ids) - len(kept))).astype(ids.dtype)
