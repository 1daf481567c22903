"""Re-ranking by k-reciprocal neighbours in the gallery (Zhong et al., CVPR 2017, whose equations are cited).

In the paper queries are images. Here a query has another modality than the gallery and is never a neighbour of its
items, so all of its k nearest neighbours are used, and reciprocity is required only within the gallery.

Encodings are sparse, and similarities are computed in chunks of rows: memory grows with the gallery, not its square.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from processor.settings import RerankSettings

_CHUNK = 1 << 24  # elements of a temporary array


class Rows(NamedTuple):
    """A sparse matrix (CSR): row r has the columns and values from `starts[r]` to `starts[r + 1]`."""

    starts: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, parts: Iterable[Tensor]) -> Rows:
        """Convert chunks of dense rows."""
        counts, columns, values = [], [], []
        for dense in parts:
            row, column = dense.nonzero(as_tuple=True)
            counts.append(torch.bincount(row, minlength=len(dense)))
            columns.append(column)
            values.append(dense[row, column])
        count = torch.cat(counts)
        return cls(torch.cat([count.new_zeros(1), count.cumsum(0)]), torch.cat(columns), torch.cat(values))

    def transposed(self, count: int) -> Rows:
        """The transpose; `count` is the number of columns."""
        row = torch.repeat_interleave(self.starts.diff())
        order = self.columns.argsort(stable=True)
        starts = torch.bincount(self.columns, minlength=count).cumsum(0)
        return Rows(torch.cat([starts.new_zeros(1), starts]), row[order], self.values[order])

    def expanded(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the entries of (n,) rows in chunks of bounded size: position in `rows`, column and value of each."""
        ends = self.starts.diff()[rows].cumsum(0)
        first = 0
        while first < len(rows):
            done = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(torch.searchsorted(ends, done + _CHUNK, right=True)))
            part = rows[first:last]
            count = self.starts.diff()[part]
            position = torch.repeat_interleave(count)
            offset = torch.arange(len(position), device=rows.device) - (count.cumsum(0) - count)[position]
            entry = self.starts[part][position] + offset
            yield first + position, self.columns[entry], self.values[entry]
            first = last


class KReciprocal:
    """A gallery to re-rank for queries.

    Args:
        gallery: (G, D) unit vectors.
    """

    def __init__(self, gallery: Tensor, settings: RerankSettings) -> None:
        self.settings = settings
        G = self.size = len(gallery)
        self.k1 = min(settings.k1, G - 1)
        self.half = min(round(settings.k1 / 2), G - 1)
        self.k2 = min(settings.k2, G)
        members = self.k1 + 1
        self._rows_at_a_time = max(1, _CHUNK // max(G, members * members * (self.half + 1)))
        self._neighbours, self._farthest = self._nearest(gallery)
        self._reciprocal = self._reciprocity(self._neighbours)
        self._half_reciprocal = self._reciprocity(self._neighbours[:, : self.half + 1])
        self._own = Rows.of(self._encodings(gallery))  # (G, G)
        self._columns = Rows.of(self._averaged()).transposed(G)  # averaged encodings, by column

    def similarity(self, similarity: Tensor) -> Tensor:
        """(q, G) cosines of queries → re-ranked similarities, 0 to 1.

        One minus eq. 12: (1 − λ) times the overlap of both encodings (1 − Jaccard distance, eq. 10) + λ times the
        original similarity, rescaled to 0 at the minimum of its row.
        """
        parts = [self._reranked(part) for part in similarity.split(self._rows_at_a_time)]
        return torch.cat(parts) if parts else similarity

    def _chunks(self) -> Iterator[Tensor]:
        yield from torch.arange(self.size, device=self._neighbours.device).split(self._rows_at_a_time)

    def _nearest(self, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """(G, k1 + 1) nearest neighbours, including itself first, and (G,) the distance of the farthest item."""
        neighbours, farthest = [], []
        for rows in torch.arange(self.size, device=gallery.device).split(self._rows_at_a_time):
            cosine = gallery[rows] @ gallery.T
            farthest.append((1 - cosine).amax(dim=1))
            cosine.scatter_(1, rows[:, None], float("inf"))
            neighbours.append(cosine.topk(self.k1 + 1, dim=1).indices)
        return torch.cat(neighbours), torch.cat(farthest)

    def _reciprocity(self, neighbours: Tensor) -> Tensor:
        """(G, k) whether a row is also among its neighbour's neighbours (eq. 3)."""
        parts = torch.arange(self.size, device=neighbours.device).split(self._rows_at_a_time)
        return torch.cat([(neighbours[neighbours[rows]] == rows[:, None, None]).any(dim=2) for rows in parts])

    def _weights(self, members: Tensor, valid: Tensor, distance: Tensor) -> Tensor:
        """(r, G) encodings of rows from their (r, k) members where `valid`, by distance (eq. 5 to 7).

        A member's reciprocal neighbours at k/2 are added if more than two thirds of them are members already.
        """
        near = self._neighbours[members][:, :, : self.half + 1]  # (r, k, h + 1)
        near_valid = self._half_reciprocal[members] & valid[:, :, None]
        known = ((near[:, :, :, None] == members[:, None, None, :]) & valid[:, None, None, :]).any(dim=3)
        joins = (known & near_valid).sum(dim=2) > 2 / 3 * near_valid.sum(dim=2)  # (r, k)
        near_valid &= joins[:, :, None]
        selected = torch.zeros(len(members), self.size + 1, device=distance.device, dtype=torch.bool)
        selected.scatter_(1, members.where(valid, self.size), True)  # an extra column for invalid ones
        selected.scatter_(1, near.where(near_valid, self.size).flatten(1), True)
        weights = torch.exp(-distance) * selected[:, :-1]
        return weights / weights.sum(dim=1, keepdim=True)

    def _encodings(self, gallery: Tensor) -> Iterator[Tensor]:
        for rows in self._chunks():
            distance = (1 - gallery[rows] @ gallery.T) / self._farthest[rows, None].clamp_min(1e-12)
            yield self._weights(self._neighbours[rows], self._reciprocal[rows], distance)

    def _averaged(self) -> Iterator[Tensor]:
        """Each encoding averaged over its k2 nearest neighbours, including itself (eq. 11)."""
        for rows in self._chunks():
            yield self._summed(self._neighbours[rows, : self.k2]) / self.k2

    def _summed(self, rows: Tensor) -> Tensor:
        """(r, n) rows → (r, G) sums of their n encodings each."""
        total = torch.zeros(len(rows), self.size, device=rows.device)
        for position, column, value in self._own.expanded(rows.flatten()):
            total.view(-1).index_add_(0, position // max(1, rows.shape[1]) * self.size + column, value)
        return total

    def _reranked(self, similarity: Tensor) -> Tensor:
        distance = 1 - similarity.float()
        distance = distance / distance.amax(dim=1, keepdim=True).clamp_min(1e-12)
        members = similarity.topk(self.k1 + 1, dim=1).indices[:, : max(1, self.k1)]  # the query itself isn't among them
        encoding = self._weights(members, torch.ones_like(members, dtype=torch.bool), distance)
        encoding = (encoding + self._summed(members[:, : self.k2 - 1])) / (1 + min(self.k2 - 1, members.shape[1]))
        query, column = encoding.nonzero(as_tuple=True)
        weight, shared = encoding[query, column], torch.zeros_like(distance)
        for position, item, value in self._columns.expanded(column):
            shared.view(-1).index_add_(0, query[position] * self.size + item, torch.minimum(weight[position], value))
        share = self.settings.share
        return (1 - share) * shared / (2 - shared) + share * (1 - distance)
