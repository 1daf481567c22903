"""Kill short runs at random moments, resume them, and compare the results with an uninterrupted run.

python -m benchmarks.kill_resume              # 30 kills; a quarter of an hour on two busy CPU cores

Half of the kills come at a random time. The others target short phases: decoding images, writing a checkpoint,
testing. Every other run loads data with worker processes. The exit status is 1 if a result differs.
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

import options  # noqa: F401  (declares the flags)
from benchmarks.synthetic import write_dataset
from utils.errors import UserError
from utils.options import command_parser, parse
from utils.program import run_program
from utils.settings import FLAGS

ROOT = Path(__file__).parents[1]
TIMINGS = ("seconds", "pairs_per_second", "data_wait_share", "peak_memory_gb")
EPOCHS = 5
DECODING, WRITING, TESTING = "while images were decoded", "while a checkpoint was written", "in the test"
# Files that depend on time, folder or number of interruptions.
_RUN_SPECIFIC = (".lock", "configs.yaml", "*_log.txt", "events.out.tfevents.*")


def records_without_times(run_dir: Path) -> list[dict[str, Any]]:
    """A run's `metrics.jsonl` without times and memory use."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        for part in (record, record["ccd"] or {}):
            for name in TIMINGS:
                part.pop(name, None)
    return records


def command(annotations: Path, output_dir: Path, num_workers: int) -> list[str]:
    """Arguments of a short but complete run, with decoding, augmentation, CCD, validation, checkpoints and test."""
    flags = f"--pretrain_choice tiny --img_size 48 16 --stride_size 8 --batch_size 16 --num_epoch {EPOCHS} --lr 1e-4 "
    flags += f"--warmup_epochs 2 --noisy_rate 0.5 --img_aug --txt_aug --num_workers {num_workers} --device cpu"
    folders = ["--output_dir", str(output_dir), "--image_cache", str(output_dir / "cache")]
    return ["--dataset_name", str(annotations), *folders, *flags.split()]


def start(arguments: Sequence[str]) -> subprocess.Popen:
    """Start train.py, showing only errors."""
    return subprocess.Popen([sys.executable, ROOT / "train.py", *arguments], stdout=subprocess.DEVNULL)


def only_run(output_dir: Path) -> Path | None:
    """The run folder, once it can be resumed."""
    return next((file.parent for file in output_dir.glob("*/*/configs.yaml")), None)


def finished_run(output_dir: Path) -> Path:
    """The folder of a finished run."""
    if run_dir := only_run(output_dir):
        return run_dir
    raise UserError(f"no run in {output_dir}")


def kill_until_done(
    arguments: Sequence[str], output_dir: Path, kills: Counter, total: int, longest: float, rng: random.Random
) -> Path:
    """Kill and resume one run until it ends, or until `total` kills are reached; returns its folder."""
    while True:
        child = start(arguments)
        phase = kill_at_random(child, output_dir, longest, rng) if kills.total() < total else None
        if phase is None:
            if child.wait():
                raise UserError(f"train.py {' '.join(arguments)} ended with status {child.returncode}")
            return finished_run(output_dir)
        kills[phase] += 1
        run_dir = only_run(output_dir)
        if run_dir and (run_dir / "test_metrics.json").is_file():  # killed after its last write
            return run_dir
        if run_dir:
            arguments = ["--resume", "--output_dir", str(output_dir)]


def kill_at_random(child: subprocess.Popen, output_dir: Path, longest: float, rng: random.Random) -> str | None:
    """Kill the process within `longest` seconds, or in one of the short phases.

    Returns:
        The phase in which it was killed; None if it ended first.
    """
    started = time.time()
    phases = [WRITING, TESTING] if list(output_dir.glob("cache/*.npy")) else [DECODING]
    target = rng.choice(phases) if rng.random() < 1 / 2 else None
    earliest = started + (rng.uniform(0, longest) if target in (None, WRITING) else 0)
    while child.poll() is None:
        if time.time() > earliest and target in (None, current_phase(output_dir, started)):
            time.sleep(rng.uniform(0, 0.02))
            phase = current_phase(output_dir, started)
            child.kill()
            child.wait()
            return phase
        time.sleep(0.002)
    return None


def current_phase(output_dir: Path, started: float) -> str:
    """Phase of the process started at `started` (Unix time), judging by the files written since."""
    partial = [file for file in output_dir.rglob("*.partial") if _changed(file) > started]
    if any(file.parent.name == "cache" for file in partial):
        return DECODING
    if any(file.name.endswith(".pth.partial") for file in partial):
        return WRITING
    run_dir = only_run(output_dir)
    if not run_dir or _changed(run_dir / "train_log.txt") < started:
        return "before training"
    if _changed(run_dir / "test_log.txt") > started:
        return TESTING
    return "in a later epoch" if (run_dir / "last.pth").is_file() else "in the first epoch"


def _changed(file: Path) -> float:
    """Modification time of a file; 0 if it is missing."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def differences(run_dir: Path, reference: Path) -> list[str]:
    """Output files that aren't bit-identical in both folders, except those specific to a run."""
    names = {file.relative_to(folder) for folder in (run_dir, reference) for file in folder.rglob("*")}
    names = {name for name in names if not any(name.match(pattern) for pattern in _RUN_SPECIFIC)}
    return [str(name) for name in sorted(names) if not _same(_content(run_dir / name), _content(reference / name))]


def _content(file: Path) -> Any:
    if not file.is_file():
        return file.is_dir()
    if file.name == "metrics.jsonl":
        return records_without_times(file.parent)
    if file.suffix != ".pth":
        return file.read_bytes()
    content = torch.load(file, weights_only=True)
    flags = {name: value for name, value in content["options"].items() if not FLAGS[name].resumable}
    return content | {"options": flags}


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def main(argv: Sequence[str]) -> None:
    """Kill as often as requested, then report."""
    parser = command_parser("benchmarks.kill_resume", __doc__)
    parser.add_argument("--kills", type=int, default=30, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    args = parse(parser, argv)
    kills, runs, different = Counter(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        images = {"train": 200, "val": 12, "test": 12}
        annotations = write_dataset(Path(folder), images, (384, 128), captions_per_image=2, images_per_person=2)
        reference = Path(folder) / "reference"
        began = time.monotonic()
        if start(command(annotations, reference, 0)).wait():
            raise UserError("the uninterrupted run failed")
        longest = (time.monotonic() - began) / 2
        while kills.total() < args["kills"]:
            runs += 1
            rng, output_dir = random.Random(args["seed"] + runs), Path(folder) / str(runs)
            arguments = command(annotations, output_dir, 2 * (runs % 2))
            run_dir = kill_until_done(arguments, output_dir, kills, args["kills"], longest, rng)
            different += differences(run_dir, finished_run(reference))
            print(f"run {runs} done, {kills.total()} kills so far", flush=True)
    for phase, count in kills.most_common():
        print(f"  {count:3d} {phase}")
    print(f"{kills.total()} kills in {runs} runs; " + (", ".join(different) or "all results are bit-identical"))
    if different:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
