"""A run's record of every epoch: votes on all pairs, and similarity histograms of positive and negative pairs.

One small compressed file per epoch, `RUN_DIR/epochs/0001.npz` …, which depends only on the run and its number of
processes: a resumed run writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from processor.evaluation import Encoded
from processor.metrics import queries_at_a_time
from solver.correspondence.base import Vote
from utils.errors import DataError
from utils.files import atomic_write

FOLDER = "epochs"
_DEFAULT_NAMES = np.array(["BGE", "TSE"])  # of older files, which have no names
BIN_EDGES = np.linspace(-1, 1, 201)  # bins of cosine similarities


@dataclass(frozen=True)
class PairHistory:
    """The votes of V embeddings on the N pairs of the training split in one epoch.

    Attributes:
        names: names of the embeddings.
        loss: (V, N) raw per-pair losses; NaN for excluded pairs, as in `clean_probability`.
        clean_probability: (V, N) P(clean).
        clean: (V, N) bool, the votes; False for excluded pairs.
        components: (V, 2, 3) weight, mean and variance of the two Gaussians over the losses scaled to [0, 1], the clean
            one first; NaN if none were fitted.
        excluded: indices of the pairs excluded from division and training.
        truly_clean: (N,) bool, whether a pair has its own caption; True for excluded pairs. Without injected noise all
            are True, although the data themselves may be noisy.
    """

    names: tuple[str, ...]
    loss: np.ndarray
    clean_probability: np.ndarray
    clean: np.ndarray
    components: np.ndarray
    excluded: np.ndarray
    truly_clean: np.ndarray

    @property
    def scaled_loss(self) -> np.ndarray:
        """(V, N) losses scaled to [0, 1], the mixtures' input; NaN if they are all equal."""
        low, high = np.nanmin(self.loss, axis=1, keepdims=True), np.nanmax(self.loss, axis=1, keepdims=True)
        return (self.loss - low) / np.where(high > low, high - low, np.nan)


@dataclass(frozen=True)
class EpochHistory:
    """One epoch, counted from 1.

    Attributes:
        pairs: None without votes (`--division all` or `oracle`).
        similarity: (2, 200) histograms over `BIN_EDGES` of the fused validation similarities between captions and
            images of the same person (row 0) and of others (row 1); None in an epoch without validation.
    """

    epoch: int
    pairs: PairHistory | None
    similarity: np.ndarray | None


def similarity_histograms(encoded: Encoded, caption_pids: np.ndarray, image_pids: np.ndarray) -> np.ndarray:
    """`EpochHistory.similarity` from a split's embeddings and identities, computed in chunks of captions."""
    bins, device = len(BIN_EDGES) - 1, encoded.device
    caption_ids, image_ids = (torch.from_numpy(pids).to(device) for pids in (caption_pids, image_pids))
    counts, chunk = torch.zeros(2 * bins, dtype=torch.long, device=device), queries_at_a_time(len(image_pids))
    for start in range(0, len(caption_pids), chunk):
        rows = slice(start, start + chunk)
        similarity = encoded.similarity(rows)[encoded.fused]  # (c, images)
        index = ((similarity.clamp(-1, 1) + 1) * (bins / 2)).long().clamp_max(bins - 1)
        index += bins * (caption_ids[rows, None] != image_ids)
        counts += torch.bincount(index.flatten(), minlength=2 * bins)
    return counts.view(2, bins).cpu().numpy()


def vote_arrays(
    votes: Mapping[str, Vote], losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, excluded: np.ndarray
) -> dict[str, np.ndarray]:
    """One epoch's votes in compact form: numbers in float16, votes as bits, without excluded pairs."""
    no_fit = np.full((2, 3), np.nan)
    return {
        "names": np.array([*votes]),
        "loss": np.stack([losses.get(name, vote.loss) for name, vote in votes.items()]).astype(np.float16),
        "clean_probability": np.stack([vote.clean_probability for vote in votes.values()]).astype(np.float16),
        "clean": np.packbits(np.stack([vote.clean for vote in votes.values()]), axis=1),
        "truly_clean": np.packbits(truly_clean),
        "components": np.stack([no_fit if vote.components is None else vote.components for vote in votes.values()]),
        "excluded": excluded.astype(np.int64),
    }


def write_epoch(run_dir: Path, epoch: int, arrays: dict[str, np.ndarray]) -> None:
    """Write an epoch's file atomically.

    Args:
        epoch: counted from 1.
        arrays: `vote_arrays`, and "similarity", if there are any.
    """
    file = run_dir / FOLDER / f"{epoch:04d}.npz"
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_history(run_dir: Path) -> list[EpochHistory]:
    """All recorded epochs of a run, in order; empty for runs of other code.

    Raises:
        DataError: a file is damaged or unreadable.
    """
    epochs = [_read(file) for file in sorted((run_dir / FOLDER).glob("*.npz"))]
    if len({epoch.pairs.loss.shape for epoch in epochs if epoch.pairs}) > 1:
        raise DataError(f"{run_dir / FOLDER} has epochs with different numbers of pairs: they are from different runs")
    return epochs


def _read(file: Path) -> EpochHistory:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        pairs = _expand(arrays) if "loss" in arrays else None
        similarity = arrays.get("similarity")
        if similarity is not None and similarity.shape != (2, len(BIN_EDGES) - 1):
            raise ValueError(f"similarities of shape {similarity.shape}")
        return EpochHistory(int(file.stem), pairs, similarity)
    except PermissionError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from None
    except Exception:  # NumPy, zipfile and zlib raise many types, with unhelpful advice
        raise DataError(f"{file} is damaged: delete it to skip its epoch") from None


def _expand(arrays: dict[str, np.ndarray]) -> PairHistory:
    excluded, divided = arrays["excluded"], arrays["loss"].shape[1]
    included = np.setdiff1d(np.arange(divided + len(excluded)), excluded)

    def at_pairs(values: np.ndarray, fill: float) -> np.ndarray:
        full = np.full((*values.shape[:-1], divided + len(excluded)), fill, values.dtype)
        full[..., included] = values
        return full

    names = tuple(map(str, arrays.get("names", _DEFAULT_NAMES)))
    if arrays["components"].shape != (len(names), 2, 3) or len(arrays["loss"]) != len(names):
        raise ValueError("arrays of other shapes")
    return PairHistory(
        names=names,
        loss=at_pairs(arrays["loss"].astype(np.float32), np.nan),
        clean_probability=at_pairs(arrays["clean_probability"].astype(np.float32), np.nan),
        clean=at_pairs(np.unpackbits(arrays["clean"], axis=1, count=divided).astype(bool), False),
        components=arrays["components"],
        excluded=excluded,
        truly_clean=at_pairs(np.unpackbits(arrays["truly_clean"], count=divided).astype(bool), True),
    )
