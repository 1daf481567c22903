"""Token selection embedding (TSE): the most attended tokens, lifted by FC + MLP, pooled by max (paper, 3.1).

Table 7 tries it without FC + MLP (TSE′), and other poolings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.linear import Linear
from utils.distributed import GlobalBatchNorm1d

EMBEDDING_WIDTH = 1024
HIDDEN_WIDTH = 512
TOP = 10


def select_tokens(scores: Tensor, count: int) -> Tensor:
    """(B, L) scores → (B, count) positions, best first. Ties go to the earlier position, on every device."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


class TokenSelectionEmbedding(nn.Module):
    """The head of one modality; image and text have one each, with weights of their own.

    Args:
        width: D of the tokens.
        head: "mlp" for FC + MLP; "none" for table 7's TSE′, which pools the selected features themselves.
        pool: "max", "avg", or "topk10" (the mean of each channel's ten highest values).
    """

    def __init__(self, width: int, *, head: str = "mlp", pool: str = "max") -> None:
        super().__init__()
        self.pool = pool
        self.fc = self.mlp = None
        if head == "mlp":
            self.fc = Linear(width, EMBEDDING_WIDTH)
            self.mlp = nn.Sequential(
                Linear(width, HIDDEN_WIDTH),
                GlobalBatchNorm1d(HIDDEN_WIDTH),
                nn.ReLU(),
                Linear(HIDDEN_WIDTH, EMBEDDING_WIDTH),
            )

    def forward(self, tokens: Tensor, scores: Tensor, count: int, pooled: Tensor | None = None) -> Tensor:
        """Choose `count` tokens by score, embed and pool them.

        Args:
            tokens: (B, L, D) features.
            scores: (B, L).
            count: how many tokens are chosen, 1 to L; all B·count of them enter the BatchNorm's statistics.
            pooled: (B,) how many of the chosen, best first, are pooled, 1 to `count`; None for all.

        Returns:
            (B, 1024), with head "none" (B, D).
        """
        B, _, D = tokens.shape
        chosen = select_tokens(scores, count)  # (B, k)
        x = tokens.gather(1, chosen[:, :, None].expand(B, count, D))  # (B, k, D)
        x = x.float()  # 1e-8 is 0 in float16
        x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        if self.fc is not None:
            x = x.to(self.fc.weight.dtype)
            x = self.fc(x) + self.mlp(x.flatten(0, 1)).unflatten(0, (B, count))  # (B, k, 1024)
        if pooled is None:
            pooled = torch.full((B,), count, device=x.device)
        return self._pool(x.float(), pooled)

    def _pool(self, x: Tensor, pooled: Tensor) -> Tensor:
        """(B, k, D) → (B, D) over each row's first `pooled` tokens."""
        beyond = (torch.arange(x.shape[1], device=x.device) >= pooled[:, None])[:, :, None]  # (B, k, 1)
        if self.pool == "avg":
            return x.masked_fill(beyond, 0.0).sum(dim=1) / pooled[:, None]
        x = x.masked_fill(beyond, float("-inf"))
        if self.pool == "max":
            return x.amax(dim=1)
        best = x.topk(min(TOP, x.shape[1]), dim=1).values  # (B, ≤ 10, D)
        held = best.isfinite()
        return best.where(held, 0.0).sum(dim=1) / held.sum(dim=1)
