"""Retrieval metrics: R1, R5, R10, mAP, mINP and rSum, in percent (paper, 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

RANKS = (1, 5, 10)
_CHUNK = 1024  # queries ranked at a time, which bounds the memory


def retrieval_metrics(similarity: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> dict[str, float]:
    """Rank the gallery for every query.

    Args:
        similarity: (Q, G), higher is nearer. Equal similarities keep the gallery's order, so that a collapsed model
            gains nothing from ties.
        query_pids, gallery_pids: (Q,), (G,). A query without its pid in the gallery counts as never found.

    Returns:
        R1, R5, R10 (share of queries with a relevant image among the first k), mAP, mINP (relevant images over the
        rank of the last one), each averaged over queries, in percent; rSum = R1 + R5 + R10.
    """
    found_at, average_precision, inverse_penalty = [], [], []
    for rows, pids in zip(similarity.split(_CHUNK), query_pids.split(_CHUNK), strict=True):
        order = rows.argsort(dim=1, descending=True, stable=True)
        relevant = gallery_pids[order] == pids[:, None]  # (q, G)
        found = relevant.cumsum(dim=1)
        total = found[:, -1]
        rank = torch.arange(1, rows.shape[1] + 1, device=rows.device)
        last = torch.where(relevant, rank, 0).amax(dim=1)
        found_at.append(torch.where(total > 0, relevant.float().argmax(dim=1) + 1, rows.shape[1] + 1))
        average_precision.append((found / rank * relevant).sum(dim=1) / total.clamp_min(1))
        inverse_penalty.append(total / last.clamp_min(1))
    ranks, *others = (torch.cat(part).cpu().double() for part in (found_at, average_precision, inverse_penalty))
    metrics = {f"R{k}": 100 * (ranks <= k).double().mean().item() for k in RANKS}
    metrics |= {name: 100 * values.mean().item() for name, values in zip(("mAP", "mINP"), others, strict=True)}
    metrics["rSum"] = sum(metrics[f"R{k}"] for k in RANKS)
    return metrics
