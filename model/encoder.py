"""The dual encoder: a backbone and named heads; RDE's are BGE and TSE (paper, 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone, Needed, Tokens, union
from model.heads.base import Head
from model.names import BACKBONE, PUBLISHED_BACKBONE, load_named, published_head_name, without_wrapper
from model.precision import autocast, convert_weights_to_half, half_parameters
from utils.checkpoints import describe_mismatch
from utils.errors import OptionError

Read = dict[str, Tensor | None]  # positions that each head reads, by name
Embeddings = dict[str, Tensor]  # (B, width) float32, not normalised, by head name


class DualEncoder(nn.Module):
    """A backbone with, for each embedding, a head for images and one for captions.

    Args:
        heads: by name, then by "image" and "text".
        precision: one of `model.precision.PRECISIONS`; embeddings are float32 in any case.
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, Mapping[str, Head]], precision: str = "fp32") -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: nn.ModuleDict(dict(pair)) for name, pair in heads.items()})
        self.precision = precision
        if precision == "fp16_weights":
            if not backbone.half_weights:
                raise OptionError("--precision fp16_weights: this backbone does not support it, use fp16 or bf16")
            half_heads = [head for pair in heads.values() for head in pair.values() if head.half_weights]
            for part in (backbone, *half_heads):
                convert_weights_to_half(part)
        for name in self.heads:
            widths = [self.head(name, modality).width for modality in ("image", "text")]
            if len(set(widths)) > 1:
                raise OptionError(f"head {name}: images and captions must have the same width, found {widths}")

    def head(self, name: str, modality: str) -> Head:
        """The head of an embedding for "image" or "text"."""
        pair: Any = self.heads[name]
        return pair[modality]

    @property
    def widths(self) -> dict[str, int]:
        """Width of each embedding."""
        return {name: self.head(name, "image").width for name in self.heads}

    def encode_image(self, images: Tensor) -> Embeddings:
        """(B, 3, H, W) normalised images → embeddings."""
        images = self.backbone.renormalised(images)
        with self.autocast(images.device):
            read: Read = {}
            return self.embed("image", self.backbone.encode_image(images, self.needed("image", read)), read)

    def encode_text(self, ids: Tensor) -> Embeddings:
        """(B, L) token ids → embeddings. L is at most `--text_length`; trimming padding doesn't change the result."""
        with self.autocast(ids.device):
            read: Read = {}
            return self.embed("text", self.backbone.encode_text(self._padded(ids), self.needed("text", read)), read)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Embeddings, Embeddings]:
        """B images and B captions → the embeddings of both."""
        return self.encode_image(images), self.encode_text(ids)

    def with_tokens(
        self, images: Tensor, ids: Tensor, masked: Tensor | None = None
    ) -> tuple[Embeddings, Embeddings, tuple[Tensor, Tensor]]:
        """As `forward`, plus the (B, L, D) features of all tokens of images and captions.

        Args:
            masked: (B, L) masked ids from which to compute the captions' features instead of `ids`.
        """
        with self.autocast(images.device):
            image = self.backbone.encode_image(self.backbone.renormalised(images))
            text = self.backbone.encode_text(self._padded(ids))
            token_text = text if masked is None else self.backbone.encode_text(masked)
            return self.embed("image", image), self.embed("text", text), (image.features, token_text.features)

    def _padded(self, ids: Tensor) -> Tensor:
        """Pad captions to as many tokens as any head selects."""
        return self.backbone.pad_text(ids, max(self.head(name, "text").selects for name in self.heads))

    def autocast(self, device: torch.device) -> torch.autocast:
        """The autocast context of the model's precision."""
        return autocast(device, self.precision)

    def embed(self, modality: str, tokens: Tokens, read: Read | None = None) -> Embeddings:
        """Compute embeddings from the backbone's tokens of "image" or "text".

        Args:
            read: the positions that `needed` recorded for these tokens.
        """
        embeddings = {}
        for name in self.heads:
            head = self.head(name, modality)
            features = tokens.features if head.half_weights else tokens.features.float()
            embeddings[name] = head(replace(tokens, features=features, read=read.get(name) if read else None))
        for name, rows in embeddings.items():
            expected = (tokens.summary.shape[0], self.head(name, modality).width)
            if rows.shape != expected:
                raise OptionError(f"head {name}, {modality}: expected shape {expected}, found {tuple(rows.shape)}")
            if rows.dtype in (torch.float16, torch.bfloat16):
                raise OptionError(f"head {name}, {modality}: its embedding must be float32, end forward with .float()")
        return embeddings

    def needed(self, modality: str, read: Read) -> Needed:
        """The `Needed` of all "image" or "text" heads, which records the positions that each reads in `read`."""

        def union_of_heads(tokens: Tokens) -> Tensor | None:
            read.update({name: self.head(name, modality).reads(tokens) for name in self.heads})
            return union([*read.values()], tokens.attention.shape[1])

        return union_of_heads

    def new_parameters(self) -> set[str]:
        """Names of the parameters without pretrained weights: heads and added layers."""
        pretrained = {BACKBONE + name for name in self.backbone.pretrained}
        return {name for name, _ in self.named_parameters()} - pretrained

    def rounded_parameters(self) -> set[str]:
        """Names of the float32 parameters whose gradients and moments the optimizer rounds to float16."""
        return set(half_parameters(self)) if self.precision == "fp16_adam" else set()

    def towers(self) -> dict[str, dict[str, Any]]:
        """The backbone's properties that its tensors don't determine, for checkpoints."""
        return self.backbone.towers()

    def published_names(self) -> dict[str, str]:
        """Our name of every weight → its name in checkpoints, which is the published one if it exists."""
        return {
            name: PUBLISHED_BACKBONE + self.backbone.published_name(name.removeprefix(BACKBONE))
            if name.startswith(BACKBONE)
            else published_head_name(name)
            for name in self.state_dict()
        }

    def published_state(self) -> dict[str, Tensor]:
        """The state dict as stored in checkpoints, which the published code can load."""
        names = self.published_names()
        return {names[name]: value for name, value in self.state_dict().items()}

    def load_heads(self, state: Mapping[str, Tensor], log: Callable[[str], None]) -> None:
        """Load each head whose weights are all in a run's checkpoint, under published names and with equal shapes."""
        names = self.published_names()
        available = without_wrapper(state, names.values())
        for head, module in self.heads.items():
            prefix = f"heads.{head}."
            published = {name: names[prefix + name] for name in module.state_dict()}
            saved = {name: available[name] for name in published.values() if name in available}
            expected = {published[name]: value for name, value in module.state_dict().items()}
            if mismatch := describe_mismatch(expected, saved):
                if saved:
                    log(f"head {head} is newly initialised, the file's does not match: {mismatch}")
            elif published:
                load_named(module, saved, published, head)
                log(f"head {head} is loaded from the file")

    def load_published(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load the weights of a checkpoint, ours or the authors'; messages name `source`.

        Raises:
            WeightsError: they don't fit.
        """
        names = self.published_names()
        load_named(self, without_wrapper(state, names.values()), names, source)
