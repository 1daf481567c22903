"""Running what a row needs: one training for each seed, continued where it was cut off, never repeated."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.synthpedes import RECIPE, write_synthpedes
from model.precision import settle
from processor.start import START_FILE, read_start
from tools.reproduce.displacement import displacement
from tools.reproduce.tables import Row
from utils.errors import DataError, OptionError
from utils.flags import FREE
from utils.options import build_parser, parse, resolve
from utils.program import choose_device
from utils.records import read_records
from utils.runs import CHECKPOINTS, hold, is_finished, is_locked

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

    def run_dir(self) -> Path | None:
        """The finished run's folder, if there is one."""
        folders = (config.parent for config in sorted(self.folder.glob("*/*/configs.yaml")))
        return next(filter(is_finished, folders), None)

    def train(self, *, dry_run: bool) -> None:
        """Train unless it is done, and test on the row's other data set unless that is done.

        Raises:
            OptionError: a run is there that other flags made, or another process is at it, or the command fails.
        """
        for config in self.folder.glob("*/*/configs.yaml"):
            _check_same(config, self.arguments)
        if self.run_dir() is None:
            unfinished = [config.parent for config in sorted(self.folder.glob("*/*/configs.yaml"))]
            if unfinished and is_locked(unfinished[-1]):  # the training outlives a killed command of ours
                raise OptionError(f"{self.folder}: another process is at this run; wait for it, or end it")
            continued = (
                ["--resume", str(unfinished[-1]), "--root_dir", self.root_dir, *self.more] if unfinished else None
            )
            self._execute(["train.py", *(continued or self.arguments)], dry_run)
        if self.row.target and not (self.run_dir() and self._target_file().is_file()):
            self._execute(["test.py", str(self.run_dir() or "RUN_DIR"), *self._target_flags()], dry_run)

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Metrics of the row's similarity for each way of choosing a checkpoint; None if the run is not finished.

        "best by validation" and "last" are the run's two checkpoints; "best by test" is the epoch in which R1 on the
        test split was highest, as the published code chooses (not known on another data set).

        A row of the starting weights has "start" alone.

        Raises:
            DataError: a file of metrics is damaged.
        """
        run_dir = self.run_dir()
        if run_dir is None or (self.row.target and not self._target_file().is_file()):
            return None
        if self.row.start:
            start = read_start(run_dir)
            if "test" not in start:
                raise DataError(f"{run_dir / START_FILE} is missing or damaged: delete the run, and it is done again")
            return {START: start["test"][self.row.similarity]}
        tested = _read(self._target_file() if self.row.target else run_dir / "test_metrics.json")
        found = dict(zip(("best by validation", "last"), tested, strict=True))
        epochs = [record["test"] for record in read_records(run_dir / "metrics.jsonl") if "test" in record]
        if epochs and not self.row.target:
            found["best by test"] = max(epochs, key=lambda metrics: metrics[self.row.trained]["R1"])
        return {choice: metrics[self.row.similarity] for choice, metrics in found.items()}

    def precision(self) -> str | None:
        """The finished run's arithmetic, as `--precision` names it; None if there is no such run."""
        run_dir = self.run_dir()
        return run_dir and resolve({"config": str(run_dir / "configs.yaml")}).precision

    def displacement(self) -> dict[str, float] | None:
        """As `displacement` of the finished run; None if there is no such run."""
        run_dir = self.run_dir()
        return run_dir and displacement(run_dir)

    def _target_flags(self) -> list[str]:
        given = parse(build_parser(""), self.more)
        more = [part for name in _OF_TEST_PY if name in given for part in (f"--{name}", str(given[name]))]
        if not self.row.small:
            return ["--dataset_name", self.row.target, "--root_dir", self.root_dir, *more]
        return ["--dataset_name", str(Path(self.root_dir, self.row.target, f"{self.row.target}.json")), *more]

    def _target_file(self) -> Path:
        return self.run_dir() / f"test_metrics_{self.row.target}.json"

    def _execute(self, command: list[str], dry_run: bool) -> None:
        print(f"{self.title}: python {shlex.join(command)}", flush=True)
        if dry_run:
            return
        if self.row.small and self.row.target:
            _write_far(Path(self.root_dir) / self.row.target)
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "output.txt"
        with hold(self.folder, f"{self.folder}: another process is at this run; wait for it, or end it"):
            print(f"  to follow it: tail -f {shlex.quote(str(log))}", flush=True)
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
    given = parse(build_parser(""), more)
    for name in _OWN:
        if name in given:
            raise OptionError(f"--{name} after --: it is the row's or this command's own")
    return given


def _read(file: Path) -> list[dict[str, dict[str, float]]]:
    """The metrics of both checkpoints."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [content[name] for name in CHECKPOINTS]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{file} is not whole: delete it, and test again with python test.py {file.parent}") from None


def _check_same(config: Path, arguments: Sequence[str]) -> None:
    """Refuse to count a run that other flags made."""
    try:
        was = resolve({"config": str(config)})
    except OptionError as error:
        raise OptionError(f"{error}; delete {config.parent} or choose another --output_dir") from None
    now = resolve(parse(build_parser(""), arguments))
    now.precision = settle(now.precision, choose_device(now.device))
    for name in now.keys() - FREE:
        if was[name] != now[name]:
            raise OptionError(
                f"{config.parent} was run with {name} {was[name]}, now it would be {now[name]}: "
                "delete it or choose another --output_dir"
            )


def _write_far(folder: Path) -> None:
    """Render SynthPEDES-far, under an annotation file of its own name, unless it is there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_synthpedes(folder, FAR)
    annotations = folder / f"{folder.name}.json"
    if not annotations.exists():
        (folder / "reid_raw.json").rename(annotations)
