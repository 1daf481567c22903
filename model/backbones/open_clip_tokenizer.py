"""Tokenizer of open_clip models without CLIP's vocabulary: Hugging Face's `tokenizer.json` beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from utils.errors import WeightsError, brief

FILE = "tokenizer.json"
_MASKS = ("<mask>", "[MASK]", "<unk>", "[UNK]")


class FileTokenizer:
    """Captions to ids, a `datasets.tokenizer.CaptionTokenizer`.

    Attributes:
        eos: the model's end token; in rows it is replaced by `words`, as the end must have the highest id.
        mask: id of the tokenizer's mask token, else of its unknown token.
        words: the vocabulary size, above all ids of words.
    """

    def __init__(self, file: Path, words: int, clean: Callable[[str], str]) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise WeightsError(f"{file} needs tokenizers: pip install -r requirements-siglip.txt ({error})") from None
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exception
            raise WeightsError(f"{file} can't be read as a tokenizer: {brief(error)}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._clean, self.words = clean, words
        added = self._tokenizer.encode("").ids
        if len(added) != 1:
            raise WeightsError(f"{file}: expected a tokenizer that adds one token, at the end, found {len(added)}")
        self.eos = added[0]
        mask = next((i for name in _MASKS if (i := self._tokenizer.token_to_id(name)) is not None), None)
        if mask is None:
            raise WeightsError(f"{file}: has neither a mask nor an unknown token: {', '.join(_MASKS)}")
        if (highest := self._tokenizer.get_vocab_size()) > words:
            raise WeightsError(f"{file} has {highest:,} tokens, the model {words:,}: it belongs to another one")
        self.mask = mask

    def encode(self, caption: str) -> list[int]:
        """The ids of a caption's words, untruncated."""
        return self._tokenizer.encode(self._clean(caption)).ids[:-1]

    def __call__(self, captions: Iterable[str], text_length: int) -> np.ndarray:
        """(N, text_length) int32: words, end, zeros. A longer caption is truncated, with the end last."""
        rows = [[*self.encode(caption)[: text_length - 1], self.words] for caption in captions]
        ids = np.zeros((len(rows), text_length), np.int32)
        for row, numbers in zip(ids, rows, strict=True):
            row[: len(numbers)] = numbers
        return ids
