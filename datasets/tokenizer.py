"""CLIP's byte-pair encoding with RDE's mask token.

The merges are read from the open_clip package's folder without importing the package, which would take seconds.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import ftfy
import numpy as np
import regex

MASK, SOS, EOS = 49405, 49406, 49407
_MAX_WORD = 1000  # characters; encoding takes quadratic time
_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


def _byte_alphabet() -> dict[int, str]:
    """A printable character for every byte, as in GPT-2's encoding."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _open_clip() -> Path:
    """The folder of the open_clip package."""
    spec = find_spec("open_clip")
    assert spec is not None, "requirements.txt names it"
    return Path(next(iter(spec.submodule_search_locations or ())))


@cache
def _tables() -> tuple[dict[int, str], dict[str, int], dict[tuple[str, str], int]]:
    """A character for every byte, an id for every symbol, and the rank of every merge."""
    with gzip.open(_open_clip() / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    # CLIP has 49152 − 256 − 2 merges; RDE drops the last, whose id becomes the mask's.
    merges = [(first, second) for first, second in map(str.split, lines[1 : 49152 - 256 - 2])]
    alphabet = _byte_alphabet()
    symbols = [*alphabet.values(), *(symbol + "</w>" for symbol in alphabet.values()), *map("".join, merges)]
    ids = {symbol: number for number, symbol in enumerate(symbols)}
    return alphabet, ids, {pair: rank for rank, pair in enumerate(merges)}


def _clean(caption: str) -> str:
    """The caption with its encoding repaired and without HTML entities."""
    if caption.isascii() and caption.isprintable() and "&" not in caption:  # nothing to do, as in most captions
        return caption
    return html.unescape(html.unescape(ftfy.fix_text(caption)))


class CaptionTokenizer(Protocol):
    """Interface of a backbone's tokenizer for training and evaluation.

    It may have attributes `mask` and `words`, the arguments of `datasets.augmentation.augment_text`; they default to
    CLIP's.
    """

    def encode(self, caption: str) -> list[int]:
        """The ids of a caption's words, without start and end tokens, untruncated."""
        ...

    def __call__(self, captions: Iterable[str], text_length: int) -> np.ndarray:
        """(N, text_length) int32, zero-padded; a caption's end token has the highest id of its row."""
        ...


class Tokenizer:
    """Captions to ids. Special tokens written in a caption, such as "<|endoftext|>", are ordinary text."""

    def __init__(self) -> None:
        self._alphabet, self._ids, self._ranks = _tables()
        self._encode_word = lru_cache(maxsize=1 << 16)(self._merge)

    def _merge(self, word: str) -> tuple[int, ...]:
        """Apply the merges by rank until none applies."""
        symbols = [self._alphabet[byte] for byte in word.encode("utf-8")]
        symbols[-1] += "</w>"
        while len(symbols) > 1:
            pairs = set(pairwise(symbols))
            first, second = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if (first, second) not in self._ranks:
                break
            merged, position = [], 0
            while position < len(symbols):
                if symbols[position : position + 2] == [first, second]:
                    merged.append(first + second)
                    position += 2
                else:
                    merged.append(symbols[position])
                    position += 1
            symbols = merged
        return tuple(self._ids[symbol] for symbol in symbols)

    def split(self, caption: str) -> list[tuple[str, tuple[int, ...]]]:
        """A caption's words after cleaning and lower-casing, each with its ids."""
        text = " ".join(_clean(caption).split()).lower()
        return [(word, self._encode_word(word[:_MAX_WORD])) for word in _WORDS.findall(text)]

    def encode(self, caption: str) -> list[int]:
        """The ids of a caption's words, without SOS and EOS, untruncated."""
        return [number for _, ids in self.split(caption) for number in ids]

    def __call__(self, captions: Iterable[str], text_length: int = 77) -> np.ndarray:
        """(N, text_length) int32: SOS, words, EOS, then zeros. A longer caption is truncated, with EOS last."""
        rows = [[SOS, *self.encode(caption)[: text_length - 2], EOS] for caption in captions]
        ids = np.zeros((len(rows), text_length), np.int32)
        for row, numbers in zip(ids, rows, strict=True):
            row[: len(numbers)] = numbers
        return ids


def count_cut(tokenizer: CaptionTokenizer, captions: Sequence[str], ids: np.ndarray) -> int:
    """Number of captions that were truncated to fit their row of the (N, L) `ids`."""
    full = np.flatnonzero(ids[:, -1]).tolist()  # only full rows can be truncated
    special = np.count_nonzero(tokenizer([""], ids.shape[1]))  # tokens that aren't words
    return sum(len(tokenizer.encode(captions[row])) > ids.shape[1] - special for row in full)
