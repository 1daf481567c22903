"""Errors caused by the user, each reported in one line."""

from __future__ import annotations

_BRIEF = 120  # characters


def printable(text: str, encoding: str = "utf-8", keep: str = "") -> str:
    """Escape characters that the encoding lacks and control characters, except those in `keep`."""
    escaped = "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


class UserError(Exception):
    """Invalid user input: one line that says what, why, and what is allowed."""

    @property
    def line(self) -> str:
        """The message itself, which in a data loader's worker is the last line of a wrapped traceback."""
        last = str(self).strip().splitlines()[-1]
        return last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: ")


class DataError(UserError):
    """A file of the data set is missing, broken or in the wrong format."""


class OptionError(UserError):
    """A flag or configuration key is unknown, of the wrong type or out of range."""


class WeightsError(UserError):
    """A weights file is missing, broken or of another model."""


class NotFiniteError(UserError):
    """Training produced NaN or infinite values; the message says where."""


def brief(error: BaseException) -> str:
    """Another library's error in one line: the start of its first line, or its type if it has no message."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines[0]) <= _BRIEF else f"{lines[0][: _BRIEF - 1]}…"
