"""The votes on every pair over the epochs, and their accuracy where the ground truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from processor.evaluation import similarity_names
from processor.history import PairHistory


@dataclass(frozen=True)
class Findings:
    """The votes of V embeddings on N pairs in E epochs.

    Attributes:
        epochs: votes of each epoch, in order; those of the last are final.
    """

    epochs: Sequence[PairHistory]

    @property
    def last(self) -> PairHistory:
        """The last epoch's votes."""
        return self.epochs[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the embeddings that vote."""
        return self.last.names

    @cached_property
    def truth(self) -> np.ndarray | None:
        """(N,) bool, captions shuffled by the injected noise; None without injected noise, as the truth is unknown."""
        noisy = ~self.last.truly_clean
        return noisy if noisy.any() else None

    @cached_property
    def kept(self) -> np.ndarray:
        """Indices of the pairs that were not excluded."""
        return np.setdiff1d(np.arange(self.last.loss.shape[1]), self.last.excluded)

    @cached_property
    def doubts(self) -> np.ndarray:
        """(V, N) 1 − P(clean) of each vote, averaged over the epochs, in [0, 1]; NaN for excluded pairs."""
        return 1 - np.mean([epoch.clean_probability for epoch in self.epochs], axis=0)

    @cached_property
    def suspicion(self) -> np.ndarray:
        """(N,) mean of `doubts` over the votes, by which pairs are sorted."""
        return self.doubts.mean(axis=0)

    @cached_property
    def times_noisy(self) -> np.ndarray:
        """(V, N) number of epochs in which each vote flagged the pair; 0 for excluded pairs."""
        times = np.sum([~epoch.clean for epoch in self.epochs], axis=0)
        times[:, self.last.excluded] = 0
        return times

    def suspects(self) -> np.ndarray:
        """Indices of the pairs that at least one vote flagged in the last epoch, most suspicious first."""
        flagged = self.kept[(~self.last.clean[:, self.kept]).any(axis=0)]
        return flagged[np.argsort(-self.suspicion[flagged], kind="stable")]

    def summary(self) -> str:
        """The number of flagged pairs, in a sentence."""
        by_all = int((~self.last.clean[:, self.kept]).all(axis=0).sum())
        return (
            f"Of {len(self.kept):,} pairs {len(self.suspects()):,} are flagged as noisy by at least one vote in the "
            f"last of {len(self.epochs)} epochs, {by_all:,} by all."
        )

    def flagged_by(self, pair: int) -> str:
        """The embeddings that flagged a pair in the last epoch; "excluded" for an excluded pair."""
        if pair in self.last.excluded:
            return "excluded"
        return " and ".join(name for name, clean in zip(self.names, self.last.clean[:, pair], strict=True) if not clean)

    def scores(self) -> dict[str, np.ndarray]:
        """(kept,) scores for "noisy": each vote's doubt, and their mean."""
        scores = [*self.doubts[:, self.kept], self.suspicion[self.kept]]
        return dict(zip(similarity_names(self.names), scores, strict=False))

    def judgement(self) -> dict[str, object] | None:
        """Accuracy of the votes: average precision, and last epoch's confusion matrices; None without ground truth.

        "chance" is the share of noisy pairs, which is the average precision of a random score.
        """
        if self.truth is None:
            return None
        truth, noisy = self.truth[self.kept], ~self.last.clean[:, self.kept]
        votes = {
            **dict(zip(self.names, noisy, strict=True)),
            "all noisy": noisy.all(axis=0),
            "any noisy": noisy.any(axis=0),
        }
        return {
            "pairs": len(truth),
            "chance": float(truth.mean()),
            "average_precision": {n: float(average_precision_score(truth, s)) for n, s in self.scores().items()},
            "last_epoch": {name: confusion(truth, flagged) for name, flagged in votes.items()},
        }

    def curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Recall and precision of "noisy" for each of `scores`; needs ground truth."""
        assert self.truth is not None
        truth = self.truth[self.kept]
        curves = {name: precision_recall_curve(truth, score) for name, score in self.scores().items()}
        return {name: (recall, precision) for name, (precision, recall, _) in curves.items()}


def confusion(truth: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """Confusion matrix, and precision and recall of "noisy" (0 if undefined)."""
    hit, false_alarm = int((truth & flagged).sum()), int((~truth & flagged).sum())
    missed = int((truth & ~flagged).sum())
    return {
        "noisy_flagged": hit,
        "clean_flagged": false_alarm,
        "noisy_missed": missed,
        "clean_passed": len(truth) - hit - false_alarm - missed,
        "precision": hit / max(1, hit + false_alarm),
        "recall": hit / max(1, hit + missed),
    }
