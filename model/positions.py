"""Fitting positional embeddings to the image grid and text length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.errors import WeightsError


def grid_of(image_size: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    """Number of patches (rows, columns) in an image of (height, width) pixels."""
    return (image_size[0] - patch) // stride + 1, (image_size[1] - patch) // stride + 1


def resize_positions(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a (1 + rows·columns, D) positional embedding bilinearly to a new grid; the [CLS] row is kept."""
    grid = embedding[1:].float().view(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)
    return torch.cat([embedding[:1].float(), grid.flatten(2).squeeze(0).T])


def fit_positions(embedding: Tensor, new: tuple[int, int], source: str, *, wrapped: bool) -> Tensor:
    """Positions for a (rows, columns) grid: unchanged if they already fit, else resized from a square grid.

    Args:
        embedding: (1 + patches, D).
        source: named in messages.
        wrapped: whether the model was fine-tuned on person images, so that positions of the right number are used
            unchanged even if that number is also square.

    Raises:
        WeightsError: they fit neither this grid nor a square one.
    """
    patches = len(embedding) - 1
    side = round(patches**0.5)
    square = side * side == patches
    if patches == new[0] * new[1] and (wrapped or not square):
        return embedding
    if not square:
        raise WeightsError(
            f"{source} has positions for {patches} patches, neither a square grid nor the {new[0]}×{new[1]} of "
            "--img_size and --stride_size: pass the sizes it was trained with"
        )
    return resize_positions(embedding, (side, side), new)


def resize_text_positions(embedding: Tensor, length: int) -> Tensor:
    """(L, D) positions for another length: truncated if shorter, linearly interpolated if longer."""
    if length <= len(embedding):
        return embedding[:length]
    stretched = F.interpolate(embedding.double().T[None], size=length, mode="linear", align_corners=False)
    return stretched[0].T.to(embedding.dtype)
