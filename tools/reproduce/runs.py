"""The runs behind a row: one training per seed, resumed after an interruption, never repeated."""

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

from datasets.synthpedes import ANNOTATIONS, RECIPE, ensure_rendered
from model.precision import resolve_precision
from options import parse, resolve
from processor.history import read_history
from processor.records import best_record, seconds_of
from tools.reproduce.displacement import displacement
from tools.reproduce.tables import Row
from utils.devices import choose_device
from utils.errors import DataError, OptionError
from utils.run_folder import CHECKPOINTS, LockedError, RunFolder, lock_folder
from utils.settings import FLAGS

ROOT = Path(__file__).parents[2]
FAR = replace(RECIPE, seed=2025, difficulty=0.8)  # SynthPEDES-far: other persons, harder images
START = "start"  # choice of checkpoint: the weights before training
# Flags of train.py that this command sets for every row.
_RESERVED = ("noisy_rate", "seed", "root_dir", "output_dir", "record_test", "resume", "resume_ckpt_file", "test")
_TEST_FLAGS = ("device", "image_cache", "num_workers", "test_batch_size")


@dataclass(frozen=True)
class Run:
    """One training of a row's configuration.

    Attributes:
        folder: train.py's --output_dir.
        root_dir: folder containing the data sets.
        train_args: additional arguments for train.py.
    """

    row: Row
    seed: int
    folder: Path
    root_dir: str
    train_args: tuple[str, ...]

    @property
    def title(self) -> str:
        """The run's name in messages."""
        return f"{self.row.title}, {self.row.dataset}, {self.row.noise:.0%} noise, seed {self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Arguments for train.py."""
        common = ["--seed", str(self.seed), "--root_dir", self.root_dir, "--output_dir", str(self.folder)]
        return [*self.row.flags, "--record_test", *common, *self.train_args]

    def check_existing(self) -> None:
        """Check that the runs in the folder have this run's flags.

        Raises:
            OptionError: one has other flags.
        """
        for existing in RunFolder.all_in(self.folder):
            if existing.config.is_file():  # else another process is just creating it
                _check_flags(existing, self.arguments)

    def finished(self) -> RunFolder | None:
        """The finished run, if there is one."""
        return next((run for run in RunFolder.all_in(self.folder) if run.is_finished()), None)

    def train(self) -> None:
        """Train, and test on the row's target data set, whichever is missing.

        Raises:
            LockedError: another process is training it.
            OptionError: the folder has a run with other flags, or the command fails.
        """
        locked = f"{self.folder}: another process is training this run; wait for it or stop it"
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.folder, locked):
            for _ in self.missing():
                runs = RunFolder.all_in(self.folder)
                if runs and runs[-1].is_locked():  # training continues if only this command is killed
                    raise LockedError(locked)
                self._execute(self.missing()[0])  # again, as the test command names the new run

    def missing(self) -> list[list[str]]:
        """The remaining commands, without "python".

        Raises:
            OptionError: the folder has a run with other flags.
        """
        runs, run, commands = RunFolder.all_in(self.folder), self.finished(), []
        self.check_existing()
        if run is None:
            resume = ["--resume", str(runs[-1]), "--root_dir", self.root_dir, *self.train_args] if runs else None
            commands.append(["train.py", *(resume or self.arguments)])
        if self.row.target and not (run and run.test_metrics(self._suffix)):
            tested = [str(run)] if run else ["--output_dir", str(self.folder)]
            commands.append(["test.py", *tested, *self._target_flags()])
        return commands

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Metrics of the row's similarity for each way of choosing a checkpoint; None for an unfinished run.

        "best by validation" and "last" are the run's two checkpoints. "best by test" is the epoch with the highest R1
        on the test split, which the published code chooses; it is unknown for another data set. A row of the starting
        weights has only "start".

        Raises:
            DataError: a metrics file is damaged.
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
        rows = (tested[name] for name in CHECKPOINTS)
        chosen: dict[str, Any] = dict(zip(("best by validation", "last"), rows, strict=True))
        if not self.row.target and (best := best_record(run.records(), self.row.trained, "test")):
            chosen["best by test"] = best["test"]
        return {choice: metrics[self.row.similarity] for choice, metrics in chosen.items()}

    def precision(self) -> str | None:
        """The finished run's `--precision`; None for an unfinished run."""
        run = self.finished()
        return run and resolve({"config": str(run.config)}).precision

    def displacement(self) -> dict[str, float]:
        """How far the finished run moved its weights; see `displacement`."""
        run = self.finished()
        return displacement(run.path) if run else {}

    def detection(self) -> dict[str, float]:
        """Precision, recall and average precision (%) of finding noisy pairs in the last epoch, and training seconds.

        A pair is flagged if no vote classifies it as clean; pairs are ranked by mean P(clean). Only seconds if the run
        classified no pairs or there are no noisy ones.
        """
        run = self.finished()
        if run is None:
            return {}
        seconds = {"seconds": seconds_of(run.records())}
        epochs = [epoch.pairs for epoch in read_history(run.path) if epoch.pairs]
        if not epochs or epochs[-1].truly_clean.all():
            return seconds
        pairs = epochs[-1]
        noisy, flagged = ~pairs.truly_clean, np.logical_not(pairs.clean.any(axis=0))
        flagged[pairs.excluded] = False
        correct = int((noisy & flagged).sum())
        suspicion = np.nan_to_num(1 - pairs.clean_probability.mean(axis=0))
        return {
            "precision": 100 * correct / max(1, int(flagged.sum())),
            "recall": 100 * correct / int(noisy.sum()),
            "average precision": 100 * float(average_precision_score(noisy, suspicion)),
        } | seconds

    def _target_flags(self) -> list[str]:
        given = parse("", self.train_args)
        shared = [part for name in _TEST_FLAGS if name in given for part in (f"--{name}", str(given[name]))]
        if not self.row.small:
            return ["--dataset_name", self.row.target, "--root_dir", self.root_dir, *shared]
        return ["--dataset_name", str(Path(self.root_dir, self.row.target, f"{self.row.target}.json")), *shared]

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


def check_train_args(train_args: Sequence[str], row: Row) -> None:
    """Check the additional flags for a row's train.py.

    Raises:
        OptionError: an unknown flag, or one that the row or this command sets.
    """
    row_flags = parse("", row.flags)
    for name in parse("", train_args):
        if name in _RESERVED:
            raise OptionError(f"--{name} after --: set by the row or by this command")
        if name in row_flags:
            raise OptionError(f"--{name} after --: set by the row {row.name}")


def _check_flags(run: RunFolder, arguments: Sequence[str]) -> None:
    """Check that an existing run has the flags of `arguments`."""
    try:
        old = resolve({"config": str(run.config)})
    except OptionError as error:
        raise OptionError(f"{error}; delete {run} or choose another --output_dir") from None
    new = resolve(parse("", arguments))
    new.precision = resolve_precision(new.precision, choose_device(new.device))
    for name in new:
        if not FLAGS[name].resumable and old[name] != new[name]:
            raise OptionError(
                f"{run} was run with {name} {old[name]}, now it would be {new[name]}: "
                "delete it or choose another --output_dir"
            )


def _write_far(folder: Path) -> None:
    """Render SynthPEDES-far, with an annotation file named after it, unless it exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    annotations = folder / f"{folder.name}.json"
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        ensure_rendered(folder, FAR, [ANNOTATIONS, annotations.name])
        if not annotations.exists():
            (folder / ANNOTATIONS).rename(annotations)
