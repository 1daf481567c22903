"""Confident consensus division (CCD): which pairs are clean, decided by two mixtures and a vote (paper, 3.2).

This half decides; the pass that fills the two arrays is `processor.scoring`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from utils.errors import UserError


@dataclass(frozen=True)
class MixtureSettings:
    """How the mixture is fitted, under scikit-learn's names."""

    max_iter: int
    tol: float
    reg_covar: float


COARSE = MixtureSettings(max_iter=10, tol=1e-2, reg_covar=5e-4)
FINE = MixtureSettings(max_iter=100, tol=1e-4, reg_covar=1e-6)


def mixture_settings(choice: str, noisy_rate: float, dataset_name: str) -> MixtureSettings:
    """`COARSE` or `FINE`, or by the published rule, which looks at the true noise rate: fine above 0.4 and on RSTPReid.

    Args:
        choice: "coarse", "fine" or "published".
        dataset_name: or its annotation file; RSTPReid's is known by its name or its folder's.
    """
    file = PurePath(dataset_name)
    rstpreid = file.name in ("RSTPReid", "data_captions.json") or file.parent.name == "RSTPReid"
    fine = noisy_rate > 0.4 or rstpreid if choice == "published" else choice == "fine"
    return FINE if fine else COARSE


@dataclass(frozen=True)
class Vote:
    """One embedding's verdict on N pairs.

    Attributes:
        loss: (N,) losses scaled to [0, 1].
        clean_probability: (N,) posterior of the component with the smaller mean.
        clean: (N,) bool.
        components: (2, 3) weight, mean and variance of both components, the clean one first; None where the losses
            are constant and nothing was fitted.
    """

    loss: np.ndarray
    clean_probability: np.ndarray
    clean: np.ndarray
    components: np.ndarray | None


@dataclass(frozen=True)
class Division:
    """CCD's outcome: l̂ (N,) in {0, 1} as float32, and both votes."""

    label: np.ndarray
    bge: Vote
    tse: Vote

    def report(self, truly_clean: np.ndarray | None) -> dict[str, float]:
        """Counts of pairs held clean, noisy and uncertain by both votes together; with the truth (N,) bool also the
        precision and recall of the clean set, in [0, 1] (null where it is not known)."""
        clean, noisy = self.bge.clean & self.tse.clean, ~self.bge.clean & ~self.tse.clean
        report = {
            "clean": int(clean.sum()),
            "noisy": int(noisy.sum()),
            "uncertain": int((~clean & ~noisy).sum()),
            "precision": None,
            "recall": None,
        }
        if truly_clean is not None:
            right = int((clean & truly_clean).sum())
            report["precision"] = right / max(1, int(clean.sum()))
            report["recall"] = right / max(1, int(truly_clean.sum()))
        return report


def vote(loss: np.ndarray, settings: MixtureSettings, seed: int) -> Vote:
    """Fit a two-component mixture to per-pair losses and call the pairs of the lower component clean.

    When even the least likely pair is held clean (P > 0.5), about the last 1% is called noisy all the same. Constant
    losses tell nothing: every pair is clean.

    Args:
        loss: (N,) finite losses.
        seed: of the mixture's initialisation.

    Raises:
        UserError: a loss is missing (NaN: its pair was in no batch) or not finite.
    """
    if not np.isfinite(loss).all():
        first = np.flatnonzero(~np.isfinite(loss))
        raise UserError(f"{len(first)} of {len(loss)} pairs have no finite loss, the first is pair {first[0]}")
    low, high = loss.min(), loss.max()
    if low == high:
        n = len(loss)
        return Vote(np.zeros(n, np.float32), np.ones(n, np.float32), np.ones(n, bool), None)
    scaled = ((loss - low) / (high - low)).astype(np.float32)
    mixture = GaussianMixture(
        2, max_iter=settings.max_iter, tol=settings.tol, reg_covar=settings.reg_covar, random_state=seed
    )
    with warnings.catch_warnings():  # the published settings stop after a few iterations on purpose
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(scaled[:, None])
    order = mixture.means_[:, 0].argsort()
    probability = mixture.predict_proba(scaled[:, None])[:, order[0]]
    threshold = 0.5
    if probability.min() > threshold:
        threshold = np.sort(probability)[len(probability) // 100]
    components = np.stack([mixture.weights_, mixture.means_[:, 0], mixture.covariances_[:, 0, 0]], axis=1)[order]
    return Vote(scaled, probability, probability > threshold, components)


def divide(bge_loss: np.ndarray, tse_loss: np.ndarray, settings: MixtureSettings, seed: tuple[int, ...]) -> Division:
    """Both embeddings vote; where they disagree a coin is tossed.

    Args:
        bge_loss, tse_loss: (N,) per-pair losses.
        seed: of the mixtures and the coins, another one each epoch; the same seed gives the same division.

    Raises:
        UserError: a pair has no finite loss.
    """
    rng = np.random.default_rng(seed)
    mixture_seed = int(rng.integers(2**31))
    bge, tse = vote(bge_loss, settings, mixture_seed), vote(tse_loss, settings, mixture_seed)
    coins = rng.integers(0, 2, len(bge_loss), dtype=np.int8).astype(bool)
    label = np.where(bge.clean == tse.clean, bge.clean, coins)
    return Division(label.astype(np.float32), bge, tse)
