"""An index on disk: one SQLite file, so that a kill between two batches, or within one, loses only what is not there.

Readers see whole batches; of writers there is one at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.errors import DataError, OptionError, brief
from utils.runs import hold

FILE = "index.sqlite"
FORMAT = "2"
_BUSY = 60  # seconds to wait for another process's batch
_MANY = 50_000  # vectors that take a while to read
_WIDEST = 1 << 16
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE image (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    vector BLOB,
    error TEXT
);
"""


class Stamp(NamedTuple):
    """By what a changed file is known: its length and time of change in nanoseconds."""

    size: int
    mtime: int


class Row(NamedTuple):
    """What is kept of a file; its path starts from the gallery's folder. `error` says why there is no vector."""

    path: Path
    stamp: Stamp
    vector: np.ndarray | None
    error: str | None


class About(NamedTuple):
    """What an index is of: a folder of pictures and a model, whose vectors have `width` numbers, the BGE's first.

    `run` and `checkpoint` say where the model was then.
    """

    gallery: Path
    run: Path
    checkpoint: Path
    fingerprint: str
    width: int
    bge_width: int


class Store:
    """An index's folder, open.

    Attributes:
        folder: of the index.
        about: what the index is of.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._connection = folder, connection
        with _told(self.folder):
            found = {key: os.fsdecode(value) for key, value in connection.execute("SELECT key, value FROM meta")}
        if found.get("format") != FORMAT:
            raise DataError(f"{folder / FILE} is no index of this version: delete it and index again")
        try:
            paths = (Path(found[name]) for name in ("gallery", "run", "checkpoint"))
            self.about = About(*paths, found["fingerprint"], int(found["width"]), int(found["bge_width"]))
            if int(found["version"]) < 0 or not 0 < self.about.bge_width <= self.about.width <= _WIDEST:
                raise ValueError("it has impossible widths")
        except (KeyError, ValueError) as error:
            raise DataError(f"{folder / FILE} is damaged, delete it and index again: {brief(error)}") from None

    def stamps(self) -> dict[Path, Stamp]:
        """Every file that is known, broken ones too."""
        with _told(self.folder):
            rows = self._connection.execute("SELECT path, size, mtime FROM image").fetchall()
        return {Path(os.fsdecode(path)): Stamp(size, mtime) for path, size, mtime in rows}

    def put(self, rows: Iterable[Row]) -> None:
        """Add or replace files, all of them or, if killed, none."""
        values = [
            (os.fsencode(path), *stamp, None if vector is None else vector.astype("<f4").tobytes(), error)
            for path, stamp, vector, error in rows
        ]
        sql = "INSERT OR REPLACE INTO image (path, size, mtime, vector, error) VALUES (?, ?, ?, ?, ?)"
        self._change(sql, values)

    def drop(self, paths: Iterable[Path]) -> None:
        """Forget files."""
        self._change("DELETE FROM image WHERE path = ?", [(os.fsencode(path),) for path in paths])

    def _change(self, sql: str, values: Sequence[tuple]) -> None:
        if not values:
            return
        with _told(self.folder), self._connection:
            self._connection.executemany(sql, values)
            self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'version'")

    def keep_place(self, run: Path, checkpoint: Path) -> None:
        """Keep where the model is now."""
        values = [(os.fsencode(run), "run"), (os.fsencode(checkpoint), "checkpoint")]
        with _told(self.folder), self._connection:
            self._connection.executemany("UPDATE meta SET value = ? WHERE key = ?", values)

    @property
    def version(self) -> int:
        """Grows with every change."""
        with _told(self.folder):
            return int(self._connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()[0])

    def broken(self) -> list[tuple[Path, str]]:
        """Files without a vector, and why."""
        with _told(self.folder):
            rows = self._connection.execute("SELECT path, error FROM image WHERE vector IS NULL ORDER BY path")
            return [(Path(os.fsdecode(path)), error) for path, error in rows]

    def images(self) -> tuple[np.ndarray, list[Path]]:
        """(N,) ids, ascending, and the paths of the files that have vectors."""
        with _told(self.folder):
            rows = self._connection.execute("SELECT id, path FROM image WHERE vector IS NOT NULL ORDER BY id")
            found = rows.fetchall()
        return np.array([number for number, _ in found], np.int64), [Path(os.fsdecode(path)) for _, path in found]

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """(N, D) float32 vectors of some ids, in their order.

        Raises:
            DataError: one is missing or of another width.
        """
        result = np.empty((len(ids), self.about.width), np.float32)
        with _told(self.folder):
            for row, number in zip(result, ids.tolist(), strict=True):
                found = self._connection.execute("SELECT vector FROM image WHERE id = ?", (number,)).fetchone()
                if not found or len(found[0] or b"") != row.nbytes:
                    raise DataError(f"{self.folder / FILE} lacks vector {number}: has it changed meanwhile? try again")
                row[:] = np.frombuffer(found[0], "<f4")
        return result

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """What is read within is not changed meanwhile."""
        with _told(self.folder):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.rollback()

    def everything(self) -> tuple[np.ndarray, list[Path], np.ndarray]:
        """Ids, paths and (N, D) vectors, all of one moment.

        Raises:
            DataError: the index is damaged.
        """
        with self.one_moment():
            ids, paths = self.images()
            vectors = np.empty((len(ids), self.about.width), np.float32)
            found = self._connection.execute("SELECT vector FROM image WHERE vector IS NOT NULL ORDER BY id")
            found = tqdm(found, "vectors", len(ids), leave=False, disable=len(ids) < _MANY or None)
            try:
                for row, (vector,) in zip(vectors, found, strict=True):
                    if len(vector) != row.nbytes:
                        raise ValueError("a vector of another width")
                    row[:] = np.frombuffer(vector, "<f4")
            except ValueError as error:
                raise DataError(f"{self.folder / FILE} is damaged, delete it and index again: {error}") from None
        return ids, paths, vectors

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def open_store(folder: Path) -> Store:
    """Open an index.

    Raises:
        OptionError: there is none.
        DataError: it is damaged.
    """
    if not (folder / FILE).is_file():
        raise OptionError(f"no index in {folder}: make one with python -m tools.search index, or name one with --index")
    with _told(folder):
        return Store(folder, sqlite3.connect(folder / FILE, timeout=_BUSY, check_same_thread=False))


def create_store(folder: Path, about: About) -> Store:
    """Make an empty index in one step."""
    partial = folder / f"{FILE}.partial"
    for leftover in (partial, *folder.glob("vectors_*.faiss")):  # also of an index that was deleted
        leftover.unlink(missing_ok=True)
    meta = {**about._asdict(), "format": FORMAT, "version": 0}
    with _told(folder), closing(sqlite3.connect(partial)) as connection:
        connection.executescript(_TABLES)
        with connection:
            # A path is any bytes, which SQLite's text is not.
            values = [(key, os.fsencode(value) if isinstance(value, Path) else value) for key, value in meta.items()]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
    partial.replace(folder / FILE)
    return open_store(folder)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """SQLite's complaints, and values of another type than were written, as one line."""
    try:
        yield
    except (sqlite3.DatabaseError, TypeError, UnicodeDecodeError) as error:
        reason = brief(error)
        if isinstance(error, sqlite3.OperationalError) and any(w in reason for w in ("full", "readonly", "I/O")):
            told = f"can't be written: {reason}; what was indexed before is kept"
        else:
            told = f"can't be read: {reason}; if it is damaged delete it and index again"
        raise DataError(f"{folder / FILE} {told}") from None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Take an index for this process.

    Raises:
        OptionError: another process is indexing into it, or it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--index {folder}: can't be made a folder: {error.strerror}") from None
    with hold(folder, f"another process is indexing into {folder}: wait for it, or choose another --index"):
        yield
