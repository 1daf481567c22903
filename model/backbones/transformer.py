"""CLIP's transformer, which returns the features of all tokens and one row of the last block's attention (paper, 3.1).

Module names follow OpenAI's state dicts, except that attention's in-projection is a layer, not two bare tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from utils.layers import LayerNorm, QuickGELU, is_dropout

# (B, L) attention of the last block → (B, k) distinct positions of the tokens whose features will be read.
Select = Callable[[Tensor], Tensor | None]

HEAD_WIDTH = 64  # channels per attention head in all of OpenAI's CLIPs


@dataclass(frozen=True)
class Tower:
    """A transformer's shape, number of heads, and activation, one of `ACTIVATIONS`."""

    width: int
    layers: int
    heads: int
    activation: str


ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention with fused kernels; attention weights are computed for a single query, on request."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        # Initialised once, below: the default initialisation would advance the generator for all later layers.
        # `to_empty` would also work, but its first call imports SymPy, which takes half a second.
        self.in_proj = nn.Linear(width, 3 * width, device="meta")
        self.in_proj.weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj.bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj.weight, std=width**-0.5)
        nn.init.zeros_(self.in_proj.bias)

    def forward(self, x: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Mix the tokens.

        Args:
            x: (B, L, D) tokens.
            query: (B,) positions whose attention to return, or None.

        Returns:
            (B, L, D) mixed tokens, and (B, L) attention from `query` to every token averaged over the heads
            (no gradient; 0 where the causal mask hides a token), or None.
        """
        B, L, D = x.shape
        qkv = self.in_proj(x)  # (B, L, 3D)
        parts = qkv.view(B, L, 3, self.heads, D // self.heads).unbind(2)  # its gradient needs no copy
        q, k, v = (part.transpose(1, 2) for part in parts)  # each (B, H, L, D/H)
        # Fused GPU kernels reject the empty batch of a process without a share.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal) if B else v
        mixed = mixed.transpose(1, 2).reshape(B, L, D)
        return self.out_proj(mixed), None if query is None else self._attention_from(query, q, k)

    @torch.no_grad()
    def _attention_from(self, query: Tensor, q: Tensor, k: Tensor) -> Tensor:
        B, H, L, d = q.shape
        row = q.gather(2, query.view(B, 1, 1, 1).expand(B, H, 1, d))  # (B, H, 1, d)
        logits = (row @ k.transpose(2, 3)).squeeze(2).float() * d**-0.5  # (B, H, L)
        if self.causal:
            hidden = torch.arange(L, device=q.device) > query[:, None]  # (B, L)
            logits = logits.masked_fill(hidden[:, None], float("-inf"))
        return logits.softmax(dim=-1).mean(dim=1)  # (B, L)


class Block(nn.Module):
    """A residual block: attention, then an MLP with a hidden layer four times as wide, each after a LayerNorm."""

    def __init__(self, tower: Tower, *, causal: bool) -> None:
        super().__init__()
        width = tower.width
        self.attn = Attention(width, tower.heads, causal=causal)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", ACTIVATIONS[tower.activation]())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = LayerNorm(width)

    def forward(
        self, x: Tensor, query: Tensor | None = None, select: Select | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) → (B, L, D), and the attention from `query` as in `Attention.forward`.

        With `select`, only those tokens go through the MLP, which is two thirds of the block's computation.
        """
        mixed, attention = self.attn(self.ln_1(x), query)
        x = x + mixed
        positions = select(attention) if select else None  # (B, k)
        if positions is None:
            return x + self.mlp(self.ln_2(x)), attention
        positions = positions[:, :, None].expand(-1, -1, x.shape[2])  # (B, k, D)
        selected = x.gather(1, positions)
        return x.scatter(1, positions, selected + self.mlp(self.ln_2(selected))), attention


class Transformer(nn.Module):
    """A stack of blocks; only the last one returns attention.

    Attributes:
        grad_checkpointing: save only the blocks' inputs for the backward pass and recompute the rest.
    """

    def __init__(self, tower: Tower, *, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(tower, causal=causal) for _ in range(tower.layers))
        self.grad_checkpointing = False

    def forward(self, x: Tensor, query: Tensor, select: Select | None) -> tuple[Tensor, Tensor]:
        """(B, L, D) tokens and (B,) query positions → (B, L, D) tokens, (B, L) attention of the last block.

        With `select`, the last block completes only those tokens.
        """
        for block in self.resblocks[:-1]:
            x, _ = self._run(block, x)
        return self._run(self.resblocks[-1], x, query, select)

    def _run(self, block: nn.Module, *args: Tensor | Select | None) -> tuple[Tensor, Tensor]:
        if self.grad_checkpointing:
            draws = any(map(is_dropout, block.modules()))
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=draws)
        return block(*args)
