"""Finding all problems of a data set on disk, without raising.

`read_splits` stops at the first mistake; this finds them all, including those that training wouldn't notice.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datasets.annotations import Split, build_split, check_ids, check_release, merge_images
from datasets.caption_check import cut_captions, odd_captions
from datasets.catalogue import Place, locate, short_name
from datasets.duplicates import Digests, across_sets, across_splits, pixel_digests
from datasets.entries import Entry, check_entry, check_spelling
from datasets.findings import Finding, found_at
from datasets.noise import NOISEINDEX, read_permutation
from utils.errors import DataError, OptionError

SPLITS = ("train", "val", "test")
_RATES = (0.2, 0.5, 0.8)


def check_dataset(
    dataset_name: str,
    root_dir: Path,
    noisy_rate: float | None = None,
    noisy_file: str = "",
    split_all: str = "",
    against: Sequence[str] = (),
) -> tuple[dict[str, Split], list[Finding]]:
    """Check a data set's annotations, images (decoding all, with a progress bar) and noise indices.

    Args:
        dataset_name, root_dir, split_all: see `locate`.
        noisy_rate, noisy_file: the noise index to check, none at rate 0; default: all of the data set's in
            `noiseindex/`.
        against: other data sets to search for the same images.

    Returns:
        The splits that can be read, and the findings, errors first.

    Raises:
        DataError: the annotation file is missing, or isn't a list of entries.
        OptionError: an invalid rate, or an unknown data set.
    """
    if noisy_rate is not None and not 0 <= noisy_rate <= 1:
        raise OptionError(f"--noisy_rate {noisy_rate}: must be at least 0 and at most 1")
    place = locate(dataset_name, root_dir, split_all)
    others = {other: locate(other, root_dir, split_all) for other in against}
    entries, findings = _read(place)
    splits = {name: build_split(listed) for name, listed in entries.items() if listed}
    outdated = _error_as_finding("an older release", partial(check_release, entries, place), "download the current one")
    findings += outdated
    if place.dataset.first_id is not None and entries["train"]:
        ids = partial(check_ids, entries["train"], place.dataset.first_id, place.file)
        findings += _error_as_finding("ids with gaps", ids, "else download the annotations again")
    findings += _persons_in_two_splits(entries)
    findings += check_splits(splits, place.dataset.sizes)
    findings += cut_captions(splits)
    digests, image_findings = _images(splits, place)
    findings += image_findings
    findings += _same_pixels(across_splits(splits, digests), "in {} and {}", _IN_SPLITS)
    for name, other in others.items():
        findings += _against(name, other, splits, digests)
    if "train" in splits and not outdated:  # a new noise index would not help
        findings += _noise_indices(dataset_name, len(splits["train"].captions), noisy_rate, noisy_file)
    return splits, sorted(findings, key=lambda finding: finding.severity != "error")


def check_splits(splits: Mapping[str, Split], sizes: Mapping[str, tuple[int, int, int]]) -> list[Finding]:
    """Checks that need no images: sizes that differ from the published ones, and odd captions."""
    return [*_sizes(splits, sizes), *odd_captions(splits)]


def odd_entries(entries: Sequence[Entry]) -> list[Finding]:
    """Entries of unknown splits, and entries in an unusual form."""
    return [*_unknown_split(entries), *_forms(entries)]


def _forms(entries: Iterable[Entry]) -> list[Finding]:
    forms = defaultdict(list)
    for entry in entries:
        for remark in entry.remarks:
            forms[remark].append(entry.where)
    return [
        finding
        for remark, where in forms.items()
        for finding in found_at(remark, where, "accepted as they are", severity="warning")
    ]


def _unknown_split(entries: Iterable[Entry]) -> list[Finding]:
    others = [f"{entry.where}: {entry.split!r:.60}" for entry in entries if entry.split not in SPLITS]
    return found_at("entries of unknown splits", others, "only train, val and test are read", severity="warning")


def _read(place: Place) -> tuple[dict[str, list[Entry]], list[Finding]]:
    entries: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    malformed, read = [], []
    for number, entry in enumerate(place.dataset.entries(place.file)):
        try:
            read.append(checked := check_entry(entry, place, number))
        except DataError as error:
            malformed.append(str(error))
            continue
        if checked.split in entries:
            entries[checked.split].append(checked)
    findings = found_at("malformed entries", malformed, "fix or remove them: training stops at the first")
    findings += [
        *odd_entries(read),
        *_error_as_finding("ids in two spellings", partial(check_spelling, read, place.file), "use one spelling"),
    ]
    needed = ("train",) if place.split_all else ("train", "test")
    missing = [name for name in needed if not entries[name]]
    entries = {name: merge_images(listed, place) for name, listed in entries.items()}
    return entries, findings + found_at("splits without entries", missing, f"is {place.file} complete?")


def _error_as_finding(what: str, check: Callable[[], object], remedy: str) -> list[Finding]:
    try:
        check()
    except DataError as error:
        return found_at(what, [str(error)], remedy)
    return []


def _persons_in_two_splits(entries: Mapping[str, list[Entry]]) -> list[Finding]:
    """Persons that are in several splits."""
    splits = defaultdict(set)
    for name, listed in entries.items():
        for entry in listed:
            splits[entry.number].add(name)
    shared = [f"id {number} in {', '.join(sorted(names))}" for number, names in splits.items() if len(names) > 1]
    return found_at(
        "persons in two splits", shared, "biases results upwards: give them distinct ids", severity="warning"
    )


def _sizes(splits: Mapping[str, Split], sizes: Mapping[str, tuple[int, int, int]]) -> list[Finding]:
    differing, added_captions = [], False
    for name, size in sizes.items():
        actual = splits[name].size if name in splits else (0, 0, 0)
        differing += [
            f"{name} has {has:,} {what}, published: {published:,}"
            for what, has, published in zip(("images", "captions", "persons"), actual, size, strict=True)
            if has != published
        ]
        added_captions = added_captions or actual[1] > size[1]
    remedy = "some copies have added captions: get the original" if added_captions else "get the whole data set"
    remedy += ": published results and noise indices do not apply"
    return found_at("sizes that differ from the published ones", differing, remedy, severity="warning")


def _images(splits: Mapping[str, Split], place: Place) -> tuple[Digests, list[Finding]]:
    paths = list(dict.fromkeys(path for split in splits.values() for path in split.images))
    exists = [os.path.isfile(path) for path in paths]  # noqa: PTH113
    missing = [path for path, present in zip(paths, exists, strict=True) if not present]
    inside = [path.relative_to(place.imgs).parts for path in missing if path.is_relative_to(place.imgs)]
    folders = sorted({str(place.imgs / parts[0]) for parts in inside if len(parts) > 1})
    absent = [folder for folder in folders if not os.path.isdir(folder)]  # noqa: PTH112
    counts = Counter(path for split in splits.values() for path in split.images)
    twice = [f"{path}: {times} times" for path, times in counts.items() if times > 1]
    digests, turned, unreadable = pixel_digests(np.array(paths)[exists].tolist())
    turned = [] if place.dataset.sizes else turned  # published numbers are for the pixels as stored
    return digests, [
        *found_at(
            "images listed repeatedly", twice, "use one entry per image, with all of its captions", severity="warning"
        ),
        *found_at("missing image folders", absent, "unpack them there"),
        *found_at("missing images", map(str, missing), f"image paths start from {place.imgs}"),
        *found_at("images that can't be read", unreadable, "download or unpack them again"),
        *found_at("images with an EXIF rotation", map(str, turned), _AS_STORED, severity="warning"),
    ]


def _against(name: str, place: Place, splits: Mapping[str, Split], digests: Digests) -> list[Finding]:
    """Images that are also in another data set, which isn't checked otherwise."""
    others = {split: build_split(listed) for split, listed in _read(place)[0].items() if listed}
    paths = list(dict.fromkeys(path for split in others.values() for path in split.images))
    other_digests, _, unreadable = pixel_digests(paths)
    same = across_sets(splits, digests, others, other_digests)
    findings = _same_pixels(same, f"in {{}} and in {short_name(name)}'s {{}}", _IN_SETS)
    return findings + found_at(
        f"images of {short_name(name)} that can't be read", unreadable, "not compared", severity="warning"
    )


