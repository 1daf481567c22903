"""Train RDE: text-to-image person re-identification that survives wrong captions."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from easydict import EasyDict

from utils.checks import loss_of
from utils.errors import OptionError
from utils.flags import FREE, WITHOUT_EFFECT
from utils.options import build_parser, parse, resolve, run_facts, write_config
from utils.program import run_program
from utils.ranks import is_main, world_size
from utils.runs import CHECKPOINTS, checkpoint_to_continue, lock, newest_unfinished_run, short_name

# torch and all that needs it is imported where it is used, so that --help and a mistyped flag need not wait for it.
if TYPE_CHECKING:
    import torch

    from datasets.run_data import RunData
    from model.rde import RDE
    from processor.run import RunSettings


def main(argv: Sequence[str]) -> None:
    """Resolve the options, new or of a run to be continued, and train."""
    given = parse(build_parser(__doc__), argv)
    if "resume" not in given and not given.get("resume_ckpt_file"):
        train(resolve(given), None)
        return
    from utils.distributed import decided_once

    checkpoint = decided_once(lambda: _checkpoint_to_continue(given))
    config = checkpoint.parent / "configs.yaml"
    options = resolve({**given, "config": str(config)})
    was = resolve({"config": str(config)})
    changed = [name for name in options if name not in FREE and options[name] != was[name]]
    if changed:
        raise OptionError(f"--{changed[0]} {options[changed[0]]}: the run to be continued has {was[changed[0]]}")
    train(options, checkpoint)


def _checkpoint_to_continue(given: dict) -> Path:
    """The last.pth that --resume or --resume_ckpt_file mean, written or still to be."""
    if "config" in given:
        raise OptionError("--config: a run is continued with its own configuration, leave it out")
    if given.get("resume") and given.get("resume_ckpt_file"):
        raise OptionError("--resume_ckpt_file: give it, or a folder with --resume, but not both")
    if given.get("resume_ckpt_file"):
        if not Path(given["resume_ckpt_file"]).is_file():
            raise OptionError(f"no checkpoint {given['resume_ckpt_file']} to continue from")
        return Path(given["resume_ckpt_file"])
    run_dir = Path(given["resume"]) if given["resume"] else newest_unfinished_run(Path(resolve(given).output_dir))
    return checkpoint_to_continue(run_dir)


def train(options: EasyDict, checkpoint: Path | None) -> None:
    """Check everything that can be checked, then train, choose and test; with `checkpoint`, from where it stands."""
    import torch

    from model.precision import settle
    from processor.evaluation import evaluate, table
    from processor.progress import Progress, restore
    from processor.run import train as train_epochs
    from solver.optimizer import OptimizerSettings, build_optimizer
    from utils.checkpoints import load_checkpoint
    from utils.distributed import decided_once, wait_for_all
    from utils.log import logger, start_logging
    from utils.program import choose_device, seed_everything

    device = choose_device(options.device)
    options.precision = settle(options.precision, device)  # the run's own from here on, wherever it is continued
    seed_everything(options.seed)
    remarks: list[str] = []  # on the weights, logged once there is a log file
    model, data = _prepare(options, device, remarks.append, continued=checkpoint is not None)
    if options.test:
        metrics, _ = evaluate(model, data.test)
        if is_main():
            for remark in remarks:
                print(f"{options.pretrain_choice}: {remark}")
            print(table(metrics, f"{options.pretrain_choice} on {options.dataset_name}, test"))
        return
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    settings = OptimizerSettings(**_of(OptimizerSettings, options))
    optimizer = build_optimizer(model, model.new_parameters(), settings, model.rounded_parameters())
    progress = Progress()
    run_dir = checkpoint.parent if checkpoint else decided_once(lambda: _make_run_dir(options))
    locked = lock(run_dir) if is_main() else None
    if checkpoint:
        data.check(run_dir / "configs.yaml")
    elif is_main():
        _write_config(options, data, run_dir, model.towers())
    start_logging(run_dir / "train_log.txt")
    if checkpoint and checkpoint.is_file():
        restore(load_checkpoint(checkpoint), model, optimizer, scaler, progress, checkpoint, options)
    if checkpoint and is_main() and progress.epoch < options.num_epoch:
        (run_dir / "test_metrics.json").unlink(missing_ok=True)  # of a test before the end
    _log_start(options, data, run_dir, progress.epoch if checkpoint else None)
    for remark in remarks:
        logger.info("%s: %s", options.pretrain_choice, remark)
    test = data.test if options.record_test else None
    settings = _run_settings(options)
    try:
        train_epochs(model, optimizer, scaler, data.pairs, data.validation, test, settings, run_dir, progress)
        wait_for_all()  # the checkpoints are written now
        _test(options, data, run_dir, device)
    except KeyboardInterrupt:
        done = (run_dir / "last.pth").is_file()
        saved = "what the last whole epoch led to is saved" if done else "no epoch was done yet"
        logger.info("Stopped: %s; go on with: train.py --resume %s", saved, run_dir)
        raise
    logger.info("Run folder %s", run_dir)
    if locked:
        locked.lock.release()


def _prepare(
    options: EasyDict, device: torch.device, log: Callable[[str], None], *, continued: bool
) -> tuple[RDE, RunData]:
    """The model to begin with and the data, all that takes time before a run is begun or touched."""
    from datasets.run_data import load_data
    from utils.program import check_compiler

    try:
        model = build(options, log).to(device)
        model.clip.set_grad_checkpointing(options.grad_checkpointing)
        if options.compile:
            check_compiler(device)
            model.clip.compile_blocks()
        return model, load_data(options, device, continued=continued)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("no run was begun or changed, give the same command again")
        raise


def _test(options: EasyDict, data: RunData, run_dir: Path, device: torch.device) -> None:
    """Evaluate both checkpoints on the test split."""
    from model.weights import model_from_checkpoint
    from processor.test_split import evaluate_run
    from utils.log import start_logging

    start_logging(run_dir / "test_log.txt")
    evaluate_run(
        [run_dir / name for name in CHECKPOINTS],
        lambda file: model_from_checkpoint(file, options).to(device),
        data.test,
        f"{options.dataset_name}, {data.test.name}",
        run_dir,
    )


def build(options: EasyDict, log: Callable[[str], None] = lambda _: None) -> RDE:
    """The model that training starts with; `log` gets lines about its weights."""
    from model.weights import build_model

    names = ("text_length", "vocab_size", "activation", "select_ratio", "tse_bn", "tse_head", "tse_pool", "precision")
    return build_model(
        options.pretrain_choice,
        image_size=options.img_size,
        stride=options.stride_size,
        log=log,
        **{name: options[name] for name in names},
    )


def _make_run_dir(options: EasyDict) -> Path:
    from utils.runs import make_run_dir

    return make_run_dir(Path(options.output_dir), short_name(options.dataset_name), options.name, options.loss_names)


def _write_config(options: EasyDict, data: RunData, run_dir: Path, towers: dict) -> None:
    """Write the run's configuration, with which it can be continued, and noise that has no file of its own."""
    import torch

    from utils.runs import git_revision

    data.keep_noise(run_dir)
    about = {"git_revision": git_revision(), "torch": str(torch.__version__), **data.facts, "processes": world_size()}
    about["towers"] = towers
    write_config(run_dir / "configs.yaml", options, about)


