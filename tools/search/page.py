"""The search page: bound to the loopback address, without outgoing requests, serving only indexed images.

Images are served as generated thumbnails; no URL of the page leads to a file of the gallery.
"""

from __future__ import annotations

import html
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from tools.search.examples import examples
from tools.search.results import thumbnail
from tools.search.search import Hit, Searcher
from tools.search.texts import check_sentence, too_long
from tools.selection import chosen_words, overlaid
from utils.errors import OptionError, UserError, printable

HOST = "127.0.0.1"
_NAMES = [HOST, "localhost"]  # requests for other host names are rejected
_THUMBNAIL = (288, 180)  # height, width
_MAX_COUNT = 60
_CACHE_CLEANUP = (600, 3600)  # interval of deleting thumbnails, and their maximum age, in seconds
# Makes the browser block external requests, whatever the framework's page contains.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; frame-ancestors 'none'"
)
_CSS = """
mark { border-radius: 3px; padding: 1px 3px; margin: 1px; color: inherit }
footer { display: none !important }
#results .thumbnail-lg { aspect-ratio: 5 / 8 }
#results .grid-wrap { max-height: none !important }
#results .grid-container { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)) !important }
#details { position: sticky; top: .5rem; align-self: flex-start; min-height: 37rem }
#results button:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 1px }
#about { overflow-wrap: anywhere }
"""
# Keyboard: Tab moves to the results, arrow keys between them, and Enter clicks.
_ARROWS = """() => document.addEventListener("keydown", (event) => {
  const cells = [...document.querySelectorAll("#results button:has(img)")];
  const at = cells.indexOf(document.activeElement);
  const tops = cells.map((cell) => cell.getBoundingClientRect().top);
  const columns = tops.filter((top) => top === tops[0]).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (at < 0 || !(event.key in steps)) return;
  event.preventDefault();
  cells[at + steps[event.key]]?.focus();
})"""
# Details are beside the results on wide screens, below them on narrow ones.
_SHOW_DETAILS = "() => document.getElementById('details').scrollIntoView({block: 'nearest', behavior: 'smooth'})"
_HINT = "Click an image (or Tab, arrows, Enter) to see which patches and words token selection chose."

Searched = tuple[tuple[str, int, str], list[Hit]]  # sentence, number of images and similarity of a search; its results


def serve_page(searcher: Searcher, port: int) -> None:
    """Serve until interrupted.

    Raises:
        OptionError: the port is taken.
    """
    # A thumbnail may still be written while the folder is removed.
    with tempfile.TemporaryDirectory(prefix="rde_page_", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that the folder is removed
        page = build_page(searcher)
        try:
            page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                footer_links=[],
                css=_CSS,
                js=_ARROWS,
                app_kwargs={
                    "middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=_NAMES), Middleware(_Policy)]
                },
            )
        except OSError:
            raise OptionError(f"--port {port}: already in use or not allowed; choose another") from None
        summary = f"{len(searcher.store):,} images of {searcher.gallery} at http://{HOST}:{port}, end with Ctrl-C"
        print(printable(summary), flush=True)
        page.block_thread()


