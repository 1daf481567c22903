"""Checkpoints: written beside and renamed, so that a kill leaves the previous one; read as tensors only.

Weights alone, as `python -m tools.export` writes them, are read as a checkpoint that holds nothing else.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import WeightsError, brief
from utils.files import in_one_step
from utils.program import interrupts_wait

_MOST_CODE = 1 << 26  # bytes of code, which TorchScript compresses; tensors are never compressed


def save_checkpoint(content: dict[str, Any], file: Path) -> None:
    """Write tensors and plain values, replacing `file` in one step.

    Raises:
        WeightsError: the disk is full or read-only; an older `file` is untouched.
    """
    try:
        with interrupts_wait(), in_one_step(file) as partial, partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
        raise WeightsError(f"checkpoint {file} can't be written, is the disk full? ({brief(error)})") from None


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint without building any object but tensors and plain values.

    Raises:
        WeightsError: missing, broken, or holding anything else.
    """
    if not file.is_file():
        raise WeightsError(f"no checkpoint {file}")
    try:
        if file.suffix == ".safetensors":
            return {"model": load_file(file)}
        refuse_unfolding(file)
        if zipfile.is_zipfile(file) and (damaged := zipfile.ZipFile(file).testzip()):  # torch checks no checksum
            raise ValueError(f"{damaged} is damaged")
        content = load_tensors(file)
    except Exception as error:  # torch, safetensors, zipfile and pickle each raise their own types
        raise WeightsError(f"checkpoint {file} can't be read: {brief(error)}") from None
    if not isinstance(content, dict) or not is_state(content.get("model")):
        raise WeightsError(f"checkpoint {file} holds no model")
    return content


def refuse_unfolding(file: Path) -> None:
    """Refuse an archive that would fill memory: it says to hold more than its own length and some code.

    Raises:
        ValueError: how much it says to hold.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
    if unfolded > file.stat().st_size + _MOST_CODE:
        raise ValueError(f"its {file.stat().st_size:,} bytes would unfold to {unfolded:,}")


def load_tensors(file: Path) -> Any:
    """What torch.save wrote, if it is tensors and plain values; no code of the file's is run.

    Raises:
        ValueError: it holds something else. Exception: whatever torch raises for a broken file.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it is cut off, or holds other objects than tensors, none of which was built") from None


def is_state(content: object) -> bool:
    """Whether something that was read is plain tensors of real numbers by name."""
    return isinstance(content, dict) and all(isinstance(k, str) and is_plain(v) for k, v in content.items())


def is_plain(value: object) -> bool:
    """Whether something that was read is a tensor of real numbers that are all there."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_meta or value.is_quantized:
        return False
    if value.layout != torch.strided or value.is_complex():
        return False
    return value.nbytes <= value.untyped_storage().nbytes()  # one that repeats itself would unfold when it is copied
