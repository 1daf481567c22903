"""Assembles a run (model, data, objectives, correspondence, optimizer) from its options, then trains or tests it.

The only module that sees all packages. It is imported only after the flags are checked, as torch is slow to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from announce import log_end, log_extension, log_parameters, log_start, log_test
from compatibility import check_layers, check_run
from datasets.annotations import build_splits, read_annotations
from datasets.catalogue import short_name
from datasets.gallery import open_gallery
from datasets.loaders import Inputs, LoadingSettings
from datasets.masking import Masking
from datasets.run_data import RunData, open_data, read_data
from datasets.settings import DataSettings, MaskingSettings, own_annotations
from datasets.tokenizer import Tokenizer
from model.accelerate import accelerate
from model.encoder import DualEncoder
from model.precision import convert_weights_to_half, half_parameters, resolve_precision
from model.weights import build_model, model_from_checkpoint
from processor.cuda_graphs import LENGTH_STEP
from processor.evaluate_run import Report, evaluate_run
from processor.evaluation import evaluate, table
from processor.run import RunSettings, RunSplits
from processor.run import train as train_epochs
from processor.saving import Saving
from processor.settings import LoopSettings, RerankSettings
from processor.state import TrainState
from solver.correspondence.base import Correspondence, Facts
from solver.objectives.base import Sizes, TokenObjective
from solver.objectives.training import build_loss
from solver.optimizer import build_optimizer
from solver.settings import (
    CORRESPONDENCES,
    OBJECTIVES,
    OptimizerSettings,
    ScheduleSettings,
    labelled,
    split_loss_names,
)
from utils.devices import check_compiler, choose_device, seed_everything
from utils.distributed import broadcast_from_main, wait_for_all
from utils.errors import OptionError
from utils.log import logger, start_logging, status
from utils.plugins import plugin_files
from utils.ranks import is_main, world_size
from utils.run_folder import CHECKPOINTS, RunFolder, git_revision
from utils.settings import Options, own_settings


def train(options: Options, resumed: RunFolder | None, checkpoint: Path | None = None) -> RunFolder | None:
    """Check whatever can be checked, then train, select the best checkpoint and test.

    Args:
        resumed: the run to resume, from `checkpoint`, which needn't exist if the run was stopped in its first epoch.

    Returns:
        The run; None with `--test`.
    """
    device = choose_device(options.device)
    options.precision = resolve_precision(options.precision, device)  # kept when resuming on another device
    check_run(options, device)
    seed_everything(options.seed)
    remarks: list[str] = []  # about the weights, logged once there is a log file
    model, data = _prepare(options, device, remarks.append, resumed=resumed is not None)
    if options.test:
        _test_start(model, data, options, remarks)
        return None
    state = build_state(options, model, data, device)
    run = resumed or broadcast_from_main(lambda: _make_run(options))
    locked = run.lock() if is_main() else None
    if resumed:
        data.check(run)
    elif is_main():
        data.keep_noise(run.path)
        run.copy_files([*plugin_files(options.plugin), *model.backbone.files])
        run.write_config(options, _facts(data, model))
    start_logging(run.path / "train_log.txt")
    if checkpoint and checkpoint.is_file():
        state.restore(checkpoint, options)
    if resumed and is_main() and state.epoch < options.num_epoch:
        (run.path / "test_metrics.json").unlink(missing_ok=True)  # of an interim test
    log_start(options, data, run, device, state.epoch if resumed else None)
    log_parameters(state)
    if resumed and is_main() and (began_with := run.extend(options.num_epoch)):
        log_extension(options.of(ScheduleSettings), options.lr, state.epoch, began_with)
    for remark in remarks:
        logger.info("%s: %s", options.pretrain_choice, remark)
    splits = RunSplits(data.pairs, data.validation, data.test if options.record_test else None)
    settings = RunSettings(options.of(LoopSettings), options.of(ScheduleSettings), options)
    try:
        train_epochs(state, splits, settings, run.path)
        wait_for_all()  # until the checkpoints are written
        start_logging(run.path / "test_log.txt")
        files = [run.path / name for name in CHECKPOINTS]
        report = Report(f"{options.dataset_name}, {data.test.name}", trained=state.loss.trained)
        evaluate_run(files, lambda file: load(file, options).to(device), data.test, run, report)
    except KeyboardInterrupt:
        done = (run.path / "last.pth").is_file()
        saved = "the state after the last completed epoch is saved" if done else "no epoch was completed yet"
        logger.info("Stopped: %s; resume with: train.py --resume %s", saved, run)
        raise
    log_end(options, state, data, run)
    if locked:
        locked.lock.release()
    return run


def _prepare(
    options: Options, device: torch.device, log: Callable[[str], None], *, resumed: bool
) -> tuple[DualEncoder, RunData]:
    """Prepare the initial model and the data, before a run folder is created or changed."""
    try:
        status(f"reading {options.dataset_name}")
        read = read_data(options.of(DataSettings))  # before weights are downloaded, for a mistyped folder
        status(f"reading {options.pretrain_choice}")
        model = build(options, log).to(device)
        model.backbone.set_grad_checkpointing(options.grad_checkpointing)
        if options.compile:
            check_compiler(device)
            model.backbone.compile_blocks()
        loading = LoadingSettings.of(options.of(DataSettings), device, options.seed, _masking(options))
        if options.cuda_graphs:
            loading = replace(loading, length_step=LENGTH_STEP)
        return model, open_data(read, inputs(options, model), loading, resumed=resumed)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("no run was started or changed; run the same command again")
        raise


def build(options: Options, log: Callable[[str], None] = lambda _: None) -> DualEncoder:
    """Build the initial model; `log` gets remarks on its weights."""
    return accelerate(build_model(options.of, log))


def load(file: Path, options: Options) -> DualEncoder:
    """Load the model from a checkpoint."""
    return accelerate(model_from_checkpoint(file, options.of))


def inputs(options: Options, model: DualEncoder) -> Inputs:
    """The model's input format."""
    return Inputs(options.img_size, options.text_length, model.backbone.tokenizer or Tokenizer())


