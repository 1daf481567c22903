"""The search page in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from tests.galleries import Gallery, write_gallery, write_run
from tools.search import __main__ as search
from tools.search import examples, page
from utils.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
PATIENCE = 180  # timeout in seconds, for a busy machine
HOSTILE = "<img src=x onerror=document.title=1>.jpg"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> tuple[Gallery, Path]:
    """A gallery with a file whose name is HTML, and its index."""
    folder = tmp_path_factory.mktemp("page")
    gallery = write_gallery(folder / "mine", persons=6)
    (gallery.folder / "camera 0/00.jpg").rename(gallery.folder / HOSTILE)
    (gallery.folder / "secret.txt").write_text("not indexed")
    run_dir = write_run(folder / "run", clip="tiny")
    entries = [
        {"id": n, "file_path": path, "captions": [caption], "split": "test"}
        for n, (path, caption) in enumerate(gallery.captions.items())
    ]
    (gallery.folder / "reid_raw.json").write_text(json.dumps(entries))
    search.main(["index", "--run", str(run_dir), "--gallery", str(gallery.folder), "--index", str(folder / "index")])
    return gallery, folder / "index"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(indexed) -> Iterator[str]:
    """The page, served by the real command."""
    port = free_port()
    command = [sys.executable, "-m", "tools.search", "serve", "--index", str(indexed[1])]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "http_proxy": "http://127.0.0.1:9"},
    )
    told = []
    for line in server.stdout:
        told.append(line)
        if "end with Ctrl-C" in line:
            break
    assert told, "the server said nothing"
    assert f"http://127.0.0.1:{port}" in told[-1], "".join(told)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    assert server.wait(timeout=PATIENCE) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = f"the page's test needs a browser: install chromium ({', '.join(BROWSERS)} looked for)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=QUIET, timeout=1000 * PATIENCE)
        yield opened
        opened.close()


def first_files(indexed, text: str, top: int, out: Path, similarity: str = "BGE") -> list[str]:
    """The files found by the command."""
    search.main(
        ["query", text, "--index", str(indexed[1]), "--top", str(top), "--out", str(out), "--similarity", similarity]
    )
    return [Path(hit["file"]).name for hit in json.loads(out.with_suffix(".json").read_text())[0]["results"]]


def test_a_typed_query_shows_the_commands_results(indexed, address, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.set_default_timeout(1000 * PATIENCE)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    text = "a man <b>in</b> a <script>document.title=2</script> blue coat"
    page.get_by_label("BGE", exact=True).check()
    page.locator("#sentence textarea").fill(text)
    page.locator("#search").click()
    page.wait_for_selector("#results img")
    page.wait_for_function("document.querySelectorAll('#results button img').length == 12")
    expected = first_files(indexed, text, 12, tmp_path / "q")
    shown = [label.strip().split(None, 1)[1] for label in page.locator("#results .caption-label").all_inner_texts()]
    assert shown == expected
    assert HOSTILE in shown

    position = expected.index(HOSTILE)
    page.locator("#results button:has(img)").nth(position).click()
    page.wait_for_selector("#patches img")
    page.wait_for_selector("#words mark")
    words = page.locator("#words").inner_text()
    assert "script" in words
    assert "coat" in words
    assert HOSTILE in words
    assert page.title() == "RDE search", "nothing in a query or a file's name was run"
    assert page.locator("#words b, #words script, #words img").count() == 0
    source = page.locator("#patches img").get_attribute("src")
    with urlopen(source) as answer:
        shown_pixels = np.asarray(Image.open(answer).convert("L"), np.float32)
    left, right = np.array_split(shown_pixels[:, 20:-20], 2, axis=1)
    assert right.mean() > left.mean() + 20, "patches that were not chosen are faded"
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {address.split("/")[2]}
    assert complaints == []
    page.close()


def test_enter_searches_with_both_embeddings_and_shows_all_results(indexed, address, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    page.locator("#sentence textarea").fill("a man in green")
    page.locator("#sentence textarea").press("Enter")
    page.wait_for_function("document.querySelectorAll('#results button img').length == 12")
    shown = [label.strip().split(None, 1)[1] for label in page.locator("#results .caption-label").all_inner_texts()]
    assert shown == first_files(indexed, "a man in green", 12, tmp_path / "q", "BGE+TSE")
    grid = page.locator("#results .grid-wrap")
    assert grid.evaluate("grid => grid.scrollHeight <= grid.clientHeight"), "no row is cut"
    page.close()


def test_user_errors_are_shown_on_the_page(address, browser):
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    page.locator("#search").click()
    page.get_by_text("the query is empty").wait_for()
    assert page.get_by_text("Error", exact=True).count() == 0
    page.locator("#sentence textarea").fill("a woman in a red coat " * 834)
    page.locator("#top input[type=number]").fill("7")
    page.locator("#search").click()
    page.get_by_text("the model reads only the first 75").first.wait_for()  # a changed number searches as well
    page.wait_for_function("document.querySelectorAll('#results button img').length == 7")
    page.close()


@pytest.mark.parametrize(("width", "columns"), [(1366, 6), (390, 2)])
def test_examples_and_embedding_choice_search_within_the_viewport(indexed, address, browser, tmp_path, width, columns):
    """Results run from left to right, nothing is off-screen, and a click's details are visible."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    about = page.locator("#about").inner_text()
    assert f"of {indexed[0].folder.parent.name}/{indexed[0].folder.name}" in about
    assert "model: run, best.pth" in about
    page.locator("button.gallery-item").first.click()
    page.wait_for_function("document.querySelectorAll('#results button img').length == 12")
    sentence = page.locator("#sentence textarea").input_value()
    assert sentence in indexed[0].captions.values(), "an example is a caption of this gallery"
    labels = "#results .caption-label"
    shown = [label.strip().split(None, 1)[1] for label in page.locator(labels).all_inner_texts()]
    assert shown == first_files(indexed, sentence, 12, tmp_path / "q", "BGE+TSE")
    cells = page.locator("#results button:has(img)")
    boxes = [cells.nth(n).bounding_box() for n in range(12)]
    assert sum(box["y"] == boxes[0]["y"] for box in boxes) == columns
    assert boxes == sorted(boxes, key=lambda box: (box["y"], box["x"]))
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)

    cells.nth(1).click()
    page.wait_for_selector("#patches img")
    page.wait_for_function(
        "(() => { const r = document.querySelector('#patches').getBoundingClientRect();"
        " return r.top >= 0 && r.bottom <= innerHeight })()"
    )
    page.get_by_label("TSE", exact=True).check()
    page.wait_for_selector("#patches", state="hidden")
    shown = [label.strip().split(None, 1)[1] for label in page.locator(labels).all_inner_texts()]
    assert shown == first_files(indexed, sentence, 12, tmp_path / "q", "TSE")
    page.close()


