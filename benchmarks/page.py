"""Load test of the search page: thirty concurrent users type, search and click in a gallery of ten thousand images.

    python -m benchmarks.page                     # a tiny CLIP, like the built-in one (2 minutes)
    python -m benchmarks.page --model ViT-B/16    # the paper's backbone, also with random weights
    python -m benchmarks.page --quick             # a smoke test with few users and images

Page and users share the machine. A user sends what a browser would: types a sentence, presses Search, fetches the
images, looks at them, clicks one, and looks at its selected tokens. Finally all users press Search simultaneously.
Latency is from the click to the last byte, images included; on a busy machine the page's CPU time says more (Linux
only). Every response is compared with a local searcher's, to detect lost responses and those meant for another user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prettytable import PrettyTable, TableStyle

from benchmarks.measure import machine
from benchmarks.synthetic import SMALLEST, TINY, VIT_B_16, WORDS, image_size, jpeg, random_model
from model.backbones.clip_config import ClipConfig
from options import resolve
from tools import search
from tools.loading import LoadedRun, require
from tools.search.commands import open_searcher
from tools.search.encode import Encoder
from tools.search.engines import REQUIREMENTS
from tools.search.files import create
from tools.search.gallery import stamp
from tools.search.rows import About, Row
from utils.checkpoints import save_checkpoint
from utils.devices import choose_device
from utils.errors import OptionError, UserError
from utils.options import command_parser, parse
from utils.program import run_program
from utils.run_folder import RunFolder

if TYPE_CHECKING:
    import httpx

_ROOT = Path(__file__).parents[1]
_MODELS = {"ViT-B/16": VIT_B_16, "tiny": TINY, "smallest": SMALLEST}
_TOP, _TURNS = 12, 4  # images per result, the page's default; searches per user
_LETTERS_A_SECOND, _LOOKING = 6, (2, 6)  # typing speed; range of seconds spent on results and on details
_SAMPLE = 256  # number of sentences whose embeddings are mixed to those of images
_TIMEOUT = 120  # seconds per request
_KEEP_ALIVE = 3  # seconds to keep an idle connection, less than the server's 5


def write_index(folder: Path, sizes: ClipConfig, pictures: int) -> Path:
    """Write an index of synthetic images and a run with random weights into `folder`; returns the index.

    Image vectors are distributed like those of sentences, so that different sentences find different images.
    """
    options = resolve({"img_size": image_size(sizes), "stride_size": sizes.stride, "num_workers": 0})
    model, run = random_model(sizes, choose_device("cpu")), RunFolder(folder / "run")
    run.path.mkdir()
    run.write_config(options, {})
    save_checkpoint({"format": 1, "model": model.published_state(), "epoch": 0}, run.path / "best.pth")
    encoder = Encoder(LoadedRun(run.path, options, run.path / "best.pth", model.eval()))
    rng = np.random.default_rng(0)
    sample = encoder.texts([sentence(rng) for _ in range(_SAMPLE)])
    mixed = rng.standard_normal((pictures, _SAMPLE), np.float32) @ (sample - sample.mean(axis=0)) / _SAMPLE**0.5
    vectors = mixed + sample.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery, content = folder / "gallery", [jpeg(rng, (256, 96)) for _ in range(256)]
    gallery.mkdir()
    rows = []
    for number, vector in enumerate(vectors):
        path = Path(f"{number:05d}.jpg")
        (gallery / path).write_bytes(content[number % len(content)])
        rows.append(Row(path, stamp(gallery / path), vector, None))
    about = About(gallery, run.path, run.path / "best.pth", encoder.fingerprint, encoder.widths)
    (folder / "index").mkdir()
    create(folder / "index", about).put(rows)
    return folder / "index"


def sentence(rng: np.random.Generator) -> str:
    """A sentence of eight to fifteen random words."""
    return " ".join(rng.choice(WORDS, rng.integers(8, 16)))


@contextlib.contextmanager
def served(index: Path) -> Iterator[tuple[str, int]]:
    """Serve the page with the real command on a free port; yields its address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", search.__name__, "serve", "--index", str(index), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            if not any("end with Ctrl-C" in line for line in server.stdout or ()):
                raise OptionError(f"can't serve the page on port {port}")
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.terminate()


