"""What a correspondence is: from the losses of the scoring pass, it decides how much each pair counts."""

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
        components: (2, 3) weight, mean and variance of both components, the clean one first; None where the losses
            are constant and nothing was fitted.
    """

    loss: np.ndarray
    clean_probability: np.ndarray
    clean: np.ndarray
    components: np.ndarray | None


@dataclass(frozen=True)
class Verdict:
    """A correspondence's outcome for N pairs in one epoch.

    Attributes:
        weight: (N,) float32 ≥ 0, how much each pair counts in training; CCD's l̂ in {0, 1}.
        votes: by embedding, where there were votes.
    """

    weight: np.ndarray
    votes: Mapping[str, Vote] = field(default_factory=dict)

    def report(self, truly_clean: np.ndarray | None) -> dict[str, float | None]:
        """Counts of pairs that all votes classify as clean or noisy, and of the uncertain rest; with the truth (N,)
        bool also precision and recall of the clean set, in [0, 1] (None where it is not known)."""
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
            right = int((clean & truly_clean).sum())
            report["precision"] = right / max(1, int(clean.sum()))
            report["recall"] = right / max(1, int(truly_clean.sum()))
        return report


@dataclass(frozen=True)
class Facts:
    """What a correspondence may know.

    Attributes:
        name: its own, as `--division` names it.
        noisy_rate: the run's; dataset_name: of its data set, or the annotation file.
        usable: (N,) bool; the other pairs of the training split are in no batch and not among those `decide` judges.
    """

    name: str
    seed: int
    noisy_rate: float
    dataset_name: str
    usable: np.ndarray = field(default_factory=lambda: np.ones(0, bool))


class Correspondence:
    """Decides before each epoch, and if it wants in each step, how much each pair counts.

    To add one: subclass, register it in `solver.settings.CORRESPONDENCES`, and name it with `--division`.

    Attributes:
        Settings: a settings class (`utils.settings.settings`), or None.
        scored: whether it needs the scoring pass.
        objective: the one it belongs to, which must be trained; "" for any, of which it is given the pairs' losses.
        refines: whether it hears of each step: see `refine`.
        in_rounds: whether it trains in several rounds: see `round`.
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
        """See that its settings go with a run of so many epochs.

        Raises:
            OptionError: names the flag to change.
        """

    def scores_in(self, epoch: int) -> bool:  # noqa: ARG002
        """Whether it needs the scoring pass in this epoch, counted from 0."""
        return self.scored

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:
        """How much each of N pairs counts.

        Args:
            losses: by trained embedding, (N,) finite losses; by name, an objective's own scores; empty unless scored.
            truly_clean: (N,) bool, the truth, which an oracle alone may use.
            epoch: counted from 0; what is drawn must depend on (seed, epoch) alone, so that a run can be resumed.
        """
        raise NotImplementedError

    def refine(self, pairs: Tensor, scores: Mapping[str, Tensor], epoch: int) -> Tensor:
        """How much the pairs of a training batch count, given their scores in this step; asked if it `refines`.

        Args:
            pairs: (B,) positions in the training split.
            scores: by name, (B,) without gradient, the same in every process.

        Returns:
            (B,) weights ≥ 0, in place of those that `decide` gave.
        """
        raise NotImplementedError

    def round(self, epoch: int, epochs: int) -> tuple[int, int]:  # noqa: ARG002
        """Of a run of `epochs`, the first epoch of the round that `epoch` is in, and that round's length.

        Each round but the first begins from the weights that the run began with.
        """
        return 0, epochs

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that a checkpoint keeps of it; of an array, `torch.from_numpy`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