@pytest.mark.parametrize(("width", "columns"), [(1366, 6), (390, 2)])
def test_the_page_is_usable_by_keyboard(address, browser, width, columns):
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    page.wait_for_selector("#sentence textarea")
    page.keyboard.press("Tab")
    page.keyboard.type("a man in green")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#results button img').length == 12")
    focused = "[...document.querySelectorAll('#results button:has(img)')].indexOf(document.activeElement)"
    for _ in range(20):
        if page.evaluate(focused) == 0:
            break
        page.keyboard.press("Tab")
    keys = {"ArrowUp": 0, "ArrowLeft": 0, "ArrowRight": 1, "ArrowDown": 1 + columns, "ArrowUp ": 1}
    assert [page.keyboard.press(key.strip()) or page.evaluate(focused) for key in keys] == [*keys.values()]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    name = page.locator("#results .caption-label").nth(1).inner_text().strip().split(None, 1)[1]
    page.keyboard.press("Enter")
    page.wait_for_selector("#words mark")
    assert name in page.locator("#words").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_leaving_the_number_of_images_unchanged_does_not_search_again(monkeypatch):
    """The results, and the details of a selected one, would be reset."""
    searches = []
    searcher: Any = SimpleNamespace(
        encoder=SimpleNamespace(similarities=["BGE", "TSE"]), search=lambda *inputs: searches.append(inputs) or [[]]
    )
    monkeypatch.setattr(page, "examples", lambda _: ["a man"])
    monkeypatch.setattr(page, "_about", lambda _: "")
    monkeypatch.setattr(page, "too_long", lambda *_: "")
    (again,) = [event.fn for event in page.build_page(searcher).fns.values() if event.name == "search_again"]
    last = (("a man", 12, "TSE"), [])
    again("a man ", 12.0, "TSE", last)
    again(" ", 7, "TSE", last)
    assert not searches
    again("a man", 7, "TSE", last)
    again("a man", 12, "BGE", last)
    assert searches == [(["a man"], 7, "TSE"), (["a man"], 12, "BGE")]


def test_examples_without_captions_are_discriminative_queries(indexed, monkeypatch):
    """One of two images matches "black trousers"; both match all other sentences equally."""
    similar = {"a man in black trousers": 0.1, "a woman in black trousers": 0.2, "a man in a red shirt": 0.05}

    class Of:
        gallery = indexed[0].folder / "camera 0"
        encoder = SimpleNamespace(similarities=["BGE"], run=SimpleNamespace(options=SimpleNamespace(dataset_name="X")))

        def search(self, texts, *_):
            return [[SimpleNamespace(score=0.5 + similar.get(text, 0)), SimpleNamespace(score=0.5)] for text in texts]

    monkeypatch.setattr(examples, "captions_of", lambda *_: [])
    assert set(examples.examples(Of())) == similar.keys()


def status(address: str, path: str, **headers: str) -> int:
    try:
        with urlopen(Request(f"{address}/{path}", headers=headers), timeout=PATIENCE) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_only_thumbnails_are_served_and_only_locally(indexed, address):
    folder = indexed[0].folder
    assert status(address, "") == 200
    for path in ("/etc/passwd", folder / "secret.txt", folder / "camera 1/01.jpg", ROOT / "README.md", "README.md"):
        quoted = str(path).replace(" ", "%20")
        assert status(address, f"gradio_api/file={quoted}") in (403, 404)
    assert status(address, "", Host="evil.example") == 400
    with pytest.raises(ConnectionRefusedError):  # all of 127/8 is this machine: bound to 0.0.0.0, it would respond
        socket.create_connection(("127.0.0.2", int(address.rsplit(":", 1)[1])), timeout=5).close()


def test_a_port_in_use_is_reported(indexed, address):
    with pytest.raises(UserError, match=r"--port \d+: .*; choose another") as caught:
        search.main(["serve", "--index", str(indexed[1]), "--port", address.rsplit(":", 1)[1]])
    assert "\n" not in str(caught.value)
