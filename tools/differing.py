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

# Flags in which runs of the same experiment may differ, in addition to resumable ones.
_INCIDENTAL = ("name", "record_test")


def flags_of(run: RunFolder) -> dict[str, Any]:
    """A run's flags, with defaults for missing ones, and without the label of `--loss_names`, which repeats others.

    Raises:
        OptionError: it has no configuration.
    """
    flags = {**defaults(), **run.flags()}
    return flags | {"loss_names": without_label(str(flags["loss_names"]))}


def differing(flags: Sequence[Mapping[str, Any]]) -> list[str]:
    """The flags in which runs differ, except incidental ones; the seed comes last."""
    names = [name for name in (flags[0] if flags else ()) if name in FLAGS and not FLAGS[name].resumable]
    names = [name for name in names if name not in _INCIDENTAL]
    found = [name for name in names if len({str(of.get(name)) for of in flags}) > 1]
    return sorted(found, key=lambda name: name == "seed")


def shown(flags: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """The values of some flags for each run: numbers unchanged, paths shortened by `ends`, empty values as "none"."""
    runs: list[dict[str, Any]] = [{} for _ in flags]
    for name in names:
        values = [of.get(name) for of in flags]
        texts = [value for value in values if isinstance(value, str)]
        end = dict(zip(texts, distinct_suffixes(texts), strict=True))
        for run, value in zip(runs, values, strict=True):
            if isinstance(value, str):
                run[name] = end[value] or "none"
            else:
                run[name] = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return runs


def distinct_suffixes(paths: Sequence[str]) -> list[str]:
    """The shortest distinct suffixes of the paths; none begins with "_", which matplotlib omits from legends."""
    parts, ends = [PurePath(path).parts for path in paths], list(paths)
    for length in range(1, max(map(len, parts), default=0) + 1):
        ends = ["/".join(of[-length:]) for of in parts]
        if len(set(ends)) == len(set(parts)) and not any(end.startswith("_") for end in ends):
            break
    return ends