def build_state(options: Options, model: DualEncoder, data: RunData, device: torch.device) -> TrainState:
    """The training state before the first epoch."""
    vocabulary = max(options.vocab_size, getattr(model.backbone.tokenizer, "words", 0))
    identities = int(data.pairs.pids.max()) + 1
    sizes = Sizes(model.widths, identities, model.backbone.width, vocabulary, options.batch_size)
    loss = build_loss(options, sizes).to(device)
    check_layers(model, loss, options.grad_accum)
    rounded = model.rounded_parameters() | set(half_parameters(loss) if options.precision == "fp16_adam" else ())
    if options.precision == "fp16_weights":
        for objective in loss.half_weight_objectives():
            convert_weights_to_half(objective)
    settings = options.of(OptimizerSettings)
    parameters = dict(model.named_parameters()) | dict(loss.named_parameters())
    new = dict.fromkeys(model.new_parameters(), settings.head_lr) | loss.rates(settings)
    optimizer = build_optimizer(parameters, new, settings, rounded)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    return TrainState(model, loss, optimizer, scaler, build_correspondence(options, data.pairs.usable))


def _masking(options: Options) -> Masking | None:
    """How words are masked, if an objective requires it."""
    objectives = [OBJECTIVES[name] for name in split_loss_names(options.loss_names)]
    if not any(issubclass(objective, TokenObjective) and objective.masks_words for objective in objectives):
        return None
    settings = options.of(MaskingSettings)
    for_all_objectives = settings.mlm_captions == "masked"
    return Masking(settings.masked_token_rate, settings.masked_token_unchanged_rate, for_all_objectives)


