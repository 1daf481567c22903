"""Token selection: the image patches and caption words that TSE uses (paper, 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.augmentation import normalise
from datasets.images import open_rgb, read_image
from datasets.tokenizer import CaptionTokenizer, Tokenizer
from model.backbones.base import Tokens
from model.encoder import DualEncoder
from model.heads.tse import TokenSelectionEmbedding
from utils.errors import OptionError


def _head(model: DualEncoder, modality: str) -> TokenSelectionEmbedding:
    """The TSE head for "image" or "text".

    Raises:
        OptionError: the model has none.
    """
    if "TSE" not in model.heads:
        raise OptionError(f"token selection needs the head TSE, but the run's heads are {'+'.join(model.heads)}")
    head = model.head("TSE", modality)
    assert isinstance(head, TokenSelectionEmbedding)
    return head


@contextmanager
def _recorded(head: TokenSelectionEmbedding) -> Iterator[list[Tokens]]:
    """Record a head's input tokens within the context."""
    inputs: list[Tokens] = []
    handle = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        handle.remove()


@torch.no_grad()
def chosen_patches(model: DualEncoder, image: np.ndarray) -> np.ndarray:
    """Which patches of a (3, H, W) uint8 image TSE uses: (rows, columns) bool."""
    device, head = next(model.parameters()).device, _head(model, "image")
    with _recorded(head) as inputs:
        model.encode_image(normalise(torch.from_numpy(image.copy())[None].to(device)))
    rows, columns = model.backbone.grid
    chosen = np.zeros(rows * columns, bool)
    chosen[head.reads(inputs[0])[0].cpu().numpy() - 1] = True  # [CLS] comes first
    return chosen.reshape(rows, columns)


@torch.no_grad()
def chosen_words(model: DualEncoder, tokenizer: CaptionTokenizer, caption: str) -> list[tuple[str, float]]:
    """The words of a caption as tokenised, each with its attention from EOS.

    Returns:
        Words and attention scaled to a maximum of 1; 0 for words that TSE doesn't use, because they weren't selected or
        are beyond the model's text length.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise OptionError("selected words are shown for CLIP's tokenizer only")
    device, head = next(model.parameters()).device, _head(model, "text")
    length = model.backbone.text_tokens + 2
    with _recorded(head) as inputs:
        model.encode_text(torch.from_numpy(tokenizer([caption], length)).long().to(device))
    tokens = inputs[0]
    chosen = head.reads(tokens)[0, : int(head.pooled(tokens)[0])].cpu().numpy()
    attention = np.zeros(tokens.attention.shape[1])
    attention[chosen] = head.scores(tokens)[0].float().cpu().numpy()[chosen]
    words, start = [], 1  # SOS comes first
    for word, ids in tokenizer.split(caption):
        words.append((word, float(attention[start : min(start + len(ids), length - 1)].max(initial=0.0))))
        start += len(ids)
    highest = max((weight for _, weight in words), default=0.0) or 1.0
    return [(word, weight / highest) for word, weight in words]


def overlaid(
    model: DualEncoder, size: tuple[int, int], path: Path, *, upright: bool = False
) -> tuple[Image.Image, Image.Image]:
    """An image as the model sees it, and a copy with unselected patches faded.

    Args:
        size: (height, width) of the model's input; the outputs are an integer multiple of it.
        upright: as for `datasets.images.read_image`.

    Raises:
        DataError: the image can't be read.
    """
    chosen = chosen_patches(model, read_image(path, size, upright=upright))
    scale = max(1, round(384 / size[0]))
    picture = open_rgb(path, size, upright=upright).resize((size[1] * scale, size[0] * scale), Image.Resampling.BICUBIC)
    selected = _pixels(chosen, size).repeat(scale, axis=0).repeat(scale, axis=1)
    faded = 0.25 * np.asarray(picture.convert("L"), np.float32)[:, :, None] + 0.75 * 235
    return picture, Image.fromarray(np.where(selected[:, :, None], np.asarray(picture), faded).astype(np.uint8))


def _pixels(chosen: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(rows, columns) selected patches → (height, width) bool pixels."""
    cell = [side // count for side, count in zip(size, chosen.shape, strict=True)]
    pixels = np.zeros(size, bool)
    grid = chosen.repeat(cell[0], axis=0).repeat(cell[1], axis=1)
    pixels[: grid.shape[0], : grid.shape[1]] = grid
    return pixels
