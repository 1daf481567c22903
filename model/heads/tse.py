"""Token selection embedding (TSE): the most attended tokens, projected by FC + MLP, max-pooled (paper, 3.1).

Table 7 ablates FC + MLP (TSE′) and the pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.backbones.base import Tokens
from model.heads.base import Head
from model.heads.batch_norm import GlobalBatchNorm1d
from model.settings import HEADS, TseSettings

EMBEDDING_WIDTH = 1024
HIDDEN_WIDTH = 512
TOP = 10  # of "topk10"


def select_tokens(scores: Tensor, count: int) -> Tensor:
    """(B, L) scores → (B, count) positions, best first. Ties go to the earlier position, on every device."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


@HEADS.register("TSE")
class TokenSelectionEmbedding(Head):
    """Selects `select_ratio` of a full row's tokens, and the same number in shorter rows: all enter the BatchNorm's
    statistics, but only as many as the row has are pooled.
    """

    Settings = TseSettings
    half_weights = True

    def __init__(self, width: int, tokens: int, settings: TseSettings) -> None:
        super().__init__(width, tokens)
        self.settings = settings
        self.selects = max(1, int(settings.select_ratio * tokens))
        self.fc = self.mlp = None
        if settings.tse_head == "mlp":
            self.width = EMBEDDING_WIDTH
            self.fc = nn.Linear(width, EMBEDDING_WIDTH)
            self.mlp = nn.Sequential(
                nn.Linear(width, HIDDEN_WIDTH),
                GlobalBatchNorm1d(HIDDEN_WIDTH),
                nn.ReLU(),
                nn.Linear(HIDDEN_WIDTH, EMBEDDING_WIDTH),
            )

    def train(self, mode: bool = True) -> TokenSelectionEmbedding:
        """Set training or evaluation mode; a frozen BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.settings.tse_bn == "frozen" and self.mlp is not None:
            self.mlp[1].eval()
        return self

    def scores(self, tokens: Tokens) -> Tensor:
        """(B, L) selection scores: attention, or −1 for tokens that are never selected.

        In rows without selectable tokens, the summary is selected first.
        """
        scores = tokens.attention.scatter(1, tokens.hidden, -1.0)
        summary = scores.gather(1, tokens.summary).masked_fill(tokens.selectable[:, None] <= 0, 1.0)
        return scores.scatter(1, tokens.summary, summary)

    def reads(self, tokens: Tokens) -> Tensor:
        """(B, k) positions of the selected tokens, best first."""
        return select_tokens(self.scores(tokens), self.selects)

    def pooled(self, tokens: Tokens) -> Tensor:
        """(B,) number of selected tokens that are pooled."""
        return tokens.selectable.clamp(1, self.selects)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens → (B, 1024); with tse_head "none" (B, D)."""
        B, _, D = tokens.features.shape
        selected = self.reads(tokens) if tokens.read is None else tokens.read  # (B, k)
        x = tokens.features.gather(1, selected[:, :, None].expand(B, self.selects, D))  # (B, k, D)
        x = x.float()  # 1e-8 is 0 in float16
        x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        if self.fc is not None and self.mlp is not None:
            x = x.to(self.fc.weight.dtype)
            x = self.fc(x) + self.mlp(x.flatten(0, 1)).unflatten(0, (B, self.selects))  # (B, k, 1024)
        return self._pool(x.float(), self.pooled(tokens))

    def _pool(self, x: Tensor, pooled: Tensor) -> Tensor:
        """(B, k, D) → (B, D) over each row's first `pooled` tokens."""
        beyond = (torch.arange(x.shape[1], device=x.device) >= pooled[:, None])[:, :, None]  # (B, k, 1)
        if self.settings.tse_pool == "avg":
            return x.masked_fill(beyond, 0.0).sum(dim=1) / pooled[:, None]
        x = x.masked_fill(beyond, float("-inf"))
        if self.settings.tse_pool == "max":
            return x.amax(dim=1)
        best = x.topk(min(TOP, x.shape[1]), dim=1).values  # (B, ≤ 10, D)
        present = best.isfinite()
        return best.where(present, 0.0).sum(dim=1) / present.sum(dim=1)
