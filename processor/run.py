"""The training run: in each epoch, decide how much each pair counts, train, validate, and keep the best checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from processor import figures
from processor.epoch import EpochResult, magnitude, train_epoch
from processor.evaluation import evaluate, table
from processor.history import similarity_histograms, vote_arrays, write_epoch
from processor.records import selecting_similarity
from processor.scoring import score_pairs
from processor.settings import LoopSettings
from processor.start import evaluate_start
from processor.state import TrainState
from processor.types import EvaluationData, TrainingData
from processor.wording import busy_host, epoch_line
from solver.correspondence.base import Verdict
from solver.schedule import set_learning_rates
from solver.settings import ScheduleSettings
from utils.distributed import broadcast_from_main
from utils.errors import NotFiniteError, OptionError
from utils.log import logger
from utils.ranks import is_main, rank
from utils.recorder import Recorder
from utils.threads import core_time

Arrays = dict[str, np.ndarray]
_PURPOSE = 4  # key of these draws within an epoch; other keys are in datasets/loaders.py


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run's training loop.

    Attributes:
        options: saved in every checkpoint, to rebuild its model.
    """

    loop: LoopSettings
    schedule: ScheduleSettings
    options: Mapping[str, Any]


@dataclass(frozen=True)
class RunSplits:
    """The splits of a run; `test` is also evaluated in each epoch, only for the record."""

    training: TrainingData
    validation: EvaluationData
    test: EvaluationData | None = None


def train(state: TrainState, splits: RunSplits, settings: RunSettings, run_dir: Path) -> None:
    """Train from `state.epoch` to the end.

    The main process writes `start_metrics.json`, `best.pth`, `last.pth`, `metrics.jsonl`, TensorBoard's events,
    `epochs/` and `figures/` into `run_dir`.

    Raises:
        NotFiniteError: a loss, gradient, weight or embedding is NaN or infinite; such weights are never saved.
    """
    recorder = Recorder(run_dir, state.epoch) if is_main() else None
    epochs = settings.schedule.num_epoch
    if state.epoch == 0:
        evaluated = {"val": splits.validation} | ({"test": splits.test} if splits.test is not None else {})
        evaluate_start(state.model, evaluated, run_dir)
    began, first = time.perf_counter(), state.epoch
    while state.epoch < epochs:
        epoch = state.epoch  # counted from 0 here, from 1 in all output
        cores = core_time()
        start, length = state.correspondence.round(epoch, epochs)
        if epoch == start > 0:
            logger.info("New round of %d epochs, from fresh weights", length)
            state.reset_to_start()
        set_learning_rates(state.optimizer, epoch - start, replace(settings.schedule, num_epoch=length))
        lr = state.optimizer.param_groups[0]["lr"]
        logger.info("Epoch %d/%d, learning rate %.3g", epoch + 1, epochs, lr)
        with _with_epoch(epoch, run_dir / "best.pth"):  # last.pth may have the weights that failed
            weight, report, history = _decide(state, splits.training, settings.loop, run_dir)
        with _with_epoch(epoch, run_dir / "last.pth", "; try a smaller --lr"):
            torch.manual_seed(_seed(settings.loop.seed, epoch))  # for plugins that draw random numbers in training
            result = _train(state, splits.training, weight, settings.loop)
            record = {"epoch": epoch + 1, "lr": lr, **result.record(), "ccd": report}
            state.epoch += 1
            if state.epoch % settings.loop.eval_period == 0 or state.epoch == epochs:
                metrics, history["similarity"] = _validate(state, splits)
                record |= metrics
        if warning := busy_host(core_time().waited_since(cores)):
            logger.warning("  %s", warning)
        left = (time.perf_counter() - began) / (state.epoch - first) * (epochs - state.epoch)
        logger.info("%s", epoch_line(record, epochs, state.loss.trained, left, splits.validation.name))
        if recorder:
            recorder.add(record)
            write_epoch(run_dir, epoch + 1, history)
            figures.r1_per_epoch(
                recorder.records, state.best_epoch, splits.validation.name, run_dir / "figures" / "r1.png"
            )
            recorder.add_pictures(run_dir / "figures", epoch + 1)
            state.save(run_dir, settings.options)
    if recorder:
        recorder.close()


def _seed(seed: int, epoch: int) -> int:
    """Seed of torch's global generator in this process and epoch, the same after a resume."""
    return int(np.random.default_rng((seed, epoch, _PURPOSE, rank())).integers(2**63))


@contextmanager
def _with_epoch(epoch: int, good: Path, advice: str = "") -> Iterator[None]:
    """Add the epoch (from 0), the last good checkpoint and advice to a NotFiniteError."""
    try:
        yield
    except NotFiniteError as error:
        checkpoint = f"the last good checkpoint is {good}" if good.is_file() else "no checkpoint has been written yet"
        raise NotFiniteError(f"epoch {epoch + 1}, {error}; {checkpoint}{advice}") from None


