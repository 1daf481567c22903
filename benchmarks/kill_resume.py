"""Kill short runs at random moments, continue them, and compare the end with that of a run that was left alone.

python -m benchmarks.kill_resume              # 30 kills; half an hour on two busy CPU cores

Every third kill waits for a checkpoint to be written and strikes while it is. Status 1 when an end differs.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.made_up import write_dataset
from utils.errors import UserError
from utils.options import command_parser, parse
from utils.program import run_program

ROOT = Path(__file__).parents[1]
CLOCK = ("seconds", "pairs_per_second", "data_wait_share", "peak_memory_gb")
EPOCHS = 5


def without_clock(run_dir: Path) -> list[dict[str, Any]]:
    """A run's `metrics.jsonl` without what depends on the clock and the machine's memory."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        for part in (record, record["ccd"] or {}):
            for name in CLOCK:
                part.pop(name, None)
    return records


def command(annotations: Path, output_dir: Path) -> list[str]:
    """A short training that has everything in it: augmentation, CCD, validation, checkpoints, test."""
    flags = f"--pretrain_choice tiny --img_size 48 16 --stride_size 8 --batch_size 16 --num_epoch {EPOCHS} --lr 1e-4 "
    flags += "--warmup_epochs 2 --noisy_rate 0.5 --img_aug --txt_aug --num_workers 0 --device cpu"
    return ["--dataset_name", str(annotations), "--output_dir", str(output_dir), *flags.split()]


def start(arguments: Sequence[str]) -> subprocess.Popen:
    """train.py, quiet but for errors."""
    return subprocess.Popen([sys.executable, ROOT / "train.py", *arguments], stdout=subprocess.DEVNULL)


def only_run(output_dir: Path) -> Path | None:
    """The run folder, once it can be continued."""
    return next((file.parent for file in output_dir.glob("*/*/configs.yaml")), None)


def kill_until_done(
    annotations: Path, output_dir: Path, kills: Counter, wanted: int, longest: float, rng: random.Random
) -> Path:
    """One run, killed and continued until it ends or `wanted` kills are counted; returns its folder."""
    arguments = command(annotations, output_dir)
    while True:
        child = start(arguments)
        moment = strike(child, output_dir, longest, rng) if kills.total() < wanted else None
        if moment is None:
            if child.wait():
                raise UserError(f"train.py {' '.join(arguments)} ended with status {child.returncode}")
            return only_run(output_dir)
        kills[moment] += 1
        run_dir = only_run(output_dir)
        if run_dir and (run_dir / "test_metrics.json").is_file():  # all was done, but for leaving
            return run_dir
        if run_dir:
            arguments = ["--resume", "--output_dir", str(output_dir)]


def strike(child: subprocess.Popen, output_dir: Path, longest: float, rng: random.Random) -> str | None:
    """Kill within `longest` seconds of training, or while a checkpoint is written; None when the run ended before.

    Returns:
        When it was.
    """
    log = size = None
    while child.poll() is None and (log is None or log.stat().st_size == size):  # it has not begun to train
        run_dir = only_run(output_dir)
        if run_dir and log is None and (run_dir / "train_log.txt").is_file():
            log, size = run_dir / "train_log.txt", (run_dir / "train_log.txt").stat().st_size
        time.sleep(0.005)
    writing = rng.random() < 1 / 3
    deadline = time.monotonic() + (60 if writing else rng.uniform(0, longest))
    while child.poll() is None and time.monotonic() < deadline and not (writing and _writes(log.parent)):
        time.sleep(0.001)
    if child.poll() is not None:
        return None
    moment = "while a checkpoint was written" if _writes(log.parent) else _phase(log.parent)
    child.kill()
    child.wait()
    return moment


def _writes(run_dir: Path) -> bool:
    return bool(list(run_dir.glob("*.pth.partial")))


def _phase(run_dir: Path) -> str:
    if not (run_dir / "last.pth").is_file():
        return "in the first epoch"
    return "in the test" if (run_dir / "test_log.txt").is_file() else "in a later epoch"


def differences(run_dir: Path, reference: Path) -> list[str]:
    """What of a run is not bit for bit the reference's."""
    found = [] if without_clock(run_dir) == without_clock(reference) else ["metrics.jsonl"]
    if (run_dir / "test_metrics.json").read_bytes() != (reference / "test_metrics.json").read_bytes():
        found.append("test_metrics.json")
    for name in ("best.pth", "last.pth"):
        ours, theirs = (torch.load(folder / name, weights_only=True)["model"] for folder in (run_dir, reference))
        found += [f"{name}: {weight}" for weight in theirs if not torch.equal(ours[weight], theirs[weight])]
    return found


def main(argv: Sequence[str]) -> None:
    """Kill as often as was asked for; report."""
    parser = command_parser("benchmarks.kill_resume", __doc__)
    parser.add_argument("--kills", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parse(parser, argv)
    kills, runs, different = Counter(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        images = {"train": 200, "val": 12, "test": 12}
        annotations = write_dataset(Path(folder), images, (60, 24), captions_per_image=2, images_per_person=2)
        reference = Path(folder) / "reference"
        begun = time.monotonic()
        if start(command(annotations, reference)).wait():
            raise UserError("the run that is left alone failed")
        longest = (time.monotonic() - begun) / 2
        while kills.total() < args["kills"]:
            runs += 1
            rng = random.Random(args["seed"] + runs)
            run_dir = kill_until_done(annotations, Path(folder) / str(runs), kills, args["kills"], longest, rng)
            different += differences(run_dir, only_run(reference))
            print(f"run {runs} done, {kills.total()} kills so far", flush=True)
    for moment, count in kills.items():
        print(f"  {count:3d} {moment}")
    print(f"{kills.total()} kills in {runs} runs; " + (", ".join(different) or "all ends are bit-identical"))
    if different:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
