"""Interface of correspondences, which decide how much each pair counts from the losses of the scoring pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Vote:
    """One embedding's verdict on N pairs.

    Attributes:
        loss: (N,) losses scaled to [0, 1].
        clean_probability: (N,) posterior of the component with the smaller mean.
        clean: (N,) bool.
        components: (2, 3) weight, mean and variance of both components, the clean one first; None if the losses are
            constant and nothing was fitted.
    """

    loss: np.ndarray
    clean_probability: np.ndarray
    clean: np.ndarray
    components: np.ndarray | None


@dataclass(frozen=True)
class Verdict:
    """A correspondence's decision on N pairs in one epoch.

    Attributes:
        weight: (N,) float32 ≥ 0, weight of each pair in training; CCD's l̂ in {0, 1}.
        votes: votes by embedding, if any.
    """

    weight: np.ndarray
    votes: Mapping[str, Vote] = field(default_factory=dict)

    def report(self, truly_clean: np.ndarray | None) -> dict[str, float | None]:
        """Numbers of pairs that all votes classify as clean, that all classify as noisy, and of the others; also
        precision and recall of the clean set, in [0, 1], given (N,) bool ground truth (None if unknown)."""
        votes = np.stack([vote.clean for vote in self.votes.values()])
        clean, noisy = votes.all(axis=0), ~votes.any(axis=0)
        report: dict[str, float | None] = {
            "clean": int(clean.sum()),
            "noisy": int(noisy.sum()),
            "uncertain": int((~clean & ~noisy).sum()),
            "precision": None,
            "recall": None,
        }
        if truly_clean is not None:
            correct = int((clean & truly_clean).sum())
            report["precision"] = correct / max(1, int(clean.sum()))
            report["recall"] = correct / max(1, int(truly_clean.sum()))
        return report


@dataclass(frozen=True)
class Facts:
    """What a correspondence may know about the run.

    Attributes:
        name: the correspondence's name, as in `--division`.
        seed, noisy_rate: the run's.
        dataset_name: the run's data set, or its annotation file.
        usable: (N,) bool; other pairs of the training split are in no batch, and `decide` doesn't see them.
    """

    name: str
    seed: int
    noisy_rate: float
    dataset_name: str
    usable: np.ndarray = field(default_factory=lambda: np.ones(0, bool))


class Correspondence:
    """Decides before each epoch, and optionally in each step, how much each pair counts.

    To add one: subclass, register it in `solver.settings.CORRESPONDENCES`, and name it with `--division`.

    Attributes:
        Settings: a settings class (`utils.settings.settings`), or None.
        scored: whether it needs the scoring pass.
        objective: the objective that it requires and whose scores it gets; "": the losses of pairwise ones.
        refines: whether `refine` is called in each step.
        in_rounds: whether training has several rounds; see `round`.
    """

    Settings: ClassVar[type | None] = None
    scored: ClassVar[bool] = True
    objective: ClassVar[str] = ""
    refines: ClassVar[bool] = False
    in_rounds: bool = False

    def __init__(self, settings: Any, facts: Facts) -> None:
        self.settings, self.facts = settings, facts
        self.name = facts.name

    @classmethod
    def check(cls, settings: Any, epochs: int) -> None:
        """Check that its settings fit a run of `epochs` epochs.

        Raises:
            OptionError: names the flag to change.
        """

    def scores_in(self, epoch: int) -> bool:  # noqa: ARG002
        """Whether it needs the scoring pass in this epoch, counted from 0."""
        return self.scored

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:
        """Decide how much each of N pairs counts.

        Args:
            losses: (N,) finite losses by trained embedding, or an objective's own scores by name; empty unless scored.
            truly_clean: (N,) bool, the ground truth, which only an oracle may use.
            epoch: counted from 0; random draws must depend only on (seed, epoch), so that a run can be resumed.
        """
        raise NotImplementedError

    def refine(self, pairs: Tensor, scores: Mapping[str, Tensor], epoch: int) -> Tensor:
        """Weights of a training batch's pairs, given their scores in this step; called if `refines`.

        Args:
            pairs: (B,) positions in the training split.
            scores: (B,) by name, without gradient, the same in every process.

        Returns:
            (B,) weights ≥ 0, which replace those of `decide`.
        """
        raise NotImplementedError

    def round(self, epoch: int, epochs: int) -> tuple[int, int]:  # noqa: ARG002
        """First epoch and length of the round that `epoch` is in, for a run of `epochs`.

        Every later round restarts from the run's initial weights.
        """
        return 0, epochs

    def state_dict(self) -> dict[str, Any]:
        """Its state for checkpoints, as tensors and plain values; convert arrays with `torch.from_numpy`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
