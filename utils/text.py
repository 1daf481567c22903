"""Text from files of anybody's, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with line breaks, control characters and half surrogate pairs as escapes, fit for any terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
