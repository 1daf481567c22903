"""Opening an index in a folder or in Milvus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.search.files import MANIFEST, OLD, FileStore, create
from tools.search.milvus import MilvusStore
from tools.search.rows import About
from utils.errors import OptionError
from utils.run_folder import lock_folder

Store = FileStore | MilvusStore


def open_store(folder: Path, uri: str | None = None) -> Store:
    """Open an index.

    Args:
        uri: URI of the Milvus database; None for plain files in `folder`.

    Raises:
        OptionError: it doesn't exist.
        DataError: it is damaged, or from another version.
    """
    if uri:
        return MilvusStore(uri)
    if not (folder / MANIFEST).is_file():
        old = f" ({OLD} is from an older version)" if (folder / OLD).is_file() else ""
        raise OptionError(
            f"no index in {folder}{old}: build one with python -m tools.search index, or pass another with --index"
        )
    return FileStore(folder)


def open_or_create_store(folder: Path, uri: str | None, about: About) -> Store:
    """Open an index for writing, creating an empty one if there is none."""
    if uri:
        return MilvusStore(uri, about)
    return FileStore(folder) if (folder / MANIFEST).is_file() else create(folder, about)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Lock an index for this process.

    Raises:
        OptionError: another process is writing to it, or it can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--index {folder}: can't be created: {error.strerror}") from None
    with lock_folder(folder, f"another process is indexing into {folder}: wait for it, or choose another --index"):
        yield
