"""Confident consensus division (CCD): one Gaussian mixture per embedding votes on which pairs are clean (paper, 3.2).

This half decides; `processor.scoring` computes the losses.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from solver.correspondence.base import Correspondence, Facts, Verdict, Vote
from solver.settings import CORRESPONDENCES, MixtureSettings
from utils.errors import UserError

_PURPOSE = 3  # key of CCD's draws within an epoch; other keys are in datasets/loaders.py


@dataclass(frozen=True)
class Fit:
    """Parameters of fitting a mixture, named as in scikit-learn."""

    max_iter: int
    tol: float
    reg_covar: float


COARSE = Fit(max_iter=10, tol=1e-2, reg_covar=5e-4)
FINE = Fit(max_iter=100, tol=1e-4, reg_covar=1e-6)


def choose_fit(mixture: str, facts: Facts) -> Fit:
    """`COARSE`, `FINE`, or the published rule, which depends on the true noise rate: fine above 0.4 and on RSTPReid.

    Args:
        mixture: "coarse", "fine" or "published".
        facts: RSTPReid's annotation file is recognised by its name or its folder's.
    """
    file = PurePath(facts.dataset_name)
    rstpreid = file.name in ("RSTPReid", "data_captions.json") or file.parent.name == "RSTPReid"
    fine = facts.noisy_rate > 0.4 or rstpreid if mixture == "published" else mixture == "fine"
    return FINE if fine else COARSE


def vote(loss: np.ndarray, fit: Fit, seed: int) -> Vote:
    """Fit a two-component mixture to per-pair losses and classify the pairs of the lower component as clean.

    If all pairs have P(clean) > 0.5, about 1% with the lowest are still classified as noisy. Constant losses carry no
    information: every pair is clean.

    Args:
        loss: (N,) finite losses.
        seed: seed of the mixture's initialisation.

    Raises:
        UserError: a loss is missing (NaN: its pair was in no batch) or infinite.
    """
    if not np.isfinite(loss).all():
        first = np.flatnonzero(~np.isfinite(loss))
        raise UserError(f"{len(first)} of {len(loss)} pairs have no finite loss, the first is pair {first[0]}")
    low, high = loss.min(), loss.max()
    if low == high:
        n = len(loss)
        return Vote(np.zeros(n, np.float32), np.ones(n, np.float32), np.ones(n, bool), None)
    scaled = ((loss - low) / (high - low)).astype(np.float32)
    mixture = GaussianMixture(2, max_iter=fit.max_iter, tol=fit.tol, reg_covar=fit.reg_covar, random_state=seed)
    with warnings.catch_warnings():  # the published settings stop after a few iterations by design
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(scaled[:, None])
    means, variances = np.asarray(mixture.means_).ravel(), np.asarray(mixture.covariances_).ravel()
    order = means.argsort()
    probability = mixture.predict_proba(scaled[:, None])[:, order[0]]
    threshold = 0.5
    if probability.min() > threshold:
        threshold = np.sort(probability)[len(probability) // 100]
    components = np.stack([np.asarray(mixture.weights_), means, variances], axis=1)[order]
    return Vote(scaled, probability, probability > threshold, components)


def divide(losses: Mapping[str, np.ndarray], fit: Fit, seed: tuple[int, ...]) -> Verdict:
    """Every embedding votes; pairs on which they disagree are decided at random.

    Args:
        losses: (N,) per-pair losses by embedding.
        seed: seed of the mixtures and random decisions, different in every epoch; equal seeds give equal divisions.

    Raises:
        UserError: a pair has no finite loss.
    """
    rng = np.random.default_rng(seed)
    mixture_seed = int(rng.integers(2**31))
    votes = {name: vote(loss, fit, mixture_seed) for name, loss in losses.items()}
    clean = np.stack([vote.clean for vote in votes.values()])
    coins = rng.integers(0, 2, clean.shape[1], dtype=np.int8).astype(bool)
    label = np.where(clean.all(axis=0) == clean.any(axis=0), clean[0], coins)
    return Verdict(label.astype(np.float32), votes)


@CORRESPONDENCES.register("ccd")
class CCD(Correspondence):
    """Trains on pairs that all embeddings classify as clean, and not on those that all classify as noisy."""

    Settings = MixtureSettings
    settings: MixtureSettings

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:  # noqa: ARG002
        """See `Correspondence.decide`."""
        return divide(losses, choose_fit(self.settings.mixture, self.facts), (self.facts.seed, epoch, _PURPOSE))


@CORRESPONDENCES.register("ccd-soft")
class SoftCCD(CCD):
    """Weights every pair by P(clean), averaged over the embeddings."""

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:
        """See `Correspondence.decide`."""
        votes = super().decide(losses, truly_clean, epoch).votes
        probability = np.mean([vote.clean_probability for vote in votes.values()], axis=0)
        return Verdict(probability.astype(np.float32), votes)
