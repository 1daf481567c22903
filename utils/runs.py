"""Run folders: making one, finding one."""

from __future__ import annotations

import subprocess
from datetime import datetime
from itertools import count
from pathlib import Path

from utils.errors import OptionError
from utils.options import read_yaml
from utils.records import read_records

CHECKPOINTS = ("best.pth", "last.pth")


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


def newest_run(output_dir: Path, holding: str, *, unfinished: bool = False) -> Path:
    """The run folder under `output_dir` with the youngest name among those that hold a file `holding`.

    Args:
        unfinished: pass over runs whose last epoch and test are done.

    Raises:
        OptionError: there is none.
    """
    runs = [path.parent for path in output_dir.glob(f"*/*/{holding}") if (path.parent / "configs.yaml").is_file()]
    if unfinished:
        runs = [run for run in runs if not _is_finished(run)]
    if not runs:
        kind = "unfinished run" if unfinished else "run"
        raise OptionError(f"no {kind} in {output_dir}/ holds {holding}; train first, or name a run folder")
    return max(runs, key=lambda run: run.name)


def _is_finished(run: Path) -> bool:
    epochs = read_yaml(run / "configs.yaml").get("num_epoch")
    return (run / "test_metrics.json").is_file() and len(read_records(run / "metrics.jsonl")) == epochs


def git_revision() -> str:
    """The code's commit, with "+" where it was changed since; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("+" if changed else "")
