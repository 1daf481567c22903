"""What the commands have in common: a run's model for use, and what to do when an optional package is missing."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from easydict import EasyDict

from model.rde import RDE
from model.weights import model_from_checkpoint
from utils.errors import OptionError
from utils.options import resolve_run
from utils.runs import CHECKPOINTS, EXPORTED


class LoadedRun(NamedTuple):
    """A run's folder and options, the file that its weights are from, and its model in evaluation mode."""

    folder: Path
    options: EasyDict
    file: Path
    model: RDE


def find_weights(run_dir: Path) -> Path:
    """The best checkpoint of a run's folder, else the last; of an exported folder its weights.

    Raises:
        OptionError: there is none.
    """
    names = (*CHECKPOINTS, EXPORTED)
    file = next((run_dir / name for name in names if (run_dir / name).is_file()), None)
    if file is None:
        raise OptionError(f"{run_dir} holds no {' or '.join(names)}: is it a run folder?")
    return file


def load_run(run_dir: Path, device: torch.device, checkpoint: Path | None = None, **given: object) -> LoadedRun:
    """Build a run's model.

    Args:
        checkpoint: in place of what `find_weights` finds.
        given: options in place of the run's own.

    Raises:
        OptionError, WeightsError: no run there, or weights that can't be read.
    """
    file = checkpoint or find_weights(run_dir)
    options = resolve_run(run_dir / "configs.yaml", given)
    return LoadedRun(run_dir, options, file, model_from_checkpoint(file, options).to(device).eval())


def require(module: str, requirements: str) -> ModuleType:
    """Import an optional package.

    Raises:
        OptionError: it is not installed; says how to.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(f"this needs the package {module}: pip install -r {requirements} ({error})") from None
