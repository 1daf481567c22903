"""The log's first and last lines: setup, data and result of a run or test."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datasets.run_data import RunData
from datasets.settings import DATASETS
from model.precision import ARITHMETIC
from model.settings import HEADS, ClipSettings, TseSettings, head_names
from model.weights import backbone_class
from processor.records import selecting_similarity
from solver.schedule import learning_rate
from solver.settings import (
    CORRESPONDENCES,
    OBJECTIVES,
    MixtureSettings,
    ScheduleSettings,
    SoftmaxSettings,
    TripletSettings,
    split_loss_names,
)
from utils.devices import describe, why_no_gpu
from utils.log import logger
from utils.ranks import is_main, world_size
from utils.recorder import show_hyperparameters
from utils.run_folder import CHECKPOINTS, RunFolder
from utils.settings import FLAGS, Options

if TYPE_CHECKING:
    from processor.state import TrainState

# Settings that have an effect only if a component of the run declares them.
_COMPONENT_SETTINGS = (ClipSettings, TseSettings, TripletSettings, SoftmaxSettings, MixtureSettings)


def log_start(options: Options, data: RunData, run: RunFolder, device: torch.device, epochs_done: int | None) -> None:
    """Log the run's setup; `epochs_done` is None for a new run."""
    logger.info("%s %s", "Run folder" if epochs_done is None else f"Resuming after epoch {epochs_done}:", run)
    _log_machine(options, device)
    _log_model(options)
    began = run.facts().get("processes") if is_main() else world_size()
    if began != world_size():
        logger.info(
            "  started with %s processes, resumed with %d: the same results up to rounding", began, world_size()
        )
    if idle := _without_effect(options):
        logger.info("  no effect in this run: %s", ", ".join(f"--{name}" for name in idle))
    logger.info("%s, train: %s", options.dataset_name, data.pairs.split.summary())
    _log_noise(options, data)
    if options.exclude:
        logger.info("  excluded: %d pairs, marked in %s", len(data.pairs.excluded), options.exclude)
    if options.corrections:
        counts = len(data.edits.captions), len(data.edits.excluded)
        logger.info("  corrected: %d captions, and %d pairs excluded, by %s", *counts, options.corrections)
    for reason, pairs in data.pairs.skipped().items():
        logger.warning("  skipped: %s; pairs %s", reason, ", ".join(map(str, pairs)))
    if skipped := len(data.facts["skipped_pairs"]):
        logger.warning("  %d of %d training pairs are skipped", skipped, len(data.pairs))
    for gallery in dict.fromkeys((data.validation, data.test)):
        logger.info("%s, %s: %s", options.dataset_name, gallery.name, gallery.split.summary())
    for name, captions in data.cut.items():
        if captions:
            logger.info("  %d captions of %s are cut to --text_length %d", captions, name, options.text_length)
    if data.validation is data.test:
        logger.info("  no validation split: the best checkpoint is selected on the test split")
    for remark in data.remarks:
        logger.warning("  %s", remark)
    if data.remarks:
        names = ("dataset_name", "root_dir", *(("split_all",) if options.split_all else ()))
        where = shlex.join([part for name in names for part in (f"--{name}", options[name])])
        logger.warning("  for a full report: python -m tools.check_data %s", where)


def _without_effect(options: Options) -> list[str]:
    """The given flags that have no effect in this run."""
    losses, heads = split_loss_names(options.loss_names), head_names(options.heads)
    chosen = {*losses, options.division, options.optimizer, options.lrscheduler, options.sampler}
    parts = [backbone_class(options.backbone), CORRESPONDENCES[options.division]]
    parts += [*(HEADS[name] for name in heads), *(OBJECTIVES[name] for name in losses)]
    read = {part.Settings for part in parts}
    unread = {owner.__qualname__ for owner in _COMPONENT_SETTINGS if owner not in read}

    def has_no_effect(name: str) -> bool:
        only, owner = FLAGS[name].only, FLAGS[name].owner.rpartition(".")[2]
        return (bool(only) and chosen.isdisjoint(only)) or owner in unread

    given = [name for name, value in options.items() if value != FLAGS[name].default]
    return [name for name in options if FLAGS[name].idle or (name in given and has_no_effect(name))]


