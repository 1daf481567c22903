"""Problems found in a data set: description, places, and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from utils.errors import printable

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        what: a short description.
        where: all places where it occurs, in printable characters.
        remedy: what to do about it.
        severity: an "error" stops training, a "warning" does not.
    """

    what: str
    where: list[str]
    remedy: str
    severity: Severity = "error"

    @property
    def line(self) -> str:
        """The finding as one log line."""
        more = f" and {len(self.where) - 1:,} more" if len(self.where) > 1 else ""
        return f"{self.what}: {self.where[0]}{more}; {self.remedy}"


def found_at(what: str, where: Iterable[str], remedy: str, severity: Severity = "error") -> list[Finding]:
    """A list of one finding at the given places, made printable; empty if there are none."""
    where = [printable(place) for place in where]
    return [Finding(what, where, remedy, severity)] if where else []
