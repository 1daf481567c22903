"""Load test of the search page: thirty concurrent users type, search and click in a gallery of ten thousand images.

    python -m benchmarks.page                     # a CLIP about as small as the built-in one (2 minutes)
    python -m benchmarks.page --model ViT-B/16    # the paper's backbone, also with random weights
    python -m benchmarks.page --quick             # a smoke test with few users and images

Page and users share the machine. A user sends what a browser would: types a sentence at a few letters per second,
presses Search, fetches the images found, looks at them, clicks one, and looks at the tokens selected. Finally all
press Search at the same moment. Latency runs from the press to the last byte, images included; on a busy machine the
page's CPU time says more (Linux only). Every response is compared with that of a local searcher, so that lost responses
and those meant for another user are noticed.
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

from benchmarks.made_up import SMALLEST, TINY, VIT_B_16, WORDS, image_size, jpeg, random_model
from benchmarks.measure import machine
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
_LETTERS_A_SECOND, _LOOKING = 6, (2, 6)  # typing speed; seconds spent on the results, and on the details
_SAMPLE = 256  # sentences from whose embeddings those of the images are made up
_PATIENCE = 120  # timeout of a request in seconds
_KEEP_ALIVE = 3  # seconds an idle connection is kept, less than the server's 5


def write_index(folder: Path, sizes: ClipConfig, pictures: int) -> Path:
    """Write an index of made-up images and a run with random weights into `folder`; returns the index.

    The images' vectors are distributed like those of sentences, so that different sentences find different images.
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
                raise OptionError(f"the page could not be served on port {port}")
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.terminate()


def processor_seconds(process: int) -> float:
    """CPU time that a process has used so far; NaN where /proc is missing."""
    file = Path(f"/proc/{process}/stat")
    if not file.is_file():
        return math.nan
    user, system = file.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Judge:
    """Compares the page's responses with those of a local searcher on the same index, and records latencies.

    Attributes:
        similarity: the page's default similarity.
        expected: the files found for each sentence, best first.
        seconds: latencies by kind of request.
        wrong: number of wrong responses.
    """

    def __init__(self, index: Path, texts: Sequence[str]) -> None:
        where = {"index": index, "run": None, "checkpoint": None, "store": None}
        searcher = open_searcher({**where, "device": "cpu", "engine": "torch", "faiss": False})
        self.similarity = searcher.encoder.similarities[-1]
        found = (searcher.search([text], _TOP, self.similarity)[0] for text in texts)
        self.expected = {text: [hit.file.name for hit in hits] for text, hits in zip(texts, found, strict=True)}
        self.seconds: dict[str, list[float]] = {}
        self.wrong = 0

    async def search(self, person: Person, text: str, what: str = "search") -> None:
        """Have a user search, and check the response."""
        began = time.perf_counter()
        names = await person.search(text)
        self._add(what, began, right=names == self.expected[text])

    async def click(self, person: Person, text: str, position: int) -> None:
        """Have a user click a result of a sentence, and check the details shown."""
        began = time.perf_counter()
        said = await person.click(position)
        words = text.split()
        self._add("click", began, right=words == said.split()[: len(words)] and self.expected[text][position] in said)

    def _add(self, what: str, began: float, *, right: bool) -> None:
        self.seconds.setdefault(what, []).append(time.perf_counter() - began)
        self.wrong += not right


class Person:
    """A user with the page open in a browser.

    Args:
        client: this user's own HTTP client.
        page: the page's configuration, from /config.
        similarity: the similarity to search by.
    """

    def __init__(self, client: httpx.AsyncClient, page: dict[str, Any], similarity: str) -> None:
        self.client, self.similarity = client, similarity
        self.session = os.urandom(6).hex()
        self._search, self._select = (_called_by(page, event) for event in ("submit", "select"))

    async def search(self, text: str) -> list[str]:
        """Search and fetch the images found; returns their names."""
        gallery = (await self._call(self._search, [text, _TOP, self.similarity], None))[0]["value"]
        await asyncio.gather(*(self._fetch(cell["image"]) for cell in gallery))
        return [cell["caption"].split(None, 1)[1] for cell in gallery]

    async def click(self, position: int) -> str:
        """Click a result and fetch its image; returns the details as plain text."""
        picture, said = await self._call(self._select, [None], {"index": position, "value": None})
        await self._fetch(picture["value"])
        return re.sub(r"<[^>]+>", " ", said)

    async def _call(self, function: int, data: list[Any], event: dict[str, Any] | None) -> list[Any]:
        body = {"data": data, "fn_index": function, "session_hash": self.session, "event_data": event}
        (await self.client.post("/gradio_api/queue/join", json=body)).raise_for_status()
        asked = {"session_hash": self.session}
        async with self.client.stream("GET", "/gradio_api/queue/data", params=asked) as stream:
            async for line in stream.aiter_lines():
                if "process_completed" in line:
                    return json.loads(line.removeprefix("data: "))["output"]["data"]
        raise OptionError("the page ended its answer too early")

    async def _fetch(self, picture: dict[str, Any]) -> None:
        (await self.client.get(picture["url"])).raise_for_status()


