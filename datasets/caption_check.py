"""Checks of captions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import regex

from datasets.annotations import Split
from datasets.findings import Finding, found_at
from datasets.tokenizer import Tokenizer
from utils.log import progress

_CONTROL = regex.compile(r"\p{Cc}")
_SURROGATE = regex.compile(r"\p{Cs}")
_CJK = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\u3000-\u303f\uff00-\uffef]")
# Braces and the like, tags, entities, URLs, operators, and calls such as print(x), but not plural(s).
_MARKUP = regex.compile(
    r"[{}\\`|]|</?[a-z!][^>]*>|&(?:[a-z]+|#[0-9]+);|https?://|www\.|[=!]=|&&"
    r"""|\b[a-z_]\w*\((?!e?s\))(?:["'][^()]*|[^()\s]*)\)""",
    regex.IGNORECASE,
)
_TEXT_LENGTH = 77  # --text_length's default, CLIP's


def odd_captions(splits: Mapping[str, Split]) -> list[Finding]:
    """Captions that are empty, duplicated, shared by several persons, or not plausible as a description of a person."""
    rows = [
        (str(split.images[image]), caption, (name, split.image_pids[image]))
        for name, split in splits.items()
        for image, caption in zip(split.caption_images, split.captions, strict=True)
    ]
    times = Counter((image, caption.strip()) for image, caption, _ in rows)
    persons = defaultdict(set)
    for _, caption, person in rows:
        persons[" ".join(caption.lower().split())].add(person)
    shared = [f"{len(pids)} persons: {caption:.80}" for caption, pids in persons.items() if caption and len(pids) > 1]
    problems = {
        "empty captions": ([image for image, c, _ in rows if not c.strip()], "write them or remove them"),
        "duplicate captions of an image": (
            [f"{image}: {c:.80}" for (image, c), n in times.items() if c and n > 1],
            "one is enough, but removing the others changes the noise index",
        ),
        "captions shared by several persons": (
            shared,
            "each counts as a negative for the other persons, also in the test",
        ),
        "code or markup in captions": (
            [f"{image}: {c:.80}" for image, c, _ in rows if _MARKUP.search(c)],
            "not a description of a person: rewrite or remove them",
        ),
        "control characters": (
            [f"{image}: {c:.80}" for image, c, _ in rows if _CONTROL.search(c)],
            "harmless: they separate words or become tokens",
        ),
        "half surrogate pairs": (
            [f"{image}: {c:.80}" for image, c, _ in rows if _SURROGATE.search(c)],
            "harmless: they are read as unknown characters",
        ),
        "CJK characters": (
            [f"{image}: {c:.80}" for image, c, _ in rows if _CJK.search(c)],
            "harmless but unknown to CLIP: translate or remove them",
        ),
    }
    return [
        finding
        for what, (where, remedy) in problems.items()
        for finding in found_at(what, where, remedy, severity="warning")
    ]


def cut_captions(splits: Mapping[str, Split]) -> list[Finding]:
    """Captions longer than CLIP's text length."""
    tokenizer, cut = Tokenizer(), []
    for name, split in splits.items():
        captions = progress(split.captions, f"counting {name} tokens")
        for image, caption in zip(split.caption_images, captions, strict=True):
            if (tokens := len(tokenizer.encode(caption)) + 2) > _TEXT_LENGTH:
                cut.append(f"{split.images[image]}: {tokens} tokens: {caption:.80}")
    remedy = "the rest is ignored: shorten them, or train with a larger --text_length"
    return found_at(f"captions cut to {_TEXT_LENGTH} tokens", cut, remedy, severity="warning")
