"""Running what a row needs: one training for each seed, continued where it was cut off, never repeated."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.synthpedes import RECIPE, write_synthpedes
from tools.reproduce.tables import Row
from train import FREE_ON_RESUME
from utils.errors import OptionError
from utils.options import build_parser, parse, resolve
from utils.records import read_records
from utils.runs import is_locked

ROOT = Path(__file__).parents[2]
FAR = RECIPE | {"seed": 2025, "difficulty": 0.8}  # SynthPEDES-far: other persons, harder pictures


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
        return next((file.parent for file in sorted(self.folder.glob("*/*/test_metrics.json"))), None)

    def train(self, *, dry_run: bool) -> None:
        """Train unless it is done, and test on the row's other data set unless that is done.

        Raises:
            OptionError: a run is there that other flags made, or is still going on, or the command fails.
        """
        for config in self.folder.glob("*/*/configs.yaml"):
            _check_same(config, self.arguments)
            if is_locked(config.parent):
                raise OptionError(f"{config.parent} is being trained by another process: wait for it, or end it")
        if self.run_dir() is None:
            unfinished = list(self.folder.glob("*/*/last.pth"))
            continued = ["--resume", "--output_dir", str(self.folder)]
            self._execute(["train.py", *(continued if unfinished else self.arguments)], dry_run)
        if self.row.target and (dry_run or not self._target_file().is_file()):
            self._execute(["test.py", str(self.run_dir() or "RUN_DIR"), *self._target_flags()], dry_run)

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Metrics of the row's similarity for each way of choosing a checkpoint; None if the run is not finished.

        "best by validation" and "last" are the run's two checkpoints; "best by test" is the epoch in which R1 on the
        test split was highest, as the published code chooses (not known on another data set).
        """
        run_dir = self.run_dir()
        if run_dir is None or (self.row.target and not self._target_file().is_file()):
            return None
        tested = _read(self._target_file() if self.row.target else run_dir / "test_metrics.json")
        found = {"best by validation": tested["best.pth"], "last": tested["last.pth"]}
        epochs = [record["test"] for record in read_records(run_dir / "metrics.jsonl") if "test" in record]
        if epochs and not self.row.target:
            found["best by test"] = max(epochs, key=lambda metrics: metrics[self.row.trained]["R1"])
        return {choice: metrics[self.row.similarity] for choice, metrics in found.items()}

    def _target_flags(self) -> list[str]:
        if not self.row.small:
            return ["--dataset_name", self.row.target, "--root_dir", self.root_dir]
        return ["--dataset_name", str(Path(self.root_dir, self.row.target, "SynthPEDES-far.json").absolute())]

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
        print(f"  to follow it: tail -f {log}", flush=True)
        with log.open("a", encoding="utf-8") as stream:
            status = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=stream, stderr=stream).returncode
        if status:
            lines = log.read_text(encoding="utf-8").strip().splitlines() or ["it printed nothing"]
            raise OptionError(f"{self.title}: {command[0]} ended with status {status}: {lines[-1]}")


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _check_same(config: Path, arguments: Sequence[str]) -> None:
    """Refuse to count a run that other flags made."""
    was, now = resolve({"config": str(config)}), resolve(parse(build_parser(""), arguments))
    for name in now.keys() - (FREE_ON_RESUME - {"root_dir"}):
        if was[name] != now[name]:
            raise OptionError(
                f"{config.parent} was run with {name} {was[name]}, now it would be {now[name]}: "
                "delete it or choose another --output_dir"
            )


def _write_far(folder: Path) -> None:
    """Render SynthPEDES-far, under an annotation file of its own name, unless it is there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_synthpedes(folder, **FAR)
    annotations = folder / f"{folder.name}.json"
    if not annotations.exists():
        (folder / "reid_raw.json").rename(annotations)
