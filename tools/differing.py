"""In which flags runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import options  # noqa: F401  (declares all flags)
from solver.settings import without_label
from utils.options import defaults
from utils.run_folder import RunFolder
from utils.settings import FLAGS

# Flags in which runs may differ and still be the same experiment, beside those that a run may be resumed with.
_INCIDENTAL = ("name", "record_test")


def flags_of(run: RunFolder) -> dict[str, Any]:
    """A run's flags, without the label of `--loss_names`, which repeats others; those it lacks have their defaults.

    Raises:
        OptionError: it has no configuration.
    """
    flags = {**defaults(), **run.flags()}
    return flags | {"loss_names": without_label(str(flags["loss_names"]))}


def differing(flags: Sequence[Mapping[str, Any]]) -> list[str]:
    """The flags in which runs differ, but for incidental ones; the seed comes last."""
    names = [name for name in (flags[0] if flags else ()) if name in FLAGS and not FLAGS[name].resumable]
    names = [name for name in names if name not in _INCIDENTAL]
    found = [name for name in names if len({str(of.get(name)) for of in flags}) > 1]
    return sorted(found, key=lambda name: name == "seed")
