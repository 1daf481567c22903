"""Sentences from the command line or a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tools.search.encode import Encoder
from utils.encoding import not_utf8
from utils.errors import DataError, OptionError, printable


def read_sentences(sentences: Sequence[str], file: Path | None) -> list[str]:
    """The given sentences, then those of a file with one per line.

    Raises:
        OptionError: no sentence, or an empty one.
        DataError: the file can't be read.
    """
    texts = [check_sentence(text) for text in sentences]
    if file:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise DataError(f"{file} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataError(not_utf8(file)) from None
        texts += [line.strip() for line in lines if line.strip()]
        if not texts:
            raise DataError(f"{file} contains no sentence")
    if not texts:
        raise OptionError('no query: give a sentence, as in "a woman in a red coat", or --from FILE')
    return texts


def check_sentence(text: str) -> str:
    """Strip a sentence.

    Raises:
        OptionError: it is empty.
    """
    if not text.strip():
        raise OptionError("the query is empty: describe a person, as in 'a woman in a red coat with a backpack'")
    return text.strip()


def one_line(text: str, limit: int = 300) -> str:
    """The sentence on one line, truncated to `limit` characters."""
    return printable(text if len(text) <= limit else f"{text[:limit].rstrip()} …")


def too_long(text: str, encoder: Encoder) -> str:
    """The warning for a sentence that the model truncates; "" for others."""
    tokens = len(encoder.tokenizer.encode(text))
    if tokens <= encoder.words:
        return ""
    return f"a sentence has {tokens:,} tokens, of which the model reads only the first {encoder.words}"


def warn_long(texts: Sequence[str], encoder: Encoder) -> None:
    """Warn about each sentence that is too long."""
    for text in texts:
        if warning := too_long(text, encoder):
            print(f"warning: {warning}: {one_line(text, 50)}", file=sys.stderr)
