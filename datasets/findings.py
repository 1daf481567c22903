"""Problems found in a data set: what, where, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from utils.errors import printable


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        what: in a few words.
        where: every place it was found at, in printable characters.
        remedy: what to do about it.
        grave: training would stop at it; otherwise it is a remark.
    """

    what: str
    where: list[str]
    remedy: str
    grave: bool = True

    @property
    def line(self) -> str:
        """For a log."""
        more = f" and {len(self.where) - 1:,} more" if len(self.where) > 1 else ""
        return f"{self.what}: {self.where[0]}{more}; {self.remedy}"


def noted(what: str, where: Iterable[str], remedy: str, grave: bool = True) -> list[Finding]:
    """One finding of places, whose characters become printable; none without a place."""
    where = [printable(place) for place in where]
    return [Finding(what, where, remedy, grave)] if where else []
