"""The training state, which saves and restores itself: last.pth, and best.pth with the weights of the best epoch."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from processor.types import Encoder
from solver.correspondence.base import Correspondence
from solver.objectives.training import TrainingLoss
from utils.checkpoints import describe_mismatch, load_checkpoint, save_checkpoint, without_objectives
from utils.errors import WeightsError, brief
from utils.log import logger
from utils.options import forbidden_changes
from utils.ranks import is_main

CHECKPOINT_FORMAT = 2
_TRAINING = ("optimizer", "scaler", "correspondence")  # only in last.pth


@dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
        epoch: number of completed epochs.
        best: the best validation R1 (%) so far, in epoch `best_epoch` (0: none).
    """

    model: Encoder
    loss: TrainingLoss
    optimizer: Optimizer
    scaler: GradScaler
    correspondence: Correspondence
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0

    def __post_init__(self) -> None:
        parts = (self.model, self.loss, self.scaler) if self.correspondence.in_rounds else ()
        self._fresh = [(part, copy.deepcopy(part.state_dict())) for part in parts]

    def reset_to_start(self) -> None:
        """Reset model, objectives, scaler and optimizer to their initial state, for the next round."""
        for part, fresh in self._fresh:
            part.load_state_dict(fresh)
        self.optimizer.state.clear()

    def weights(self) -> dict[str, Tensor]:
        """The model's and the objectives' parameters and buffers, as stored in checkpoints."""
        return {**self.model.published_state(), **self._objective_weights()}

    def _objective_weights(self) -> dict[str, Tensor]:
        names = self.loss.saved_names()
        return {names[name]: value for name, value in self.loss.objectives.state_dict().items()}

    def save(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        """Write last.pth and, after the best epoch so far, best.pth.

        In this order, so that `restore` can write best.pth from last.pth after a kill between the two.

        Args:
            options: the run's options, to rebuild the model.
        """
        content = {
            "format": CHECKPOINT_FORMAT,
            "model": self.weights(),
            "objectives": [*self._objective_weights()],
            "towers": self.model.towers(),
            "epoch": self.epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "options": dict(options),
        }
        parts = (self.optimizer, self.scaler, self.correspondence)
        _check_readable(self.correspondence.state_dict(), self.correspondence.name)
        training = {name: part.state_dict() for name, part in zip(_TRAINING, parts, strict=True)}
        save_checkpoint(content | training, run_dir / "last.pth")
        if self.best_epoch == self.epoch:
            save_checkpoint(content, run_dir / "best.pth")

    def restore(self, file: Path, options: Mapping[str, Any]) -> None:
        """Restore the state from a `last.pth`, and repair the best.pth beside it.

        Args:
            options: the run's options; the checkpoint's must be equal except for resumable ones.

        Raises:
            WeightsError: the checkpoint can't be resumed from.
        """
        content = load_checkpoint(file)
        try:
            self._check(content, options, file)
            self.epoch, self.best, self.best_epoch = (content[name] for name in ("epoch", "best", "best_epoch"))
            if not 0 <= self.best_epoch <= self.epoch <= options["num_epoch"]:
                raise ValueError("its epoch is beyond this run's")
            self._restore_weights(content, str(file))
            _restore_moments(content["optimizer"], self.optimizer)
            self.scaler.load_state_dict(content["scaler"])
            self.correspondence.load_state_dict(content.get("correspondence", {}))
        except WeightsError:
            raise
        except Exception as error:  # torch and Python raise many types for foreign states
            raise WeightsError(f"{file} can't be resumed from: {brief(error)}") from None
        self._restore_best(content, file)

    def _check(self, content: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> None:
        if content.get("format") != CHECKPOINT_FORMAT or not {"optimizer", "options"} <= content.keys():
            raise ValueError("only a last.pth of this version of train.py can")
        if other := forbidden_changes(options, content["options"]):
            raise ValueError(f"it is from another run, with another {other[0]}")
        if (towers := content.get("towers", self.model.towers())) != self.model.towers():
            raise WeightsError(
                f"{file} can't be resumed from: its towers are {towers}, but --pretrain_choice now gives "
                f"{self.model.towers()}; has the configuration beside that file changed?"
            )

    def _restore_weights(self, content: Mapping[str, Any], source: str) -> None:
        weights, model_weights = content["model"], without_objectives(content)
        self.model.load_published(model_weights, source)
        objectives = {name: weights[name] for name in weights.keys() - model_weights.keys()}
        if mismatch := describe_mismatch(self._objective_weights(), objectives):
            raise WeightsError(f"{source} can't be resumed from: the objectives' weights are {mismatch}")
        names = self.loss.saved_names()
        self.loss.objectives.load_state_dict({name: objectives[saved] for name, saved in names.items()})

    def _restore_best(self, content: Mapping[str, Any], file: Path) -> None:
        best = file.parent / "best.pth"
        if self.best_epoch == self.epoch > 0:  # best.pth has the same weights, or a kill prevented writing it
            if is_main():
                save_checkpoint({name: content[name] for name in content if name not in _TRAINING}, best)
        elif self.best_epoch and not best.is_file():
            raise WeightsError(f"{file} can't be resumed from: best.pth is missing beside it")
        elif self.best_epoch and (found := load_checkpoint(best).get("epoch")) != self.best_epoch:
            logger.warning(
                "%s is from epoch %s, not %d: the best epoch is selected again", best, found, self.best_epoch
            )
            self.best, self.best_epoch = -1.0, 0


def _check_readable(state: dict[str, Any], name: str) -> None:
    """Check that a correspondence's state can be read back: checkpoints are read as tensors and plain values only."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    try:
        torch.load(stream, weights_only=True)
    except Exception as error:  # torch raises many types
        allowed = "its state_dict may hold only tensors and plain values (for an array, use torch.from_numpy)"
        raise WeightsError(f"--division {name}: {allowed}: {brief(error)}") from None


def _restore_moments(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Restore a saved optimizer's moments, but not its hyperparameters, which are the run's.

    Moments are copied to their parameter's memory layout, which fused steps assume without checking.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError("its optimizer has other groups of parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {number: {} for number in saved["state"]}
    for number, state in saved["state"].items():
        for name, value in state.items():
            own = torch.zeros(()) if name == "step" else torch.empty_like(parameters[number])
            if value.shape != own.shape:
                raise ValueError(f"its optimizer's {name} of parameter {number} is {tuple(value.shape)}")
            moments[number][name] = own.copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
