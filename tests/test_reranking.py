"""k-reciprocal re-ranking against a slow oracle, and through the real commands."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from options import check_rerank
from processor import reranking
from processor.evaluation import Encoded, Ranking, rank
from processor.reranking import KReciprocal
from processor.settings import RerankSettings
from tests.galleries import write_gallery, write_run
from tools.search import __main__ as search
from utils.errors import OptionError

pytestmark = pytest.mark.numeric


def unit(rng: np.random.Generator, count: int, persons: int) -> torch.Tensor:
    """Unit vectors of several persons."""
    centres = rng.normal(size=(persons, 12)) + 1
    vectors = centres[np.arange(count) % persons] + 0.7 * rng.normal(size=(count, 12))
    return torch.nn.functional.normalize(torch.from_numpy(vectors).float(), dim=1)


def slow(gallery: np.ndarray, similarity: np.ndarray, k1: int, k2: int, share: float) -> np.ndarray:
    """One pair at a time, with the paper's sets."""
    count = len(gallery)
    everyone = range(count)
    distance = 1 - gallery @ gallery.T
    order = [[i, *sorted(set(everyone) - {i}, key=lambda j: distance[i, j])] for i in everyone]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    def encode(members: set[int], of: np.ndarray) -> dict[int, float]:
        kept = set(members)
        for member in members:
            near = reciprocal(member, round(k1 / 2))
            if len(near & members) > 2 / 3 * len(near):
                kept |= near
        weights = {j: math.exp(-of[j] / of.max()) for j in kept}
        return {j: weight / sum(weights.values()) for j, weight in weights.items()}

    def average(parts: list[dict[int, float]]) -> np.ndarray:
        return np.array([sum(part.get(j, 0.0) for part in parts) / len(parts) for j in everyone])

    own = [encode(reciprocal(i, k1), distance[i]) for i in everyone]
    averaged = [average([own[j] for j in order[i][:k2]]) for i in everyone]
    result = np.zeros_like(similarity)
    for q, row in enumerate(1 - similarity):
        nearest = sorted(everyone, key=lambda j: row[j])[:k1]
        encoding = average([encode(set(nearest), row), *(own[j] for j in nearest[: k2 - 1])])
        for g in everyone:
            jaccard = 1 - np.minimum(encoding, averaged[g]).sum() / np.maximum(encoding, averaged[g]).sum()
            result[q, g] = (1 - share) * (1 - jaccard) + share * (1 - row[g] / row.max())
    return result


@pytest.mark.parametrize(("k1", "k2", "share"), [(20, 6, 0.3), (7, 3, 0.8), (4, 1, 0.5), (1, 1, 0.0), (3, 9, 1.0)])
@pytest.mark.parametrize("chunk", [1 << 24, 3000])
def test_reranking_equals_the_oracle(k1, k2, share, chunk, monkeypatch):
    monkeypatch.setattr(reranking, "_CHUNK", chunk)
    rng = np.random.default_rng(k1)
    gallery, queries = unit(rng, 40, 9), unit(rng, 11, 9)
    similarity = queries @ gallery.T
    found = KReciprocal(gallery, RerankSettings(k1, k2, share)).similarity(similarity)
    expected = slow(gallery.double().numpy(), similarity.double().numpy(), k1, k2, share)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_gallery_smaller_than_k_is_reranked(count):
    gallery = unit(np.random.default_rng(0), count, 2)
    found = KReciprocal(gallery, RerankSettings()).similarity(gallery[:2] @ gallery.T)
    assert found.shape == (min(2, count), count)
    assert torch.isfinite(found).all()
    if count > 1:
        assert found.argmax(dim=1).tolist() == [0, 1]


def test_duplicate_images_keep_reranked_similarities_finite():
    gallery = torch.eye(3)[[0, 0, 0, 1, 2, 2]]
    found = KReciprocal(gallery, RerankSettings(2, 2)).similarity(torch.eye(3) @ gallery.T)
    assert torch.isfinite(found).all()
    assert found.argmax(dim=1).tolist()[1:] == [3, 4]


def test_reranking_is_reported_beside_the_ranking_and_raises_map():
    rng = np.random.default_rng(3)
    image, text = ({"BGE": unit(rng, n, 30), "TSE": unit(rng, n, 30)} for n in (240, 60))
    text = {name: torch.nn.functional.normalize(part + 0.5 * image[name][:60], dim=1) for name, part in text.items()}
    metrics = rank(Ranking(Encoded(image, text), rerank=RerankSettings()), np.arange(60) % 30, np.arange(240) % 30)
    assert list(metrics) == ["BGE", "TSE", "BGE+TSE", "BGE+TSE re-ranked"]
    assert metrics["BGE+TSE re-ranked"]["mAP"] > metrics["BGE+TSE"]["mAP"] + 1


@pytest.mark.parametrize("values", [[20.0], [20.0, 6.0], [0.0, 6.0, 0.3], [20.0, 2.5, 0.3], [20.0, 6.0, 1.5]])
def test_invalid_rerank_values_are_refused(values):
    with pytest.raises(OptionError, match=r"--rerank .*: K1 and K2 must be whole numbers of at least 1, LAMBDA 0 to 1"):
        check_rerank(values)


@pytest.mark.slow
def test_a_search_is_reranked(tmp_path):
    run, gallery = write_run(tmp_path / "logs/SynthPEDES/run"), write_gallery(tmp_path / "mine")
    index = ["--index", str(tmp_path / "index"), "--device", "cpu"]
    search.main(["index", "--run", str(run), "--gallery", str(gallery.folder), *index])
    text = next(iter(gallery.captions.values()))
    found = []
    for more in ([], ["--rerank", "6", "2", "0"], ["--rerank", "4", "2", "1"]):
        search.main(["query", text, "--top", "24", "--out", str(tmp_path / "q"), *index, *more])
        found.append(json.loads((tmp_path / "q.json").read_text())[0]["results"])
    plain, mixed, distance = ([hit["file"] for hit in hits] for hits in found)
    assert sorted(plain) == sorted(mixed)
    assert plain != mixed
    assert plain == distance, "with λ = 1 the order is the original one"
    assert {hit["file"]: hit["bge"] for hit in found[0]} == pytest.approx({hit["file"]: hit["bge"] for hit in found[1]})