def _log_start(options: EasyDict, data: RunData, run_dir: Path, epochs_done: int | None) -> None:
    """Tell what is trained on what; `epochs_done` is None for a new run."""
    from model.precision import ARITHMETIC
    from utils.log import logger

    logger.info("%s %s", "Run folder" if epochs_done is None else f"Continuing after epoch {epochs_done}:", run_dir)
    began = run_facts(run_dir / "configs.yaml").get("processes") if is_main() else world_size()
    if began != world_size():
        logger.info("  it began with %s processes and goes on with %d, the same to rounding", began, world_size())
    if world_size() > 1:
        logger.info("%d processes share each batch of %d pairs", world_size(), options.batch_size)
    logger.info("%s, train: %s", options.dataset_name, data.pairs.split.summary())
    logger.info("  arithmetic: %s, %s", options.precision, ARITHMETIC[options.precision])
    if idle := [f"--{name}" for name in options if name in WITHOUT_EFFECT]:
        logger.info("  without effect on RDE: %s", ", ".join(idle))
    logger.info("  noise: %s", data.noise.told)
    if options.exclude:
        logger.info("  excluded: %d pairs, marked in %s", len(data.pairs.excluded), options.exclude)
    for why, pairs in data.pairs.skipped().items():
        logger.warning("  left out: %s; pairs %s", why, ", ".join(map(str, pairs)))
    if left_out := len(data.facts["skipped_pairs"]):
        logger.warning("  %d of %d training pairs are left out for it", left_out, len(data.pairs))
    for gallery in dict.fromkeys((data.validation, data.test)):
        logger.info("%s, %s: %s", options.dataset_name, gallery.name, gallery.split.summary())
    for name, captions in data.cut.items():
        if captions:
            logger.info("  %d captions of %s are cut to --text_length %d", captions, name, options.text_length)
    if data.validation is data.test:
        logger.info("  the best checkpoint is chosen on the test split")
    for remark in data.remarks:
        logger.warning("  %s", remark)
    if data.remarks:
        where = shlex.join(["--dataset_name", options.dataset_name, "--root_dir", options.root_dir])
        logger.warning("  for all of it: python -m tools.check_data %s", where)


def _run_settings(options: EasyDict) -> RunSettings:
    from processor.run import RunSettings
    from solver.ccd import mixture_settings
    from solver.losses import LossSettings
    from solver.schedule import ScheduleSettings

    return RunSettings(
        loss=loss_of(options.loss_names),
        loss_settings=LossSettings(**_of(LossSettings, options)),
        mixture=mixture_settings(options.mixture, options.noisy_rate, options.dataset_name),
        schedule=ScheduleSettings(**_of(ScheduleSettings, options)),
        kept={**options},
        **{name: options[name] for name in ("trained", "division", "seed", "eval_period", "log_period", "grad_accum")},
    )


def _of(settings: type, options: EasyDict) -> dict:
    """The options of a settings class's fields, which have the flags' names."""
    return {name: options[name] for name in settings.__dataclass_fields__}


if __name__ == "__main__":
    run_program(main)
