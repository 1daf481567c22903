"""Run all checks and measurements that need a GPU, print and save them as JSON; no data, weights or network needed.

python -m benchmarks.gpu                   # as many parts as fit into eight minutes
python -m benchmarks.gpu --minutes 4       # as many as fit into four, in the listed order
python -m benchmarks.gpu --quick --device cpu   # a dry run of every part with a tiny model

Each part is saved as soon as it is done, so an interruption loses nothing. The exit status is 1 if a check or a part
fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import encoders, ranking
from benchmarks.__main__ import results_of, save, table
from benchmarks.gpu import checks, measures, runs
from benchmarks.measure import machine
from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import SMALLEST, VIT_B_16
from utils.devices import choose_device
from utils.errors import OptionError
from utils.options import command_parser, parse
from utils.program import run_program

# Two blocks per tower, because the last one isn't compiled.
_SMALL = replace(SMALLEST, image=replace(SMALLEST.image, layers=2), text=replace(SMALLEST.text, layers=2))


class Part(NamedTuple):
    """A check or measurement.

    Attributes:
        seconds: its duration, which must be left to start it; measured on an H200, except for epoch, compiled, fastest
            and ranking, which are estimates.
    """

    title: str
    run: Callable[[Setting], Rows]
    seconds: int


PARTS = {
    "step": Part("A float32 step on the device and on the CPU", checks.one_step, 15),
    "precisions": Part("Each precision beside float32", checks.precisions, 30),
    "adam": Part("Adam on float16 weights: all tensors together, and one by one", checks.float16_adam, 10),
    "model": Part(
        "Passes of the model: the plain baseline with float16 weights, ours in bf16", encoders.compare_with_plain, 30
    ),
    "training": Part("Training steps of every precision", measures.training_steps, 70),
    "optimizers": Part("Optimizer steps", measures.optimizers, 10),
    "runs": Part("Runs: again, launched, killed and resumed", runs.launched_and_resumed, 35),
    "epoch": Part("A part of a run of CUHK-PEDES's size", runs.epoch, 90),
    "graphs": Part("--cuda_graphs: the same numbers", checks.recorded, 30),
    "compile": Part("--compile and --grad_checkpointing: the same numbers", checks.compiled, 45),
    "compiled": Part("Training steps with --compile", measures.compiled_steps, 60),
    "fastest": Part("The part of a run, with --compile --cuda_graphs", runs.fastest_epoch, 90),
    "ranking": Part("Ranking and metrics", ranking.compare_with_plain, 40),
}


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("benchmarks.gpu", __doc__)
    parser.add_argument("parts", nargs="*", help=f"parts to run, of {', '.join(PARTS)} (default: all, in this order)")
    parser.add_argument("--minutes", type=float, default=8, help="skip parts that may exceed this time (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke test with a tiny model and little data")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file to write (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run the parts in order while time is left."""
    args, start = parse(build_parser(), argv), time.perf_counter()
    selected = args["parts"] or list(PARTS)
    if unknown := [name for name in selected if name not in PARTS]:
        raise OptionError(f"no part {unknown[0]}: choose from {', '.join(PARTS)}")
    if not args["minutes"] > 0:
        raise OptionError(f"--minutes {args['minutes']}: must be above 0")
    results_of(args["out"])
    device, quick = choose_device(args["device"]), args["quick"]
    about = machine(device) | {"command": "python -m benchmarks.gpu " + " ".join(argv), "quick": quick}
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    failed = []
    for name in selected:
        part, left = PARTS[name], 60 * args["minutes"] - (time.perf_counter() - start)
        if left < part.seconds and not quick:
            print(f"\n{part.title}: skipped, {left:.0f} of its {part.seconds} seconds are left", flush=True)
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows = _rows(part, _setting(device, Path(folder), quick=quick))
        title = f"{part.title} ({time.perf_counter() - began:.0f} s)"
        print(f"\n{table(title, rows)}", flush=True)
        save(args["out"], name, {"about": about, "seconds": time.perf_counter() - began, "rows": rows})
        if any("failed" in row or row.get("holds") == "NO" for row in rows):
            failed.append(name)
    print(f"\nwrote {args['out']}")
    if failed:
        print(f"Failed: {', '.join(failed)}")
        sys.exit(1)


def _setting(device: torch.device, folder: Path, *, quick: bool) -> Setting:
    gpu = device.type == "cuda"
    return Setting(
        device=device,
        precision="bf16" if gpu else "fp32",
        sizes=_SMALL if quick else VIT_B_16,
        batch=2 if quick else 64,
        scale=0.02 if quick else 1.0,
        repeats=1 if quick else 2,
        steps=10 if gpu else 1,
        folder=folder,
    )


def _rows(part: Part, setting: Setting) -> Rows:
    """The part's results or its error, so that the other parts still run."""
    try:
        return part.run(setting)
    except Exception:  # raised by a driver, a compiler or the part itself
        traceback.print_exc()
        return [{"failed": traceback.format_exc().strip().splitlines()[-1]}]


if __name__ == "__main__":
    run_program(main)