def build_correspondence(options: Options, usable: np.ndarray) -> Correspondence:
    """The correspondence that `--division` names; `usable` is (N,) bool."""
    kind = CORRESPONDENCES[options.division]
    facts = Facts(options.division, options.seed, options.noisy_rate, options.dataset_name, usable)
    return kind(own_settings(kind, options.of), facts)


def _make_run(options: Options) -> RunFolder:
    output_dir, dataset = Path(options.output_dir), short_name(options.dataset_name)
    values = [options[name] for name in ("loss_names", "select_ratio", "tau", "margin", "noisy_rate")]
    return RunFolder.create(output_dir, dataset, options.name, labelled(*values))


def _facts(data: RunData, model: DualEncoder) -> dict[str, object]:
    """The facts recorded in a run's configuration, besides its flags."""
    about = {"git_revision": git_revision(), "torch": str(torch.__version__), **data.facts}
    return about | {"processes": world_size(), "towers": model.towers(), "selected_on": data.validation.name}


def _test_start(model: DualEncoder, data: RunData, options: Options, remarks: Sequence[str]) -> None:
    """Evaluate the starting weights and print the metrics."""
    metrics, _ = evaluate(model, data.test)
    if is_main():
        for remark in remarks:
            print(f"{options.pretrain_choice}: {remark}")
        print(table(metrics, f"{options.pretrain_choice} on {options.dataset_name}, test"))


@dataclass(frozen=True)
class Request:
    """A request to test.py: the run, its own options, the files to test, and how."""

    run: RunFolder
    run_options: Options
    files: Sequence[Path]
    image_to_text: bool
    saved: Sequence[Path] = ()
    rerank: RerankSettings | None = None
    split: str = "test"


def test(options: Options, request: Request) -> None:
    """Evaluate checkpoints on a split, print a table for each, and write their metrics."""
    device = choose_device(options.device)
    options.precision = resolve_precision(options.precision, device)
    status(f"reading {options.dataset_name}")
    place, entries = read_annotations(options.dataset_name, Path(options.root_dir), options.split_all)
    splits = build_splits(place, entries, [request.split])
    if request.split not in splits:
        raise OptionError(f"--split {request.split}: {options.dataset_name} has none")
    status(f"reading {', '.join(file.name for file in request.files)}")
    models = {file: load(file, options) for file in request.files}
    model_inputs = inputs(options, next(iter(models.values())))
    gallery = open_gallery(options.of(DataSettings), model_inputs, request.split, splits[request.split], device)
    direction = (", image to text", "_image_to_text") if request.image_to_text else ("", "")
    title = f"{options.dataset_name}, {request.split}{direction[0]}"
    start_logging(request.run.path / "test_log.txt")
    log_test(request.run, request.files, device)
    saving = Saving(request.saved, place.imgs) if request.saved else None
    split = "" if request.split == "test" else f"_{request.split}"
    suffix = _suffix(options, request.run_options) + split + direction[1] + ("_reranked" if request.rerank else "")
    report = Report(title, suffix, request.image_to_text, saving, request.rerank, options.trained.split("+"))
    evaluate_run(request.files, lambda file: models[file].to(device), gallery, request.run, report)


def _suffix(options: Options, run: Options) -> str:
    """Suffix of output files, so that tests with other data or precision don't overwrite the run's results."""
    precision = f"_{options.precision}" if options.precision != run.precision else ""
    return _data_suffix(options, run) + precision


def _data_suffix(options: Options, run: Options) -> str:
    if Path(options.dataset_name).resolve() != Path(run.dataset_name).resolve():
        own_file = own_annotations(options.dataset_name)
        file = own_file.resolve() if own_file else None
        names = (file.parent.name, file.stem) if file else (options.dataset_name,)
        return "".join(f"_{name}" for name in dict.fromkeys(names))
    root = Path(run.root_dir)
    if (root / run.dataset_name).exists() and root.resolve() != Path(options.root_dir).resolve():
        return f"_{Path(options.root_dir).resolve().name}"
    return ""
