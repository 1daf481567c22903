"""CLIP's two transformers, giving every token's feature and, where it is used, one row of attention (paper, 3.1).

Module names follow OpenAI's state dicts, so that its weights load without a table of names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.linear import Linear, linear

# (B, L) attention of the last block → (B, k) positions of the tokens whose features will be used, none twice.
Needed = Callable[[Tensor], Tensor]


HEAD_WIDTH = 64  # channels of a head in every CLIP that OpenAI published


@dataclass(frozen=True)
class Tower:
    """A transformer's shape, and what its tensors do not say: the number of heads and one of `ACTIVATIONS`."""

    width: int
    layers: int
    heads: int
    activation: str


@dataclass(frozen=True)
class ClipConfig:
    """Everything that a CLIP is built from; `grid` counts the patches (rows, columns)."""

    image: Tower
    text: Tower
    patch: int
    stride: int
    grid: tuple[int, int]
    text_length: int
    vocab_size: int
    shared_width: int


class _QuickGELU(torch.autograd.Function):
    """SiLU (y·σ(y)) of y = 1.702x over 1.702, whose slope is SiLU's own at y: nothing else is kept or scaled."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        y = 1.702 * x
        ctx.save_for_backward(y)
        return F.silu(y, inplace=not ctx.needs_input_grad[0]).div_(1.702)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, y)


class QuickGELU(nn.Module):
    """x·σ(1.702x), the activation of OpenAI's CLIPs."""

    def forward(self, x: Tensor) -> Tensor:
        return _QuickGELU.apply(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in float32 whatever the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normalised.to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with fused kernels; probabilities are formed for one query only, on request."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def forward(self, x: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Mix the tokens.

        Args:
            x: (B, L, D) tokens.
            query: (B,) positions whose attention is wanted, or None.

        Returns:
            (B, L, D) mixed tokens, and (B, L) probabilities from `query` to every token averaged over the heads
            (no gradient; 0 where the causal mask hides a token), or None.
        """
        B, L, D = x.shape
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, L, 3D)
        q, k, v = qkv.view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # each (B, H, L, D/H)
        # The fused kernels of GPUs refuse the empty batch of a process without a share.
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
    """A residual block: attention, then a two-layer perceptron four times as wide, each after a LayerNorm."""

    def __init__(self, tower: Tower, *, causal: bool) -> None:
        super().__init__()
        width = tower.width
        self.attn = Attention(width, tower.heads, causal=causal)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", Linear(width, 4 * width))
        self.mlp.add_module("gelu", ACTIVATIONS[tower.activation]())
        self.mlp.add_module("c_proj", Linear(4 * width, width))
        self.ln_2 = LayerNorm(width)

    def forward(
        self, x: Tensor, query: Tensor | None = None, needed: Needed | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) → (B, L, D), and the attention from `query` as in `Attention.forward`.

        With `needed` only those tokens go through the perceptron, two thirds of the block's work.
        """
        mixed, attention = self.attn(self.ln_1(x), query)
        x = x + mixed
        if needed is None:
            return x + self.mlp(self.ln_2(x)), attention
        positions = needed(attention)[:, :, None].expand(-1, -1, x.shape[2])  # (B, k, D)
        some = x.gather(1, positions)
        return x.scatter(1, positions, some + self.mlp(self.ln_2(some))), attention


class Transformer(nn.Module):
    """A stack of blocks; only the last one is asked for attention.

    Attributes:
        grad_checkpointing: keep only the blocks' inputs for the backward pass and compute the rest again.
    """

    def __init__(self, tower: Tower, *, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(tower, causal=causal) for _ in range(tower.layers))
        self.grad_checkpointing = False

    def forward(self, x: Tensor, query: Tensor, needed: Needed | None) -> tuple[Tensor, Tensor]:
        """(B, L, D) tokens and (B,) query positions → (B, L, D) tokens, (B, L) attention of the last block.

        With `needed` only those tokens are finished by the last block.
        """
        for block in self.resblocks[:-1]:
            x, _ = self._run(block, x)
        return self._run(self.resblocks[-1], x, query, needed)

    def _run(self, block: Block, *args: Tensor | Needed | None) -> tuple[Tensor, Tensor | None]:
        if self.grad_checkpointing:
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
        return block(*args)


class VisionTransformer(nn.Module):
    """The image tower."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.image.width
        tokens = config.grid[0] * config.grid[1] + 1
        self.conv1 = nn.Conv2d(3, width, kernel_size=config.patch, stride=config.stride, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(config.image, causal=False)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, config.shared_width))

    def forward(self, images: Tensor, needed: Needed | None = None) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised images → (B, 1 + patches, D) features, (B, 1 + patches) attention from [CLS].

        With `needed` the features of all other tokens are meaningless.
        """
        B = images.shape[0]
        patches = self.conv1(images.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, patches, width)
        cls = self.class_embedding.to(patches.dtype).expand(B, 1, -1)
        x = torch.cat([cls, patches], dim=1) + self.positional_embedding.to(patches.dtype)  # (B, 1 + patches, width)
        x, attention = self.transformer(self.ln_pre(x), torch.zeros(B, dtype=torch.long, device=x.device), needed)
        return linear(self.ln_post(x), self.proj.to(x.dtype).T), attention


class CLIP(nn.Module):
    """Both towers. Token id 0 pads; EOS has the highest id of a caption."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.text.width
        self.config = config
        self.visual = VisionTransformer(config)
        self.transformer = Transformer(config.text, causal=True)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.text_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.shared_width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Trade time for memory in both towers: the same numbers, a third more arithmetic."""
        self.visual.transformer.grad_checkpointing = self.transformer.grad_checkpointing = enable

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Fuse what each block does between its matrix products; it happens at the first batch, and takes a minute.

        The blocks of a tower share their code, so that one is compiled for all; the last one, which is asked for
        attention, stays as it is. Names of weights stay as they are.
        """
        for tower in (self.visual.transformer, self.transformer):
            for block in tower.resblocks[:-1]:
                block.compile(backend=backend, fullgraph=True)

    def encode_image(self, images: Tensor, needed: Needed | None = None) -> tuple[Tensor, Tensor]:
        """See `VisionTransformer.forward`."""
        return self.visual(images, needed)

    def encode_text(self, ids: Tensor, eos: Tensor, needed: Needed | None = None) -> tuple[Tensor, Tensor]:
        """(B, L) ids, L ≤ text_length, and (B,) EOS positions → (B, L, D) features, (B, L) attention from EOS.

        With `needed` the features of all other tokens are meaningless.
        """
        L = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:L]  # (B, L, width)
        x = x.to(self.text_projection.dtype)
        x, attention = self.transformer(x, eos, needed)
        x = self.ln_final(x)
        return linear(x, self.text_projection.to(x.dtype).T), attention
