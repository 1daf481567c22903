"""The plain way: the baseline of every ratio, and the oracle that the fast way is tested against.

Written from the description of what the published code does: every layer forms its attention maps, captions are padded
to 77, pooling and CCD's bookkeeping loop over samples, evaluation runs both towers once for BGE and once more for TSE,
every parameter is an optimizer group of its own, every step waits for its loss, and ranking sorts the whole gallery and
loops over queries. It computes with the weights of the RDE model it is given, so that both ways can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from model import linear
from model.clip import Attention, Block, Transformer
from model.precision import autocast
from model.rde import RDE, Embeddings
from model.tse import TokenSelectionEmbedding
from processor.types import PairBatch
from solver.losses import LossSettings, cosine_similarity, per_pair_loss, reduce_loss
from solver.optimizer import OptimizerSettings, parameter_groups

TEXT_LENGTH = 77


@dataclass
class PlainModel:
    """The encoders of `model`, the plain way; each part can be left to the fast way, to measure what it brings.

    Attributes:
        maps: form every layer's attention maps, and QuickGELU by its formula, for all tokens.
        whole: finish all tokens in the last block.
        padded: captions of 77 tokens, however short they are.
        loops: pool captions one by one.
        mkl: multiply with MKL wherever PyTorch's own layers do.
    """

    model: RDE
    maps: bool = True
    whole: bool = True
    padded: bool = True
    loops: bool = True
    mkl: bool = True

    def train(self, mode: bool = True) -> PlainModel:
        """Switch the model to training."""
        self.model.train(mode)
        return self

    def eval(self) -> PlainModel:
        """Switch the model to evaluation."""
        return self.train(False)

    def __call__(self, images: Tensor, ids: Tensor) -> tuple[Embeddings, Embeddings]:
        """As `RDE.forward`."""
        return self.encode_image(images), self.encode_text(ids)

    def encode_image(self, images: Tensor) -> Embeddings:
        """As `RDE.encode_image`."""
        with _products(self.mkl), autocast(images.device, self.model.precision):
            if not (self.maps or self.whole):
                return self.model.encode_image(images)
            tokens, scores = self._image_maps(images) if self.maps else self.model.clip.encode_image(images)
            scores[:, 0] = -1
            return Embeddings(tokens[:, 0].float(), self.model.image_tse(tokens, scores, self.model.image_tokens))

    def _image_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) features, and the (B, L) row of [CLS] of the last layer's map."""
        visual = self.model.clip.visual
        patches = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        cls = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([cls, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        x, attention = transform(visual.transformer, visual.ln_pre(x))
        return visual.ln_post(x) @ visual.proj.to(x.dtype), attention[:, 0].clone()

    def encode_text(self, ids: Tensor) -> Embeddings:
        """As `RDE.encode_text`."""
        if self.padded:
            ids = F.pad(ids, (0, TEXT_LENGTH - ids.shape[1]))
        clip, rows, count = self.model.clip, torch.arange(len(ids), device=ids.device), self.model.text_tokens
        ids = F.pad(ids, (0, max(0, count + 2 - ids.shape[1])))
        eos = ids.argmax(dim=1)
        with _products(self.mkl), autocast(ids.device, self.model.precision):
            if not (self.maps or self.whole or self.loops):
                return self.model.encode_text(ids)
            if self.maps:
                tokens, scores = self._text_maps(ids, eos)
            else:
                tokens, scores = clip.encode_text(ids, eos)
            scores[:, 0] = -1
            scores[rows, eos] = -1
            words = [int((row != 0).sum()) - 2 for row in ids]
            pooled = torch.tensor([min(max(1, number), count) for number in words], device=ids.device)
            pool = loop_pool if self.loops else TokenSelectionEmbedding.forward
            return Embeddings(tokens[rows, eos].float(), pool(self.model.text_tse, tokens, scores, count, pooled))

    def _text_maps(self, ids: Tensor, eos: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) features, and the (B, L) row of EOS of the last layer's map."""
        clip = self.model.clip
        x = clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]
        x, attention = transform(clip.transformer, x.to(clip.text_projection.dtype))
        x = clip.ln_final(x)
        return x @ clip.text_projection.to(x.dtype), attention[torch.arange(len(ids), device=ids.device), eos].clone()


@contextmanager
def _products(mkl: bool) -> Iterator[None]:
    """With `mkl` the model's linear layers are PyTorch's own."""
    before = linear.ONEDNN
    linear.ONEDNN = before and not mkl
    try:
        yield
    finally:
        linear.ONEDNN = before


def transform(transformer: Transformer, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, D) through all blocks, and the (B, L, L) attention map of the last one; every block forms its own."""
    x = x.transpose(0, 1)  # (L, B, D)
    for block in transformer.resblocks:
        x, attention = _run(block, x)
    return x.transpose(0, 1), attention


def _run(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    mixed, attention = _attend(block.attn, block.ln_1(x))
    x = x + mixed
    hidden = block.mlp.c_fc(block.ln_2(x))
    return x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden)), attention


def _attend(attn: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """(L, B, D) → (L, B, D), and the (B, L, L) map averaged over heads: `nn.MultiheadAttention` step by step."""
    L, B, D = x.shape
    q, k, v = linear.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=2)
    q, k, v = (part.reshape(L, B * attn.heads, -1).transpose(0, 1) for part in (q, k, v))  # (B·H, L, D/H)
    logits = q * q.shape[2] ** -0.5 @ k.transpose(1, 2)
    if attn.causal:
        logits = logits + torch.full((L, L), float("-inf"), device=x.device, dtype=x.dtype).triu_(1)
    probabilities = logits.softmax(dim=2)
    mixed = (probabilities @ v).transpose(0, 1).reshape(L, B, D)
    return attn.out_proj(mixed), probabilities.view(B, attn.heads, L, L).mean(dim=1)


def loop_pool(tse: TokenSelectionEmbedding, tokens: Tensor, scores: Tensor, count: int, pooled: Tensor) -> Tensor:
    """`TokenSelectionEmbedding.forward` with pooling by max, a caption at a time."""
    B, _, D = tokens.shape
    chosen = scores.topk(count, dim=1).indices
    x = tokens.gather(1, chosen[:, :, None].expand(B, count, D)).float()
    x = (x / (x.norm(dim=-1, keepdim=True) + 1e-8)).to(tse.fc.weight.dtype)
    x = tse.fc(x) + tse.mlp(x.flatten(0, 1)).view(B, count, -1)
    return torch.stack([x[row, : int(pooled[row])].max(dim=0).values for row in range(B)]).float()


def build_optimizer(model: RDE, new: set[str], settings: OptimizerSettings) -> Optimizer:
    """`solver.optimizer.build_optimizer`'s Adam with a group for every parameter, not fused."""
    groups = [
        {**group, "params": [parameter]}
        for group in parameter_groups(model, new, settings)
        for parameter in group["params"]
    ]
    return torch.optim.Adam(groups, lr=settings.lr, betas=(settings.alpha, settings.beta), eps=1e-3)


def train_epoch(model: PlainModel, optimizer: Optimizer, batches: Iterable[PairBatch], label: np.ndarray) -> float:
    """Train with TAL on every batch once, waiting for each step's loss; the mean loss."""
    model.train()
    losses = []
    for batch in batches:
        weight = torch.tensor([label[pair] for pair in batch.pairs.tolist()], device=batch.images.device)
        image, text = model(batch.images, batch.ids)
        loss = 0
        for i, t in zip(image, text, strict=True):
            per_pair = per_pair_loss("TAL", cosine_similarity(i, t), batch.pids, LossSettings())
            loss = loss + reduce_loss("TAL", per_pair, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def score_pairs(model: PlainModel, batches: Iterable[PairBatch], pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The (N,) BGE and TSE losses that CCD divides, kept pair by pair."""
    model.eval()
    scored = torch.zeros(pairs), torch.zeros(pairs)
    for batch in batches:
        image, text = model(batch.images, batch.ids)
        for kept, i, t in zip(scored, image, text, strict=True):
            losses = per_pair_loss("TAL", cosine_similarity(i, t), batch.pids, LossSettings()).cpu()
            for row, pair in enumerate(batch.pairs):
                kept[pair] = losses[row]
    return scored[0].numpy(), scored[1].numpy()


@torch.no_grad()
def encode_twice(model: PlainModel, images: Iterable[Tensor], texts: Iterable[Tensor]) -> list[list[Tensor]]:
    """[images, captions] of BGE, then of TSE; both towers run for each of the two."""
    model.eval()
    images, texts = list(images), list(texts)
    return [
        [
            torch.cat([encode(batch)[part] for batch in batches])
            for encode, batches in ((model.encode_image, images), (model.encode_text, texts))
        ]
        for part in (0, 1)
    ]


def rank(similarity: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> dict[str, float]:
    """`processor.metrics.retrieval_metrics` by sorting every row with its positions, then a loop over queries."""
    order = similarity.argsort(dim=1, descending=True, stable=True)
    matches = gallery_pids[order] == query_pids[:, None]
    cumulative = matches.cumsum(dim=1)
    metrics = {f"R{k}": 100 * (cumulative[:, :k].amax(dim=1) > 0).double().mean().item() for k in (1, 5, 10)}
    precision = cumulative / torch.arange(1, matches.shape[1] + 1, device=matches.device) * matches
    metrics["mAP"] = 100 * (precision.sum(dim=1) / matches.sum(dim=1)).mean().item()
    penalties = [found[row.nonzero()[-1]] / row.nonzero()[-1].add(1) for found, row in zip(cumulative, matches)]
    metrics["mINP"] = 100 * torch.cat(penalties).double().mean().item()
    metrics["rSum"] = metrics["R1"] + metrics["R5"] + metrics["R10"]
    return metrics
