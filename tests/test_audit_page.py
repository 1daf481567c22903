"""The audit's page in a real browser: pairs are marked, filtered and saved, without a server."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from datasets.annotations import build_split
from datasets.exclusion import read_excluded
from processor.history import PairHistory
from tests.test_page import browser  # noqa: F401  (a fixture)
from tools.audit.findings import Findings
from tools.audit.page import Heading, write_page
from tools.audit.pairs import Pairs

pytestmark = pytest.mark.slow
HOSTILE = 'a "red" coat, =1+1\n<script>document.title=2</script>'
TITLE = "Suspicious pairs of 20260101_000000_RDE_TAL+sr0.3_tau0.015_margin0.1_n0.2"
CAPTIONS = ["a man in blue", HOSTILE, "a woman in a blue dress", "a tall person"]


@pytest.fixture
def audited(tmp_path) -> tuple[Pairs, Path]:
    """Four pairs on a page, the first trained with a corrected caption, the third already marked."""
    imgs, entries = tmp_path / "imgs", []
    imgs.mkdir()
    for n, caption in enumerate(CAPTIONS):
        Image.new("RGB", (8, 16), (60 * n, 0, 0)).save(imgs / f"{n}.png")
        entries.append(SimpleNamespace(number=n, path=imgs / f"{n}.png", captions=[caption]))
    pairs = Pairs(build_split(entries), imgs, np.arange(4), {0: "a man in a blue coat"})
    probability = np.array([[0.1, 0.2, 0.3, 0.4]])
    votes = {"loss": 1 - probability, "clean_probability": probability, "clean": probability > 0.5}
    kept = {"components": np.full((1, 2, 3), np.nan), "excluded": np.empty(0, int), "truly_clean": np.ones(4, bool)}
    findings = Findings([PairHistory(names=("BGE",), **votes, **kept)])
    write_page(findings, pairs, range(4), {2}, Heading(TITLE, "four"), tmp_path / "pairs.html")
    return pairs, tmp_path / "pairs.html"


def test_the_page_holds_the_captions_that_exclude_compares(audited):
    page = audited[1].read_text(encoding="utf-8")
    assert [html.unescape(found) for found in re.findall(r'data-caption="(.*?)"', page, re.S)] == CAPTIONS
    assert "<p>a man in a blue coat</p>" in page, "as it was trained"


@pytest.mark.parametrize("width", [1366, 390])
def test_pairs_are_marked_by_mouse_and_keys_filtered_and_saved(audited, browser, tmp_path, width):  # noqa: F811
    pairs, file = audited
    page = browser.new_page(viewport={"width": width, "height": 844})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    count, cards = page.locator("#count"), page.locator("article:visible")
    assert count.inner_text() == "1 marked, 4 of 4 shown"
    assert "P(clean) is " in page.inner_text("body")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("article input").nth(0).check()
    for key in ("j", "j", "x", "j", "x"):  # to the second, mark it; to the third, unmark it
        page.keyboard.press(key)
    assert count.inner_text() == "2 marked, 4 of 4 shown"
    page.keyboard.press("/")
    page.keyboard.type("BLUE x")
    page.keyboard.press("Backspace")
    assert cards.count() == 2, "keys typed into the filter mark nothing"
    page.locator("#which").select_option("marked")
    assert cards.count() == 1
    page.screenshot(path=str(tmp_path / "page.png"))
    page.locator("#words").fill("")
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "marks.csv")
    assert read_excluded(tmp_path / "marks.csv", pairs.split, pairs.permutation).tolist() == [0, 1]
    with (tmp_path / "marks.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert [row["caption"] for row in csv.DictReader(stream)] == CAPTIONS
    assert page.title() == TITLE, "no caption was run"
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    page.close()
