"""Correspondences that don't use losses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from solver.correspondence.base import Correspondence, Verdict
from solver.settings import CORRESPONDENCES


@CORRESPONDENCES.register("all")
class All(Correspondence):
    """Every pair counts: no noise handling."""

    scored = False

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:  # noqa: ARG002
        """See `Correspondence.decide`."""
        return Verdict(np.ones(len(truly_clean), np.float32))


@CORRESPONDENCES.register("oracle")
class Oracle(Correspondence):
    """Only the truly clean pairs count: the upper bound of a perfect division."""

    scored = False

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:  # noqa: ARG002
        """See `Correspondence.decide`."""
        return Verdict(truly_clean.astype(np.float32))
