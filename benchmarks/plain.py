"""The plain way: the baseline of every ratio, and the oracle that the fast way is tested against.

Written from the description of what the published code does: every layer forms its attention maps, captions are padded
to 77, pooling and CCD's bookkeeping loop over samples, evaluation runs both towers once for BGE and once more for TSE,
every parameter is an optimizer group of its own, every step waits for its loss, and ranking sorts the whole gallery and
loops over queries. It computes with the weights of the RDE model it is given, so that both ways can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from model import linear
from model.clip import Attention, Block, Needed, Transformer
from model.precision import autocast
from model.rde import RDE, Embeddings, hide, needed_tokens
from model.tse import TokenSelectionEmbedding
from processor.types import PairBatch
from solver.losses import LossSettings, cosine_similarity, per_pair_loss, reduce_loss
from solver.optimizer import OptimizerSettings, parameter_groups

TEXT_LENGTH = 77


@dataclass
class PlainModel:
    """The encoders of `model`, the plain way; each part can be left to the fast way, to measure what it brings.

    Attributes:
        maps: form every layer's attention maps.
        gelu: QuickGELU by its formula.
        whole: finish all tokens in the last block.
        padded: captions of 77 tokens, however short they are.
        loops: pool captions one by one.
        mkl: multiply with MKL wherever PyTorch's own layers do.
    """

    model: RDE
    maps: bool = True
    gelu: bool = True
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

    def encode_image(self, images: Tensor, *, tse: bool = True) -> Embeddings:
        """As `RDE.encode_image`; without `tse` that is None."""
        model, cls = self.model, images.new_zeros(len(images), 1, dtype=torch.long)
        with _products(self.mkl), autocast(images.device, model.precision):
            if not (self.maps or self.gelu or self.whole):
                return model.encode_image(images)
            visual = model.clip.visual
            patches = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
            first = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
            x = visual.ln_pre(torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype))
            x, attention = self._transform(visual.transformer, x, cls, [cls], model.image_tokens)
            tokens = linear.linear(visual.ln_post(x), visual.proj.to(x.dtype).T)
            pooled = model.image_tse(tokens, hide(attention, [cls]), model.image_tokens) if tse else None
            return Embeddings(tokens[:, 0].float(), pooled)

    def encode_text(self, ids: Tensor, *, tse: bool = True) -> Embeddings:
        """As `RDE.encode_text`; without `tse` that is None."""
        model, count = self.model, self.model.text_tokens
        ids = F.pad(ids, (0, max(0, (TEXT_LENGTH if self.padded else count + 2) - ids.shape[1])))
        eos = ids.argmax(dim=1, keepdim=True)
        hidden = [torch.zeros_like(eos), eos]
        with _products(self.mkl), autocast(ids.device, model.precision):
            if not (self.maps or self.gelu or self.whole or self.loops):
                return model.encode_text(ids)
            clip = model.clip
            x = (clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]).to(clip.text_projection.dtype)
            x, attention = self._transform(clip.transformer, x, eos, hidden, count)
            tokens = linear.linear(clip.ln_final(x), clip.text_projection.to(x.dtype).T)
            bge = tokens[torch.arange(len(ids), device=ids.device), eos.squeeze(1)].float()
            if not tse:
                return Embeddings(bge, None)
            words = torch.tensor([min(max(1, int((row != 0).sum()) - 2), count) for row in ids], device=ids.device)
            pool = loop_pool if self.loops else TokenSelectionEmbedding.forward
            return Embeddings(bge, pool(model.text_tse, tokens, hide(attention, hidden), count, words))

    def _transform(
        self, transformer: Transformer, x: Tensor, sentence: Tensor, hidden: Sequence[Tensor], count: int
    ) -> tuple[Tensor, Tensor]:
        """(B, L, D) through all blocks, and the (B, L) attention from the (B, 1) `sentence` in the last one."""
        needed = None if self.whole else needed_tokens(sentence, hidden, count)
        for block in transformer.resblocks[:-1]:
            x, _ = self._run(block, x)
        return self._run(transformer.resblocks[-1], x, sentence.squeeze(1), needed)

    def _run(
        self, block: Block, x: Tensor, query: Tensor | None = None, needed: Needed | None = None
    ) -> tuple[Tensor, Tensor | None]:
        attend = partial(_attend, block.attn) if self.maps else block.attn
        mixed, attention = attend(block.ln_1(x), query)
        x = x + mixed
        if needed is None:
            return x + self._perceptron(block, x), attention
        positions = needed(attention)[:, :, None].expand(-1, -1, x.shape[2])
        some = x.gather(1, positions)
        return x.scatter(1, positions, some + self._perceptron(block, some)), attention

    def _perceptron(self, block: Block, x: Tensor) -> Tensor:
        hidden = block.mlp.c_fc(block.ln_2(x))
        return block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden) if self.gelu else block.mlp.gelu(hidden))


@contextmanager
def _products(mkl: bool) -> Iterator[None]:
    """With `mkl` the model's linear layers are PyTorch's own."""
    before = linear.ONEDNN
    linear.ONEDNN = before and not mkl
    try:
        yield
    finally:
        linear.ONEDNN = before


def _attend(attn: Attention, x: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `Attention.forward`, from a map of all tokens averaged over the heads: `nn.MultiheadAttention` in steps."""
    B, L, D = x.shape
    q, k, v = linear.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=2)
    q, k, v = (part.view(B, L, attn.heads, -1).transpose(1, 2) for part in (q, k, v))  # (B, H, L, D/H)
    logits = q * q.shape[3] ** -0.5 @ k.transpose(2, 3)
    if attn.causal:
        logits = logits + torch.full((L, L), float("-inf"), device=x.device, dtype=x.dtype).triu_(1)
    probabilities = logits.softmax(dim=3)  # (B, H, L, L)
    mixed = attn.out_proj((probabilities @ v).transpose(1, 2).reshape(B, L, D))
    maps = probabilities.mean(dim=1)  # (B, L, L)
    return mixed, maps if query is None else maps[torch.arange(B, device=x.device), query]


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
            torch.cat([getattr(encode(batch, tse=kind == "tse"), kind) for batch in batches])
            for encode, batches in ((model.encode_image, images), (model.encode_text, texts))
        ]
        for kind in Embeddings._fields
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
