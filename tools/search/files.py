"""An index in plain files: vectors in shards, and a manifest that lists the valid shards.

    index.json          gallery and model of the index, and its shards in order
    00000001.npy        a shard's vectors: (N, D) float32
    00000001.jsonl      one line per file: path, size, modification time, and null or the reason for having no vector

Each batch becomes a shard, which is valid once the manifest lists it; a file's latest shard applies. Small shards are
merged when there are many, and at the end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.search.engines import Engine, Exact
from tools.search.rows import About, Row, Stamp
from utils.errors import DataError, brief
from utils.files import atomic_write, write_text

MANIFEST, OLD = "index.json", "index.sqlite"  # OLD: written by older versions
FORMAT = 3
_FULL = 1 << 14  # files in a full shard, which isn't merged
_MAX_SMALL = 256  # number of small shards that triggers merging


class _Entry(NamedTuple):
    """A file's stamp and error, and the location of its vector."""

    stamp: Stamp
    error: str | None
    shard: str
    row: int


class FileStore:
    """An open index.

    Attributes:
        folder: the index's folder.
        name: the index's name in messages.
        about: its gallery and model.
        engine: search engine; None for exhaustive search.
        version: incremented with every change of the vectors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)
        self.engine: Engine | None = None
        self._paths: list[Path] = []
        file = folder / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError("it is from another version")
            self.about, self.version = About.from_json(json.dumps(manifest["about"])), manifest["version"]
            self._load(manifest["shards"])
        except Exception as error:  # JSON and NumPy raise many types for damaged files
            raise DataError(
                f"{file} can't be read ({brief(error)}): if no process is indexing into it, delete it and index again"
            ) from None

    def _load(self, shards: list[str]) -> None:
        self._vectors: dict[str, np.ndarray] = {}
        self._lines: Counter[str] = Counter()
        self._entries: dict[Path, _Entry] = {}
        for shard in shards:
            self._open(shard)

    def _open(self, shard: str) -> None:
        vectors, row = np.load(self.folder / f"{shard}.npy", mmap_mode="r"), 0
        for line in (self.folder / f"{shard}.jsonl").read_text(encoding="utf-8").splitlines():
            path, size, mtime, error = json.loads(line)
            self._entries[Path(path)] = _Entry(Stamp(size, mtime), error, shard, row)
            self._lines[shard] += 1
            row += error is None
        if vectors.shape != (row, self.about.width) or vectors.dtype != np.float32:
            raise ValueError(f"{shard}.npy is {vectors.dtype} of {vectors.shape}")
        self._vectors[shard] = vectors

    def __len__(self) -> int:
        """Number of files with vectors."""
        return sum(entry.error is None for entry in self._entries.values())

    def stamps(self) -> dict[Path, Stamp]:
        """Stamps of all indexed files, including broken ones."""
        return {path: entry.stamp for path, entry in self._entries.items()}

    def broken(self) -> list[tuple[Path, str]]:
        """Files without a vector, and the reasons."""
        return sorted((path, entry.error) for path, entry in self._entries.items() if entry.error is not None)

    def put(self, rows: Sequence[Row]) -> None:
        """Add or replace files atomically."""
        if not rows:
            return
        shard = self._write(rows)
        self._commit([*self._vectors, shard])
        self._open(shard)
        if sum(lines < _FULL for lines in self._lines.values()) > _MAX_SMALL:
            self.tidy()

    def drop(self, paths: Iterable[Path]) -> None:
        """Remove files. Until `tidy` they remain on disk; after a kill they are removed next time."""
        for path in paths:
            del self._entries[path]

    def record_location(self, about: About) -> None:
        """Record the model's current location."""
        self.about = about
        self._commit(list(self._vectors), changed=False)

    def tidy(self) -> None:
        """Merge small shards, and drop removed and replaced files."""
        alive = Counter(entry.shard for entry in self._entries.values())
        intact = [shard for shard, lines in self._lines.items() if lines == alive[shard]]
        full = [shard for shard in intact if alive[shard] >= _FULL]
        if len(intact) < len(self._lines) or len(intact) - len(full) > 1:
            rest = [path for path, entry in self._entries.items() if entry.shard not in full]
            shards = []
            for start in range(0, len(rest), _FULL):
                part = [(path, self._entries[path]) for path in rest[start : start + _FULL]]
                rows = [Row(path, entry.stamp, self._vector(entry), entry.error) for path, entry in part]
                shards.append(self._write(rows, len(shards)))
            self._commit([*full, *shards])
            self._load([*full, *shards])
        self._remove_unlisted()

    def _vector(self, entry: _Entry) -> np.ndarray | None:
        return self._vectors[entry.shard][entry.row] if entry.error is None else None

    def _write(self, rows: Sequence[Row], offset: int = 0) -> str:
        shard = f"{max(map(int, self._vectors), default=0) + 1 + offset:08d}"
        vectors = np.empty((sum(row.error is None for row in rows), self.about.width), np.float32)
        for target, vector in zip(vectors, (row.vector for row in rows if row.error is None), strict=True):
            target[:] = vector
        with atomic_write(self.folder / f"{shard}.npy") as partial, partial.open("wb") as stream:
            np.save(stream, vectors)
        lines = (json.dumps([row.path.as_posix(), *row.stamp, row.error]) + "\n" for row in rows)
        write_text(self.folder / f"{shard}.jsonl", "".join(lines))
        return shard

    def _commit(self, shards: list[str], *, changed: bool = True) -> None:
        self.version += changed
        self.engine, self._paths = None, []
        write_manifest(self.folder, self.about, self.version, shards)

    def _remove_unlisted(self) -> None:
        for file in (*self.folder.glob("*.npy"), *self.folder.glob("*.jsonl")):
            if file.stem.isdigit() and file.stem not in self._vectors:
                with suppress(PermissionError):  # in use on Windows: removed next time
                    file.unlink()

    def images(self) -> list[Path]:
        """The files with vectors, in the order of `everything`."""
        return [path for path, entry in self._entries.items() if entry.error is None]

    def vectors(self, paths: Sequence[Path]) -> np.ndarray:
        """(N, D) float32 vectors of some files."""
        result = np.empty((len(paths), self.about.width), np.float32)
        for row, path in zip(result, paths, strict=True):
            row[:] = self._vector(self._entries[path])
        return result

    def everything(self) -> tuple[list[Path], np.ndarray]:
        """Paths of the N files with vectors, and their (N, D) float32 vectors."""
        paths = self.images()
        return paths, self.vectors(paths)

    def nearest(self, queries: np.ndarray, count: int) -> list[tuple[list[Path], np.ndarray]]:
        """For each of (Q, D) queries, the files with the `count` (or more) largest inner products and their vectors."""
        paths = self._paths = self._paths or self.images()
        if self.engine is None:
            self.engine = Exact(self.vectors(paths))
        nearest = [[paths[row] for row in np.sort(rows)] for rows in self.engine.top(queries, count)]
        return [(query_paths, self.vectors(query_paths)) for query_paths in nearest]


def write_manifest(folder: Path, about: About, version: int, shards: list[str]) -> None:
    """Replace the manifest atomically, which makes the shards valid."""
    content = {"format": FORMAT, "version": version, "about": json.loads(about.to_json()), "shards": shards}
    write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def create(folder: Path, about: About) -> FileStore:
    """Create an empty index, removing leftovers of a deleted one or of an older version."""
    for leftover in (folder / OLD, *folder.glob("vectors_*.faiss")):
        leftover.unlink(missing_ok=True)
    write_manifest(folder, about, 0, [])
    return FileStore(folder)
