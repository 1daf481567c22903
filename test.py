"""Evaluate a run's checkpoints: the newest run, a run folder, or one checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from options import SAVED, add_rerank, check_rerank, check_saved, resolve_run
from utils.errors import OptionError
from utils.log import status
from utils.options import add_flags_of_run, parse
from utils.program import run_program
from utils.run_folder import CHECKPOINTS, RunFolder
from utils.settings import FLAGS

_SHARED = ("dataset_name", "root_dir", "image_cache", "plugin", "precision", "test_batch_size", "num_workers")


def build_parser() -> argparse.ArgumentParser:
    """Build test.py's parser."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("run_dir", nargs="?", help="a run folder (default: the latest run in --output_dir)")
    parser.add_argument("--config_file", metavar="FILE", help="RUN_DIR/configs.yaml instead of RUN_DIR")
    parser.add_argument("--checkpoint", metavar="FILE", help="test only this file of a run folder")
    parser.add_argument("--output_dir", default="logs", help="folder of the run folders (default: %(default)s)")
    parser.add_argument("--split", default="test", choices=["test", "val"], help="(default: %(default)s)")
    add_flags_of_run(parser, _SHARED)
    parser.add_argument("--device", default="auto", help=f"{FLAGS['device'].help} (default: %(default)s)")
    parser.add_argument("--image_to_text", action="store_true", help="rank captions for every image")
    add_rerank(parser)
    parser.add_argument(
        "--save",
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"save results of the first checkpoint: any of {', '.join(SAVED)}, in any folder; a .json beside each "
        "lists file names and identities",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Find the run and its checkpoints, and evaluate them."""
    args = parse(build_parser(), argv)
    saved, rerank = check_saved(args["save"]), check_rerank(args["rerank"])
    run, files = find_checkpoints(args)
    config = Path(args["config_file"] or run.config)
    given = {name: value for name, value in args.items() if name in FLAGS and value is not None}
    status("loading PyTorch")
    options, own = resolve_run(config, given), resolve_run(config, {})

    from assembly import Request, test  # imports torch, only after the checks above

    test(options, Request(run, own, files, args["image_to_text"], saved, rerank, args["split"]))


def find_checkpoints(args: Mapping[str, Any]) -> tuple[RunFolder, list[Path]]:
    """The run and the checkpoints to evaluate."""
    if sum(bool(args[name]) for name in ("run_dir", "config_file", "checkpoint")) > 1:
        raise OptionError("give only one of RUN_DIR, --config_file and --checkpoint")
    for name in ("checkpoint", "config_file"):
        if args[name] and not Path(args[name]).is_file():
            raise OptionError(f"--{name} {args[name]}: no such file")
    if args["checkpoint"]:
        file = Path(args["checkpoint"])
        return RunFolder(file.parent), [file]
    if args["config_file"]:
        run = RunFolder(Path(args["config_file"]).parent)
    elif args["run_dir"]:
        run = RunFolder(Path(args["run_dir"]))
    else:
        run = RunFolder.newest(Path(args["output_dir"]), "best.pth")
    files = run.all_weights()
    if not files:
        raise OptionError(f"{run} holds no {' or '.join(CHECKPOINTS)}: is it a run folder?")
    return run, files


if __name__ == "__main__":
    run_program(main)
