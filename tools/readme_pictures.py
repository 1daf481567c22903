"""Create the README's pictures: a contact sheet of SynthPEDES, and a run's figures, audit, report and search page.

    python -m tools.readme_pictures RUN_DIR

The pages need requirements-dev.txt and an installed Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from datasets.synthpedes import contact_sheet, ensure_synthpedes
from tools import search
from tools.audit.__main__ import main as audit
from tools.report.__main__ import report
from tools.search.__main__ import main as search_main
from tools.visualize.__main__ import main as visualize
from utils.errors import OptionError
from utils.options import parse
from utils.program import run_program

if TYPE_CHECKING:
    from playwright.sync_api import Page, ViewportSize

DOCS = Path(__file__).parents[1] / "docs"
COLOURS, WIDTH = 256, 800  # palette size and width that keep files small
PORT = 7869
LAPTOP: ViewportSize = {"width": 1366, "height": 980}


def main(argv: Sequence[str]) -> None:
    """Write docs/*.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], exit_on_error=False)
    parser.add_argument("run_dir", help="a finished run on SynthPEDES")
    parser.add_argument("--root_dir", default="data", help="folder containing SynthPEDES (default: %(default)s)")
    args = parse(parser, argv)
    run_dir, root_dir = Path(args["run_dir"]), Path(args["root_dir"])
    if not (run_dir / "figures/retrieval.png").is_file():
        raise OptionError(f"{run_dir} has no figures/retrieval.png: give the folder of a finished run")
    DOCS.mkdir(exist_ok=True)
    contact_sheet(ensure_synthpedes(root_dir), DOCS / "synthpedes.png")
    for name in ("losses", "retrieval"):
        shrink(run_dir / "figures" / f"{name}.png", DOCS / f"{name}.png")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        visualize([str(run_dir), "--root_dir", str(root_dir), "--out", str(folder)])
        audit([str(run_dir), "--root_dir", str(root_dir), "--out", str(folder)])
        for name in ("losses_over_epochs", "similarities", "selection", "precision_recall", "most_suspicious"):
            shrink(folder / f"{name}.png", DOCS / f"{name}.png")
        written = report(run_dir, str(root_dir), str(folder / "report.html"))
        with browser_page() as page:
            picture_of_the_report(page, written, DOCS / "report.png")
        gallery = root_dir / "SynthPEDES/imgs/test"
        search_main(["index", "--run", str(run_dir), "--gallery", str(gallery), "--index", str(folder / "index")])
        picture_of_the_page(folder / "index", folder / "page.png")
        shrink(folder / "page.png", DOCS / "page.png")


def shrink(source: Path, out: Path) -> None:
    """Save a picture as a small palette PNG."""
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, 10 * WIDTH))
        picture.quantize(COLOURS).save(out, optimize=True)


@contextmanager
def browser_page() -> Iterator[Page]:
    """Open a browser page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser.new_page(viewport=LAPTOP)
        browser.close()


def picture_of_the_report(page: Page, file: Path, out: Path) -> None:
    """Take a screenshot of a run's report, scrolled to the losses."""
    with tempfile.TemporaryDirectory() as folder:
        page.goto(file.resolve().as_uri())
        page.locator("section").nth(2).evaluate("section => section.scrollIntoView()")
        page.screenshot(path=f"{folder}/report.png")
        shrink(Path(folder) / "report.png", out)


def picture_of_the_page(index: Path, out: Path) -> None:
    """Take a screenshot of the search page with the first example's results, the first one selected."""
    command = [sys.executable, "-m", search.__name__, "serve", "--index", str(index), "--port", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            if not any("end with Ctrl-C" in line for line in server.stdout or ()):
                raise OptionError(f"can't serve the page on port {PORT}")
            with browser_page() as page:
                page.goto(f"http://127.0.0.1:{PORT}")
                page.locator("button.gallery-item").first.click()
                page.locator("#results button:has(img)").first.click()
                page.wait_for_selector("#words mark")
                page.wait_for_selector("#patches img")
                page.wait_for_timeout(1000)  # wait for the fade-in
                page.screenshot(path=out)
        finally:
            server.terminate()


if __name__ == "__main__":
    run_program(main)
