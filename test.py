"""Evaluate a run's checkpoints: the newest run, a run folder, or one checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from easydict import EasyDict

from utils.errors import OptionError
from utils.flags import FLAGS
from utils.options import parse, resolve_run
from utils.program import run_program
from utils.runs import CHECKPOINTS, EXPORTED, newest_run


def build_parser() -> argparse.ArgumentParser:
    """test.py's parser."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("run_dir", nargs="?", help="a run folder; without it, the newest run in --output_dir")
    parser.add_argument("--config_file", metavar="FILE", help="RUN_DIR/configs.yaml, in place of RUN_DIR")
    parser.add_argument("--checkpoint", metavar="FILE", help="this checkpoint alone; its folder is the run")
    parser.add_argument("--output_dir", default="logs", help="where to look for the newest run (default: %(default)s)")
    parser.add_argument("--dataset_name", help="another data set than the run was trained on")
    parser.add_argument("--root_dir", help="the folder that holds the data set's folder (default: the run's)")
    parser.add_argument("--image_cache", help="folder for decoded images (default: the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--precision", help="as train.py's (default: the run's)")
    parser.add_argument("--test_batch_size", type=int, help="images or captions at a time (default: the run's)")
    parser.add_argument("--num_workers", type=int, help="processes that load images (default: the run's)")
    parser.add_argument("--image_to_text", action="store_true", help="rank captions for every image")
    return parser


def main(argv: Sequence[str]) -> None:
    """Find the run and its checkpoints, evaluate, print a table each and write its metrics."""
    args = parse(build_parser(), argv)
    run_dir, files = find_checkpoints(args)
    config = Path(args["config_file"] or run_dir / "configs.yaml")
    given = {name: value for name, value in args.items() if name in FLAGS and value is not None}
    options = resolve_run(config, given)
    _settle_precision(options)
    suffix = _suffix(options, resolve_run(config, {}))
    suffix += "_image_to_text" if args["image_to_text"] else ""
    test(options, run_dir, files, suffix, image_to_text=args["image_to_text"])


def _settle_precision(options: EasyDict) -> None:
    """Replace `--precision published` by what it is on the device."""
    from model.precision import settle
    from utils.program import choose_device

    options.precision = settle(options.precision, choose_device(options.device))


def _suffix(options: EasyDict, run: EasyDict) -> str:
    """Of the files to write: other data or arithmetic than the run's must not overwrite the run's own results."""
    precision = f"_{options.precision}" if options.precision != run.precision else ""
    return _data_suffix(options, run) + precision


def _data_suffix(options: EasyDict, run: EasyDict) -> str:
    file = Path(options.dataset_name)
    if file.resolve() != Path(run.dataset_name).resolve():
        names = (file.resolve().parent.name, file.stem) if file.is_file() else (options.dataset_name,)
        return "".join(f"_{name}" for name in dict.fromkeys(names))
    own = Path(run.root_dir)
    if (own / run.dataset_name).exists() and own.resolve() != Path(options.root_dir).resolve():
        return f"_{Path(options.root_dir).resolve().name}"
    return ""


def find_checkpoints(args: dict) -> tuple[Path, list[Path]]:
    """The run's folder and the checkpoints to evaluate."""
    if sum(bool(args[name]) for name in ("run_dir", "config_file", "checkpoint")) > 1:
        raise OptionError("give only one of RUN_DIR, --config_file and --checkpoint")
    for name in ("checkpoint", "config_file"):
        if args[name] and not Path(args[name]).is_file():
            raise OptionError(f"--{name} {args[name]}: no such file")
    if args["checkpoint"]:
        file = Path(args["checkpoint"])
        return file.parent, [file]
    if args["config_file"]:
        run_dir = Path(args["config_file"]).parent
    elif args["run_dir"]:
        run_dir = Path(args["run_dir"])
    else:
        run_dir = newest_run(Path(args["output_dir"]), "best.pth")
    files = [run_dir / name for name in (*CHECKPOINTS, EXPORTED) if (run_dir / name).is_file()]
    if not files:
        raise OptionError(f"{run_dir} holds no {' or '.join(CHECKPOINTS)}: is it a run folder?")
    return run_dir, files


def test(options: EasyDict, run_dir: Path, files: Sequence[Path], suffix: str, *, image_to_text: bool) -> None:
    """Evaluate the checkpoints on the test split."""
    from datasets.annotations import read_splits
    from datasets.loaders import open_gallery
    from model.weights import model_from_checkpoint
    from processor.test_split import evaluate_run
    from utils.log import start_logging
    from utils.program import choose_device

    device = choose_device(options.device)
    models = {file: model_from_checkpoint(file, options) for file in files}
    split = read_splits(options.dataset_name, Path(options.root_dir), ["test"])["test"]
    gallery = open_gallery(options, "test", split, device)
    title = f"{options.dataset_name}, test{', image to text' if image_to_text else ''}"
    start_logging(run_dir / "test_log.txt")
    evaluate_run(
        files,
        lambda file: models[file].to(device),
        gallery,
        title,
        run_dir,
        suffix=suffix,
        image_to_text=image_to_text,
    )


if __name__ == "__main__":
    run_program(main)
