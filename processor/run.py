"""The run: for every epoch divide, train, validate, keep what is best."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.amp import GradScaler
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from processor.epoch import EpochResult, train_epoch
from processor.evaluation import evaluate, table
from processor.history import division_arrays, similarity_histograms, write_epoch
from processor.progress import Progress, save
from processor.scoring import score_pairs
from processor.start import evaluate_start
from processor.types import DualEncoder, EvaluationData, TrainingData
from solver.ccd import Division, MixtureSettings, divide
from solver.losses import LossSettings
from solver.schedule import ScheduleSettings, set_learning_rates
from utils import figures
from utils.distributed import decided_once
from utils.errors import NotFiniteError
from utils.log import logger
from utils.ranks import is_main
from utils.recorder import Recorder

# An epoch's draws are keyed by (seed, epoch, purpose, …); the others' purposes stand in datasets/loaders.py.
DIVISION = 3


@dataclass(frozen=True)
class RunSettings:
    """What the order of events depends on.

    Attributes:
        trained: "BGE+TSE" or "BGE": what has a loss, and what chooses the best checkpoint.
        division: "ccd", "all" (every pair trains) or "oracle" (only truly clean pairs do).
        kept: written into every checkpoint, to know how to build its model again.
    """

    loss: str
    trained: str
    loss_settings: LossSettings
    division: str
    mixture: MixtureSettings
    schedule: ScheduleSettings
    seed: int
    eval_period: int
    log_period: int
    grad_accum: int
    kept: dict[str, Any]


def train(
    model: DualEncoder,
    optimizer: Optimizer,
    scaler: GradScaler,
    training: TrainingData,
    validation: EvaluationData,
    test: EvaluationData | None,
    settings: RunSettings,
    run_dir: Path,
    progress: Progress,
) -> None:
    """Train from `progress.epoch` to the end.

    With `test` that split is evaluated beside the validation split, for the record only.

    The main process writes `start_metrics.json`, `best.pth`, `last.pth`, `metrics.jsonl`, TensorBoard's events,
    `epochs/` and `figures/` into `run_dir`.

    Raises:
        NotFiniteError: a loss, a gradient, a weight or an embedding is not finite; no such weights are saved.
    """
    recorder = Recorder(run_dir, progress.epoch) if is_main() else None
    epochs = settings.schedule.num_epoch
    if progress.epoch == 0:
        evaluate_start(model, {"val": validation} | ({"test": test} if test is not None else {}), run_dir)
    while progress.epoch < epochs:
        epoch = progress.epoch  # counted from 0 within, from 1 in everything written
        set_learning_rates(optimizer, epoch, settings.schedule)
        logger.info("Epoch %d/%d, learning rate %.3g", epoch + 1, epochs, optimizer.param_groups[0]["lr"])
        with _naming(epoch, run_dir / "best.pth"):  # last.pth has the weights that did not do
            label, ccd, history = _divide(model, training, settings, epoch, run_dir)
        with _naming(epoch, run_dir / "last.pth"):
            result = _train(model, optimizer, scaler, training, label, settings, epoch)
            record = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], **result.asdict(), "ccd": ccd}
            progress.epoch += 1
            if progress.epoch % settings.eval_period == 0 or progress.epoch == epochs:
                record["val"], history["similarity"] = _validate(model, validation, settings, progress)
                if test is not None:
                    record["test"] = record["val"] if test is validation else evaluate(model, test)[0]
        if recorder:
            recorder.add(record)
            write_epoch(run_dir, epoch + 1, history)
            figures.r1_per_epoch(recorder.records, run_dir / "figures" / "r1.png")
            recorder.add_pictures(run_dir / "figures", epoch + 1)
            save(model, optimizer, scaler, progress, settings.kept, run_dir)
    if recorder:
        recorder.close()


@contextmanager
def _naming(epoch: int, good: Path) -> Iterator[None]:
    """Add to the news of numbers that are none the epoch (from 0) and the checkpoint to go back to, if it is there."""
    try:
        yield
    except NotFiniteError as error:
        found = f"the last good checkpoint is {good}" if good.is_file() else "no good checkpoint was written yet"
        raise NotFiniteError(f"epoch {epoch + 1}, {error}; {found}; try a smaller --lr") from None


def _train(
    model: DualEncoder,
    optimizer: Optimizer,
    scaler: GradScaler,
    training: TrainingData,
    label: np.ndarray,
    settings: RunSettings,
    epoch: int,
) -> EpochResult:
    """Train an epoch and log how it went."""
    result = train_epoch(
        model,
        optimizer,
        scaler,
        training.training_batches(epoch),
        label,
        settings.loss,
        settings.loss_settings,
        trained=settings.trained,
        log_period=settings.log_period,
        grad_accum=settings.grad_accum,
    )
    weights = [value for value in model.published_state().values() if value.is_floating_point()]
    if not math.isfinite(get_total_norm(weights, math.inf)):  # finite gradients don't keep a step from ruining them
        raise NotFiniteError("after the last step: a weight is not a finite number")
    logger.info(
        "  trained in %.1f s (%.0f pairs/s, %.0f%% of it waiting for data), loss %.3f, peak memory %.1f GB",
        result.seconds,
        result.pairs_per_second,
        100 * result.data_wait_share,
        result.loss,
        result.peak_memory_gb,
    )
    return result


def _divide(
    model: DualEncoder, training: TrainingData, settings: RunSettings, epoch: int, run_dir: Path
) -> tuple[np.ndarray, dict[str, Any] | None, dict[str, np.ndarray]]:
    """l̂ of every pair; CCD's report (None where CCD is not used) and what the run's history keeps of it."""
    if settings.division == "all":
        return training.usable.astype(np.float32), None, {}
    if settings.division == "oracle":
        return (training.truly_clean & training.usable).astype(np.float32), None, {}
    start = time.perf_counter()
    batches = training.scoring_batches(epoch)
    losses = score_pairs(
        model, batches, len(training), settings.loss, settings.loss_settings, grad_accum=settings.grad_accum
    )
    return decided_once(lambda: _decide(losses, training, settings, epoch, run_dir, start))


def _decide(
    losses: tuple[np.ndarray, np.ndarray],
    training: TrainingData,
    settings: RunSettings,
    epoch: int,
    run_dir: Path,
    start: float,
) -> tuple[np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
    """CCD's l̂, report and history, logged and drawn; `start` is when the pass that gave the losses began."""
    usable = training.usable
    lost = np.flatnonzero(~np.isfinite(losses).all(axis=0) & usable)
    if len(lost):
        told = f"{len(lost)} of {usable.sum()} pairs have no finite loss, the first is pair {lost[0]}"
        why = "" if epoch else "; the starting weights are damaged, or --tau, --temperature or --margin is extreme"
        raise NotFiniteError(f"division: {told}{why}")
    truly_clean = training.truly_clean[usable]
    division: Division = divide(*(loss[usable] for loss in losses), settings.mixture, (settings.seed, epoch, DIVISION))
    report = division.report(truly_clean) | {"seconds": time.perf_counter() - start}
    logger.info(
        "  CCD: %d clean, %d noisy, %d uncertain; clean set: precision %.1f%%, recall %.1f%%; %.1f s",
        *(report[name] for name in ("clean", "noisy", "uncertain")),
        100 * report["precision"],
        100 * report["recall"],
        report["seconds"],
    )
    votes = {"BGE": division.bge, "TSE": division.tse}
    figures.loss_histogram(votes, truly_clean, epoch + 1, run_dir / "figures" / "losses.png")
    label = np.zeros(len(training), np.float32)
    label[usable] = division.label
    kept = tuple(loss[usable] for loss in losses)
    return label, report, division_arrays(division, kept, truly_clean, np.flatnonzero(~usable))


def _validate(
    model: DualEncoder, validation: EvaluationData, settings: RunSettings, progress: Progress
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Validation metrics and histograms of similarity; a better R1 than ever makes the epoch the best."""
    metrics, encoded = evaluate(model, validation)
    logger.info("%s", table(metrics, f"{validation.name}, epoch {progress.epoch}"))
    r1 = metrics[settings.trained]["R1"]
    if r1 > progress.best:
        progress.best, progress.best_epoch = r1, progress.epoch
        logger.info("  the best so far: R1 %.2f", r1)
    return metrics, similarity_histograms(encoded, validation.caption_pids, validation.image_pids)