def processor_seconds(process: int) -> float:
    """CPU time used by a process; NaN without /proc."""
    file = Path(f"/proc/{process}/stat")
    if not file.is_file():
        return math.nan
    user, system = file.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Judge:
    """Compares the page's responses with a local searcher on the same index, and records latencies.

    Attributes:
        similarity: the page's default similarity.
        expected: the files expected for each sentence, best first.
        seconds: latencies by kind of request.
        wrong: number of wrong responses.
    """

    def __init__(self, index: Path, texts: Sequence[str]) -> None:
        flags = {"index": index, "run": None, "checkpoint": None, "store": None}
        searcher = open_searcher({**flags, "device": "cpu", "engine": "torch", "faiss": False})
        self.similarity = searcher.encoder.similarities[-1]
        results = (searcher.search([text], _TOP, self.similarity)[0] for text in texts)
        self.expected = {text: [hit.file.name for hit in hits] for text, hits in zip(texts, results, strict=True)}
        self.seconds: dict[str, list[float]] = {}
        self.wrong = 0

    async def search(self, person: Person, text: str, what: str = "search") -> None:
        """Let a user search, and check the response."""
        began = time.perf_counter()
        names = await person.search(text)
        self._add(what, began, right=names == self.expected[text])

    async def click(self, person: Person, text: str, position: int) -> None:
        """Let a user click a result of a sentence, and check the details shown."""
        began = time.perf_counter()
        details = await person.click(position)
        words = text.split()
        right = words == details.split()[: len(words)] and self.expected[text][position] in details
        self._add("click", began, right=right)

    def _add(self, what: str, began: float, *, right: bool) -> None:
        self.seconds.setdefault(what, []).append(time.perf_counter() - began)
        self.wrong += not right


class Person:
    """A user with the page open in a browser.

    Args:
        client: this user's HTTP client.
        page: the page's configuration, from /config.
        similarity: the similarity to search by.
    """

    def __init__(self, client: httpx.AsyncClient, page: dict[str, Any], similarity: str) -> None:
        self.client, self.similarity = client, similarity
        self.session = os.urandom(6).hex()
        self._search, self._select = (_called_by(page, event) for event in ("submit", "select"))

    async def search(self, text: str) -> list[str]:
        """Search and fetch the resulting images; returns their names."""
        gallery = (await self._call(self._search, [text, _TOP, self.similarity], None))[0]["value"]
        await asyncio.gather(*(self._fetch(cell["image"]) for cell in gallery))
        return [cell["caption"].split(None, 1)[1] for cell in gallery]

    async def click(self, position: int) -> str:
        """Click a result and fetch its image; returns the details as plain text."""
        picture, details = await self._call(self._select, [None], {"index": position, "value": None})
        await self._fetch(picture["value"])
        return re.sub(r"<[^>]+>", " ", details)

    async def _call(self, function: int, data: list[Any], event: dict[str, Any] | None) -> list[Any]:
        body = {"data": data, "fn_index": function, "session_hash": self.session, "event_data": event}
        (await self.client.post("/gradio_api/queue/join", json=body)).raise_for_status()
        query = {"session_hash": self.session}
        async with self.client.stream("GET", "/gradio_api/queue/data", params=query) as stream:
            async for line in stream.aiter_lines():
                if "process_completed" in line:
                    return json.loads(line.removeprefix("data: "))["output"]["data"]
        raise OptionError("the page's response is incomplete")

    async def _fetch(self, picture: dict[str, Any]) -> None:
        (await self.client.get(picture["url"])).raise_for_status()


def _called_by(page: dict[str, Any], event: str) -> int:
    """Index of the page's function that an event calls."""
    return next(call["id"] for call in page["dependencies"] if any(name == event for _, name in call["targets"]))


