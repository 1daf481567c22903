"""Train the missing runs of some rows, then report all rows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from options import parse
from tools.reproduce.curves import draw_curves
from tools.reproduce.noise import draw_over_noise
from tools.reproduce.report import summarise, write_report
from tools.reproduce.runs import Run, check_train_args
from tools.reproduce.tables import Row
from utils.errors import OptionError, UserError
from utils.run_folder import LockedError
from utils.settings import FLAGS

Runs = list[list[Run]]  # [row][seed]


def runs_of(rows: Sequence[Row], seeds: int, output_dir: Path, root_dir: str, train_args: Sequence[str]) -> Runs:
    """Seeds 1 to `seeds` of every row.

    Raises:
        OptionError: `train_args` are not valid for train.py.
    """
    for row in rows:
        check_train_args(train_args, row)
    given = tuple(train_args)
    return [
        [Run(row, seed, output_dir / row.slug / f"seed{seed}", root_dir, given) for seed in range(1, seeds + 1)]
        for row in rows
    ]


def train_and_report(runs: Runs, title: str, file: Path, extra: str) -> None:
    """Train, then write the report and its figures; a failed run doesn't stop the others.

    Args:
        extra: also report this one of `report.EXTRAS`; "" for none.

    Raises:
        OptionError: a run exists with other flags, and nothing is trained or written; or one failed, and the others are
            reported.
    """
    failed, locked, unique = [], [], _by_seed(runs)
    for run in unique:
        run.check_existing()
    for run in unique:
        try:
            run.train()
        except LockedError:
            print(f"{run.title}: another process is training it", flush=True)
            locked.append(run)
        except (UserError, OSError) as error:
            print(f"  {error}", flush=True)
            failed.append(str(error))
    train_args = runs[0][0].train_args
    added_flags = "" if all(FLAGS[name].resumable for name in parse("", train_args)) else shlex.join(train_args)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.stem}.lock")):  # concurrent processes may finish at the same time
        summaries = [summarise(row_runs, comparable=not added_flags, extra=extra) for row_runs in runs]
        report = write_report(title, summaries, added_flags, file, extra)
        kinds = [".json"] + [".png"] * draw_curves(runs, file.with_suffix(".png"))
        kinds += ["_noise.png"] * draw_over_noise(summaries, file.with_name(f"{file.stem}_noise.png"))
    print(f"\n{report}\nwritten to {file}, {', '.join(kinds)}", flush=True)
    if missing := sum(bool(run.missing()) for run in locked):
        print(f"{missing} of these runs are still being trained by other processes; repeat this command afterwards")
    if failed:
        raise OptionError(f"{len(failed)} of the runs failed or could not start, the first: {failed[0]}")


def dry_run(runs: Runs) -> list[str]:
    """The remaining commands, without duplicates: rows may share a run."""
    lines: dict[str, str] = {}
    for run in _by_seed(runs):
        for command in (shlex.join(["python", *command]) for command in run.missing()):
            lines.setdefault(command, f"{run.title}: {command}")
    return list(lines.values()) or ["nothing is missing"]


def _by_seed(runs: Runs) -> list[Run]:
    """The first seed of every row, then the second, and so on; shared runs once."""
    ordered = [run for same_seed in zip(*runs, strict=True) for run in same_seed]
    unique: dict[tuple[Path, str], Run] = {}
    for run in ordered:
        key = (run.folder, run.row.target)
        if key not in unique or unique[key].row.start:  # the title of what is trained
            unique[key] = run
    return list(unique.values())
