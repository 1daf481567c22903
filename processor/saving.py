"""Writing a test's similarities, ranking and embeddings to files.

The file name selects the content; a JSON file of the same name lists the split's images and captions in the order of
rows and columns, with their identities in the annotation file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from processor.evaluation import Encoded, Ranking, joined
from processor.types import Captioned, EvaluationData
from utils.files import atomic_write, write_text
from utils.log import logger

LISTED = 100  # gallery items per query and similarity in ranking.csv


@dataclass(frozen=True)
class Saving:
    """The files to write, named as in `processor.settings.SAVED`, and the folder that image names are relative to."""

    files: Sequence[Path]
    imgs: Path


def save_results(saving: Saving, ranking: Ranking, data: EvaluationData) -> None:
    """Write each file and its list of names; similarities are computed and written in chunks of rows.

    - similarity.safetensors: (queries, gallery) float32 per similarity, `query_pids` and `gallery_pids`.
    - ranking.csv: the top gallery items per query and similarity.
    - embeddings.safetensors: unit vectors by modality and name, such as `image.BGE`; for several embeddings also fused
      ones, whose inner products are the fused similarity; and `image.pids`, `text.pids`.
    """
    encoded, image_to_text, split = ranking.encoded, ranking.image_to_text, data.split
    pids = {"image": split.person_ids[data.image_pids], "text": split.person_ids[data.caption_pids]}
    query, gallery = ("image", "text") if image_to_text else ("text", "image")
    names = json.dumps(_names(split, saving.imgs), ensure_ascii=True, indent=1) + "\n"
    with ExitStack() as stack:
        writers: list[Callable[[int, Mapping[str, Tensor]], None]] = []
        for file in saving.files:
            if file.name == "embeddings.safetensors":
                with atomic_write(file) as partial:
                    partial.write_bytes(save(_embeddings(encoded, pids), {"format": "pt"}))
            elif file.name == "similarity.safetensors":
                writers.append(stack.enter_context(_matrix(file, ranking.names, pids[query], pids[gallery])))
            else:
                writers.append(stack.enter_context(_ranking(file, split, saving.imgs, image_to_text=image_to_text)))
        if writers:
            for rows, similarities in ranking.similarities():
                for write in writers:
                    write(rows.start, similarities)
    for file in saving.files:
        write_text(file.with_suffix(".json"), names)
        logger.info("wrote %s and %s", file, file.with_suffix(".json"))


def _names(split: Captioned, imgs: Path) -> dict[str, list[dict[str, object]]]:
    images = [
        {"image": _relative(path, imgs), "pid": int(split.person_ids[pid])}
        for path, pid in zip(split.images, split.image_pids, strict=True)
    ]
    captions = [
        {"caption": text, "image": int(image), "pid": images[image]["pid"]}
        for text, image in zip(split.captions, split.caption_images, strict=True)
    ]
    return {"images": images, "captions": captions}


def _relative(path: Path, imgs: Path) -> str:
    return (path.relative_to(imgs) if path.is_relative_to(imgs) else path).as_posix()


def _embeddings(encoded: Encoded, pids: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    tensors = {f"{modality}.pids": torch.from_numpy(part) for modality, part in pids.items()}
    for modality, parts in (("image", encoded.image), ("text", encoded.text)):
        parts = dict(parts) | ({encoded.fused: joined(parts)} if len(parts) > 1 else {})
        tensors |= {f"{modality}.{name}": part.float().cpu().contiguous() for name, part in parts.items()}
    return tensors


@contextmanager
def _matrix(file: Path, names: Sequence[str], query_pids: np.ndarray, gallery_pids: np.ndarray) -> Iterator:
    """Yield a function that writes (q, G) rows of every similarity, given the index of the first row."""
    shape = (len(query_pids), len(gallery_pids))
    arrays = {"query_pids": query_pids, "gallery_pids": gallery_pids}
    with atomic_write(file) as partial, partial.open("wb") as stream:
        tensors = {name: ("I64", part.shape, 8) for name, part in arrays.items()}
        starts = _write_header(stream, tensors | dict.fromkeys(names, ("F32", shape, 4)))
        for name, part in arrays.items():
            stream.seek(starts[name])
            stream.write(part.astype("<i8").tobytes())

        def write(row: int, similarities: Mapping[str, Tensor]) -> None:
            for name, similarity in similarities.items():
                stream.seek(starts[name] + 4 * row * shape[1])
                stream.write(similarity.float().cpu().numpy().astype("<f4").tobytes())

        yield write


def _write_header(stream: BinaryIO, tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, int]:
    """Write a safetensors header for tensors of (dtype, shape, bytes per element); returns their file offsets."""
    header, end = {}, 0
    for name, (kind, shape, size) in tensors.items():
        begin, end = end, end + size * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}


@contextmanager
def _ranking(file: Path, split: Captioned, imgs: Path, *, image_to_text: bool) -> Iterator:
    images = [_relative(path, imgs) for path in split.images]
    image_pids = split.person_ids[split.image_pids]
    caption_pids = image_pids[split.caption_images]
    with atomic_write(file) as partial, partial.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["similarity", "rank", "score", "caption", "caption_pid", "image", "image_pid"])

        def write(row: int, similarities: Mapping[str, Tensor]) -> None:
            for name, similarity in similarities.items():
                scores, best = similarity.sort(dim=1, descending=True, stable=True)
                scores, best = scores[:, :LISTED].tolist(), best[:, :LISTED].tolist()
                for query, (query_scores, items) in enumerate(zip(scores, best, strict=True), row):
                    for rank, (score, other) in enumerate(zip(query_scores, items, strict=True), 1):
                        image, caption = (query, other) if image_to_text else (other, query)
                        pair = [caption, caption_pids[caption], images[image], image_pids[image]]
                        writer.writerow([name, rank, f"{score:.6f}", *pair])

        yield write
