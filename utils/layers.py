"""CLIP's layers, shared by backbones and objectives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickGELU(nn.Module):
    """x·σ(1.702x), the activation of OpenAI's CLIPs."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in float32 for any input dtype."""

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normalised.to(x.dtype)


def is_dropout(layer: nn.Module) -> bool:
    """Whether the layer itself draws random numbers in training."""
    return isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
