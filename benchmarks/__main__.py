"""Measure speed and memory on this machine, print the results and save them as JSON.

On a CPU everything runs on one thread and is measured in CPU time, which other load hardly affects. With more threads
(--threads) wall time is measured, which needs an idle machine.

python -m benchmarks                       # everything
python -m benchmarks model ranking         # selected sections; the file keeps older results of the others
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from prettytable import PrettyTable

from benchmarks import encoders, ranking
from benchmarks.counting import counted
from benchmarks.epoch import tiny_epoch
from benchmarks.loading import loading
from benchmarks.measure import machine
from benchmarks.memory import memory
from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import SMALLEST, VIT_B_16
from utils.devices import choose_device
from utils.errors import OptionError
from utils.files import write_text
from utils.options import command_parser, parse
from utils.program import run_program

ROOT = Path(__file__).parents[1]


def start_up(setting: Setting) -> Rows:
    """Time of `python train.py --help`."""
    seconds = []
    for _ in range(setting.repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, ROOT / "train.py", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return [{"what": "python train.py --help, s", "value": statistics.median(seconds)}]


SECTIONS: dict[str, tuple[str, Callable[[Setting], Rows]]] = {
    "start": ("Start", start_up),
    "ranking": ("Ranking and metrics", ranking.compare_with_plain),
    "loading": ("Loading on one core", loading),
    "memory": ("Memory of a training step", memory),
    "counting": ("Counted, of one batch", counted),
    "model": ("Passes of the model", encoders.compare_with_plain),
    "levers": ("Levers of the model, one off at a time", encoders.levers),
    "growth": ("Training steps by batch size", encoders.growth),
    "epoch": ("An epoch of a tiny CLIP from disk", tiny_epoch),
}


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("benchmarks", __doc__)
    parser.add_argument("sections", nargs="*", help=f"sections to run, of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--precision", help="our model's: fp32, bf16 or fp16 (default: bf16 on CUDA, else fp32)")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads, on a CPU (default: 1)")
    parser.add_argument("--batch_size", type=int, help="pairs per batch (default: 64 on CUDA, else 8)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions; the median is reported (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks.json"), help="file to write (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test with a tiny model and little data")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run the selected sections, saving each as soon as it is done."""
    args = parse(build_parser(), argv)
    selected = args["sections"] or list(SECTIONS)
    if unknown := [name for name in selected if name not in SECTIONS]:
        raise OptionError(f"no section {unknown[0]}: choose from {', '.join(SECTIONS)}")
    device = choose_device(args["device"])
    gpu = device.type == "cuda"
    precision = args["precision"] or ("bf16" if gpu else "fp32")
    if precision not in ("fp32", "bf16", "fp16"):
        raise OptionError(f"--precision {precision}: choose from fp32, bf16, fp16")
    batch = args["batch_size"] or (64 if gpu else 8)
    threads = args["threads"]
    for flag, value, minimum in (("batch_size", batch, 2), ("repeats", args["repeats"], 1), ("threads", threads, 1)):
        if value < minimum:
            raise OptionError(f"--{flag} {value}: must be at least {minimum}")
    results_of(args["out"])
    if not gpu:
        torch.set_num_threads(threads)
    about = machine(device) | {"precision": precision, "batch_size": batch, "repeats": args["repeats"]}
    about |= {"command": "python -m benchmarks " + " ".join(argv), "quick": args["quick"]}
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            device=device,
            precision=precision,
            sizes=SMALLEST if args["quick"] else VIT_B_16,
            batch=batch,
            scale=0.02 if args["quick"] else 1.0,
            repeats=args["repeats"],
            steps=10 if gpu else 1,
            folder=Path(folder),
        )
        for name in selected:
            title, section = SECTIONS[name]
            rows = section(setting)
            print(f"\n{table(title, rows)}", flush=True)
            save(args["out"], name, {"about": about, "rows": rows})


def table(title: str, rows: Rows) -> str:
    """Format rows as a table with their keys as columns; missing values are left empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    formatted = PrettyTable(columns, title=title, align="r")
    formatted.align[columns[0]] = "l"
    formatted.add_rows([[_cell(row.get(column)) for column in columns] for row in rows])
    return formatted.get_string()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def save(file: Path, section: str, content: dict) -> None:
    """Write a section's results into the file atomically, keeping those of other sections."""
    write_text(file, json.dumps(results_of(file) | {section: content}, indent=1) + "\n")


def results_of(file: Path) -> dict:
    """Read the saved results; empty if there is no file yet.

    Raises:
        OptionError: the file isn't a results file, or its folder doesn't exist.
    """
    if not file.exists():
        if not file.parent.is_dir():
            raise OptionError(f"--out {file}: no folder {file.parent}")
        return {}
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = None
    if not isinstance(results, dict):
        raise OptionError(f"--out {file}: the existing file contains no benchmark results, choose another")
    return results


if __name__ == "__main__":
    run_program(main)
