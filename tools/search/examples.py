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
_MAX_LENGTH = 120  # characters
_COMPARED = 60  # results
_PERSONS = ("a man", "a woman")
_CLOTHES = ("a red shirt", "a blue jacket", "a white shirt", "black trousers", "a green coat", "a yellow dress")


def examples(searcher: Searcher) -> list[str]:
    """Captions of the gallery if it is a data set, else generic sentences with clear matches."""
    annotations = Path(searcher.encoder.run.options.dataset_name)
    return captions_of(searcher.gallery, annotations) or _generic(searcher)


def captions_of(gallery: Path, annotations: Path) -> list[str]:
    """Short captions of different images in a gallery, of its test split if it has one.

    They are read from `annotations`, or from a known annotation file in the gallery or up to two folders above it.
    """
    gallery = gallery.resolve()
    names = [name for dataset in DATASETS for name in DATASETS[dataset].files]
    candidates = [folder / name for folder in (gallery, *gallery.parents[:2]) for name in names]
    for file in filter(Path.is_file, [annotations, *candidates]):
        try:
            _, entries = read_annotations(str(file), Path())
        except UserError:
            continue
        folders = {folder: folder.resolve() for folder in {entry.path.parent for entry in entries}}
        inside = [entry for entry in entries if folders[entry.path.parent].is_relative_to(gallery)]
        if captions := _few([e for e in inside if e.split == "test"]) or _few(inside):
            return captions
    return []


def _few(entries: list[Entry]) -> list[str]:
    """The first short caption of a few evenly spaced entries."""
    captions = [next((c for c in entry.captions if 0 < len(c.strip()) <= _MAX_LENGTH), None) for entry in entries]
    unique = list(dict.fromkeys(caption.strip() for caption in captions if caption))
    return [unique[n] for n in np.linspace(0, len(unique) - 1, min(_COUNT, len(unique))).astype(int)]


def _generic(searcher: Searcher) -> list[str]:
    """The generic sentences whose best result leads the other results by the most."""
    sentences = [f"{person} in {clothes}" for person, clothes in product(_PERSONS, _CLOTHES)]
    results = searcher.search(sentences, _COMPARED, searcher.encoder.similarities[-1])
    lead = [hits[0].score - np.mean([hit.score for hit in hits]) for hits in results]
    return [sentences[n] for n in sorted(np.argsort(lead)[-_COUNT:])]
