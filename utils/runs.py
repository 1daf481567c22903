"""Run folders: making one, finding one."""

from __future__ import annotations

import subprocess
from datetime import datetime
from itertools import count
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from utils.errors import OptionError
from utils.options import read_yaml
from utils.records import read_records

CHECKPOINTS = ("best.pth", "last.pth")
EXPORTED = "model.safetensors"  # what tools.export makes of one of them
LOCK = ".lock"


def short_name(dataset_name: str) -> str:
    """A data set's name for folders: its own, or its annotation file's without the ending."""
    return Path(dataset_name).stem if Path(dataset_name).is_file() else dataset_name


def make_run_dir(output_dir: Path, dataset_name: str, name: str, loss_names: str) -> Path:
    """Make `<output_dir>/<dataset_name>/<YYYYmmdd_HHMMSS>_<name>_<loss_names>`; never one that exists.

    Raises:
        OptionError: the folder can't be made.
    """
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    for number in count(1):
        run_dir = output_dir / dataset_name / f"{stamp}_{name}_{loss_names}{f'_{number}' if number > 1 else ''}"
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            if not run_dir.is_dir():
                raise OptionError(f"--output_dir {output_dir}: {run_dir} can't be made, a file is in the way") from None
        except OSError as error:
            raise OptionError(f"--output_dir {output_dir}: {run_dir} can't be made: {error.strerror}") from None
        else:
            return run_dir
    raise AssertionError("unreachable")


def newest_run(output_dir: Path, holding: str) -> Path:
    """The run folder under `output_dir` with the youngest name among those that hold a file `holding`.

    Raises:
        OptionError: there is none.
    """
    runs = [path.parent for path in output_dir.glob(f"*/*/{holding}") if (path.parent / "configs.yaml").is_file()]
    if not runs:
        raise OptionError(f"no run in {output_dir}/ holds {holding}; train first, or name a run folder")
    return max(runs, key=lambda run: run.name)


def newest_unfinished_run(output_dir: Path) -> Path:
    """The youngest run whose epochs and test are not all done.

    Raises:
        OptionError: there is none, or another process is training it.
    """
    runs = [path.parent for path in output_dir.glob("*/*/configs.yaml")]
    runs = [run for run in runs if not is_finished(run)]
    if not runs:
        raise OptionError(f"no unfinished run in {output_dir}/")
    newest = max(runs, key=lambda run: run.name)
    if is_locked(newest):
        raise OptionError(f"{newest} is being trained by another process; name an older one: --resume RUN_DIR")
    return newest


def checkpoint_to_continue(run: Path) -> Path:
    """A run's last.pth, which is not there yet when the run was stopped within its first epoch.

    Raises:
        OptionError: no run, or one that has lost its checkpoint.
    """
    checkpoint = run / "last.pth"
    started = (run / "configs.yaml").is_file() and len(read_records(run / "metrics.jsonl")) < 2
    if not checkpoint.is_file() and not started:
        raise OptionError(f"no checkpoint {checkpoint} to continue from")
    return checkpoint


def is_finished(run: Path) -> bool:
    """Whether a run has done its last epoch and its test."""
    epochs = read_yaml(run / "configs.yaml").get("num_epoch")
    records = read_records(run / "metrics.jsonl")
    return (run / "test_metrics.json").is_file() and bool(records) and records[-1]["epoch"] == epochs


def lock(run: Path) -> AcquireReturnProxy:
    """Lock a run for this process, as `hold` does.

    Raises:
        OptionError: another process is training it.
    """
    return hold(run, f"{run} is being trained by another process")


def hold(folder: Path, taken: str) -> AcquireReturnProxy:
    """Lock a folder for this process, in a `with` block or until what is returned is dropped.

    Raises:
        OptionError: another process has it; `taken` is the message.
    """
    try:
        return FileLock(folder / LOCK).acquire(blocking=False)
    except Timeout:
        raise OptionError(taken) from None


def is_locked(run: Path) -> bool:
    """Whether a process is training the run."""
    if not (run / LOCK).is_file():
        return False
    try:
        with lock(run):
            return False
    except OptionError:
        return True


def git_revision() -> str:
    """The code's commit, with "+" where it was changed since; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("+" if changed else "")
