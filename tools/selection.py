"""What token selection chose: the patches of an image and the words of a caption that enter TSE (paper, 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.augmentation import normalise
from datasets.images import open_rgb, read_image
from datasets.tokenizer import Tokenizer
from model.clip import ClipConfig
from model.rde import RDE
from model.tse import TokenSelectionEmbedding, select_tokens


@contextmanager
def _watched(head: TokenSelectionEmbedding) -> Iterator[list[tuple[Tensor, int, Tensor | None]]]:
    """The (B, L) scores, count and pooled count that a head is given while the context is open."""
    seen = []

    def note(_: torch.nn.Module, given: tuple) -> None:
        _, scores, count, *pooled = given
        seen.append((scores, count, pooled[0] if pooled else None))

    handle = head.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def chosen_patches(model: RDE, image: np.ndarray) -> np.ndarray:
    """Whether each patch of a (3, H, W) uint8 image enters TSE: (rows, columns) bool."""
    device = next(model.parameters()).device
    with _watched(model.image_tse) as seen:
        model.encode_image(normalise(torch.from_numpy(image.copy())[None].to(device)))
    scores, count, _ = seen[0]
    rows, columns = model.clip.config.grid
    chosen = np.zeros(rows * columns, bool)
    chosen[select_tokens(scores, count)[0].cpu().numpy() - 1] = True  # [CLS] stands first
    return chosen.reshape(rows, columns)


@torch.no_grad()
def chosen_words(model: RDE, tokenizer: Tokenizer, caption: str) -> list[tuple[str, float]]:
    """The words of a caption as the model reads them, each with how much the sentence attends to it.

    Returns:
        Word and attention from EOS, scaled so that the highest is 1; 0 for a word of which no token enters TSE, be it
        not chosen or beyond the model's text length.
    """
    device = next(model.parameters()).device
    length = model.clip.config.text_length
    with _watched(model.text_tse) as seen:
        model.encode_text(torch.from_numpy(tokenizer([caption], length)).long().to(device))
    scores, count, pooled = seen[0]
    chosen = select_tokens(scores, count)[0, : int(pooled[0])].cpu().numpy()
    attention = np.zeros(scores.shape[1])
    attention[chosen] = scores[0].float().cpu().numpy()[chosen]
    words, start = [], 1  # SOS stands first
    for word, ids in tokenizer.split(caption):
        words.append((word, float(attention[start : min(start + len(ids), length - 1)].max(initial=0.0))))
        start += len(ids)
    highest = max((weight for _, weight in words), default=0.0) or 1.0
    return [(word, weight / highest) for word, weight in words]


def overlaid(
    model: RDE, size: tuple[int, int], path: Path, *, upright: bool = False
) -> tuple[Image.Image, Image.Image]:
    """An image as the model sees it, and the same with the patches that it did not choose faded.

    Args:
        size: (height, width) of the images that the model takes; the pictures are some whole times as large.
        upright: as for `datasets.images.read_image`.

    Raises:
        DataError: the image can't be read.
    """
    chosen = chosen_patches(model, read_image(path, size, upright=upright))
    scale = max(1, round(384 / size[0]))
    picture = open_rgb(path, size, upright=upright).resize((size[1] * scale, size[0] * scale), Image.Resampling.BICUBIC)
    shown = _pixels(chosen, model.clip.config, size).repeat(scale, axis=0).repeat(scale, axis=1)
    faded = 0.25 * np.asarray(picture.convert("L"), np.float32)[:, :, None] + 0.75 * 235
    return picture, Image.fromarray(np.where(shown[:, :, None], np.asarray(picture), faded).astype(np.uint8))


def _pixels(chosen: np.ndarray, config: ClipConfig, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: the pixels of the chosen of (rows, columns) patches, which may overlap."""
    shown = np.zeros(size, bool)
    for row, column in np.argwhere(chosen) * config.stride:
        shown[row : row + config.patch, column : column + config.patch] = True
    return shown
