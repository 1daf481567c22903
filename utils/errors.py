"""The errors a user can cause, each reported in one line."""

from __future__ import annotations

_BRIEF = 120  # letters


def printable(text: str, encoding: str = "utf-8", keep: str = "") -> str:
    """The text with what can't be written in the encoding, or would steer a terminal, spelt out, but for `keep`."""
    spelt = "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
    return spelt.encode(encoding, "backslashreplace").decode(encoding)


class UserError(Exception):
    """Something the user gave can't be used: one line that says which thing, why, and what is allowed."""

    @property
    def line(self) -> str:
        """The message alone. A data loader's worker wraps it in its own traceback, of which it is the last line."""
        last = str(self).strip().splitlines()[-1]
        return last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: ")


class DataError(UserError):
    """A file of the data set is missing, broken or not in its format."""


class OptionError(UserError):
    """A flag or a configuration key is unknown, of the wrong type or out of its range."""


class WeightsError(UserError):
    """A file of weights is missing, broken or made for another model."""


class NotFiniteError(UserError):
    """What training computes is no longer finite numbers; the message says where it was seen."""


def brief(error: BaseException) -> str:
    """Another library's error in one line: the beginning of its first, or its type's name where it says nothing."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines[0]) <= _BRIEF else f"{lines[0][: _BRIEF - 1]}…"
