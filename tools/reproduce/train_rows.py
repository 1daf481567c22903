"""Train what is missing of some rows, then report all of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from tools.reproduce.curves import draw_curves
from tools.reproduce.noise import draw_over_noise
from tools.reproduce.report import summarise, write_report
from tools.reproduce.runs import Run, check_more
from tools.reproduce.tables import Row
from utils.errors import OptionError, UserError
from utils.run_folder import LockedError
from utils.settings import FLAGS

Runs = list[list[Run]]  # by row, by seed


def runs_of(rows: Sequence[Row], seeds: int, output_dir: Path, root_dir: str, more: Sequence[str]) -> Runs:
    """Seeds 1 … `seeds` of every row; `more` are further arguments of train.py.

    Raises:
        OptionError: train.py does not take them.
    """
    check_more(more)
    return [
        [Run(row, seed, output_dir / row.slug / f"seed{seed}", root_dir, tuple(more)) for seed in range(1, seeds + 1)]
        for row in rows
    ]


def train_and_report(runs: Runs, title: str, file: Path, extra: str) -> None:
    """Train, then write the report and its figures; a run that fails does not keep the others from running.

    Args:
        extra: what else is reported, one of `report.MORE`, or "".

    Raises:
        OptionError: a run failed; the others are done and reported.
    """
    failed, taken = [], []
    for run in _by_seed(runs):
        try:
            run.train()
        except LockedError:
            print(f"{run.title}: another process is training it", flush=True)
            taken.append(run)
        except (UserError, OSError) as error:
            print(f"  {error}", flush=True)
            failed.append(str(error))
    more = runs[0][0].more
    further = "" if all(FLAGS[name].resumable for name in check_more(more)) else shlex.join(more)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.stem}.lock")):  # the processes that share the runs may end together
        summaries = [summarise(of_row, comparable=not further, more=extra) for of_row in runs]
        report = write_report(title, summaries, further, file, extra)
        kinds = [".json"] + [".png"] * draw_curves(runs, file.with_suffix(".png"))
        kinds += ["_noise.png"] * draw_over_noise(summaries, file.with_name(f"{file.stem}_noise.png"))
    print(f"\n{report}\nwritten to {file}, {', '.join(kinds)}", flush=True)
    if missing := sum(bool(run.missing()) for run in taken):
        print(f"other processes are training {missing} of these runs; the last to finish reports all of them")
    if failed:
        raise OptionError(f"{len(failed)} of the runs failed or could not start, the first: {failed[0]}")


def dry_run(runs: Runs) -> list[str]:
    """The commands that are missing, each once: a training may be several rows'."""
    lines: dict[str, str] = {}
    for run in _by_seed(runs):
        for command in (shlex.join(["python", *command]) for command in run.missing()):
            lines.setdefault(command, f"{run.title}: {command}")
    return list(lines.values())


def _by_seed(runs: Runs) -> list[Run]:
    """The first seed of every row, then the second of every row, …; a run that rows share once."""
    ordered = [run for of_seed in zip(*runs, strict=True) for run in of_seed]
    first: dict[tuple[Path, str], Run] = {}
    for run in ordered:
        first.setdefault((run.folder, run.row.target), run)
    return list(first.values())
