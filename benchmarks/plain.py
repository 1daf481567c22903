"""The plain implementation: the baseline of all speedups, and the oracle for testing the fast implementation.

Written from a description of the published code: every layer forms its attention maps, captions are padded to 77,
pooling and CCD's bookkeeping loop over samples, evaluation runs both towers once for BGE and again for TSE, every
parameter is a separate optimizer group, every step waits for its loss, and ranking sorts the whole gallery and loops
over queries. It uses the weights of a given model, so that both can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.optim import Optimizer

from model import accelerate
from model.backbones.base import Tokens
from model.backbones.transformer import Attention, Block, Select
from model.encoder import DualEncoder, Embeddings
from model.heads.tse import TokenSelectionEmbedding
from model.precision import autocast
from processor.types import PairBatch
from solver.objectives.base import cosine_similarity
from solver.objectives.triplet import TAL
from solver.optimizer import parameter_groups
from solver.settings import OptimizerSettings, TripletSettings

TEXT_LENGTH = 77


@dataclass
class PlainModel:
    """The plain encoders with the weights of `model`; each optimisation can be enabled to measure its effect.

    Attributes:
        maps: form every layer's attention maps.
        gelu: compute QuickGELU by its formula.
        whole: run all tokens through the last block's MLP.
        padded: pad all captions to 77 tokens.
        loops: pool captions one by one.
        mkl: multiply with MKL wherever PyTorch does.
    """

    model: DualEncoder
    maps: bool = True
    gelu: bool = True
    whole: bool = True
    padded: bool = True
    loops: bool = True
    mkl: bool = True

    def train(self, mode: bool = True) -> PlainModel:
        """Set training mode."""
        self.model.train(mode)
        return self

    def eval(self) -> PlainModel:
        """Set evaluation mode."""
        return self.train(False)

    def parameters(self) -> Iterator[Parameter]:
        """The model's parameters."""
        return self.model.parameters()

    def __call__(self, images: Tensor, ids: Tensor) -> tuple[Embeddings, Embeddings]:
        """As `DualEncoder.forward`."""
        return self.encode_image(images), self.encode_text(ids)

    def encode_image(self, images: Tensor, *, tse: bool = True) -> Embeddings:
        """As `DualEncoder.encode_image`; without `tse` only BGE."""
        model, cls = self.model, images.new_zeros(len(images), 1, dtype=torch.long)
        with products(self.mkl), autocast(images.device, model.precision):
            if not (self.maps or self.gelu or self.whole):
                return model.encode_image(images)
            visual: Any = model.backbone.visual
            patches = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
            first = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
            x = visual.ln_pre(torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype))
            tokens = Tokens(cls, cls, torch.full((len(images),), patches.shape[1], device=images.device))
            x, attention = self._transform(visual.transformer, x, tokens, "image")
            tokens = replace(tokens, attention=attention, features=visual.project(visual.ln_post(x)))
            return {name: model.head(name, "image")(tokens) for name in model.heads if tse or name == "BGE"}

    def encode_text(self, ids: Tensor, *, tse: bool = True) -> Embeddings:
        """As `DualEncoder.encode_text`; without `tse` only BGE."""
        model, head = self.model, self.model.head("TSE", "text")
        ids = F.pad(ids, (0, max(0, (TEXT_LENGTH if self.padded else head.selects + 2) - ids.shape[1])))
        eos = ids.argmax(dim=1, keepdim=True)
        with products(self.mkl), autocast(ids.device, model.precision):
            if not (self.maps or self.gelu or self.whole or self.loops):
                return model.encode_text(ids)
            clip: Any = model.backbone
            x = (clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]).to(clip.text_projection.dtype)
            words = [max(0, int((row != 0).sum()) - 2) for row in ids] if tse else [0] * len(ids)
            tokens = Tokens(eos, torch.cat([torch.zeros_like(eos), eos], dim=1), torch.tensor(words, device=ids.device))
            x, attention = self._transform(clip.transformer, x, tokens, "text")
            tokens = replace(tokens, attention=attention, features=clip.project(clip.ln_final(x)))
            embeddings = {"BGE": model.head("BGE", "text")(tokens)}
            return embeddings | {"TSE": loop_pool(head, tokens) if self.loops else head(tokens)} if tse else embeddings

    def _transform(self, transformer: Any, x: Tensor, tokens: Tokens, modality: str) -> tuple[Tensor, Tensor]:
        """Run (B, L, D) through all blocks; also returns the summary token's (B, L) attention in the last one."""
        needed = self.model.needed(modality, {})
        for block in transformer.resblocks[:-1]:
            x, _ = self._run(block, x)
        select = None if self.whole else lambda attention: needed(replace(tokens, attention=attention))
        return self._run(transformer.resblocks[-1], x, tokens.summary.squeeze(1), select)

    def _run(
        self, block: Block, x: Tensor, query: Tensor | None = None, select: Select | None = None
    ) -> tuple[Tensor, Any]:
        attend: Any = partial(_attend, block.attn) if self.maps else block.attn
        mixed, attention = attend(block.ln_1(x), query)
        x = x + mixed
        if select is None:
            return x + self._perceptron(block, x), attention
        positions: Any = select(attention)
        positions = positions[:, :, None].expand(-1, -1, x.shape[2])
        selected = x.gather(1, positions)
        return x.scatter(1, positions, selected + self._perceptron(block, selected)), attention

    def _perceptron(self, block: Block, x: Tensor) -> Tensor:
        mlp: Any = block.mlp
        hidden = mlp.c_fc(block.ln_2(x))
        return mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden) if self.gelu else mlp.gelu(hidden))


