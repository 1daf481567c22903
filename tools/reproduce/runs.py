"""Running what a row needs: one training for each seed, resumed where it was cut off, never repeated."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from sklearn.metrics import average_precision_score

from datasets.synthpedes import RECIPE, write_synthpedes
from model.precision import resolve_precision
from options import parse, resolve
from processor.history import read_history
from processor.records import best_record, seconds_of
from tools.reproduce.displacement import displacement
from tools.reproduce.tables import Row
from utils.devices import choose_device
from utils.errors import DataError, OptionError
from utils.run_folder import CHECKPOINTS, LockedError, RunFolder, hold
from utils.settings import FLAGS

ROOT = Path(__file__).parents[2]
FAR = replace(RECIPE, seed=2025, difficulty=0.8)  # SynthPEDES-far: other persons, harder pictures
START = "start"  # the choice of the weights that training starts with
# What train.py is given by the row, and so by nobody else.
_OWN = ("config", "seed", "root_dir", "output_dir", "record_test", "resume", "resume_ckpt_file", "test")
_OF_TEST_PY = ("device", "image_cache", "num_workers", "test_batch_size")


@dataclass(frozen=True)
class Run:
    """One training of a row's configuration.

    Attributes:
        folder: its --output_dir.
        root_dir: the folder that holds the data sets.
        more: further arguments for train.py.
    """

    row: Row
    seed: int
    folder: Path
    root_dir: str
    more: tuple[str, ...]

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.row.title}, {self.row.dataset}, {self.row.noise:.0%} noise, seed {self.seed}"

    @property
    def arguments(self) -> list[str]:
        """train.py's."""
        own = ["--seed", str(self.seed), "--root_dir", self.root_dir, "--output_dir", str(self.folder)]
        return [*self.row.flags, "--record_test", *own, *self.more]

    def finished(self) -> RunFolder | None:
        """The finished run, if there is one."""
        return next((run for run in RunFolder.all_in(self.folder) if run.is_finished()), None)

    def train(self) -> None:
        """Train unless it is done, and test on the row's other data set unless that is done.

        Raises:
            LockedError: another process is at it.
            OptionError: a run is there that other flags made, or the command fails.
        """
        taken = f"{self.folder}: another process is training this run; wait for it or stop it"
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder, taken):
            for _ in self.missing():
                runs = RunFolder.all_in(self.folder)
                if runs and runs[-1].is_locked():  # the training outlives a killed command of ours
                    raise LockedError(taken)
                self._execute(self.missing()[0])  # the test's names the run that the training has made

    def missing(self) -> list[list[str]]:
        """The commands that are still to be run, each without its "python".

        Raises:
            OptionError: a run is there that other flags made.
        """
        runs, run, commands = RunFolder.all_in(self.folder), self.finished(), []
        for other in runs:
            _check_same(other, self.arguments)
        if run is None:
            resumed = ["--resume", str(runs[-1]), "--root_dir", self.root_dir, *self.more] if runs else None
            commands.append(["train.py", *(resumed or self.arguments)])
        if self.row.target and not (run and run.test_metrics(self._suffix)):
            newest = [str(run)] if run else ["--output_dir", str(self.folder)]
            commands.append(["test.py", *newest, *self._target_flags()])
        return commands

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Metrics of the row's similarity for each way of choosing a checkpoint; None if the run is not finished.

        "best by validation" and "last" are the run's two checkpoints; "best by test" is the epoch in which R1 on the
        test split was highest, as the published code chooses (not known on another data set).

        A row of the starting weights has "start" alone.

        Raises:
            DataError: a file of metrics is damaged.
        """
        run = self.finished()
        if run is None:
            return None
        tested = run.test_metrics(self._suffix)
        if self.row.target and not tested:
            return None
        if self.row.start:
            start = run.start_metrics()
            if "test" not in start:
                raise DataError(f"{run}/start_metrics.json is missing or damaged: delete the run and run it again")
            return {START: start["test"][self.row.similarity]}
        if not tested.keys() >= set(CHECKPOINTS):
            file = f"{run}/test_metrics{self._suffix}.json"
            raise DataError(f"{file} is incomplete: delete it and test again with python test.py {run}")
        of_checkpoints = (tested[name] for name in CHECKPOINTS)
        found: dict[str, Any] = dict(zip(("best by validation", "last"), of_checkpoints, strict=True))
        if not self.row.target and (best := best_record(run.records(), self.row.trained, "test")):
            found["best by test"] = best["test"]
        return {choice: metrics[self.row.similarity] for choice, metrics in found.items()}

    def precision(self) -> str | None:
        """The finished run's arithmetic, as `--precision` names it; None if there is no such run."""
        run = self.finished()
        return run and resolve({"config": str(run.config)}).precision

    def displacement(self) -> dict[str, float]:
        """As `displacement` of the finished run."""
        run = self.finished()
        return displacement(run.path) if run else {}

    def knowledge(self) -> dict[str, float]:
        """How well the run knew the wrong pairs in the end, in percent, if it judged pairs and some are wrong; seconds.

        Flagged is what no vote calls clean, suspected most what has the lowest mean P(clean).
        """
        run = self.finished()
        if run is None:
            return {}
        seconds = {"seconds": seconds_of(run.records())}
        judged = [epoch.pairs for epoch in read_history(run.path) if epoch.pairs]
        if not judged or judged[-1].truly_clean.all():
            return seconds
        pairs = judged[-1]
        wrong, flagged = ~pairs.truly_clean, np.logical_not(pairs.clean.any(axis=0))
        flagged[pairs.excluded] = False
        right = int((wrong & flagged).sum())
        suspicion = np.nan_to_num(1 - pairs.clean_probability.mean(axis=0))
        return {
            "precision": 100 * right / max(1, int(flagged.sum())),
            "recall": 100 * right / int(wrong.sum()),
            "average precision": 100 * float(average_precision_score(wrong, suspicion)),
        } | seconds

    def _target_flags(self) -> list[str]:
        given = parse("", self.more)
        more = [part for name in _OF_TEST_PY if name in given for part in (f"--{name}", str(given[name]))]
        if not self.row.small:
            return ["--dataset_name", self.row.target, "--root_dir", self.root_dir, *more]
        return ["--dataset_name", str(Path(self.root_dir, self.row.target, f"{self.row.target}.json")), *more]

    @property
    def _suffix(self) -> str:
        return f"_{self.row.target}" if self.row.target else ""

    def _execute(self, command: list[str]) -> None:
        print(f"{self.title}: python {shlex.join(command)}", flush=True)
        if self.row.small and self.row.target:
            _write_far(Path(self.root_dir) / self.row.target)
        log = self.folder / "output.txt"
        print(f"  follow it with: tail -f {shlex.quote(str(log))}", flush=True)
        program = [sys.executable, str(ROOT / command[0]), *command[1:]]
        with log.open("a", encoding="utf-8") as stream:
            status = subprocess.run(program, stdout=stream, stderr=stream).returncode
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it printed nothing"]
            raise OptionError(f"{self.title}: {command[0]} ended with status {status}: {lines[-1]}")


def check_more(more: Sequence[str]) -> dict[str, Any]:
    """The further flags for train.py, by name.

    Raises:
        OptionError: an unknown flag, or one that the rows set.
    """
    given = parse("", more)
    for name in _OWN:
        if name in given:
            raise OptionError(f"--{name} after --: set by the row or by this command")
    return given


def _check_same(run: RunFolder, arguments: Sequence[str]) -> None:
    """Refuse to count a run that other flags made."""
    try:
        was = resolve({"config": str(run.config)})
    except OptionError as error:
        raise OptionError(f"{error}; delete {run} or choose another --output_dir") from None
    now = resolve(parse("", arguments))
    now.precision = resolve_precision(now.precision, choose_device(now.device))
    for name in now:
        if not FLAGS[name].resumable and was[name] != now[name]:
            raise OptionError(
                f"{run} was run with {name} {was[name]}, now it would be {now[name]}: "
                "delete it or choose another --output_dir"
            )


def _write_far(folder: Path) -> None:
    """Render SynthPEDES-far, under an annotation file of its own name, unless it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    annotations = folder / f"{folder.name}.json"
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            write_synthpedes(folder, FAR)
        if not annotations.exists():
            (folder / "reid_raw.json").rename(annotations)
