"""Draw the paper's figures from runs, as PNG and PDF, and show a single run's in TensorBoard.

    python -m tools.visualize RUN_DIR                # all figures of one run, into RUN_DIR/figures
    python -m tools.visualize RUN_DIR --wrong 40     # only captions whose first image is wrong
    python -m tools.visualize RUN_DIR RUN_DIR …      # comparison of runs, into logs/figures

One run: training curves, R1 per epoch, per-pair losses with CCD's mixtures, the density of similarities over training
(figure 3), retrieved images framed as right or wrong, and the selected tokens. Several runs: R1 per epoch (figure 5),
densities side by side, and test R1 over m, τ or R if only one of them differs (figures 4, 6). Figures that can't be
drawn, because the checkpoint or the data are missing, are skipped with the reason.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import OptionError, UserError, printable
from utils.options import add_plugin, command_parser, parse
from utils.program import run_program

# Modules that need torch are imported where they are used, so that --help and a mistyped flag don't wait for it.
if TYPE_CHECKING:
    import torch

    from tools.visualize.runs import Run


Figures = Mapping[str, Callable[[Path], None]]  # drawing functions by name


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.visualize", __doc__)
    add_plugin(parser)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run folders")
    parser.add_argument("--out", help="folder to write (default: RUN_DIR/figures, for several runs logs/figures)")
    parser.add_argument("--root_dir", help="folder containing the data set's folder (default: the run's)")
    wrong = "one run only: draw only a sheet of up to N failed queries (rank-1 image of another person)"
    parser.add_argument("--wrong", type=int, metavar="N", help=wrong)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Draw all figures of the runs."""
    args = parse(build_parser(), argv)
    single = len(args["run_dirs"]) == 1
    if args["wrong"] is not None and (args["wrong"] < 1 or not single):
        raise OptionError(f"--wrong {args['wrong']}: must be at least 1, with one run")
    print(f"reading {', '.join(args['run_dirs'])} …", flush=True)

    from tools.visualize.runs import read_run
    from utils.devices import choose_device

    runs = [read_run(Path(folder)) for folder in args["run_dirs"]]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise OptionError("a run folder is listed twice")
    out = Path(args["out"] or (runs[0].folder / "figures" if single else "logs/figures"))
    device = choose_device(args["device"])
    overrides = {"root_dir": args["root_dir"]} if args["root_dir"] else {}
    figures = single_run_figures(runs[0], device, overrides, args["wrong"]) if single else multi_run_figures(runs)
    drawn, skipped = draw(figures, out)
    reasons = [f"skipped {', '.join(names)}: {printable(reason)}" for reason, names in skipped.items()]
    if not drawn:
        raise OptionError("; ".join(reasons))
    if single and not args["out"]:
        kind = "wrong" if args["wrong"] else "figures"
        show_in_tensorboard(runs[0].folder, drawn, runs[0].records[-1]["epoch"], kind)
    for line in reasons:
        print(line)
    print(f"wrote {', '.join(file.name for file in drawn)} (.png and .pdf) into {out}")


def single_run_figures(
    run: Run, device: torch.device, overrides: dict[str, Any], wrong: int | None
) -> dict[str, Callable[[Path], None]]:
    """Drawing functions for the figures of one run, by name; with `wrong`, only a sheet of that many failed queries."""
    from tools.loading import load_run
    from tools.visualize import curves, densities, pictures

    loaded = cache(lambda: load_run(run.folder, device, **overrides))
    if wrong:
        return {"retrieval_wrong": lambda file: pictures.retrieval_sheet(loaded(), wrong, file)}
    return {
        "curves": partial(curves.training_curves, run),
        "r1": partial(curves.r1_of_run, run),
        "losses_over_epochs": partial(densities.losses_over_epochs, run),
        "similarities": partial(densities.similarities_over_epochs, [run]),
        "retrieval": lambda file: pictures.retrieval_sheet(loaded(), 0, file),
        "selection": lambda file: pictures.selection_sheet(loaded(), file),
    }


def multi_run_figures(runs: Sequence[Run]) -> Figures:
    """Drawing functions for the figures that compare runs, by name."""
    from tools.visualize import curves, densities

    return {
        "r1_of_runs": partial(curves.r1_of_runs, runs),
        "similarities": partial(densities.similarities_over_epochs, runs),
        **{f"sweep_{name}": partial(curves.sweep, runs, name) for name in curves.SWEPT},
    }


def draw(figures: Figures, out: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """Draw the figures; returns the drawn files' stems, and the names of skipped figures by reason."""
    drawn, skipped = [], defaultdict(list)
    for name, figure in figures.items():
        print(f"drawing {name} …", flush=True)  # the first one loads the model
        try:
            figure(out / name)
            drawn.append(out / name)
        except UserError as error:
            skipped[error.line].append(name)
    return drawn, skipped


def show_in_tensorboard(run: Path, drawn: Sequence[Path], epoch: int, kind: str) -> None:
    """Add the pictures to a run's TensorBoard events, replacing older ones of the same kind.

    Events in another folder would show up as a separate run.
    """
    from torch.utils.tensorboard import SummaryWriter

    from utils.recorder import show_pictures

    for older in run.glob(f"events.out.tfevents.*.{kind}"):
        older.unlink()
    writer = SummaryWriter(str(run), filename_suffix=f".{kind}")
    show_pictures(writer, [file.with_name(f"{file.name}.png") for file in drawn], epoch)
    writer.close()


if __name__ == "__main__":
    run_program(main)
