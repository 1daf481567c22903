"""Batch normalisation over the global batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from utils.distributed import summed


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (rows, C) with statistics over the rows of all processes; same state dict and results."""

    def forward(self, x: Tensor) -> Tensor:
        """(rows, C) → (rows, C)."""
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        rows = x.float()
        total = summed(torch.cat([rows.sum(dim=0), rows.new_full((1,), len(rows))]))  # (C + 1,)
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = rows - mean
        variance = summed(centred.square().sum(dim=0)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum or 0)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum or 0)
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)