def _log_machine(options: Options, device: torch.device) -> None:
    logger.info("  device: %s, %s; processes: %d", device, describe(device), world_size())
    if options.device == "auto" and device.type == "cpu" and (reason := why_no_gpu()):
        logger.warning("  --device auto falls back to the CPU: %s; see docs/troubleshooting.md", reason)
    logger.info("  precision: %s, %s", options.precision, ARITHMETIC[options.precision])


def _log_model(options: Options) -> None:
    height, width = options.img_size
    logger.info("  backbone: %s, %s, images %d×%d", options.backbone, options.pretrain_choice, height, width)
    logger.info("  embeddings: %s, trained: %s", options.heads, options.trained)
    logger.info("  loss: %s, division: %s, seed: %d", options.loss_names, options.division, options.seed)
    logger.info("  batch: %d pairs, epochs: %d, learning rate: %g", options.batch_size, options.num_epoch, options.lr)
    logger.info("  all flags: configs.yaml in the run folder")


def log_parameters(state: TrainState) -> None:
    """Log the number of parameters by base learning rate and weight decay, and of frozen ones."""
    groups = state.optimizer.param_groups
    counts = [f"{_size(g['params'])} at {g.get('initial_lr', g['lr']):g}, {g['weight_decay']:g}" for g in groups]
    frozen = [part for part in (*state.model.parameters(), *state.loss.parameters()) if not part.requires_grad]
    logger.info("  parameters by learning rate and weight decay: %s; frozen: %s", "; ".join(counts), _size(frozen))


def _size(parameters: Iterable[torch.nn.Parameter]) -> str:
    return f"{sum(part.numel() for part in parameters):,}"


def log_extension(schedule: ScheduleSettings, lr: float, epochs_done: int, began_with: int) -> None:
    """Log how extending the run changes the learning rate."""
    before = learning_rate(lr, epochs_done - 1, replace(schedule, num_epoch=began_with))
    after, epochs = learning_rate(lr, epochs_done, schedule), schedule.num_epoch
    logger.info(
        "  extended from %d to %d epochs: the longer schedule applies from epoch %d on",
        began_with,
        epochs,
        epochs_done + 1,
    )
    logger.info("  (learning rate %.3g after %.3g); earlier epochs followed that of %d", after, before, began_with)


def log_test(run: RunFolder, files: Sequence[Path], device: torch.device) -> None:
    """Log the tested run and checkpoints."""
    logger.info("Testing %s of run %s", ", ".join(file.name for file in files), run)
    logger.info("  device: %s, %s", device, describe(device))


def log_end(options: Options, state: TrainState, data: RunData, run: RunFolder) -> None:
    """Log the run's result (best epoch and test) in one line, and add it to TensorBoard's hyperparameter table."""
    if not is_main():
        return
    best = run.test_metrics().get(CHECKPOINTS[0], {})
    if best and state.best_epoch:
        row = selecting_similarity(state.loss.trained, best)
        test = ", ".join(f"{name} {value:.2f}" for name, value in best[row].items())
        logger.info(
            "best R1 %.2f at epoch %d (%s); test: %s (%s)",
            state.best,
            state.best_epoch,
            data.validation.name,
            test,
            row,
        )
        final = {"best/val/R1": state.best} | {f"best/test/{name}": value for name, value in best[row].items()}
        flags = {name: value for name, value in options.items() if not (FLAGS[name].resumable or FLAGS[name].idle)}
        show_hyperparameters(run.path, flags, final, state.best_epoch)
    logger.info("Run folder %s", run)


def _log_noise(options: Options, data: RunData) -> None:
    logger.info("  noise: %s", data.noise.summary)
    if options.noisy_rate and options.dataset_name not in DATASETS:
        what = "shuffles captions of your own data; drop it to train on them as they are"
        logger.warning("  --noisy_rate %g %s", options.noisy_rate, what)
