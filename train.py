"""Train RDE: text-to-image person re-identification that survives wrong captions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from easydict import EasyDict

from utils.errors import OptionError
from utils.flags import FREE
from utils.options import build_parser, loss_of, parse, read_yaml, resolve, write_config
from utils.program import run_program
from utils.runs import CHECKPOINTS, lock, newest_unfinished_run, short_name

# torch and all that needs it is imported where it is used, so that --help and a mistyped flag need not wait for it.
if TYPE_CHECKING:
    import numpy as np
    import torch

    from datasets.loaders import Gallery, TrainingPairs
    from datasets.noise import Noise
    from model.rde import RDE
    from processor.run import RunSettings


def main(argv: Sequence[str]) -> None:
    """Resolve the options, new or of a run to be continued, and train."""
    given = parse(build_parser(__doc__), argv)
    checkpoint = _checkpoint_to_continue(given)
    if checkpoint is None:
        train(resolve(given), None)
        return
    config = checkpoint.parent / "configs.yaml"
    options = resolve({**given, "config": str(config)})
    was = resolve({"config": str(config)})
    changed = [name for name in options if options[name] != was[name] and name not in FREE]
    if changed:
        raise OptionError(f"--{changed[0]} {options[changed[0]]}: the run to be continued has {was[changed[0]]}")
    train(options, checkpoint)


def _checkpoint_to_continue(given: dict) -> Path | None:
    """The last.pth that --resume or --resume_ckpt_file mean; None for a new run."""
    if "resume" not in given and not given.get("resume_ckpt_file"):
        return None
    if "config" in given:
        raise OptionError("--config: a run is continued with its own configuration, leave it out")
    if given.get("resume") and given.get("resume_ckpt_file"):
        raise OptionError("--resume_ckpt_file: give it, or a folder with --resume, but not both")
    if given.get("resume_ckpt_file") or given["resume"]:
        named = Path(given.get("resume_ckpt_file") or Path(given["resume"]) / "last.pth")
        if not named.is_file():
            raise OptionError(f"no checkpoint {named} to continue from")
        return named
    return newest_unfinished_run(Path(resolve(given).output_dir)) / "last.pth"


def train(options: EasyDict, checkpoint: Path | None) -> None:
    """Check everything that can be checked, then train, choose and test; with `checkpoint`, from where it stands."""
    import torch

    from model.weights import model_from_checkpoint
    from processor import run
    from processor.evaluation import evaluate, table
    from processor.test_split import evaluate_run
    from solver.optimizer import OptimizerSettings, build_optimizer
    from utils.checkpoints import load_checkpoint
    from utils.log import logger, start_logging
    from utils.program import choose_device, seed_everything

    device = choose_device(options.device)
    seed_everything(options.seed)
    model = build(options).to(device)
    model.clip.set_grad_checkpointing(options.grad_checkpointing)
    data = load_data(options, device)
    if options.test:
        print(table(evaluate(model, data.test)[0], f"{options.pretrain_choice} on {options.dataset_name}, test"))
        return
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    optimizer = build_optimizer(model, model.new_parameters(), OptimizerSettings(**_of(OptimizerSettings, options)))
    progress = run.Progress()
    run_dir = checkpoint.parent if checkpoint else _new_run_dir(options, data)
    locked = lock(run_dir)
    if checkpoint:
        _check_pairs(data, run_dir / "configs.yaml")
        (run_dir / "test_metrics.json").unlink(missing_ok=True)  # of a test before the end
        run.restore(load_checkpoint(checkpoint), model, optimizer, scaler, progress, checkpoint, options.num_epoch)
    start_logging(run_dir / "train_log.txt")
    _log_start(options, data, run_dir, progress.epoch)
    test = data.test if options.record_test else None
    settings = _run_settings(options)
    run.train(model, optimizer, scaler, data.pairs, data.validation, test, settings, run_dir, progress)
    start_logging(run_dir / "test_log.txt")
    evaluate_run(
        [run_dir / name for name in CHECKPOINTS],
        lambda file: model_from_checkpoint(file, options).to(device),
        data.test,
        f"{options.dataset_name}, {data.test.name}",
        run_dir,
    )
    logger.info("Run folder %s", run_dir)
    locked.close()


def build(options: EasyDict) -> RDE:
    """The model that training starts with."""
    from model.weights import build_model

    names = ("text_length", "vocab_size", "select_ratio", "tse_bn", "tse_head", "tse_pool", "precision")
    return build_model(
        options.pretrain_choice,
        image_size=options.img_size,
        stride=options.stride_size,
        **{name: options[name] for name in names},
    )


class Data(NamedTuple):
    """What a run reads: training pairs with their noise, the splits that choose and test, and what is odd in them."""

    pairs: TrainingPairs
    noise: Noise
    validation: Gallery
    test: Gallery
    remarks: list[str]


def load_data(options: EasyDict, device: torch.device) -> Data:
    """Read and check all data, images included, so that nothing is found missing after hours."""
    from datasets.annotations import DATASETS, read_splits
    from datasets.check import check_splits
    from datasets.exclusion import NOTHING_EXCLUDED, read_excluded
    from datasets.images import image_cache_dir, open_images
    from datasets.loaders import LoadingSettings, TrainingPairs, open_gallery
    from datasets.noise import find_noise
    from datasets.tokenizer import Tokenizer

    names = dict.fromkeys(("train", options.val_dataset, "test"))
    splits = read_splits(options.dataset_name, Path(options.root_dir), names)
    split = splits["train"]
    noise = find_noise(short_name(options.dataset_name), len(split.captions), options.noisy_rate, options.noisy_file)
    excluded = read_excluded(Path(options.exclude), split, noise.permutation) if options.exclude else NOTHING_EXCLUDED
    test = open_gallery(options, "test", splits["test"], device)
    validation = open_gallery(options, "val", splits["val"], device) if "val" in splits else test
    settings = LoadingSettings(**(_of(LoadingSettings, options) | {"device": device}))
    images = open_images(split.images, options.img_size, image_cache_dir(options))
    ids = Tokenizer()(split.captions, options.text_length)
    pairs = TrainingPairs(split, images, ids, noise.permutation, settings, excluded)
    if not len(pairs.training_batches(0)):
        wanted = options.batch_size // options.num_instance
        raise OptionError(f"--batch_size {options.batch_size}: a batch needs {wanted} persons with sampler identity")
    sizes = DATASETS[options.dataset_name].sizes if options.dataset_name in DATASETS else {}
    sizes = {name: size for name, size in sizes.items() if name in splits}
    return Data(pairs, noise, validation, test, [finding.line for finding in check_splits(splits, sizes)])


def _check_pairs(data: Data, config: Path) -> None:
    """A continued run must meet the captions and the pairs it began with."""
    from datasets.exclusion import NOTHING_EXCLUDED

    run = {"excluded": _about_excluded(NOTHING_EXCLUDED), **read_yaml(config).get("_run_", {})}
    for name, what, now in (
        ("noise_index", "noise index is", data.noise.about),
        ("excluded", "excluded pairs are", _about_excluded(data.pairs.excluded)),
    ):
        was = run.get(name, {})
        if was.get("sha256") != now["sha256"]:
            raise OptionError(f"the {what} not the run's own: {config} names {was}, found is {now}")


def _about_excluded(excluded: np.ndarray) -> dict[str, int | str]:
    from datasets.noise import digest

    return {"pairs": len(excluded), "sha256": digest(excluded)}


def _new_run_dir(options: EasyDict, data: Data) -> Path:
    import numpy as np
    import torch

    from datasets.noise import DRAWN
    from utils.runs import git_revision, make_run_dir

    run_dir = make_run_dir(Path(options.output_dir), short_name(options.dataset_name), options.name, options.loss_names)
    about = {
        "git_revision": git_revision(),
        "torch": str(torch.__version__),
        "noise_index": data.noise.about,
        "excluded": _about_excluded(data.pairs.excluded),
    }
    write_config(run_dir / "configs.yaml", options, about)
    if data.noise.origin == DRAWN:
        np.save(run_dir / "noise_index.npy", data.noise.permutation)
    return run_dir


def _log_start(options: EasyDict, data: Data, run_dir: Path, epochs_done: int) -> None:
    from utils.log import logger

    logger.info("%s %s", f"Continuing after epoch {epochs_done}:" if epochs_done else "Run folder", run_dir)
    logger.info("%s, train: %s", options.dataset_name, data.pairs.split.summary())
    logger.info("  noise: %s", data.noise.told)
    if options.exclude:
        logger.info("  excluded: %d pairs, marked in %s", len(data.pairs.excluded), options.exclude)
    for gallery in dict.fromkeys((data.validation, data.test)):
        logger.info("%s, %s: %s", options.dataset_name, gallery.name, gallery.split.summary())
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
        **{name: options[name] for name in ("trained", "division", "seed", "eval_period", "log_period")},
    )


def _of(settings: type, options: EasyDict) -> dict:
    """The options of a settings class's fields, which have the flags' names."""
    return {name: options[name] for name in settings.__dataclass_fields__}


if __name__ == "__main__":
    run_program(main)
