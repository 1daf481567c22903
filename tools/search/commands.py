"""The commands of `python -m tools.search`; each takes its flags as a dictionary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import read_image
from tools.loading import load_run, require
from tools.search.encode import Encoder
from tools.search.engines import REQUIREMENTS, best_first
from tools.search.index import update_index
from tools.search.results import output_stem, table, write, write_json
from tools.search.search import Searcher
from tools.search.store import open_store
from tools.search.texts import one_line, read_sentences, warn_long
from utils.devices import choose_device
from utils.errors import OptionError, printable
from utils.run_folder import RunFolder


def open_encoder(run: Path, checkpoint: Path | None, args: dict[str, Any]) -> Encoder:
    """Load a run's model for `--engine` and `--device`."""
    loaded = load_run(run, choose_device(args["device"]), checkpoint)
    if args["engine"] == "onnx":
        from tools.search.onnx_encoder import OnnxEncoder

        return OnnxEncoder(loaded)
    return Encoder(loaded)


def open_searcher(args: dict[str, Any]) -> Searcher:
    """Open an index with the model that built it.

    Raises:
        OptionError: the model is missing, or a different one.
    """
    store = open_store(args["index"], args["store"])
    run, checkpoint = args["run"] or store.about.run, store.about.checkpoint
    if args["checkpoint"]:
        files = [args["checkpoint"]]
        if not args["run"] and not (run / "configs.yaml").is_file():
            run = args["checkpoint"].parent  # the whole run may have moved
    elif args["run"]:  # the run may have moved or been exported
        files = [file for file in dict.fromkeys((run / checkpoint.name, RunFolder(run).weights())) if file.is_file()]
    else:
        files = [checkpoint]
        for file in (checkpoint, run / "configs.yaml"):
            if not file.is_file():
                raise OptionError(
                    f"{file}, of the model that built {store.name}, is missing: "
                    "pass the run with --run, or its weights with --checkpoint"
                )
    for file in files:
        encoder = open_encoder(run, file, args)
        if encoder.fingerprint == store.about.fingerprint:
            break
    return Searcher(store, encoder, approximate=args["faiss"])


def index(args: dict[str, Any]) -> None:
    """Update an index."""
    encoder = open_encoder(args["run"], args["checkpoint"], args)
    loading = (args["batch_size"], args["num_workers"])
    update_index(args["index"], args["store"], args["gallery"], encoder, loading, faiss=args["faiss"])


def query(args: dict[str, Any]) -> None:
    """Print and write the best images for sentences."""
    texts = read_sentences(args["text"], args["file"])
    searcher = open_searcher(args)
    similarity = searcher.encoder.similarity(args["similarity"])
    warn_long(texts, searcher.encoder)
    results = searcher.search(texts, args["top"], similarity, args["rerank"])
    listing, sheet = write(texts, similarity, results, args["out"] or args["index"] / "query")
    for text, hits in zip(texts, results, strict=True):
        print(table(text, hits))
    print(printable(f"wrote {listing} and {sheet}"))


def captions(args: dict[str, Any]) -> None:
    """Print the best sentences for images."""
    texts = read_sentences([], args["file"])
    encoder = open_encoder(args["run"], args["checkpoint"], args)
    similarity = encoder.similarity(args["similarity"])
    warn_long(texts, encoder)
    pixels = np.stack([read_image(Path(picture), encoder.size, upright=True) for picture in args["picture"]])
    images = encoder.weigh(encoder.images(pixels), similarity)
    results = []
    for picture, scores in zip(args["picture"], images @ encoder.texts(texts).T, strict=True):
        ranked = best_first(scores, args["top"])
        print(printable(picture), *(f"  {scores[n]:.3f}  {one_line(texts[n])}" for n in ranked), sep="\n")
        hits = [{"rank": rank, "score": float(scores[n]), "caption": texts[n]} for rank, n in enumerate(ranked, 1)]
        results.append({"image": picture, "similarity": similarity, "results": hits})
    if args["out"]:
        print(printable(f"wrote {write_json(results, output_stem(args['out'], 'captions'))}"))


def export(args: dict[str, Any]) -> None:
    """Write an index's vectors for other engines."""
    from tools.search.export import export_vectors

    export_vectors(open_store(args["index"], args["store"]), args["out"])


def serve(args: dict[str, Any]) -> None:
    """Serve the page until interrupted."""
    # Gradio reads these when imported: no telemetry, and no proxy for its check that the local page is up.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "*"}
    require("gradio", REQUIREMENTS)
    from tools.search.page import serve_page

    serve_page(open_searcher(args), args["port"])