_AS_STORED = "training reads pixels as stored, search rotates them: save the images upright"
_IN_SPLITS = "biases results upwards: remove them from one of the splits"
_IN_SETS = "a model trained on one data set has seen them when tested on the other: remove them from one"


def _same_pixels(pairs: Iterable[tuple[str, str, Path, Path]], what: str, remedy: str) -> list[Finding]:
    places = defaultdict(list)
    for split, other_split, path, other in pairs:
        places[split, other_split].append(f"{path} and {other}")
    return [
        finding
        for names, where in places.items()
        for finding in found_at(f"the same pixels {what.format(*names)}", where, remedy, severity="warning")
    ]


def _noise_indices(dataset_name: str, pairs: int, noisy_rate: float | None, noisy_file: str) -> list[Finding]:
    name = short_name(dataset_name)
    if noisy_rate == 0:  # train.py reads no file either
        return []
    files = {NOISEINDEX / f"{name}_{rate:g}.npy": rate for rate in (_RATES if noisy_rate is None else (noisy_rate,))}
    files = {file: rate for file, rate in files.items() if file.is_file()}
    if noisy_file:
        files = {Path(noisy_file): noisy_rate}
    findings = []
    if noisy_rate and not files:
        findings += found_at(
            "no noise index found",
            [f"for rate {noisy_rate:g}"],
            "train.py draws one and saves it in the run folder",
            severity="warning",
        )
    remedy = (
        f"are these the original annotations? If not: python -m tools.noise_index --dataset_name {name} "
        f"--pairs {pairs} --noisy_rate RATE --out FOLDER, then train.py --noisy_file"
    )
    misfits = []
    for file, rate in files.items():
        try:
            read_permutation(file, pairs, rate)
        except DataError as error:
            misfits.append(str(error))
    return findings + found_at("noise indices that do not match", misfits, remedy)
