"""Models from weights: sizes read from tensors, positions fitted to the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.clip import ClipSizes
from model.names import from_published, load_into
from model.pretrained import read_clip
from model.rde import RDE
from utils.checkpoints import load_checkpoint
from utils.errors import WeightsError


def read_sizes(state: Mapping[str, Tensor], source: str, *, stride: int | None = None) -> ClipSizes:
    """The sizes of the CLIP that a state dict (OpenAI's names) holds.

    `source` is named in messages. The grid is taken to be square, as in every pretrained CLIP; `stride` defaults to the
    patch size.

    Raises:
        WeightsError: a tensor that fixes a size is missing, or has dimensions that no CLIP's has.
    """
    try:
        image_width, _, patch, _ = state["visual.conv1.weight"].shape
        positions, _ = state["visual.positional_embedding"].shape
        text_length, text_width = state["positional_embedding"].shape
        vocab_size, _ = state["token_embedding.weight"].shape
        _, shared_width = state["text_projection"].shape
        if min(image_width, patch, positions - 1, text_length, text_width, vocab_size, shared_width) < 1:
            raise ValueError
        side = round((positions - 1) ** 0.5)
        return ClipSizes(
            image_width=image_width,
            image_layers=_count_layers(state, "visual.transformer.resblocks."),
            patch=patch,
            stride=stride or patch,
            grid=(side, side),
            text_width=text_width,
            text_layers=_count_layers(state, "transformer.resblocks."),
            text_length=text_length,
            vocab_size=vocab_size,
            shared_width=shared_width,
        )
    except KeyError as missing:
        raise WeightsError(f"{source} is no CLIP vision transformer: {missing} is missing") from None
    except ValueError:
        raise WeightsError(f"{source} is no CLIP vision transformer: its tensors have other dimensions") from None


def _count_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def grid_of(image_size: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    """How many patches (rows, columns) an image of (height, width) pixels gives."""
    return (image_size[0] - patch) // stride + 1, (image_size[1] - patch) // stride + 1


def resize_positions(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a (1 + rows·columns, D) positional embedding bilinearly to a new grid; the [CLS] row is kept."""
    grid = embedding[1:].float().view(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)
    return torch.cat([embedding[:1].float(), grid.flatten(2).squeeze(0).T])


def build_model(
    pretrain_choice: str,
    *,
    image_size: tuple[int, int],
    stride: int,
    text_length: int,
    vocab_size: int,
    select_ratio: float,
    tse_bn: str,
    tse_head: str,
    tse_pool: str,
    precision: str,
) -> RDE:
    """An RDE model with pretrained towers and fresh TSE heads (drawn from torch's global generator).

    Raises:
        WeightsError: the weights can't be read, or were made for another text length, vocabulary or patch.
    """
    state = read_clip(pretrain_choice)
    sizes = read_sizes(state, pretrain_choice, stride=stride)
    _check_text(sizes, text_length, vocab_size, pretrain_choice)
    if min(image_size) < sizes.patch:
        raise WeightsError(f"--img_size {image_size[0]} {image_size[1]}: smaller than a patch of {sizes.patch} pixels")
    grid = grid_of(image_size, sizes.patch, stride)
    positions = state["visual.positional_embedding"]
    if sizes.grid[0] * sizes.grid[1] != len(positions) - 1:
        raise WeightsError(f"{pretrain_choice} has {len(positions) - 1} patches, which are no square grid")
    state["visual.positional_embedding"] = resize_positions(positions, sizes.grid, grid)
    kind = {"tse_bn": tse_bn, "tse_head": tse_head, "tse_pool": tse_pool, "precision": precision}
    model = RDE(replace(sizes, grid=grid), select_ratio=select_ratio, **kind)
    load_into(model.clip, state, pretrain_choice)
    return model


def _check_text(sizes: ClipSizes, text_length: int, vocab_size: int, source: str) -> None:
    for flag, wanted, found in (
        ("text_length", text_length, sizes.text_length),
        ("vocab_size", vocab_size, sizes.vocab_size),
    ):
        if wanted != found:
            raise WeightsError(f"--{flag} {wanted}: {source} was made for {found}")


def model_from_checkpoint(file: Path, options: Mapping[str, Any]) -> RDE:
    """The RDE model a checkpoint holds, ours or the authors'; all sizes but the grid come from its tensors.

    Args:
        options: of the run; read are `img_size`, `stride_size`, `text_length`, `vocab_size`, `select_ratio`,
            `tse_head`, `tse_pool` and `precision`.

    Raises:
        WeightsError: a file that can't be read, names or shapes that are not an RDE model's, or another image size,
            text length or vocabulary.
    """
    published = load_checkpoint(file)["model"]
    clip = {name.removeprefix("clip."): value for name, value in from_published(published, str(file)).items()}
    height, width = options["img_size"]
    sizes = read_sizes(clip, str(file), stride=options["stride_size"])
    grid = grid_of((height, width), sizes.patch, sizes.stride)
    positions = len(clip["visual.positional_embedding"]) - 1
    if grid[0] * grid[1] != positions:
        raise WeightsError(
            f"{file} has {positions} patches, but img_size {height} {width} at stride_size {sizes.stride} "
            f"gives {grid[0]}×{grid[1]}"
        )
    _check_text(sizes, options["text_length"], options["vocab_size"], str(file))
    kind = {name: options[name] for name in ("select_ratio", "tse_head", "tse_pool", "precision")}
    model = RDE(replace(sizes, grid=grid), **kind)
    model.load_published(published, str(file))
    return model
