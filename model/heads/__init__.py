"""Embeddings by name (`--heads`); a plugin adds its own with `HEADS.register`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.errors import OptionError
from utils.registry import Registry

if TYPE_CHECKING:
    from model.heads.base import Head

HEADS: Registry[Head] = Registry("head", {"BGE": "model.heads.bge", "TSE": "model.heads.tse"})


def head_names(heads: str) -> list[str]:
    """The names in a value of `--heads`.

    Raises:
        OptionError: one that is unknown, or twice.
    """
    names = heads.split("+")
    for name in names:
        if name not in HEADS:
            raise OptionError(f"--heads {heads}: choose from {', '.join(HEADS)}, joined by +")
    if len(set(names)) < len(names):
        raise OptionError(f"--heads {heads}: names a head twice")
    return names