async def visit(person: Person, texts: Sequence[str], judge: Judge, pace: float) -> None:
    """Search for some sentences and click a result of each; `pace` scales all pauses."""
    rng = np.random.default_rng(list(texts[0].encode()))
    await asyncio.sleep(pace * rng.uniform(0, 10))
    for text in texts:
        await asyncio.sleep(pace * len(text) / _LETTERS_A_SECOND)
        await judge.search(person, text)
        await asyncio.sleep(pace * rng.uniform(*_LOOKING))
        await judge.click(person, text, int(rng.integers(_TOP)))
        await asyncio.sleep(pace * rng.uniform(*_LOOKING))


async def crowd(address: str, people: int, judge: Judge, pace: float) -> None:
    """Run all users' visits, each with different sentences, then one simultaneous search by all."""
    async with contextlib.AsyncExitStack() as stack:
        httpx = require("httpx", REQUIREMENTS)  # a dependency of gradio
        limits = httpx.Limits(keepalive_expiry=_KEEP_ALIVE)
        unopened = [httpx.AsyncClient(base_url=address, timeout=_TIMEOUT, limits=limits) for _ in range(people)]
        clients = [await stack.enter_async_context(client) for client in unopened]
        page = (await clients[0].get("/config")).json()
        persons = [Person(client, page, judge.similarity) for client in clients]
        visits = list(zip(persons, ([*judge.expected][n::people] for n in range(people)), strict=True))
        await asyncio.gather(*(visit(person, texts[1:], judge, pace) for person, texts in visits))
        last = (judge.search(person, texts[0], "search, all at once") for person, texts in visits)
        await asyncio.gather(*last)


def main(argv: Sequence[str]) -> None:
    """Run the load test and print a table; a wrong response is an error."""
    parser = command_parser("benchmarks.page", __doc__)
    parser.add_argument("--people", type=int, default=30, help="concurrent users (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=10_000, help="gallery size (default: %(default)s)")
    parser.add_argument("--model", choices=list(_MODELS), default="tiny", help="model size (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="4 fast users, 100 images, the smallest model")
    args = parse(parser, argv)
    if args["quick"]:
        args |= {"people": 4, "pictures": 100, "model": "smallest"}
    for name, minimum in (("people", 1), ("pictures", _TOP)):
        if args[name] < minimum:
            raise OptionError(f"--{name} {args[name]}: must be at least {minimum}")
    rng = np.random.default_rng(1)
    texts = [sentence(rng) for _ in range(args["people"] * (1 + _TURNS))]
    with tempfile.TemporaryDirectory(prefix="rde_page_benchmark_") as folder:
        print("creating model and images …", flush=True)
        index = write_index(Path(folder), _MODELS[args["model"]], args["pictures"])
        judge = Judge(index, texts)
        answers = {tuple(names) for names in judge.expected.values()}
        with served(index) as (address, process):
            start = processor_seconds(process)
            print(f"{args['people']} people search {args['pictures']:,} images …", flush=True)
            began = time.perf_counter()
            asyncio.run(crowd(address, args["people"], judge, 0.01 if args["quick"] else 1))
            elapsed = time.perf_counter() - began
            used = processor_seconds(process) - start
    table = PrettyTable(["", "answers", "median", "95th percentile", "longest"], align="r")
    table.set_style(TableStyle.MARKDOWN)
    for what, seconds in judge.seconds.items():
        numbers = (*np.percentile(seconds, (50, 95)), max(seconds))
        table.add_row([what, len(seconds), *(f"{1000 * number:.0f} ms" for number in numbers)])
    count = sum(map(len, judge.seconds.values()))
    print(f"{table.get_string()}\n{args['model']} on {machine(choose_device('cpu'))['machine']}")
    print(f"processor time of the page: {1000 * used / count:.0f} ms per answer, {used:.0f} of {elapsed:.0f} s")
    print(f"{len(answers)} different correct answers to {len(texts)} sentences; {judge.wrong} wrong")
    if judge.wrong:
        raise UserError(f"{judge.wrong} answers were wrong")


if __name__ == "__main__":
    run_program(main)
