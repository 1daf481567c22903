"""Retrieval metrics: R1, R5, R10, mAP, mINP and rSum, in percent (paper, 4.1)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

RANKS = (1, 5, 10)
_CHUNK = 1 << 24  # number of similarities ranked at a time, to bound memory


def queries_at_a_time(gallery: int) -> int:
    """Number of queries to rank at a time in a gallery of this size."""
    return max(1, _CHUNK // max(1, gallery))


class RetrievalMetrics:
    """Metrics of any number of queries, which are added in chunks.

    Only the ranks of relevant images matter, so similarities are sorted without indices, and the few relevant ones are
    looked up in the sorted rows. Ties are broken by gallery order, so a collapsed model doesn't benefit from them.

    Args:
        gallery_pids: (G,), on the device of the similarities.
    """

    def __init__(self, gallery_pids: Tensor) -> None:
        self._by_pid = gallery_pids.argsort(stable=True)  # grouped by person, in gallery order
        self._sorted_pids = gallery_pids[self._by_pid]
        self._parts: list[Tensor] = []

    def add(self, similarity: Tensor, query_pids: Tensor) -> None:
        """Rank the gallery for some queries.

        Args:
            similarity: (q, G), higher is more similar, no NaN.
            query_pids: (q,). A query whose pid isn't in the gallery counts as not found.
        """
        if not len(query_pids):
            return
        ranks = self._ranks(similarity, query_pids).cpu().double()  # (q, r), padded with 0
        relevant = ranks > 0
        total = relevant.sum(dim=1)
        last = ranks.amax(dim=1).clamp_min(1)
        ranks = ranks.masked_fill(~relevant, float("inf")).sort(dim=1).values
        precision = torch.arange(1, ranks.shape[1] + 1) / ranks  # at each relevant image
        self._parts.append(torch.stack([ranks[:, 0], precision.sum(dim=1) / total.clamp_min(1), total / last]))

    def result(self) -> dict[str, float]:
        """R1, R5, R10 (share of queries with a relevant image in the top k), mAP, mINP (number of relevant images over
        the rank of the last one), averaged over queries, in percent; rSum = R1 + R5 + R10."""
        first, average_precision, inverse_penalty = torch.cat(self._parts, dim=1)
        metrics = {f"R{k}": 100 * (first <= k).double().mean().item() for k in RANKS}
        metrics |= {"mAP": 100 * average_precision.mean().item(), "mINP": 100 * inverse_penalty.mean().item()}
        metrics["rSum"] = sum(metrics[f"R{k}"] for k in RANKS)
        return metrics

    def _ranks(self, similarity: Tensor, query_pids: Tensor) -> Tensor:
        """(q, r) ranks (from 1) of every query's relevant images, in gallery order, padded with 0."""
        start = torch.searchsorted(self._sorted_pids, query_pids)
        count = torch.searchsorted(self._sorted_pids, query_pids, right=True) - start  # (q,)
        number = torch.arange(max(1, int(count.max())), device=count.device)
        valid = number < count[:, None]  # (q, r)
        relevant = self._by_pid[(start[:, None] + number).clamp_max(len(self._by_pid) - 1)]  # (q, r)
        score = similarity.gather(1, relevant)
        ascending = _sort_rows(similarity)
        lower = torch.searchsorted(ascending, score)  # number of lower similarities
        gallery = similarity.shape[1]
        next_higher = ascending.gather(1, (lower + 1).clamp_max(gallery - 1))
        tied = valid & (lower + 1 < gallery) & (next_higher == score)
        ranks = gallery - lower - self._ties_after(similarity, score, relevant, tied)
        return ranks.where(valid, 0)

    @staticmethod
    def _ties_after(similarity: Tensor, score: Tensor, relevant: Tensor, tied: Tensor) -> Tensor:
        """(q, r) number of equally similar images after each relevant one in the gallery; computed where `tied`."""
        count = torch.zeros_like(relevant)
        position = torch.arange(similarity.shape[1], device=similarity.device)
        for pairs in tied.nonzero().split(queries_at_a_time(similarity.shape[1])):
            query, number = pairs.unbind(1)
            equal = similarity[query] == score[query, number, None]
            count[query, number] = (equal & (position > relevant[query, number, None])).sum(dim=1)
        return count


def retrieval_metrics(similarity: Tensor, query_pids: Tensor, gallery_pids: Tensor) -> dict[str, float]:
    """The metrics of (Q, G) similarities; see `RetrievalMetrics`."""
    metrics = RetrievalMetrics(gallery_pids)
    chunk = queries_at_a_time(len(gallery_pids))
    for rows, pids in zip(similarity.split(chunk), query_pids.split(chunk), strict=True):
        metrics.add(rows, pids)
    return metrics.result()


def _sort_rows(rows: Tensor) -> Tensor:
    """Sort every row, ascending; on a CPU with NumPy's vectorised sort (twenty times as fast as torch's)."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    ascending, threads = rows.contiguous().numpy().copy(), torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:  # NumPy releases the GIL while sorting
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(ascending, threads)))
    return torch.from_numpy(ascending)
