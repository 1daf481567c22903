"""Checkpoints, written atomically, so that a kill leaves the previous file intact, and read as tensors only.

Exported weights (`python -m tools.export`) are read as a checkpoint that contains only the model.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import WeightsError, brief, printable
from utils.files import atomic_write
from utils.plain_numpy import PLAIN_NUMBERS
from utils.program import defer_interrupts

_STRIP = (  # keeps tensors, including those under the usual keys
    "python -c \"import sys, torch; c = torch.load(sys.argv[1], 'cpu', weights_only=False); torch.save("
    "{{k: v for k, v in c.items() if torch.is_tensor(v) or k in ('model', 'state_dict')}}, 'stripped.pth')\" {file}"
)
OBJECTIVE = "objective."  # prefix of an objective's weights in checkpoints
# Prefixes of IRRA's identity classifier and masked language modelling in its published files and our older ones.
_PUBLISHED_OBJECTIVES = (
    "classifier.", "cross_attn.", "cross_modal_transformer.", "ln_pre_t.", "ln_pre_i.", "ln_post.", "mlm_head."
)  # fmt: skip
_MAX_CODE_SIZE = 1 << 26  # bytes of uncompressed code in a TorchScript archive; tensors are never compressed


def save_checkpoint(content: dict[str, Any], file: Path) -> None:
    """Write tensors and plain values, replacing `file` atomically.

    Raises:
        WeightsError: the disk is full or read-only; an existing `file` is untouched.
    """
    try:
        with defer_interrupts(), atomic_write(file) as partial, partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise WeightsError(f"checkpoint {file} can't be written, is the disk full? ({brief(error)})") from None


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint, constructing only tensors and plain values.

    Raises:
        WeightsError: it is missing or broken, or contains other objects.
    """
    if not file.is_file():
        raise WeightsError(f"no checkpoint {file}")
    try:
        if file.suffix == ".safetensors":
            return {"model": load_file(file), **safetensors_facts(file)}
        refuse_zip_bomb(file)
        if zipfile.is_zipfile(file) and (damaged := zipfile.ZipFile(file).testzip()):  # torch doesn't verify checksums
            raise ValueError(f"{damaged} is damaged")
        content = load_tensors(file)
    except WeightsError:
        raise
    except Exception as error:  # torch, safetensors, zipfile and pickle raise many types
        raise WeightsError(f"checkpoint {file} can't be read: {brief(error)}") from None
    if not isinstance(content, dict) or not is_state(content.get("model")):
        raise WeightsError(f"checkpoint {file} holds no model")
    return content


def epoch_of(file: Path) -> int | None:
    """The epoch after which a readable checkpoint was written; None if not recorded."""
    if file.suffix == ".safetensors":
        epoch = safetensors_facts(file).get("epoch")
    else:
        with torch.serialization.safe_globals(PLAIN_NUMBERS):  # tensors aren't read from disk
            epoch = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)).get("epoch")
    return epoch if isinstance(epoch, int) else None


def refuse_zip_bomb(file: Path) -> None:
    """Refuse an archive that would fill memory: its uncompressed size exceeds its file size plus some code.

    Raises:
        ValueError: the archive is such a bomb; the message names its uncompressed size.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        uncompressed = sum(entry.file_size for entry in archive.infolist())
    if uncompressed > file.stat().st_size + _MAX_CODE_SIZE:
        raise ValueError(f"its {file.stat().st_size:,} bytes would expand to {uncompressed:,}")


def safetensors_facts(file: Path) -> dict[str, Any]:
    """The `towers`, `backbone` and `epoch` in an exported file's metadata, if present.

    Raises:
        Exception: whatever safetensors and json raise for a broken file.
    """
    with safe_open(file, "pt") as archive:
        metadata = archive.metadata() or {}
    return {name: json.loads(metadata[name]) for name in ("towers", "backbone", "epoch") if name in metadata}


def load_tensors(file: Path) -> Any:
    """Read a torch.save file of tensors, plain values and NumPy scalars; no code from the file is run.

    Raises:
        WeightsError: it contains another object; the message names it. ValueError: it is truncated. Exception: whatever
            torch raises for a broken file.
    """
    try:
        with torch.serialization.safe_globals(PLAIN_NUMBERS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise ValueError("it is truncated or not a checkpoint") from None
        name = "numpy.ndarray" if found[1].endswith("multiarray._reconstruct") else printable(found[1])[:80]
        message = f"{file} can't be read: it contains {name}, which is not a tensor and was not loaded"
        if "is blocked" not in str(error):
            message += f"; if you trust its source, keep only the weights: {_STRIP.format(file=shlex.quote(str(file)))}"
        raise WeightsError(message) from None


def is_state(content: object) -> bool:
    """Whether a file's content is a dict of plain, real tensors by name."""
    return isinstance(content, dict) and all(isinstance(k, str) and is_plain(v) for k, v in content.items())


def is_plain(value: object) -> bool:
    """Whether a value read from a file is a real tensor with all its elements in the file."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_meta or value.is_quantized:
        return False
    if value.layout != torch.strided or value.is_complex():
        return False
    return value.nbytes <= value.untyped_storage().nbytes()  # an expanded one would grow when copied


def without_objectives(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's weights without those of objectives, which it lists under "objectives", unless it is published."""
    listed = content.get("objectives")
    if isinstance(listed, list):
        return {name: value for name, value in content["model"].items() if name not in listed}
    prefixes = (OBJECTIVE, *_PUBLISHED_OBJECTIVES)
    return {n: value for n, value in content["model"].items() if not n.removeprefix("module.").startswith(prefixes)}


def describe_mismatch(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> str:
    """How loaded weights differ from a module's, by name and shape; "" if they fit."""
    wrong = [
        f"{name} {tuple(loaded[name].shape)} for {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & loaded.keys())
        if loaded[name].shape != expected[name].shape
    ]
    differing = {
        "missing": sorted(expected.keys() - loaded.keys()),
        "unknown": sorted(loaded.keys() - expected.keys()),
        "of another shape": wrong,
    }
    return "; ".join(f"{what} {_first_few(names)}" for what, names in differing.items() if names)


def _first_few(names: list[str], limit: int = 8) -> str:
    """The first few of a list of names, for a message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
