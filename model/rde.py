"""RDE's dual encoder: CLIP with a basic global (BGE) and a token selection embedding (TSE) a modality (paper, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.clip import CLIP, ClipConfig, Needed
from model.names import from_published, load_into, to_published
from model.precision import autocast, half_parameters, halve_weights
from model.towers import Towers
from model.tse import TokenSelectionEmbedding, select_tokens


class Embeddings(NamedTuple):
    """What one modality of a batch becomes; neither part is normalised."""

    bge: Tensor  # (B, shared width)
    tse: Tensor  # (B, 1024), (B, shared width) without FC and MLP


class RDE(nn.Module):
    """CLIP plus two token selection heads.

    Args:
        config: of the CLIP.
        select_ratio: R in (0, 1), the share of tokens that TSE keeps.
        tse_bn: how the TSE BatchNorm behaves in training. "frozen": as a learned affine map over its initial
            statistics, as in the runs behind the paper's numbers; "batch": over the batch, as in the code's later
            revision (slightly better on clean data, worse under noise, say its authors).
        tse_head, tse_pool: table 7's variants, see `TokenSelectionEmbedding`.
        precision: of the arithmetic, one of `model.precision.PRECISIONS`; embeddings are float32 whatever it is.
    """

    def __init__(
        self,
        config: ClipConfig,
        *,
        select_ratio: float,
        tse_bn: Literal["frozen", "batch"] = "frozen",
        tse_head: str = "mlp",
        tse_pool: str = "max",
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.clip = CLIP(config)
        self.image_tse = TokenSelectionEmbedding(config.shared_width, head=tse_head, pool=tse_pool)
        self.text_tse = TokenSelectionEmbedding(config.shared_width, head=tse_head, pool=tse_pool)
        self.tse_bn = tse_bn
        self.precision = precision
        self.image_tokens = max(1, int(select_ratio * config.grid[0] * config.grid[1]))
        self.text_tokens = max(1, int(select_ratio * (config.text_length - 2)))
        if precision == "fp16_weights":
            halve_weights(self)

    def train(self, mode: bool = True) -> RDE:
        """Switch to training or evaluation; a frozen BatchNorm stays in evaluation."""
        super().train(mode)
        if self.tse_bn == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
        return self

    def new_parameters(self) -> set[str]:
        """Names of the parameters that no pretrained weights fill: both TSE heads."""
        return {name for name, _ in self.named_parameters() if name.startswith(("image_tse.", "text_tse."))}

    def towers(self) -> dict[str, dict[str, Any]]:
        """What of the CLIP no tensor says, for checkpoints: heads and activation of both towers."""
        return Towers(self.clip.config.image, self.clip.config.text).record()

    def rounded_parameters(self) -> set[str]:
        """Names of the float32 parameters whose gradients and moments the optimizer rounds to float16."""
        return set(half_parameters(self)) if self.precision == "fp16_adam" else set()

    def published_state(self) -> dict[str, Tensor]:
        """The state dict under the published names, as checkpoints hold it."""
        return to_published(self.state_dict())

    def load_published(self, state: dict[str, Tensor], source: str) -> None:
        """Take over weights under the published names; `source` is named in messages.

        Raises:
            WeightsError: they don't fit.
        """
        load_into(self, from_published(state, source), source)

    def encode_image(self, images: Tensor) -> Embeddings:
        """(B, 3, H, W) normalised images → embeddings. BGE is the [CLS] feature."""
        cls = torch.zeros(len(images), 1, dtype=torch.long, device=images.device)
        with autocast(images.device, self.precision):
            needed = needed_tokens(cls, [cls], self.image_tokens)
            tokens, attention = self.clip.encode_image(images, needed)  # (B, 1 + patches, D), (B, 1 + patches)
            return Embeddings(tokens[:, 0].float(), self.image_tse(tokens, hide(attention, [cls]), self.image_tokens))

    def encode_text(self, ids: Tensor) -> Embeddings:
        """(B, L) token ids → embeddings. BGE is the EOS feature.

        L may be anything up to `text_length`: cutting columns that hold only padding changes no result, because no
        token sees a later one, and padding is chosen, earliest first, only where a caption has too few words.
        """
        ids = F.pad(ids, (0, max(0, self.text_tokens + 2 - ids.shape[1])))
        eos = ids.argmax(dim=1, keepdim=True)  # (B, 1)
        words = (ids != 0).sum(dim=1) - 2  # (B,)
        hidden = [torch.zeros_like(eos), eos]
        # SOS and EOS are never chosen, but for a caption without a word, whose EOS feature is all there is.
        eos_score = torch.where(words > 0, -1.0, 1.0)[:, None]
        with autocast(ids.device, self.precision):
            needed = needed_tokens(eos, hidden, self.text_tokens)
            tokens, attention = self.clip.encode_text(ids, eos.squeeze(1), needed)  # (B, L, D), (B, L)
            scores = hide(attention, hidden).scatter(1, eos, eos_score)
            bge = tokens[torch.arange(len(ids), device=ids.device), eos.squeeze(1)].float()
            return Embeddings(bge, self.text_tse(tokens, scores, self.text_tokens, words.clamp(1, self.text_tokens)))

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Embeddings, Embeddings]:
        """B images and B captions → the embeddings of both."""
        return self.encode_image(images), self.encode_text(ids)


def hide(attention: Tensor, hidden: Sequence[Tensor]) -> Tensor:
    """(B, L) attention with −1 at the (B, 1) positions that are never chosen."""
    for position in hidden:
        attention = attention.scatter(1, position, -1.0)
    return attention


def needed_tokens(sentence: Tensor, hidden: Sequence[Tensor], count: int) -> Needed:
    """The (B, 1) token of the BGE, and the `count` that TSE selects."""
    return lambda attention: torch.cat([sentence, select_tokens(hide(attention, hidden), count)], dim=1)
