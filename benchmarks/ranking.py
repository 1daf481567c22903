"""Ranking and metrics against the plain baseline, by number of queries and images, and on a large gallery."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import plain
from benchmarks.measure import interleaved, seconds_of
from benchmarks.setting import Rows, Setting
from processor.evaluation import Encoded, Ranking, rank
from processor.metrics import retrieval_metrics
from utils.devices import peak_memory_gb

QUERIES, GALLERY, PERSONS = 6156, 3074, 1000  # CUHK-PEDES's test split
WIDTHS = {"BGE": 512, "TSE": 1024}
LARGE = 19848  # queries and images of ICFG-PEDES's test split


def draw(queries: int, gallery: int, device: torch.device) -> tuple[Encoded, np.ndarray, np.ndarray]:
    """Random unit embeddings, and the pids of captions and images."""
    torch.manual_seed(0)

    def unit(rows: int, width: int) -> Tensor:
        return F.normalize(torch.randn(rows, width), dim=1).to(device)

    rng = np.random.default_rng(0)
    persons = min(PERSONS, gallery)
    caption_pids, image_pids = (rng.permutation(np.arange(count) % persons) for count in (queries, gallery))
    image, text = ({name: unit(rows, width) for name, width in WIDTHS.items()} for rows in (gallery, queries))
    return Encoded(image, text), caption_pids, image_pids


def compare_with_plain(setting: Setting) -> Rows:
    """One similarity at half, one and two times the size of CUHK-PEDES's test split; all three from embeddings, as in a
    test; and a large gallery on all cores, in a separate process to measure its peak memory."""
    side = setting.scaled(LARGE)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        large = executor.submit(_large, side, setting.device).result()
    rows = []
    for factor in (0.5, 1, 2):
        queries, gallery = setting.scaled(int(factor * QUERIES)), setting.scaled(int(factor * GALLERY))
        encoded, *pids = draw(queries, gallery, setting.device)
        similarity = encoded.similarity(slice(None))[encoded.fused]
        ways = {
            "plain": lambda s=similarity, p=pids: plain.rank(s, *_tensors(p, setting)),
            "ours": lambda s=similarity, p=pids: retrieval_metrics(s, *_tensors(p, setting)),
        }
        rows.append(_row(f"{queries:,} × {gallery:,}, one similarity", ways, setting))
    encoded, *pids = draw(setting.scaled(QUERIES), setting.scaled(GALLERY), setting.device)

    def plain_test() -> None:
        for similarity in encoded.similarity(slice(None)).values():
            plain.rank(similarity, *_tensors(pids, setting))

    ways = {"plain": plain_test, "ours": lambda: rank(Ranking(encoded), *pids)}
    rows.append(_row(f"{len(pids[0]):,} × {len(pids[1]):,}, products and all three", ways, setting))
    return [*rows, {"what": f"{side:,} × {side:,}, products and all three, all cores"} | large]


def _tensors(pids: list[np.ndarray], setting: Setting) -> list[Tensor]:
    return [torch.from_numpy(part).to(setting.device) for part in pids]


def _row(what: str, ways: dict, setting: Setting) -> dict:
    seconds = interleaved(ways, setting.repeats, setting.device)
    ratio = seconds["plain"] / seconds["ours"]
    return {"what": what, "plain, s": seconds["plain"], "ours, s": seconds["ours"], "ratio": ratio}


def _large(count: int, device: torch.device) -> dict[str, float]:
    """Time on all cores, and peak memory of the process."""
    encoded, captions, images = draw(count, count, device)
    seconds = seconds_of(lambda: rank(Ranking(encoded), captions, images), device)
    return {"ours, s": seconds, "peak memory, GB": peak_memory_gb(device)}
