"""Basic global embedding (BGE): the summary token's feature (paper, 3.1)."""

from __future__ import annotations

from torch import Tensor

from model.backbones.base import Tokens
from model.heads.base import Head
from model.settings import HEADS


@HEADS.register("BGE")
class GlobalEmbedding(Head):
    """The feature of [CLS] or EOS; no parameters."""

    half_weights = True

    def reads(self, tokens: Tokens) -> Tensor:
        """Position of the summary token, (B, 1)."""
        return tokens.summary

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens → (B, D)."""
        B, _, D = tokens.features.shape
        return tokens.features.gather(1, tokens.summary[:, :, None].expand(B, 1, D)).squeeze(1).float()