@contextmanager
def products(mkl: bool) -> Iterator[None]:
    """With `mkl`, linear layers use PyTorch's default instead of oneDNN."""
    before = accelerate.ONEDNN
    accelerate.ONEDNN = before and not mkl
    try:
        yield
    finally:
        accelerate.ONEDNN = before


def _attend(attn: Attention, x: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `Attention.forward`, with the full map averaged over heads: `nn.MultiheadAttention` step by step."""
    B, L, D = x.shape
    q, k, v = attn.in_proj(x).chunk(3, dim=2)
    q, k, v = (part.view(B, L, attn.heads, -1).transpose(1, 2) for part in (q, k, v))  # (B, H, L, D/H)
    logits = q * q.shape[3] ** -0.5 @ k.transpose(2, 3)
    if attn.causal:
        logits = logits + torch.full((L, L), float("-inf"), device=x.device, dtype=x.dtype).triu_(1)
    probabilities = logits.softmax(dim=3)  # (B, H, L, L)
    mixed = attn.out_proj((probabilities @ v).transpose(1, 2).reshape(B, L, D))
    maps = probabilities.mean(dim=1)  # (B, L, L)
    return mixed, maps if query is None else maps[torch.arange(B, device=x.device), query]


def loop_pool(tse: TokenSelectionEmbedding, tokens: Tokens) -> Tensor:
    """`TokenSelectionEmbedding.forward` with max pooling, one caption at a time."""
    B, _, D = tokens.features.shape
    selected = tse.scores(tokens).topk(tse.selects, dim=1).indices
    x = tokens.features.gather(1, selected[:, :, None].expand(B, tse.selects, D)).float()
    x = (x / (x.norm(dim=-1, keepdim=True) + 1e-8)).to(tse.fc.weight.dtype)
    x = tse.fc(x) + tse.mlp(x.flatten(0, 1)).view(B, tse.selects, -1)
    pooled = tse.pooled(tokens)
    return torch.stack([x[row, : int(pooled[row])].max(dim=0).values for row in range(B)]).float()


def build_optimizer(
    parameters: Mapping[str, Parameter], new: Mapping[str, float], settings: OptimizerSettings
) -> Optimizer:
    """`solver.optimizer.build_optimizer`'s Adam, unfused and with one group per parameter."""
    groups = [
        {**group, "params": [parameter]}
        for group in parameter_groups(parameters, new, settings)
        for parameter in group["params"]
    ]
    return torch.optim.Adam(groups, lr=settings.lr, betas=(settings.alpha, settings.beta), eps=1e-3)


def train_epoch(model: PlainModel, optimizer: Optimizer, batches: Iterable[PairBatch], label: np.ndarray) -> float:
    """Train one epoch with TAL, waiting for each step's loss; returns the mean loss."""
    model.train()
    losses, tal = [], TAL(TripletSettings())
    for batch in batches:
        weight = torch.tensor([label[pair] for pair in batch.pairs.tolist()], device=batch.images.device)
        image, text = model(batch.images, batch.ids)
        loss = batch.images.new_zeros(())
        for name in image:
            per_pair = tal.per_pair(cosine_similarity(image[name], text[name]), batch.pids)
            loss = loss + tal.reduce(per_pair, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def score_pairs(model: PlainModel, batches: Iterable[PairBatch], pairs: int) -> dict[str, np.ndarray]:
    """CCD's (N,) losses per embedding, stored pair by pair."""
    model.eval()
    scored, tal = {"BGE": torch.zeros(pairs), "TSE": torch.zeros(pairs)}, TAL(TripletSettings())
    for batch in batches:
        image, text = model(batch.images, batch.ids)
        for name, stored in scored.items():
            losses = tal.per_pair(cosine_similarity(image[name], text[name]), batch.pids).cpu()
            for row, pair in enumerate(batch.pairs):
                stored[pair] = losses[row]
    return {name: losses.numpy() for name, losses in scored.items()}


@torch.no_grad()
def encode_twice(model: PlainModel, images: Iterable[Tensor], texts: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """[images, captions] per embedding, running both towers once for each."""
    model.eval()
    images, texts = list(images), list(texts)
    return {
        name: [
            torch.cat([encode(batch, tse=name == "TSE")[name] for batch in batches])
            for encode, batches in ((model.encode_image, images), (model.encode_text, texts))
        ]
        for name in ("BGE", "TSE")
    }


def rank(similarity: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> dict[str, float]:
    """`processor.metrics.retrieval_metrics` by an argsort of every row, then a loop over queries."""
    order = similarity.argsort(dim=1, descending=True, stable=True)
    matches = gallery_pids[order] == query_pids[:, None]
    cumulative = matches.cumsum(dim=1)
    metrics = {f"R{k}": 100 * (cumulative[:, :k].amax(dim=1) > 0).double().mean().item() for k in (1, 5, 10)}
    precision = cumulative / torch.arange(1, matches.shape[1] + 1, device=matches.device) * matches
    metrics["mAP"] = 100 * (precision.sum(dim=1) / matches.sum(dim=1)).mean().item()
    penalties = [hits[row.nonzero()[-1]] / row.nonzero()[-1].add(1) for hits, row in zip(cumulative, matches)]
    metrics["mINP"] = 100 * torch.cat(penalties).double().mean().item()
    metrics["rSum"] = metrics["R1"] + metrics["R5"] + metrics["R10"]
    return metrics
