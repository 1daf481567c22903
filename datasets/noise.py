"""Noisy correspondence: caption i is replaced by caption π(i); images and identities stay (paper, 4.1)."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import DataError

DRAWN = "drawn by the published rule, kept in the run folder as noise_index.npy"
NOISEINDEX = Path(__file__).parents[1] / "noiseindex"


def draw_permutation(pairs: int, rate: float) -> np.ndarray:
    """Draw π (pairs,) int64 with the published seed: a share `rate` of the captions is shuffled among themselves."""
    r = np.random.RandomState(1)
    order = np.arange(pairs)
    r.shuffle(order)
    chosen = order[: int(rate * pairs)]
    moved = chosen.copy()
    r.shuffle(moved)
    permutation = np.arange(pairs)
    permutation[chosen] = moved
    return permutation


def read_permutation(file: Path, pairs: int, rate: float | None) -> np.ndarray:
    """Read and check a noise index; with `rate` None, any rate is accepted.

    Raises:
        DataError: not an index file, not of length `pairs`, not a permutation, or of another rate.
    """
    try:
        permutation = np.load(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"noise index {file} can't be read: {error.strerror or 'not a .npy file'}") from None
    except Exception:  # NumPy parses the header as Python and allocates whatever it claims
        raise DataError(f"noise index {file} can't be read: not a .npy file of numbers") from None
    if not isinstance(permutation, np.ndarray) or permutation.ndim != 1 or permutation.dtype.kind not in "iu":
        raise DataError(f"noise index {file}: expected a one-dimensional array of integers")
    if len(permutation) != pairs:
        raise DataError(
            f"noise index {file} is for {len(permutation):,} pairs, but the training split has {pairs:,}: "
            "pass another with --noisy_file (python -m tools.noise_index writes one)"
        )
    if not np.array_equal(np.sort(permutation), np.arange(pairs)):
        raise DataError(f"noise index {file} is not a permutation of 0 … {pairs - 1:,}")
    moved = np.count_nonzero(permutation != np.arange(pairs))
    # A shuffle leaves about one element in place, so the share of moved ones is slightly below the rate.
    if rate is not None and not rate * pairs - max(10, 0.01 * pairs) <= moved <= rate * pairs + 1:
        raise DataError(f"noise index {file} moves {moved / pairs:.1%} of the captions, but --noisy_rate is {rate:g}")
    return permutation.astype(np.int64)


@dataclass(frozen=True)
class Noise:
    """A run's noise: π, a summary for the log, and the source and digest of π."""

    permutation: np.ndarray
    summary: str
    origin: str
    sha256: str

    @property
    def about(self) -> dict[str, str]:
        """Source and digest, for the run's configuration."""
        return {"origin": self.origin, "sha256": self.sha256}


def digest(permutation: np.ndarray) -> str:
    """SHA-256 of the permutation as `numpy.save` writes it."""
    stream = io.BytesIO()
    np.save(stream, permutation)
    return hashlib.sha256(stream.getvalue()).hexdigest()


def find_noise(dataset_name: str, pairs: int, rate: float, file: str) -> Noise:
    """The permutation of a run: from `file`, else from `noiseindex/<dataset_name>_<rate>.npy`, else drawn.

    At rate 0 it is the identity and no file is read, as the published script names one that doesn't exist by default.

    Raises:
        DataError: `file` is missing, or an index doesn't fit.
    """
    if rate == 0:
        clean = np.arange(pairs)
        return Noise(clean, "none; --noisy_file is ignored at rate 0" if file else "none", "none", digest(clean))
    path = Path(file) if file else NOISEINDEX / f"{dataset_name}_{rate:g}.npy"
    if not file and not path.is_file():
        permutation, origin = draw_permutation(pairs, rate), DRAWN
    else:
        permutation, origin = read_permutation(path, pairs, rate), str(path)
    moved = np.count_nonzero(permutation != np.arange(pairs)) / pairs
    return Noise(permutation, f"{moved:.1%} of the captions moved, {origin}", origin, digest(permutation))
