"""Order of the training pairs, a function of seed and epoch."""

from __future__ import annotations

import numpy as np


def random_order(pairs: int, rng: np.random.Generator) -> np.ndarray:
    """(pairs,) all pairs once, in random order."""
    return rng.permutation(pairs)


def identity_order(pids: np.ndarray, batch_size: int, num_instance: int, rng: np.random.Generator) -> np.ndarray:
    """Batches of batch_size/num_instance identities with num_instance pairs each.

    An identity's pairs are cut into chunks of num_instance; one with fewer pairs repeats some, and an incomplete last
    chunk is dropped for this epoch. Sampling ends when fewer identities are left than a batch needs.

    Args:
        pids: (N,) identity of every pair.
        batch_size: a multiple of num_instance.

    Returns:
        Indices of pairs; their number is a multiple of batch_size.
    """
    chunks: dict[int, list[np.ndarray]] = {}
    by_identity = np.split(np.argsort(pids, kind="stable"), np.flatnonzero(np.diff(np.sort(pids))) + 1)
    for pairs in by_identity:
        if len(pairs) < num_instance:
            pairs = rng.choice(pairs, num_instance, replace=True)
        pairs = rng.permutation(pairs)
        count = len(pairs) // num_instance
        chunks[int(pids[pairs[0]])] = list(pairs[: count * num_instance].reshape(count, num_instance))
    order = []
    identities = batch_size // num_instance
    while len(chunks) >= identities:
        for pid in rng.choice(list(chunks), identities, replace=False).tolist():
            order.append(chunks[pid].pop())
            if not chunks[pid]:
                del chunks[pid]
    return np.concatenate(order) if order else np.empty(0, np.int64)
