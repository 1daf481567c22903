"""Loading a run's model, and importing optional packages."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from assembly import load
from model.encoder import DualEncoder
from options import resolve_run
from utils.errors import OptionError
from utils.log import status
from utils.run_folder import RunFolder
from utils.settings import Options


class LoadedRun(NamedTuple):
    """A run's folder and options, its weights file, and its model in evaluation mode."""

    folder: Path
    options: Options
    file: Path
    model: DualEncoder


def load_run(run_dir: Path, device: torch.device, checkpoint: Path | None = None, **overrides: object) -> LoadedRun:
    """Load a run's model.

    Args:
        checkpoint: default: `RunFolder.weights`.
        overrides: options that replace the run's.

    Raises:
        OptionError: not a run folder.
        WeightsError: the weights can't be read.
    """
    file = checkpoint or RunFolder(run_dir).weights()
    options = resolve_run(run_dir / "configs.yaml", overrides)
    status(f"reading {file}")
    return LoadedRun(run_dir, options, file, load(file, options).to(device).eval())


def require(module: str, requirements: str) -> ModuleType:
    """Import an optional package.

    Raises:
        OptionError: it isn't installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(f"this needs the package {module}: pip install -r {requirements} ({error})") from None
