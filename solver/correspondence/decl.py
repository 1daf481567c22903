"""DECL's division: a pair is clean if no other pair in its batch has more evidence (Qin et al., ACM MM 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from solver.correspondence.base import Correspondence, Verdict, Vote
from solver.settings import CORRESPONDENCES, DeclSettings
from utils.errors import OptionError


@CORRESPONDENCES.register("decl")
class Evidential(Correspondence):
    """DECL's division, after a warm-up in which every pair counts as clean."""

    Settings = DeclSettings
    settings: DeclSettings
    objective = "DECL"

    @classmethod
    def check(cls, settings: Any, epochs: int) -> None:
        """See `Correspondence.check`."""
        if settings.decl_warmup >= epochs:
            raise OptionError(
                f"--decl_warmup {settings.decl_warmup}: must be below --num_epoch {epochs}, "
                "or no pair is ever classified as noisy"
            )

    def scores_in(self, epoch: int) -> bool:
        """See `Correspondence.scores_in`."""
        return epoch >= self.settings.decl_warmup

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:
        """See `Correspondence.decide`."""
        if not self.scores_in(epoch):
            return Verdict(np.ones(len(truly_clean), np.float32))
        clean = losses["clean"] > 0.5
        vote = Vote(losses["uncertainty"] / 2, losses["belief"], clean, None)
        return Verdict(clean.astype(np.float32), {"uncertainty": vote})
