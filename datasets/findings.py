"""Problems found in a data set: description, places, and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from utils.errors import printable


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        what: a short description.
        where: every place where it was found, in printable characters.
        remedy: what to do about it.
        grave: whether it would stop training; otherwise it is a remark.
    """

    what: str
    where: list[str]
    remedy: str
    grave: bool = True

    @property
    def line(self) -> str:
        """The finding as one log line."""
        more = f" and {len(self.where) - 1:,} more" if len(self.where) > 1 else ""
        return f"{self.what}: {self.where[0]}{more}; {self.remedy}"


def noted(what: str, where: Iterable[str], remedy: str, grave: bool = True) -> list[Finding]:
    """One finding at the given places, made printable; none if there are no places."""
    where = [printable(place) for place in where]
    return [Finding(what, where, remedy, grave)] if where else []
