"""CRCL's soft labels, moving averages of each pair's match probability (Qin et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solver.correspondence.base import Correspondence, Facts, Verdict, Vote
from solver.settings import CORRESPONDENCES, CrclSettings
from utils.errors import OptionError

_MIN_LABEL = 0.1  # labels below it are set to 0


@CORRESPONDENCES.register("crcl")
class SelfRefining(Correspondence):
    """Soft labels in [0, 1], kept across a run's rounds, each of which starts from the initial weights."""

    Settings = CrclSettings
    settings: CrclSettings
    scored = False
    objective = "CRCL"
    refines = True

    def __init__(self, settings: CrclSettings, facts: Facts) -> None:
        super().__init__(settings, facts)
        self.labels = torch.ones(len(facts.usable))
        self.in_rounds = len(settings.crcl_rounds) > 1

    @classmethod
    def check(cls, settings: Any, epochs: int) -> None:
        """See `Correspondence.check`."""
        warmup, rounds = settings.crcl_warmup, settings.crcl_rounds
        if warmup >= epochs:
            raise OptionError(
                f"--crcl_warmup {warmup}: must be below --num_epoch {epochs}, or no label is ever refined"
            )
        if rounds == (0,):
            return
        flag = f"--crcl_rounds {' '.join(map(str, rounds))}"
        if 0 in rounds:
            raise OptionError(f"{flag}: a round must have at least one epoch")
        if (total := sum(rounds) + warmup * len(rounds)) != epochs:
            raise OptionError(
                f"{flag}: with --crcl_warmup {warmup} each, they add up to {total} epochs, not --num_epoch {epochs}"
            )

    def round(self, epoch: int, epochs: int) -> tuple[int, int]:
        """See `Correspondence.round`."""
        start, end = self._bounds(epoch)
        return start, (end or epochs) - start

    def _bounds(self, epoch: int) -> tuple[int, int]:
        """First epoch of the round that `epoch` is in, and of the next; 0 if there is only one round."""
        if self.settings.crcl_rounds == (0,):
            return 0, 0
        ends = [*accumulate(length + self.settings.crcl_warmup for length in self.settings.crcl_rounds)]
        return next((start, end) for start, end in zip([0, *ends], ends, strict=False) if epoch < end)

    def decide(self, losses: Mapping[str, np.ndarray], truly_clean: np.ndarray, epoch: int) -> Verdict:  # noqa: ARG002
        """The current labels, with votes unless all are 1. See `Correspondence.decide`."""
        label = self.labels.cpu().numpy()[self.facts.usable]
        if (label == 1).all():
            return Verdict(label)
        return Verdict(label, {"label": Vote(1 - label, label, label > 0, None)})

    def refine(self, pairs: Tensor, scores: Mapping[str, Tensor], epoch: int) -> Tensor:
        """See `Correspondence.refine`."""
        start, warmup = self._bounds(epoch)[0], self.settings.crcl_warmup
        match = scores["match"].float()
        self.labels = self.labels.to(match.device)
        pairs = pairs.to(match.device)
        label = self.labels[pairs]
        if epoch - start >= warmup:
            label = self.settings.crcl_beta * label + (1 - self.settings.crcl_beta) * match
        label = torch.where(label < _MIN_LABEL, 0.0, label)
        self.labels[pairs] = match if start == 0 and epoch == warmup - 1 else label
        return label

    def state_dict(self) -> dict[str, Any]:
        """See `Correspondence.state_dict`."""
        return {"labels": self.labels.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Correspondence.load_state_dict`."""
        if state["labels"].shape != self.labels.shape:
            raise ValueError(f"it has labels for {len(state['labels'])} pairs, not {len(self.labels)}")
        self.labels = state["labels"].to(self.labels.device)
