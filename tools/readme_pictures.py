"""Make the README's pictures: a contact sheet of SynthPEDES, and two figures of a run.

python -m tools.readme_pictures RUN_DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datasets.synthpedes import contact_sheet, ensure_synthpedes
from utils.errors import OptionError
from utils.options import parse
from utils.program import run_program

DOCS = Path(__file__).parents[1] / "docs"
COLOURS, WIDTH = 128, 800  # a palette and a width that keep each picture small


def main(argv: Sequence[str]) -> None:
    """Write docs/synthpedes.png, docs/losses.png and docs/retrieval.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], exit_on_error=False)
    parser.add_argument("run_dir", help="a finished run")
    parser.add_argument("--root_dir", default="data", help="the folder that holds SynthPEDES (default: %(default)s)")
    args = parse(parser, argv)
    DOCS.mkdir(exist_ok=True)
    contact_sheet(ensure_synthpedes(Path(args["root_dir"])), DOCS / "synthpedes.png")
    for name in ("losses.png", "retrieval.png"):
        source = Path(args["run_dir"]) / "figures" / name
        if not source.is_file():
            raise OptionError(f"{source} is missing: give the folder of a finished run")
        with Image.open(source) as picture:
            picture.thumbnail((WIDTH, 10 * WIDTH))
            picture.convert("RGB").quantize(COLOURS).save(DOCS / name, optimize=True)


if __name__ == "__main__":
    run_program(main)
