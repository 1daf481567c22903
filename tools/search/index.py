"""Updating an index: new and changed images are embedded, deleted ones removed."""

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
    """Index a gallery, skipping unchanged images.

    Args:
        folder: the index's folder.
        uri: see `open_store`.
        loading: batch size and number of decoding threads.
        faiss: also build the FAISS index.

    Raises:
        OptionError: no images, an index of another gallery or model, or another process is indexing.
    """
    gallery = gallery.absolute()
    if gallery.resolve() == folder.resolve():
        raise OptionError(f"--index {folder} is the gallery itself: choose another folder, for example one inside it")
    images, others, skipped = list_files(gallery, folder.resolve())
    with writing(folder):
        store = _open(folder, uri, gallery, encoder)
        known = store.stamps()
        changed = [path for path in images if known.get(path) != stamp(gallery / path)]
        gone = [path for path in known.keys() - set(images) if not skipped.keys() & set(path.parents)]
        store.drop(gone)
        with tqdm(total=len(changed), desc="indexing", unit="image", disable=None) as bar:
            for rows, pixels in read_batches(gallery, changed, encoder.size, *loading):
                vectors = iter(encoder.images(pixels) if len(pixels) else [])
                store.put([row if row.error is not None else row._replace(vector=next(vectors)) for row in rows])
                bar.update(len(rows))
        new = len(set(changed) - {path for path, _ in store.broken()})
        store.tidy()
        counts = f"{len(store):,} images of {gallery}, {new:,} of them new or changed, {len(gone):,} removed"
        print(printable(f"{store.name}: {counts}"))
        _report(folder, store, others, skipped)
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
        OptionError: it was built with another model.
    """
    if store.about.fingerprint != encoder.fingerprint:
        raise OptionError(
            f"{store.name} was built with another model ({store.about.checkpoint} at the time) than "
            f"{encoder.run.file}: pass its weights with --checkpoint, or delete the index and index again"
        )


def _report(folder: Path, store: Store, others: Sequence[Path], skipped: Mapping[Path, str]) -> None:
    """Print the skipped files and write them to a file."""
    lines = [f"{path}/: {reason}; its indexed images are kept" for path, reason in skipped.items()]
    lines += [f"{path}: {error}" for path, error in store.broken()]
    lines += [f"{path}: not an image" for path in others]
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
            raise OptionError(f"{store.folder} contains no image to index with FAISS") from None
        Faiss.build(vectors).write(file)
    for other in store.folder.glob("vectors_*.faiss"):
        if other != file:
            other.unlink()
    return file
