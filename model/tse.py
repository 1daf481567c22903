"""Token selection embedding (TSE): the most attended tokens, lifted by FC + MLP, pooled by max (paper, 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_WIDTH = 1024
HIDDEN_WIDTH = 512


def select_tokens(scores: Tensor, count: int) -> Tensor:
    """(B, L) scores → (B, count) positions, best first. Ties go to the earlier position, on every device."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


class TokenSelectionEmbedding(nn.Module):
    """The head of one modality; image and text have one each, with weights of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, EMBEDDING_WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(width, HIDDEN_WIDTH),
            nn.BatchNorm1d(HIDDEN_WIDTH),
            nn.ReLU(),
            nn.Linear(HIDDEN_WIDTH, EMBEDDING_WIDTH),
        )

    def forward(self, tokens: Tensor, scores: Tensor, count: int, pooled: Tensor | None = None) -> Tensor:
        """Choose `count` tokens by score, embed and pool them.

        Args:
            tokens: (B, L, D) features.
            scores: (B, L).
            count: how many tokens are chosen, 1 to L; all B·count of them enter the BatchNorm's statistics.
            pooled: (B,) how many of the chosen, best first, are pooled, 1 to `count`; None for all.

        Returns:
            (B, 1024).
        """
        B, _, D = tokens.shape
        chosen = select_tokens(scores, count)  # (B, k)
        x = tokens.gather(1, chosen[:, :, None].expand(B, count, D))  # (B, k, D)
        x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        x = (self.fc(x) + self.mlp(x.flatten(0, 1)).view(B, count, -1)).float()  # (B, k, 1024)
        if pooled is not None:
            beyond = torch.arange(count, device=x.device) >= pooled[:, None]  # (B, k)
            x = x.masked_fill(beyond[:, :, None], float("-inf"))
        return x.amax(dim=1)