def _train(state: TrainState, training: TrainingData, weight: np.ndarray, settings: LoopSettings) -> EpochResult:
    """Train an epoch and log its results."""
    result = train_epoch(state, training.training_batches(state.epoch), weight, settings)
    _check_weights(state)
    logger.info(
        "  trained in %.1f s (%.0f%% of it waiting for data), peak memory %.1f GB",
        result.seconds,
        100 * result.data_wait_share,
        result.peak_memory_gb,
    )
    return result


@torch.no_grad()
def _check_weights(state: TrainState) -> None:
    """Check the weights after an epoch: a step can ruin them even with finite gradients."""
    parameters, buffers = [], []
    for part in (state.model, state.loss):
        parameters += (value for value in part.parameters() if value.is_floating_point())
        buffers += (value for value in part.buffers() if value.is_floating_point())
    if not math.isfinite(magnitude(parameters)) or math.isnan(magnitude(buffers)):  # a causal mask holds −∞
        raise NotFiniteError("after the last step: a weight is NaN or infinite")


def _decide(
    state: TrainState, training: TrainingData, settings: LoopSettings, run_dir: Path
) -> tuple[np.ndarray, dict[str, Any] | None, Arrays]:
    """Decide the weight of each pair; also returns a report on the votes (None without votes) and their arrays."""
    start, losses = time.perf_counter(), {}
    if state.correspondence.scores_in(state.epoch):
        batches = training.scoring_batches(state.epoch)
        scores = score_pairs(state.model, state.loss, batches, len(training), settings)
        losses = {name: scores[name] for name in state.loss.scores_for(state.correspondence.objective)}
    return broadcast_from_main(lambda: _decide_in_main(state, training, losses, run_dir, start))


def _decide_in_main(
    state: TrainState, training: TrainingData, losses: Mapping[str, np.ndarray], run_dir: Path, start: float
) -> tuple[np.ndarray, dict[str, Any] | None, Arrays]:
    """`_decide` from the losses of the scoring pass, which started at `start`; also logs and draws."""
    usable, truly_clean = training.usable, training.truly_clean[training.usable]
    _check_losses(losses, usable, state.epoch)
    usable_losses = {name: loss[usable] for name, loss in losses.items()}
    verdict = state.correspondence.decide(usable_losses, truly_clean, state.epoch)
    _check_verdict(verdict, len(truly_clean), state.correspondence.name)
    weight = np.zeros(len(training), np.float32)
    weight[usable] = verdict.weight
    if not verdict.votes:
        return weight, None, {}
    truth = None if truly_clean.all() else truly_clean  # unknown without injected noise
    report = verdict.report(truth) | {"seconds": time.perf_counter() - start}
    logger.info(
        "  %s: %d clean, %d noisy, %d uncertain; %s%.1f s",
        state.correspondence.name.upper(),
        *(report[name] for name in ("clean", "noisy", "uncertain")),
        "" if truth is None else "clean set: precision {precision:.1%}, recall {recall:.1%}; ".format_map(report),
        report["seconds"],
    )
    figures.loss_histogram(verdict.votes, truly_clean, state.epoch + 1, run_dir / "figures" / "losses.png")
    return weight, report, vote_arrays(verdict.votes, usable_losses, truly_clean, np.flatnonzero(~usable))


def _check_verdict(verdict: Any, pairs: int, name: str) -> None:
    """Check that a correspondence, possibly a plugin's, gives every pair a weight."""
    weight = verdict.weight if isinstance(verdict, Verdict) else verdict
    valid = isinstance(weight, np.ndarray) and weight.shape == (pairs,)
    if not valid or not (np.isfinite(weight) & (weight >= 0)).all():
        expected = f"expected a Verdict with {pairs:,} finite weights ≥ 0"
        raise OptionError(f"--division {name}: {expected}, found {weight!r:.60}")
    if not weight.any():
        logger.warning("  --division %s: no pair has a weight above 0 in this epoch", name)


def _check_losses(losses: Mapping[str, np.ndarray], usable: np.ndarray, epoch: int) -> None:
    for loss in losses.values():
        missing = np.flatnonzero(~np.isfinite(loss) & usable)
        if len(missing):
            problem = f"{len(missing)} of {usable.sum()} pairs have no finite loss, the first is pair {missing[0]}"
            cause = (
                "" if epoch else "; the starting weights are corrupted, or --tau, --temperature or --margin is extreme"
            )
            raise NotFiniteError(f"division: {problem}{cause}")


def _validate(state: TrainState, splits: RunSplits) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics of "val" (and "test"), and similarity histograms; updates the best epoch."""
    validation, test = splits.validation, splits.test
    metrics, encoded = evaluate(state.model, validation, trained=state.loss.trained)
    logger.info("%s", table(metrics, f"{validation.name}, epoch {state.epoch}"))
    r1 = metrics[selecting_similarity(state.loss.trained, metrics)]["R1"]
    if r1 > state.best:
        state.best, state.best_epoch = r1, state.epoch
        logger.info("  the best so far: R1 %.2f", r1)
    record: dict[str, Any] = {"val": metrics}
    if test is not None:
        same = test is validation
        record["test"] = metrics if same else evaluate(state.model, test, trained=state.loss.trained)[0]
    return record, similarity_histograms(encoded, validation.caption_pids, validation.image_pids)
