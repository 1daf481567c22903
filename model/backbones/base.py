"""The interface of a backbone, and the tokens that it passes to the heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.settings import ModelSettings
from utils.errors import OptionError

Log = Callable[[str], None]
_NONE = torch.empty(0)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of B images or captions.

    Attributes:
        summary: (B, 1) position of the summary token: [CLS] or EOS.
        hidden: (B, h) positions that are never selected: the summary, SOS.
        selectable: (B,) number of selectable tokens in a row, its patches or words; may be 0.
        attention: (B, L) attention from the summary to every token, 0 to 1, without gradient.
        features: (B, L, D) features in the joint space of images and captions; empty in calls of `Head.reads`.
        read: the positions returned by a head's `reads` for these tokens, if it was called.
    """

    summary: Tensor
    hidden: Tensor
    selectable: Tensor
    attention: Tensor = _NONE
    features: Tensor = _NONE
    read: Tensor | None = None


# Tokens without features → (B, k) distinct positions of the tokens whose features will be read; None for all.
Needed = Callable[[Tokens], Tensor | None]


class Backbone(nn.Module):
    """A pretrained dual tower: images or token ids in, tokens out.

    To add one: write a class in its own file, decorated with `@BACKBONES.register("NAME")`, with `build`,
    `encode_image`, `encode_text` and the attributes; everything else has a default.

    Attributes:
        Settings: a dataclass declared with `utils.settings.settings`, if it has flags.
        width: D of the features.
        grid: patches (rows, columns) of an image.
        image_tokens, text_tokens: number of selectable tokens in an image and in a caption of full length.
        pretrained: names of parameters with pretrained weights; all others learn at the rate of new layers.
        mean, std: channel statistics for normalising images.
        tokenizer: a `datasets.tokenizer.CaptionTokenizer`; None for CLIP's.
        files: files to copy into a run folder, for what a checkpoint can't contain.
        takes_variant: whether `--backbone NAME:VARIANT` is allowed.
        half_weights: whether it supports `--precision fp16_weights`, which converts `model.precision.half_parameters`
            to float16; its features are then float16.
    """

    Settings: ClassVar[type | None] = None
    width: int
    grid: tuple[int, int]
    image_tokens: int
    text_tokens: int
    pretrained: frozenset[str] = frozenset()
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    tokenizer: Any = None
    files: tuple[Path, ...] = ()
    takes_variant: ClassVar[bool] = False
    half_weights: ClassVar[bool] = False

    @classmethod
    def build(cls, settings: ModelSettings, own: Any, log: Log) -> Backbone:
        """Build the backbone with its pretrained weights.

        Args:
            own: its `Settings`, None if it has none.
            log: receives remarks on what is assumed, resized or skipped.
        """
        raise NotImplementedError

    @classmethod
    def from_checkpoint(cls, settings: ModelSettings, own: Any, content: Mapping[str, Any], source: str) -> Backbone:
        """Build a backbone to load a checkpoint's weights into; by default with `build`.

        Args:
            content: the content of the checkpoint `source`.
        """
        del content, source
        return cls.build(settings, own, lambda _: None)

    def renormalised(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images normalised for CLIP → normalised for this backbone."""
        if (self.mean, self.std) == (CLIP_MEAN, CLIP_STD):
            return images
        mean, std, own_mean, own_std = (
            images.new_tensor(part)[:, None, None] for part in (CLIP_MEAN, CLIP_STD, self.mean, self.std)
        )
        return (images * std + mean - own_mean) / own_std

    def encode_image(self, images: Tensor, needed: Needed | None = None) -> Tokens:
        """(B, 3, H, W) normalised images → tokens.

        Only features at the positions that `needed` returns will be read; a backbone may ignore it.
        """
        raise NotImplementedError

    def encode_text(self, ids: Tensor, needed: Needed | None = None) -> Tokens:
        """(B, L) token ids → tokens. L is at most `--text_length`: batches are trimmed to their longest caption."""
        raise NotImplementedError

    def pad_text(self, ids: Tensor, count: int) -> Tensor:
        """Pad (B, L) ids to at least `count` tokens besides SOS and EOS."""
        return F.pad(ids, (0, max(0, count + 2 - ids.shape[1])))

    def published_name(self, name: str) -> str:
        """A weight's name in published files."""
        return name

    def published_state(self) -> dict[str, Tensor]:
        """The state dict under published names."""
        return {self.published_name(name): value for name, value in self.state_dict().items()}

    def towers(self) -> dict[str, dict[str, Any]]:
        """Plain values to save in checkpoints, which `from_checkpoint` can't derive from the tensors."""
        return {}

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Save fewer activations for the backward pass and recompute the others.

        Raises:
            OptionError: not implemented.
        """
        if enable:
            raise OptionError("--grad_checkpointing: this backbone does not implement it")

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the towers with `torch.compile`.

        Raises:
            OptionError: not implemented.
        """
        del backend
        raise OptionError("--compile: this backbone does not implement it")


def union(parts: Sequence[Tensor | None], length: int) -> Tensor | None:
    """Union of several (B, k) arrays of positions among `length` tokens, in order of first occurrence.

    In each row, duplicates are replaced by the first tokens that don't occur in it. None means all tokens.
    """
    read = [part for part in parts if part is not None]
    if len(read) < len(parts):
        return None
    positions = torch.cat(read, dim=1)  # (B, k)
    B, k = positions.shape
    mention = torch.arange(k, dtype=torch.float32, device=positions.device).expand(B, k)
    first = mention.new_full((B, length), k).scatter_reduce(1, positions, mention, "amin")  # (B, length)
    return first.argsort(dim=1, stable=True)[:, :k]
