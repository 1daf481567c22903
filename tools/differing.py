"""Flags in which runs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import options  # noqa: F401  (declares all flags)
from solver.settings import without_label
from utils.options import defaults
from utils.run_folder import RunFolder
from utils.settings import FLAGS

# Flags that may differ between runs of the same experiment, in addition to resumable ones.
_INCIDENTAL = ("name", "record_test")


def flags_of(run: RunFolder) -> dict[str, Any]:
    """A run's flags, with defaults for missing ones, and without the label of `--loss_names`, which repeats others.

    Raises:
        OptionError: it has no configuration.
    """
    flags = {**defaults(), **run.flags()}
    return flags | {"loss_names": without_label(str(flags["loss_names"]))}


def differing_flags(flags: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the flags that differ between runs, except incidental ones; the seed comes last."""
    names = [name for name in (flags[0] if flags else ()) if name in FLAGS and not FLAGS[name].resumable]
    names = [name for name in names if name not in _INCIDENTAL]
    names = [name for name in names if len({str(values.get(name)) for values in flags}) > 1]
    return sorted(names, key=lambda name: name == "seed")


def display_values(flags: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """The values of some flags for each run: numbers unchanged, paths shortened, empty values as "none"."""
    runs: list[dict[str, Any]] = [{} for _ in flags]
    for name in names:
        values = [run_flags.get(name) for run_flags in flags]
        texts = [value for value in values if isinstance(value, str)]
        suffix = dict(zip(texts, distinct_suffixes(texts), strict=True))
        for run, value in zip(runs, values, strict=True):
            if isinstance(value, str):
                run[name] = suffix[value] or "none"
            else:
                run[name] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return runs


def distinct_suffixes(paths: Sequence[str]) -> list[str]:
    """The shortest distinct suffixes of the paths; none begins with "_", which matplotlib omits from legends."""
    parts, suffixes = [PurePath(path).parts for path in paths], list(paths)
    for length in range(1, max(map(len, parts), default=0) + 1):
        suffixes = ["/".join(path[-length:]) for path in parts]
        if len(set(suffixes)) == len(set(parts)) and not any(suffix.startswith("_") for suffix in suffixes):
            break
    return suffixes
