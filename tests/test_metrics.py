"""Retrieval metrics against the published numbers and a slow oracle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from processor import evaluation as processor_evaluation
from processor import metrics as processor_metrics
from processor import run
from processor.evaluation import Encoded, Ranking, rank
from processor.metrics import retrieval_metrics
from tests import published

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("case", range(3))
def test_metrics_equal_the_published_ones(case):
    golden = published.case("metrics", case)
    arrays = [torch.from_numpy(golden[name]) for name in ("similarity", "query_ids", "gallery_ids")]
    metrics = retrieval_metrics(*arrays)
    for k in (1, 5, 10):
        assert metrics[f"R{k}"] == pytest.approx(golden["cmc_1_to_10"][k - 1], rel=1e-6)
    assert metrics["mAP"] == pytest.approx(float(golden["mAP"]), rel=1e-6)
    assert metrics["mINP"] == pytest.approx(float(golden["mINP"]), rel=1e-6)
    assert metrics["rSum"] == pytest.approx(metrics["R1"] + metrics["R5"] + metrics["R10"])


def slow_metrics(similarity: np.ndarray, query_pids: np.ndarray, gallery_pids: np.ndarray) -> dict[str, float]:
    """One query at a time, directly from the definitions."""
    first, precisions, penalties = [], [], []
    for row, pid in zip(similarity, query_pids, strict=True):
        ranked = [gallery_pids[g] for g in sorted(range(len(row)), key=lambda g: (-row[g], g))]
        hits = [rank for rank, found in enumerate(ranked, start=1) if found == pid]
        first.append(hits[0] if hits else np.inf)
        precisions.append(np.mean([n / rank for n, rank in enumerate(hits, start=1)]) if hits else 0.0)
        penalties.append(len(hits) / hits[-1] if hits else 0.0)
    result = {f"R{k}": 100 * np.mean([rank <= k for rank in first]) for k in (1, 5, 10)}
    return result | {"mAP": 100 * np.mean(precisions), "mINP": 100 * np.mean(penalties)}


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_the_oracle_with_ties_and_queries_without_a_match(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 6, (40, 25)).astype(np.float32)  # many ties
    query_pids, gallery_pids = rng.integers(0, 9, 40), rng.integers(0, 8, 25)  # pid 8 is in no gallery
    metrics = retrieval_metrics(*map(torch.from_numpy, (similarity, query_pids, gallery_pids)))
    for name, value in slow_metrics(similarity, query_pids, gallery_pids).items():
        assert metrics[name] == pytest.approx(value, rel=1e-12), name


def test_a_collapsed_model_gains_nothing_from_ties():
    pids = torch.arange(50)
    assert retrieval_metrics(torch.zeros(50, 50), pids, pids)["R1"] == pytest.approx(2.0)


@pytest.mark.parametrize("image_to_text", [False, True])
def test_ranking_some_queries_at_a_time_changes_nothing(image_to_text, monkeypatch):
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-2, 3, shape).astype(np.float32))  # exact products, many of them alike

    image, text = ({"BGE": draw(n, 3), "TSE": draw(n, 4)} for n in (30, 50))
    encoded = Encoded(image, text)
    caption_pids, image_pids = rng.integers(0, 9, 50), rng.integers(0, 8, 30)
    monkeypatch.setattr(processor_metrics, "_CHUNK", 200)  # some queries at a time, and some of the tied pairs
    ranked = rank(Ranking(encoded, image_to_text), caption_pids, image_pids)
    for name, similarity in encoded.similarity(slice(None)).items():
        s, query, gallery = similarity.numpy(), caption_pids, image_pids
        if image_to_text:
            s, query, gallery = s.T, image_pids, caption_pids
        for metric, value in slow_metrics(s, query, gallery).items():
            assert ranked[name][metric] == pytest.approx(value, rel=1e-12), (name, metric)


def test_the_trained_embeddings_alone_select_the_best_epoch(monkeypatch):
    rng = np.random.default_rng(0)
    draw = torch.Generator().manual_seed(0)
    image, text = ({name: torch.randn(n, 4, generator=draw) for name in ("NEW", "BGE", "TSE")} for n in (30, 50))
    data = SimpleNamespace(name="val", caption_pids=rng.integers(0, 9, 50), image_pids=rng.integers(0, 8, 30))
    monkeypatch.setattr(processor_evaluation, "encode", lambda *_: Encoded(image, text))
    state: Any = SimpleNamespace(model=None, loss=SimpleNamespace(trained=("TSE", "BGE")), epoch=1, best=-1.0)
    record, _ = run._validate(state, run.RunSplits(None, data))  # type: ignore[arg-type]
    assert [*record["val"]] == ["NEW", "BGE", "TSE", "BGE+TSE", "NEW+BGE+TSE"]
    two = Encoded(*({name: part[name] for name in ("BGE", "TSE")} for part in (image, text)))
    expected = rank(Ranking(two), data.caption_pids, data.image_pids)
    assert record["val"].items() >= expected.items()
    assert state.best == expected["BGE+TSE"]["R1"] != record["val"]["NEW+BGE+TSE"]["R1"]
