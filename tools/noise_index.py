"""Write noise indices: which captions are shuffled at a given noise rate.

    python -m tools.noise_index                                              # the nine published files
    python -m tools.noise_index --dataset_name Mine --pairs 5000 --noisy_rate 0.3

train.py looks for a data set's index at noiseindex/<dataset_name>_<noisy_rate>.npy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.noise import NOISEINDEX, digest, draw_permutation
from utils.errors import OptionError
from utils.files import atomic_write
from utils.options import command_parser, parse
from utils.program import run_program

# Number of training pairs of the published data sets, and the published files' SHA-256 prefixes.
PUBLISHED = {
    ("CUHK-PEDES", 68126): {0.2: "82919f1ad5e7", 0.5: "2ad253163961", 0.8: "5a7cc89fa6d1"},
    ("ICFG-PEDES", 34674): {0.2: "80b294a4721e", 0.5: "e785165bf962", 0.8: "5230c2ad7573"},
    ("RSTPReid", 37010): {0.2: "6be11826bc88", 0.5: "ad1e4f4261df", 0.8: "9715ed73d5ca"},
}


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.noise_index", __doc__)
    parser.add_argument("--dataset_name", help="write one index, for this data set")
    parser.add_argument("--pairs", type=int, help="its number of training captions")
    parser.add_argument("--noisy_rate", type=float, help="share of captions to shuffle, 0 to 1")
    parser.add_argument("--out", default=str(NOISEINDEX), help="folder to write into (default: noiseindex)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Write the nine published files, or the requested one."""
    args = parse(build_parser(), argv)
    out = Path(args["out"])
    requested = [args[name] for name in ("dataset_name", "pairs", "noisy_rate")]
    if not any(value is not None for value in requested):
        indices = [(name, pairs, rate) for (name, pairs), rates in PUBLISHED.items() for rate in rates]
    elif any(value is None for value in requested):
        raise OptionError("one index needs --dataset_name, --pairs and --noisy_rate")
    elif args["pairs"] < 1 or not 0 <= args["noisy_rate"] <= 1:
        raise OptionError("--pairs must be at least 1, --noisy_rate at least 0 and at most 1")
    else:
        indices = [tuple(requested)]
        published = dict(PUBLISHED.keys())
        shipped = out.resolve() == NOISEINDEX.resolve()
        if shipped and published.get(args["dataset_name"], args["pairs"]) != args["pairs"]:
            name = args["dataset_name"]
            raise OptionError(
                f"--pairs {args['pairs']}: {name} has {published[name]}; write other sizes elsewhere, with --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    for name, pairs, rate in indices:
        permutation = draw_permutation(pairs, rate)
        file = out / f"{name}_{rate:g}.npy"
        with atomic_write(file) as partial, partial.open("wb") as stream:
            np.save(stream, permutation)
        print(f"{file}: {pairs:,} pairs, SHA-256 {digest(permutation)}")


if __name__ == "__main__":
    run_program(main)
