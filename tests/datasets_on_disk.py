"""Small data sets in their real on-disk formats."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {
    "CUHK-PEDES": ("reid_raw.json", "file_path", 1),
    "ICFG-PEDES": ("ICFG-PEDES.json", "file_path", 0),
    "RSTPReid": ("data_captions.json", "img_path", 0),
}
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def entries(dataset_name: str, persons: int = 6, images: int = 2, captions: int = 2) -> list[dict]:
    """Annotations with train, val (if the data set has one) and test persons."""
    _, path_key, first_id = FORMATS[dataset_name]
    splits = ["train", "test"] if dataset_name == "ICFG-PEDES" else ["train", "val", "test"]
    listed, number = [], first_id
    for split in splits:
        for person in range(persons):
            for image in range(images):
                path = f"cam_{split}/{number:04d}_{image}.jpg"
                colour = " and ".join(
                    COLOURS[person % 6 : person % 6 + 1] * (1 + number % 3)
                )  # captions of three lengths
                texts = [f"A person in {colour}, seen {n} times." for n in range(captions)]
                entry = {"id": number, path_key: path, "captions": texts, "split": split, "processed_tokens": []}
                listed.append(entry)
            number += 1
    return listed


def write(root: Path, dataset_name: str, listed: list[dict] | None = None, file: str = "") -> Path:
    """Write annotations and images under `root`; returns the annotation file."""
    listed = entries(dataset_name) if listed is None else listed
    name, path_key, _ = FORMATS[dataset_name]
    folder = root / dataset_name
    rng = np.random.default_rng(0)
    for entry in listed:
        path = folder / "imgs" / entry[path_key]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (60, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    annotations = folder / (file or name)
    annotations.write_text(json.dumps(listed), encoding="utf-8")
    return annotations


@contextmanager
def unreadable(image: Path) -> Iterator[None]:
    """Make an image unreadable within the context, without changing its size and time stamp."""
    original, stat = image.read_bytes(), image.stat()

    def replace(content: bytes) -> None:
        image.write_bytes(content)
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    replace(bytes(len(original)))
    yield
    replace(original)
