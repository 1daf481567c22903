"""IRRA's implicit relation reasoning: masked words are predicted from the caption's other words and the image."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solver.objectives.base import PairTokens, Sizes, TokenObjective
from solver.objectives.irra import irra_rate
from solver.settings import OBJECTIVES, IrraSettings, OptimizerSettings
from utils.errors import OptionError
from utils.layers import LayerNorm, QuickGELU

_HEAD_WIDTH = 64


class _Attention(nn.MultiheadAttention):
    """Attention with the parameter names of published files, initialised as in IRRA."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, max(1, width // _HEAD_WIDTH), batch_first=True)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.out_proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)


class _Block(nn.Module):
    """CLIP's residual block without a causal mask."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.attn = _Attention(width, depth)
        self.ln_1 = LayerNorm(width)
        c_fc, c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.normal_(c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(c_proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=QuickGELU(), c_proj=c_proj))
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.ln_1(x)
        x = x + self.attn(normalised, normalised, normalised, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block(width, depth) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


@OBJECTIVES.register("mlm")
class MaskedLanguageModelling(TokenObjective):
    """Text tokens attend to image tokens, a small transformer follows, and a head predicts the masked words.

    As published, there is no residual connection around the cross-attention, and padding isn't masked out.
    """

    Settings = IrraSettings
    settings: IrraSettings
    published = half_weights = True
    masks_words = True

    def __init__(self, settings: IrraSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        width, depth = sizes.features, settings.cmt_depth
        self.ln_pre_t, self.ln_pre_i, self.ln_post = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.cross_attn = _Attention(width, depth)
        self.cross_modal_transformer = _Transformer(width, depth)
        dense, fc = nn.Linear(width, width), nn.Linear(width, sizes.vocabulary)
        nn.init.normal_(dense.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(fc.weight, std=width**-0.5 * (2 * depth) ** -0.5)
        self.mlm_head = nn.Sequential(OrderedDict(dense=dense, gelu=QuickGELU(), ln=LayerNorm(width), fc=fc))

    def learning_rate(self, parameter: str, optimizer: OptimizerSettings) -> float:
        """See `irra_rate`."""
        return irra_rate(parameter, optimizer, self.settings.lr_factor)

    def forward(self, tokens: PairTokens) -> Tensor:
        """(b, 2): summed cross-entropy of a pair's masked words, and their number."""
        labels, (b, L) = tokens.labels, tokens.text.shape[:2]
        if labels is None or labels.shape != (b, L) or tokens.image.shape[1] < 2:
            raise OptionError("--loss_names mlm: needs a backbone that gives the features of every token")
        dtype = self.cross_attn.out_proj.weight.dtype
        text, image = self.ln_pre_t(tokens.text.to(dtype)), self.ln_pre_i(tokens.image.to(dtype))
        x = self.cross_attn(text, image, image, need_weights=False)[0]
        x = self.ln_post(self.cross_modal_transformer(x))
        row, place = labels.nonzero(as_tuple=True)  # the head is as wide as the vocabulary: apply it to these only
        losses = F.cross_entropy(self.mlm_head(x[row, place]).float(), labels[row, place], reduction="none")
        sums = losses.new_zeros(b).index_add(0, row, losses)
        return torch.stack([sums, (labels != 0).sum(dim=1).float()], dim=1)

    def reduce(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Mean over the masked words of all pairs, weighted by pair."""
        total, words = (weight[:, None] * rows).sum(dim=0)
        return self.settings.mlm_loss_weight * total / words.clamp_min(1)
