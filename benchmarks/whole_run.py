"""A run as large as CUHK-PEDES on synthetic JPEGs and random weights: whole epochs, projected to sixty.

    python -m benchmarks.whole_run --folder /fast/disk -- --precision bf16

The folder needs 8 GB; data and decoded images are written there once and reused. Arguments after -- are passed to
train.py in addition to the paper's configuration.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch

from benchmarks.__main__ import results_of, save, table
from benchmarks.measure import machine
from benchmarks.setting import Rows
from benchmarks.synthetic import TINY, VIT_B_16, image_size, random_model, write_dataset
from options import resolve
from utils.devices import choose_device
from utils.errors import OptionError
from utils.options import command_parser, parse
from utils.program import run_program
from utils.run_folder import read_records

ROOT = Path(__file__).parents[1]
IMAGES = {"train": 34063, "val": 3078, "test": 3074}  # two captions each: 68,126 training pairs
JPEG_SIZE = (256, 96)
EPOCHS = 60


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("benchmarks.whole_run", __doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for data, weights and runs")
    parser.add_argument("--epochs", type=int, default=2, help="epochs; the last is reported (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the data set (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a smoke test with a tiny CLIP")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks.json"), help="file to write (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Write data and weights, train, and report the last epoch."""
    own, train_args = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = parse(build_parser(), own)
    if not 0 < args["share"] <= 1 or args["epochs"] < 1:
        raise OptionError("--share must be above 0 and at most 1, --epochs at least 1")
    results_of(args["out"])
    folder, share = args["folder"].absolute(), args["share"]
    start = time.perf_counter()
    run_dir = trained(folder, share, args["epochs"], train_args, tiny=args["tiny"])
    rows = last_epoch(run_dir)
    minutes = (time.perf_counter() - start) / 60
    rows.append({"what": f"this command: {args['epochs']} epochs, checks, decoding, test", "minutes": minutes})
    print(f"\n{table(f'A run of {share:.1%} of the size of CUHK-PEDES', rows)}")
    about = machine(choose_device(resolve({"config": str(run_dir / "configs.yaml")}).device)) | {"clock": "the log's"}
    about["command"] = "python -m benchmarks.whole_run " + " ".join(argv)
    save(args["out"], "whole_run", {"about": about, "rows": rows})


def trained(folder: Path, share: float, epochs: int, args: Sequence[str], *, tiny: bool, quiet: bool = False) -> Path:
    """Write data and weights into `folder` unless they exist, and train; returns the run folder.

    Args:
        share: fraction of CUHK-PEDES's size.
        args: additional arguments for train.py.
        tiny: use a tiny CLIP instead of ViT-B/16.
        quiet: show the output only if the run fails.
    """
    sizes = TINY if tiny else VIT_B_16
    data, weights = _synthetic_data(folder, share), _random_weights(folder, tiny=tiny)
    height, width = image_size(sizes)
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs" / "base.yaml")]
    command += ["--dataset_name", str(data), "--noisy_rate", "0.2", "--pretrain_choice", str(weights)]
    command += ["--img_size", str(height), str(width), "--stride_size", str(sizes.stride)]
    command += ["--num_epoch", str(epochs), "--warmup_epochs", "0", *args, "--output_dir", str(folder / "logs")]
    done = subprocess.run(command, capture_output=quiet, text=True)
    if done.returncode:
        raise OptionError(f"train.py failed: {(done.stdout + done.stderr)[-2000:]}" if quiet else "train.py failed")
    return max((folder / "logs" / data.stem).iterdir(), key=lambda run: run.name)


def _synthetic_data(folder: Path, share: float) -> Path:
    """Write the data set unless it exists; returns its annotation file, which is written last."""
    data = folder / f"data_{share:g}"
    file = data / "synthetic.json"
    if not file.is_file():
        print(f"writing synthetic images into {data} …", flush=True)
        counts = {split: max(8, int(share * count)) for split, count in IMAGES.items()}
        write_dataset(data, counts, JPEG_SIZE, captions_per_image=2, images_per_person=3)
    return file


def _random_weights(folder: Path, *, tiny: bool) -> Path:
    """Write random CLIP weights with a square grid, as pretrained weights have."""
    file = folder / ("tiny.pt" if tiny else "ViT-B-16.pt")
    if not file.is_file():
        model = random_model(TINY if tiny else VIT_B_16, torch.device("cpu")).backbone
        state = {name: value.half() for name, value in model.published_state().items()}
        positions = state["visual.positional_embedding"]
        state["visual.positional_embedding"] = positions[:1].expand(14 * 14 + 1, -1).contiguous()
        torch.save({"model": state, "towers": model.towers()}, file)
    return file


def last_epoch(run_dir: Path) -> Rows:
    """Times of the last epoch: parts from `metrics.jsonl`, the total with validation and checkpoints from the log."""
    record = read_records(run_dir / "metrics.jsonl")[-1]
    log = (run_dir / "train_log.txt").read_text(encoding="utf-8")
    starts = re.findall(r"^(\S+ \S+) INFO Epoch ", log, re.MULTILINE)
    last = [
        datetime.fromisoformat(stamp) for stamp in (starts[-1], re.findall(r"^(\S+ \S+) INFO", log, re.MULTILINE)[-1])
    ]
    whole = (last[1] - last[0]).total_seconds()
    return [
        {"what": "CCD pass and division", "seconds": record["ccd"]["seconds"]},
        {"what": "training", "seconds": record["seconds"]},
        {"what": "epoch with validation and checkpoints", "seconds": whole, "minutes": whole / 60},
        {"what": f"{EPOCHS} epochs, projected", "minutes": EPOCHS * whole / 60},
        {"what": "training pairs/s", "value": record["pairs_per_second"]},
        {"what": "data wait share", "value": record["data_wait_share"]},
        {"what": "peak memory, GB", "value": record["peak_memory_gb"]},
        {"what": "run folder", "value": run_dir.name},
    ]


if __name__ == "__main__":
    run_program(main)
