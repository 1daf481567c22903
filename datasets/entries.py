"""Entries of annotation files: one image each, or one of its captions, in our keys or other projects'."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets.catalogue import Place
from utils.errors import DataError, printable

_KINDS = {int: "whole number or a text", str: "text", list: "list"}
# Our key, its type, and its aliases in other projects' annotations.
_KEYS: dict[str, tuple[type, tuple[str, ...]]] = {
    "id": (int, ("image_id",)),
    "file_path": (str, ("img_path", "image", "image_path")),
    "captions": (list, ("caption",)),
    "split": (str, ()),
}
_ZEROS = "ids with leading zeros"
_SPLITS = {"valid": "val", "validation": "val"}


class Entry(NamedTuple):
    """One image of an annotation file, or one of its captions.

    `remarks` lists what wasn't in the usual form, `where` is its place in the file, as in "entry 3" or "line 3".
    """

    number: int
    path: Path
    captions: list[str]
    split: str
    remarks: tuple[str, ...] = ()
    where: str = ""


def check_entry(entry: object, place: Place, number: int) -> Entry:
    """Parse and check the file's entry of this number.

    Raises:
        DataError: a key is missing or of the wrong type, or there is no caption; the message starts with its place.
    """
    where = getattr(entry, "where", f"entry {number}")
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
    found, remarks = _usual_form(entry, place)
    for key, (kind, _) in _KEYS.items():
        if not isinstance(found[key], kind) or isinstance(found[key], bool):
            hint = f"; its keys are {printable(', '.join(map(str, entry)))[:140]}" if found[key] is None else ""
            if key == "split":
                hint = "; --split_all train reads entries without one as training pairs"
            raise DataError(f"{where}: '{key}' must be a {_KINDS[kind]}, found {found[key]!r:.60}{hint}")
    person, path, captions = found["id"], found["file_path"], found["captions"]
    if not -(2**63) <= person < 2**63:
        raise DataError(f"{where}: id {person} is out of range")
    if not captions:
        raise DataError(f"{where}: {path} has no captions")
    for caption in captions:
        if not isinstance(caption, str):
            raise DataError(f"{where}: a caption must be a text, found {caption!r:.60}")
    return Entry(person, place.image(path), captions, found["split"], tuple(remarks), where)


def _usual_form(entry: Mapping[str, Any], place: Place) -> tuple[dict[str, Any], list[str]]:
    """The values under our keys, unchecked (None if missing), and remarks on what was converted."""
    found, remarks = {}, []
    for key, (_, others) in _KEYS.items():
        name = next((name for name in (key, *others) if name in entry), key)
        found[key] = entry.get(name)
        if name not in (key, "img_path"):  # RSTPReid's key
            remarks.append(f"'{name}' in place of '{key}'")
    found["id"], of_id = _as_number(found["id"])
    remarks += of_id
    path = found["file_path"]
    if isinstance(path, str) and "\\" in path and not os.path.isfile(place.image(path)):  # noqa: PTH113
        found["file_path"] = path.replace("\\", "/")
        remarks.append("backslashes in image paths")
    if isinstance(found["captions"], str):
        found["captions"] = [found["captions"]]
        remarks.append("a caption without a list")
    if found["split"] in (None, "") and place.split_all:
        found["split"] = place.split_all
        remarks.append(f"no split, which --split_all reads as '{place.split_all}'")
    if isinstance(found["split"], str) and found["split"] in _SPLITS:
        remarks.append(f"split '{found['split']}' in place of '{_SPLITS[found['split']]}'")
        found["split"] = _SPLITS[found["split"]]
    return found, remarks


def _as_number(number: Any) -> tuple[Any, list[str]]:
    """An id as an integer, with a remark if it was a float or a string."""
    if isinstance(number, float) and number.is_integer():
        return int(number), ["ids written with a decimal point"]
    if not isinstance(number, str) or not (text := number.strip()):
        return number, []
    if whole := re.fullmatch(r"(-?[0-9]{1,19})(\.0*)?", text):
        return int(whole[1]), [_ZEROS if re.match(r"-?0[0-9]", text) else "ids written as text"]
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 11, ["non-numeric ids, hashed to numbers"]


def check_spelling(entries: Iterable[Entry], file: Path) -> None:
    """Check that no id is written both with leading zeros and without, which would make two persons one.

    Raises:
        DataError: names two such entries.
    """
    first: dict[int, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.number, entry)
        if (_ZEROS in entry.remarks) != (_ZEROS in other.remarks):
            raise DataError(
                f"{file}: {other.where} and {entry.where} write id {entry.number} with and without leading zeros: "
                "one person or two?"
            )