def _called_by(page: dict[str, Any], event: str) -> int:
    """Index of the page's function that an event calls."""
    return next(of["id"] for of in page["dependencies"] if any(name == event for _, name in of["targets"]))


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
    """Run all users' visits, each with sentences of their own, then one simultaneous search by all."""
    async with contextlib.AsyncExitStack() as stack:
        httpx = require("httpx", REQUIREMENTS)  # a dependency of gradio
        limits = httpx.Limits(keepalive_expiry=_KEEP_ALIVE)
        of_each = [httpx.AsyncClient(base_url=address, timeout=_PATIENCE, limits=limits) for _ in range(people)]
        clients = [await stack.enter_async_context(client) for client in of_each]
        page = (await clients[0].get("/config")).json()
        persons = [Person(client, page, judge.similarity) for client in clients]
        own = [[*judge.expected][n::people] for n in range(people)]
        await asyncio.gather(*(visit(person, of[1:], judge, pace) for person, of in zip(persons, own, strict=True)))
        last = (judge.search(person, of[0], "search, all at once") for person, of in zip(persons, own, strict=True))
        await asyncio.gather(*last)


def main(argv: Sequence[str]) -> None:
    """Run the load test and print its table; a wrong or mixed-up response is an error."""
    parser = command_parser("benchmarks.page", __doc__)
    parser.add_argument("--people", type=int, default=30, help="concurrent users (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=10_000, help="gallery size (default: %(default)s)")
    parser.add_argument("--model", choices=list(_MODELS), default="tiny", help="model size (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="4 fast users, 100 images, the smallest model")
    args = parse(parser, argv)
    if args["quick"]:
        args |= {"people": 4, "pictures": 100, "model": "smallest"}
    for name, least in (("people", 1), ("pictures", _TOP)):
        if args[name] < least:
            raise OptionError(f"--{name} {args[name]}: must be at least {least}")
    rng = np.random.default_rng(1)
    texts = [sentence(rng) for _ in range(args["people"] * (1 + _TURNS))]
    with tempfile.TemporaryDirectory(prefix="rde_page_benchmark_") as folder:
        print("making up model and pictures …", flush=True)
        index = write_index(Path(folder), _MODELS[args["model"]], args["pictures"])
        judge = Judge(index, texts)
        answers = {tuple(names) for names in judge.expected.values()}
        with served(index) as (address, process):
            start = processor_seconds(process)
            print(f"{args['people']} people search {args['pictures']:,} pictures …", flush=True)
            began = time.perf_counter()
            asyncio.run(crowd(address, args["people"], judge, 0.01 if args["quick"] else 1))
            took = time.perf_counter() - began
            used = processor_seconds(process) - start
    table = PrettyTable(["", "answers", "median", "95th percentile", "longest"], align="r")
    table.set_style(TableStyle.MARKDOWN)
    for what, seconds in judge.seconds.items():
        numbers = (*np.percentile(seconds, (50, 95)), max(seconds))
        table.add_row([what, len(seconds), *(f"{1000 * number:.0f} ms" for number in numbers)])
    count = sum(map(len, judge.seconds.values()))
    print(f"{table.get_string()}\n{args['model']} on {machine(choose_device('cpu'))['machine']}")
    print(f"processor time of the page: {1000 * used / count:.0f} ms an answer, {used:.0f} s of {took:.0f}")
    print(f"{len(answers)} different right answers to {len(texts)} sentences; {judge.wrong} wrong or mixed up")
    if judge.wrong:
        raise UserError(f"{judge.wrong} answers were wrong or mixed up")


if __name__ == "__main__":
    run_program(main)
