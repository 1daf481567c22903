"""A run's folder: the files that train.py, test.py and the tools read.

configs.yaml            all flags, and under `_run_` other facts about the run
best.pth, last.pth      checkpoints; an exported folder has model.safetensors instead
metrics.jsonl           one JSON object per epoch
start_metrics.json      metrics of the starting weights
test_metrics.json       metrics of the checkpoints on the test split; marks a finished run
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from utils.errors import DataError, OptionError
from utils.files import write_text
from utils.options import read_yaml

CHECKPOINTS = ("best.pth", "last.pth")
EXPORTED = "model.safetensors"  # written by tools.export
LOCK = ".lock"
_EPOCH = "epoch"
Metrics = dict[str, dict[str, float]]


class LockedError(OptionError):
    """Another process is using the folder."""


class RunFolder:
    """The folder of a run; it needn't exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def create(cls, output_dir: Path, dataset: str, name: str, loss_names: str) -> RunFolder:
        """Create `<output_dir>/<dataset>/<YYYYmmdd_HHMMSS>_<name>_<loss_names>`; never reuses an existing one.

        Raises:
            OptionError: the folder can't be created.
        """
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        for number in count(1):
            path = output_dir / dataset / f"{stamp}_{name}_{loss_names}{f'_{number}' if number > 1 else ''}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not path.is_dir():
                    raise OptionError(
                        f"--output_dir {output_dir}: {path} can't be created, a file is in the way"
                    ) from None
            except OSError as error:
                raise OptionError(f"--output_dir {output_dir}: {path} can't be created: {error.strerror}") from None
            else:
                return cls(path)
        raise AssertionError("unreachable")

    @classmethod
    def all_in(cls, output_dir: Path) -> list[RunFolder]:
        """The runs in an --output_dir, oldest first."""
        folders = [config.parent for config in output_dir.glob("*/*/configs.yaml")]
        return [cls(folder) for folder in sorted(folders, key=lambda folder: folder.name)]

    @classmethod
    def newest(cls, output_dir: Path, holding: str) -> RunFolder:
        """The newest run that contains a file `holding`.

        Raises:
            OptionError: there is none.
        """
        runs = [run for run in cls.all_in(output_dir) if (run.path / holding).is_file()]
        if not runs:
            raise OptionError(f"no run in {output_dir}/ holds {holding}; train first, or give a run folder")
        return runs[-1]

    @classmethod
    def newest_unfinished(cls, output_dir: Path) -> RunFolder:
        """The newest run whose training or test isn't finished.

        Raises:
            OptionError: there is none, or another process is training it.
        """
        runs = [run for run in cls.all_in(output_dir) if not run.is_finished()]
        if not runs:
            raise OptionError(f"no unfinished run in {output_dir}/")
        if runs[-1].is_locked():
            raise OptionError(
                f"{runs[-1]} is being trained by another process; to resume an older one: --resume RUN_DIR"
            )
        return runs[-1]

    @property
    def config(self) -> Path:
        """Path of the configuration."""
        return self.path / "configs.yaml"

    def flags(self) -> dict[str, Any]:
        """The flags in the configuration, unchecked.

        Raises:
            OptionError: the file is missing or isn't a configuration.
        """
        return {name: value for name, value in read_yaml(self.config).items() if name != "_run_"}

    def facts(self) -> dict[str, Any]:
        """The facts about the run in the configuration."""
        facts = read_yaml(self.config).get("_run_")
        return facts if isinstance(facts, dict) else {}

    def write_config(self, options: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write all resolved flags and the facts about the run, atomically."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        write_text(self.config, yaml.safe_dump({**plain, "_run_": dict(facts)}, sort_keys=False, allow_unicode=True))

    def extend(self, num_epoch: int) -> int:
        """Record a larger number of epochs in the configuration; returns the former number, or 0 if unchanged."""
        flags, facts = self.flags(), self.facts()
        previous = flags.get("num_epoch", num_epoch)
        if num_epoch <= previous:
            return 0
        self.write_config(
            flags | {"num_epoch": num_epoch}, facts | {"extended_from": [*facts.get("extended_from", ()), previous]}
        )
        return previous

    def copy_files(self, files: Iterable[Path]) -> None:
        """Copy files that the run depends on, such as plugins, into the folder, in case the originals are removed."""
        for file in files:
            if file.parent.resolve() != self.path.resolve():
                shutil.copy(file, self.path / file.name)

    def records(self) -> list[dict[str, Any]]:
        """One record per epoch from metrics.jsonl, up to a line truncated by a kill; empty if it is missing."""
        return read_records(self.path / "metrics.jsonl")

    def start_metrics(self) -> dict[str, Metrics]:
        """Metrics of the starting weights by split; empty if missing or damaged."""
        try:
            content = json.loads((self.path / "start_metrics.json").read_text(encoding="utf-8"))
            return {
                split: {row: {name: float(value) for name, value in values.items()} for row, values in rows.items()}
                for split, rows in content.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def test_metrics(self, suffix: str = "") -> dict[str, Metrics]:
        """Test metrics by checkpoint, in percent; empty before a test. For arguments and errors see `tested`."""
        tested = self.tested(suffix)
        return {name: {row: values for row, values in rows.items() if row != _EPOCH} for name, rows in tested.items()}

    def tested(self, suffix: str = "") -> dict[str, dict[str, Any]]:
        """As `test_metrics`, with each checkpoint's "epoch", if recorded.

        Args:
            suffix: file suffix of a test on other data than the run's.

        Raises:
            DataError: the file is damaged.
        """
        file = self.path / f"test_metrics{suffix}.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return {
                checkpoint: {
                    row: int(values) if row == _EPOCH else {name: float(value) for name, value in values.items()}
                    for row, values in rows.items()
                }
                for checkpoint, rows in content.items()
            }
        except OSError:
            return {}
        except (ValueError, TypeError, AttributeError):
            raise DataError(f"{file} is damaged: delete it and evaluate again") from None

    def weights(self) -> Path:
        """The best checkpoint, else the last, else exported weights.

        Raises:
            OptionError: there is none.
        """
        if not (files := self.all_weights()):
            raise OptionError(f"{self} holds no {' or '.join((*CHECKPOINTS, EXPORTED))}: is it a run folder?")
        return files[0]

    def all_weights(self) -> list[Path]:
        """All weights files, the best checkpoint first."""
        return [self.path / name for name in (*CHECKPOINTS, EXPORTED) if (self.path / name).is_file()]

    def checkpoint_to_resume(self) -> Path:
        """Path of last.pth, which doesn't exist yet if the run was stopped within its first epoch.

        Raises:
            OptionError: not a run, or its checkpoint is missing.
        """
        checkpoint = self.path / "last.pth"
        started = self.config.is_file() and len(self.records()) < 2
        if not checkpoint.is_file() and not started:
            raise OptionError(f"no checkpoint {checkpoint} to resume from")
        return checkpoint

    def is_finished(self) -> bool:
        """Whether the last epoch and the test are done."""
        records = self.records()
        last = bool(records) and records[-1]["epoch"] == read_yaml(self.config).get("num_epoch")
        return last and (self.path / "test_metrics.json").is_file()

    def lock(self) -> AcquireReturnProxy:
        """Lock the run for this process; see `lock_folder`.

        Raises:
            LockedError, OptionError: see `lock_folder`.
        """
        return lock_folder(self.path, f"{self} is being trained by another process")

    def is_locked(self) -> bool:
        """Whether a process is training it; False if it can't be locked, e.g. because it is another user's."""
        if not (self.path / LOCK).is_file():
            return False
        try:
            with self.lock():
                return False
        except LockedError:
            return True
        except OptionError:
            return False


def read_records(file: Path) -> list[dict[str, Any]]:
    """`RunFolder.records` for any metrics.jsonl."""
    records: list[dict[str, Any]] = []
    if not file.is_file():
        return records
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
            break
        records.append(record)
    return records


def lock_folder(folder: Path, message: str) -> AcquireReturnProxy:
    """Lock a folder for this process, for a `with` block or until the returned object is deleted.

    Raises:
        LockedError: another process has locked it, with this `message`.
        OptionError: it can't be locked, e.g. because it is read-only.
    """
    try:
        return FileLock(folder / LOCK).acquire(blocking=False)
    except Timeout:
        raise LockedError(message) from None
    except OSError as error:
        raise OptionError(f"{folder} can't be locked: {error.strerror or error}") from None


def git_revision() -> str:
    """The code's commit, with "+" if there are local changes; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("+" if changed else "")
