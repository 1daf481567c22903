"""Updating an index from its gallery: new and changed files are embedded, deleted ones removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from tools.search.encode import Encoder
from tools.search.engines import Faiss
from tools.search.files import FileStore
from tools.search.gallery import list_files, read_batches, stamp
from tools.search.rows import About
from tools.search.store import Store, open_or_create_store, writing
from utils.errors import OptionError, printable
from utils.files import write_text

SKIPPED = "skipped.txt"
_SHOWN = 20


def update_index(
    folder: Path, uri: str | None, gallery: Path, encoder: Encoder, loading: tuple[int, int], *, faiss: bool = False
) -> None:
    """Index a gallery, continuing where the last call stopped.

    Args:
        folder: the index's folder.
        uri: as for `open_store`.
        loading: batch size for embedding and saving; number of decoding threads.
        faiss: also build the FAISS index.

    Raises:
        OptionError: no images; an index of another gallery or model; another process is indexing.
    """
    gallery = gallery.absolute()
    if gallery.resolve() == folder.resolve():
        raise OptionError(f"--index {folder} is the gallery itself: choose another folder, for example one inside it")
    pictures, others, closed = list_files(gallery, folder.resolve())
    with writing(folder):
        store = _open(folder, uri, gallery, encoder)
        known = store.stamps()
        wanted = [path for path in pictures if known.get(path) != stamp(gallery / path)]
        gone = [path for path in known.keys() - set(pictures) if not closed.keys() & set(path.parents)]
        store.drop(gone)
        with tqdm(total=len(wanted), desc="indexing", unit="image", disable=None) as bar:
            for rows, pixels in read_batches(gallery, wanted, encoder.size, *loading):
                vectors = iter(encoder.images(pixels) if len(pixels) else [])
                store.put([row if row.error is not None else row._replace(vector=next(vectors)) for row in rows])
                bar.update(len(rows))
        new = len(set(wanted) - {path for path, _ in store.broken()})
        store.tidy()
        counts = f"{len(store):,} images of {gallery}, {new:,} of them new or changed, {len(gone):,} removed"
        print(printable(f"{store.name}: {counts}"))
        _report(folder, store, others, closed)
        if faiss and isinstance(store, FileStore):
            print(printable(f"wrote {build_faiss(store)}"))


def _open(folder: Path, uri: str | None, gallery: Path, encoder: Encoder) -> Store:
    about = About(
        gallery,
        encoder.run.folder.absolute(),
        encoder.run.file.absolute(),
        encoder.fingerprint,
        encoder.widths,
    )
    store = open_or_create_store(folder, uri, about)
    check_model(store, encoder)
    if store.about.gallery != gallery:
        raise OptionError(f"{store.name} is an index of {store.about.gallery}: choose another --index for {gallery}")
    if store.about != about:
        store.record_location(about)
    return store


def check_model(store: Store, encoder: Encoder) -> None:
    """Check that an index was built with this model.

    Raises:
        OptionError: it was built with another.
    """
    if store.about.fingerprint != encoder.fingerprint:
        raise OptionError(
            f"{store.name} was built with another model ({store.about.checkpoint} at the time) than "
            f"{encoder.run.file}: pass its weights with --checkpoint, or delete the index and index again"
        )


def _report(folder: Path, store: Store, others: Sequence[Path], closed: Mapping[Path, str]) -> None:
    """Print what was skipped, and write it to a file."""
    lines = [f"{path}/: {why}; its indexed images are kept" for path, why in closed.items()]
    lines += [f"{path}: {error}" for path, error in store.broken()]
    lines += [f"{path}: not an image file name" for path in others]
    lines = [printable(line) for line in lines]
    write_text(folder / SKIPPED, "".join(f"{line}\n" for line in lines))
    if lines:
        print(f"skipped {len(lines):,} files:", *lines[:_SHOWN], sep="\n  ")
    if len(lines) > _SHOWN:
        print(printable(f"  … full list in {folder / SKIPPED}"))


def faiss_file(store: FileStore) -> Path:
    """Path of the FAISS index for the current vectors."""
    return store.folder / f"vectors_{store.version}.faiss"


def build_faiss(store: FileStore) -> Path:
    """Build the FAISS index of the current vectors, replacing older and damaged ones.

    Raises:
        OptionError: there are no vectors.
    """
    file = faiss_file(store)
    try:
        Faiss.read(file)
    except OptionError:
        paths, vectors = store.everything()
        if not paths:
            raise OptionError(f"{store.folder} holds no image to index with FAISS") from None
        Faiss.build(vectors).write(file)
    for other in store.folder.glob("vectors_*.faiss"):
        if other != file:
            other.unlink()
    return file
