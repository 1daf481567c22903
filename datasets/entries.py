"""Entries of annotation files: an image or one of its captions, under our keys or other projects'."""

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

    `remarks` lists what wasn't in the usual form; `where` is its place in the file, such as "entry 3" or "line 3".
    """

    number: int
    path: Path
    captions: list[str]
    split: str
    remarks: tuple[str, ...] = ()
    where: str = ""


def check_entry(entry: object, place: Place, number: int) -> Entry:
    """Parse and check entry `number` of a file.

    Raises:
        DataError: a key is missing or of the wrong type, or there is no caption; the message starts with its place.
    """
    where = getattr(entry, "where", f"entry {number}")
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
    values, remarks = _usual_form(entry, place)
    for key, (kind, _) in _KEYS.items():
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            hint = f"; its keys are {printable(', '.join(map(str, entry)))[:140]}" if values[key] is None else ""
            if key == "split":
                hint = "; --split_all train reads entries without one as training pairs"
            raise DataError(f"{where}: '{key}' must be a {_KINDS[kind]}, found {values[key]!r:.60}{hint}")
    person, path, captions = values["id"], values["file_path"], values["captions"]
    if not -(2**63) <= person < 2**63:
        raise DataError(f"{where}: id {person} is out of range")
    if not captions:
        raise DataError(f"{where}: {path} has no captions")
    for caption in captions:
        if not isinstance(caption, str):
            raise DataError(f"{where}: a caption must be a text, found {caption!r:.60}")
    return Entry(person, place.image(path), captions, values["split"], tuple(remarks), where)


def _usual_form(entry: Mapping[str, Any], place: Place) -> tuple[dict[str, Any], list[str]]:
    """The values under our keys, unchecked (None if missing), and remarks on conversions."""
    values, remarks = {}, []
    for key, (_, others) in _KEYS.items():
        name = next((name for name in (key, *others) if name in entry), key)
        values[key] = entry.get(name)
        if name not in (key, "img_path"):  # RSTPReid's key
            remarks.append(f"'{name}' in place of '{key}'")
    values["id"], id_remarks = _as_number(values["id"])
    remarks += id_remarks
    path = values["file_path"]
    if isinstance(path, str) and "\\" in path and not os.path.isfile(place.image(path)):  # noqa: PTH113
        values["file_path"] = path.replace("\\", "/")
        remarks.append("backslashes in image paths")
    if isinstance(values["captions"], str):
        values["captions"] = [values["captions"]]
        remarks.append("a caption without a list")
    if values["split"] in (None, "") and place.split_all:
        values["split"] = place.split_all
        remarks.append(f"no split, which --split_all reads as '{place.split_all}'")
    if isinstance(values["split"], str) and values["split"] in _SPLITS:
        remarks.append(f"split '{values['split']}' in place of '{_SPLITS[values['split']]}'")
        values["split"] = _SPLITS[values["split"]]
    return values, remarks


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
    """Check that no id is written both with and without leading zeros, which would merge two persons.

    Raises:
        DataError: the message names two such entries.
    """
    first: dict[int, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.number, entry)
        if (_ZEROS in entry.remarks) != (_ZEROS in other.remarks):
            raise DataError(
                f"{file}: {other.where} and {entry.where} write id {entry.number} with and without leading zeros: "
                "one person or two?"
            )
