"""Search your own images with a trained model.

    python -m tools.search index --run RUN_DIR --gallery FOLDER         # embed new and changed images of a folder
    python -m tools.search query "a woman in a red coat" --top 10       # find images for a sentence
    python -m tools.search captions PICTURE --run RUN_DIR --from FILE   # find sentences for an image
    python -m tools.search export --out FOLDER                          # export vectors for other engines
    python -m tools.search serve                                        # serve a search page

`python -m tools.search COMMAND --help` lists a command's flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from options import add_rerank, check_rerank
from utils.errors import OptionError
from utils.log import status
from utils.options import add_plugin, command_parser, parse
from utils.program import run_program
from utils.threads import usable_cores

INDEX = "logs/search"


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.search", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = {}
    for name, what in {
        "index": "embed the new and changed images of a folder and its subfolders",
        "query": "text to image: rank the indexed images",
        "captions": "image to text: rank the sentences of a file",
        "export": "export the index's vectors as safetensors, and as .npy with JSON Lines",
        "serve": "serve a search page on this machine only",
    }.items():
        add[name] = commands.add_parser(name, help=what, description=what, allow_abbrev=False, exit_on_error=False)
        add[name].add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
        if name != "export":
            add_plugin(add[name])
        if name != "captions":
            add[name].add_argument("--index", default=INDEX, help="folder of the index (default: %(default)s)")
            store = (
                "store the vectors in Milvus: http://HOST:19530, with /NAME for a database, or FILE.db for Milvus Lite"
            )
            add[name].add_argument("--store", metavar="URI", help=store)
    _add_flags(add)
    return parser


def _add_flags(add: dict[str, argparse.ArgumentParser]) -> None:
    for name in ("index", "query", "captions", "serve"):
        add[name].add_argument(
            "--engine",
            choices=["torch", "onnx"],
            default="torch",
            help="inference engine: torch, or onnx with files from tools.export --onnx (default: %(default)s)",
        )
    for name in ("index", "captions"):
        add[name].add_argument("--run", required=True, help="a run folder, or one written by tools.export")
        add[name].add_argument("--checkpoint", help="weights file (default: the run's best.pth)")
    add["index"].add_argument("--gallery", required=True, help="folder of images")
    add["index"].add_argument("--batch_size", type=int, default=64, help="batch size (default: %(default)s)")
    workers = usable_cores()
    add["index"].add_argument("--num_workers", type=int, default=workers, help="decoding threads (default: cores)")
    add["index"].add_argument("--faiss", action="store_true", help="also build a FAISS index, for query --faiss")
    add["query"].add_argument("text", nargs="*", help="sentences")
    add["query"].add_argument("--from", dest="file", help="file with one sentence per line")
    add["captions"].add_argument("picture", nargs="+", help="images")
    add["captions"].add_argument("--from", dest="file", required=True, help="file with one sentence per line")
    for name in ("query", "captions"):
        add[name].add_argument("--top", type=int, default=10, help="number of results (default: %(default)s)")
        add[name].add_argument(
            "--similarity", help="similarity to rank by, such as BGE (default: all embeddings fused, BGE+TSE)"
        )
    add_rerank(add["query"])
    add["query"].add_argument("--out", help="file to write, as .json and .png (default: INDEX/query)")
    add["captions"].add_argument("--out", help="file to write, as .json (default: none)")
    add["export"].add_argument("--out", required=True, help="folder to write")
    add["serve"].add_argument("--port", type=int, default=7860, help="port on 127.0.0.1 (default: %(default)s)")
    for name in ("query", "serve"):
        add[name].add_argument("--run", help="the index's run folder, if moved or exported since")
        add[name].add_argument("--checkpoint", help="the index's weights, if moved since")
        add[name].add_argument("--faiss", action="store_true", help="approximate search, for very large galleries")


def main(argv: Sequence[str]) -> None:
    """Check the flags, then run the command."""
    args = parse(build_parser(), argv)
    for name in ("top", "batch_size", "num_workers"):
        if args.get(name, 1) < 1:
            raise OptionError(f"--{name} {args[name]}: must be at least 1")
    if not 0 < args.get("port", 1) < 65536:
        raise OptionError(f"--port {args['port']}: must be at least 1 and at most 65535")
    if args.get("store") and args.get("faiss"):
        raise OptionError("--store and --faiss: Milvus has its own indexes, use only one of them")
    args["rerank"] = check_rerank(args.get("rerank"))
    for name in ("index", "gallery", "run", "checkpoint", "out", "file"):
        args[name] = Path(args[name]) if args.get(name) else None

    status("loading PyTorch")
    from tools.search import commands  # imports torch, only after checking the flags

    getattr(commands, args.pop("command"))(args)


if __name__ == "__main__":
    run_program(main)
