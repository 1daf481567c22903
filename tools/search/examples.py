"""Example queries for a gallery, offered on the page."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from datasets.annotations import read_annotations
from datasets.entries import Entry
from datasets.settings import DATASETS
from tools.search.search import Searcher
from utils.errors import UserError

_COUNT = 3
_SHORT = 120  # characters
_COMPARED = 60  # results
_PERSONS = ("a man", "a woman")
_CLOTHES = ("a red shirt", "a blue jacket", "a white shirt", "black trousers", "a green coat", "a yellow dress")


def examples(searcher: Searcher) -> list[str]:
    """Captions of the gallery if it is a data set, else generic sentences with clear matches in it."""
    named = Path(searcher.encoder.run.options.dataset_name)
    return captions_of(searcher.gallery, named) or _answered(searcher)


def captions_of(gallery: Path, annotations: Path) -> list[str]:
    """Short captions of different images in a gallery, from its test split if there is one.

    They come from a known annotation file in the gallery or up to two folders above it, or from `annotations`.
    """
    gallery = gallery.resolve()
    names = [name for dataset in DATASETS for name in DATASETS[dataset].files]
    beside = [folder / name for folder in (gallery, *gallery.parents[:2]) for name in names]
    for file in filter(Path.is_file, [annotations, *beside]):
        try:
            _, entries = read_annotations(str(file), Path())
        except UserError:
            continue
        folders = {folder: folder.resolve() for folder in {entry.path.parent for entry in entries}}
        inside = [entry for entry in entries if folders[entry.path.parent].is_relative_to(gallery)]
        if found := _few([e for e in inside if e.split == "test"]) or _few(inside):
            return found
    return []


def _few(entries: list[Entry]) -> list[str]:
    """The first short caption of a few evenly spaced entries."""
    captions = [next((c for c in entry.captions if 0 < len(c.strip()) <= _SHORT), None) for entry in entries]
    found = list(dict.fromkeys(caption.strip() for caption in captions if caption))
    return [found[n] for n in np.linspace(0, len(found) - 1, min(_COUNT, len(found))).astype(int)]


def _answered(searcher: Searcher) -> list[str]:
    """The generic sentences whose best result is furthest above the following ones."""
    sentences = [f"{person} in {clothes}" for person, clothes in product(_PERSONS, _CLOTHES)]
    results = searcher.search(sentences, _COMPARED, searcher.encoder.similarities[-1])
    lead = [hits[0].score - np.mean([hit.score for hit in hits]) for hits in results]
    return [sentences[n] for n in sorted(np.argsort(lead)[-_COUNT:])]