class _Policy:
    """Middleware that adds the content security policy to every response and rejects uploads."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload"):
            await PlainTextResponse("uploads are disabled", 403)(scope, receive, send)
            return

        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def build_page(searcher: Searcher) -> gr.Blocks:
    """Build the page."""
    names = searcher.encoder.similarities
    with gr.Blocks(analytics_enabled=False, title="RDE search", delete_cache=_CACHE_CLEANUP) as page:
        gr.HTML(_about(searcher), elem_id="about")
        with gr.Row():
            text = gr.Textbox(label="Who is it?", placeholder="Describe a person", scale=4, elem_id="sentence")
            button = gr.Button("Search", variant="primary", scale=1, elem_id="search")
        with gr.Row():
            top = gr.Slider(1, _MAX_COUNT, value=12, step=1, label="Number of images", elem_id="top")
            similarity = gr.Radio(names, value=names[-1], label="Similarity")
        example_list = gr.Examples([[example] for example in examples(searcher)], inputs=text, label="Examples")
        # Encoding a dozen images as JPEG takes a tenth of the time of WebP, the framework's default.
        plain = {"show_label": False, "buttons": [], "format": "jpeg"}
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                gallery = gr.Gallery(
                    columns=6, object_fit="contain", height="auto", allow_preview=False, elem_id="results", **plain
                )
            with gr.Column(scale=1, min_width=300, elem_id="details"):
                words = gr.HTML(_HINT, elem_id="words")
                picture = gr.Image(interactive=False, elem_id="patches", visible=False, height=420, **plain)
        state = gr.State((("", 0, ""), []))

        def search(text: str, top: float, similarity: str) -> Any:
            return _with_errors_shown(lambda: ranked(check_sentence(text), int(top), similarity), outputs)

        def search_again(text: str, top: float, similarity: str, last: Searched) -> Any:
            # Leaving the slider's number field counts as releasing the slider.
            changed = (text.strip(), int(top), similarity) != last[0]
            return search(text, top, similarity) if text.strip() and changed else _unchanged(outputs)

        def ranked(text: str, top: int, similarity: str) -> tuple:
            hits = searcher.search([text], top, similarity)[0]
            if warning := too_long(text, searcher.encoder):
                gr.Warning(warning)
            cells = [(thumbnail(hit.file, _THUMBNAIL), f"{hit.score:.3f}  {printable(hit.file.name)}") for hit in hits]
            searched = (text, top, similarity), hits
            return gr.Gallery(cells, selected_index=None), searched, gr.Image(None, visible=False), _HINT

        def select(last: Searched, event: gr.SelectData) -> Any:
            (text, _, _), hits = last
            return _with_errors_shown(lambda: details(text, hits[event.index]), [picture, words])

        def details(text: str, hit: Hit) -> tuple:
            pictures, marked = selection(searcher, text, hit)
            return gr.Image(pictures, visible=True), marked

        inputs, outputs = [text, top, similarity], [gallery, state, picture, words]
        # Token selection is recorded with hooks on the model.
        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        gr.on([button.click, text.submit], search, inputs, outputs, **one_at_a_time)
        gr.on([similarity.input, top.release], search_again, [*inputs, state], outputs, **one_at_a_time)
        example_list.load_input_event.then(search, inputs, outputs, **one_at_a_time)
        gallery.select(select, state, [picture, words], **one_at_a_time).then(None, js=_SHOW_DETAILS)
    return page


def _about(searcher: Searcher) -> str:
    """The page's header: gallery and model."""
    run = searcher.encoder.run
    model = f"{run.folder.resolve().name}, {run.file.name}, trained on {run.options.dataset_name}"
    gallery = "/".join(searcher.gallery.parts[-2:])
    gallery, model = (html.escape(printable(text)) for text in (gallery, model))
    return f"<h2>Search {len(searcher.store):,} images</h2><p>of {gallery}<br>model: {model}</p>"


def _with_errors_shown(work: Callable[[], Any], outputs: Sequence[Any]) -> Any:
    """The result of `work`; user errors are shown on the page, which then stays unchanged."""
    try:
        return work()
    except UserError as error:
        gr.Warning(html.escape(error.line))
        return _unchanged(outputs)


def _unchanged(outputs: Sequence[Any]) -> tuple:
    return tuple(gr.skip() for _ in outputs)


def selection(searcher: Searcher, text: str, hit: Hit) -> tuple[Image.Image, str]:
    """A result beside its selected patches, and the sentence with selected words highlighted, as HTML."""
    run = searcher.encoder.run
    pictures = overlaid(run.model, run.options.img_size, hit.file, upright=True)
    width, height = pictures[0].size
    side_by_side = Image.new("RGB", (2 * width + 12, height), "white")
    for n, picture in enumerate(pictures):
        side_by_side.paste(picture, (n * (width + 12), 0))
    marked = " ".join(
        f'<mark style="background: rgba(0, 114, 178, {0.12 + 0.5 * weight:.2f})">{html.escape(word)}</mark>'
        if weight
        else f'<span style="opacity: .55">{html.escape(word)}</span>'
        for word, weight in chosen_words(run.model, searcher.encoder.tokenizer, text)
    )
    scores = ", ".join(f"{html.escape(name)} {score:.3f}" for name, score in hit.scores.items())
    name = html.escape(printable(str(hit.file.relative_to(searcher.gallery))))
    return side_by_side, f"<p>{marked}</p><p><small>{name}<br>{scores}</small></p>"
