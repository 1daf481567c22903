"""What a run keeps of every epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from processor import history
from processor.evaluation import Encoded
from processor.history import BIN_EDGES, division_arrays, read_history, similarity_histograms, write_epoch
from solver.ccd import COARSE, divide
from utils.errors import DataError


def test_a_division_is_read_back_as_it_was_but_for_float16(tmp_path):
    rng = np.random.default_rng(0)
    losses = tuple(np.concatenate([rng.normal(0.2, 0.05, 70), rng.normal(0.8, 0.1, 31)]) for _ in range(2))
    division = divide(*losses, COARSE, (1, 0))
    excluded, truth = np.array([0, 50, 103]), np.arange(101) < 70
    write_epoch(tmp_path, 3, division_arrays(division, losses, truth, excluded))
    (epoch,) = read_history(tmp_path)
    assert epoch.epoch == 3
    assert epoch.similarity is None
    kept = np.setdiff1d(np.arange(104), excluded)
    for row, vote in enumerate((division.bge, division.tse)):
        assert np.array_equal(epoch.pairs.clean[row, kept], vote.clean)
        assert epoch.pairs.clean_probability[row, kept] == pytest.approx(vote.clean_probability, abs=1e-3)
        assert epoch.pairs.loss[row, kept] == pytest.approx(losses[row], abs=1e-3)
        assert np.array_equal(epoch.pairs.components[row], vote.components)
        assert epoch.pairs.scaled_loss[row, kept] == pytest.approx(vote.loss, abs=2e-3)
    assert np.array_equal(epoch.pairs.truly_clean[kept], truth)
    assert np.isnan(epoch.pairs.loss[:, excluded]).all()
    assert not epoch.pairs.clean[:, excluded].any()


def test_constant_losses_have_no_components(tmp_path):
    losses = (np.ones(5, np.float32), np.ones(5, np.float32))
    division, none = divide(*losses, COARSE, (1, 0)), np.empty(0, np.int64)
    write_epoch(tmp_path, 1, division_arrays(division, losses, np.ones(5, bool), none))
    (epoch,) = read_history(tmp_path)
    assert np.isnan(epoch.pairs.components).all()
    assert epoch.pairs.clean.all()
    assert np.isnan(epoch.pairs.scaled_loss).all()


@pytest.mark.numeric
def test_histograms_count_right_and_wrong_pairs_as_numpy_does(monkeypatch):
    rng = np.random.default_rng(0)
    draw = [torch.from_numpy(rng.standard_normal((n, 3), np.float32)) for n in (30, 30, 20, 20)]
    unit = [part / part.norm(dim=1, keepdim=True) for part in draw]
    unit[2][0], unit[3][0] = unit[0][0], unit[1][0]  # a similarity of 1
    encoded = Encoded(image=(unit[2], unit[3]), text=(unit[0], unit[1]))
    captions, images = rng.integers(0, 4, 30), rng.integers(0, 4, 20)
    monkeypatch.setattr(history, "queries_at_a_time", lambda _: 7)
    found = similarity_histograms(encoded, captions, images)
    similarity = ((unit[0] @ unit[2].T + unit[1] @ unit[3].T) / 2).numpy()
    right = captions[:, None] == images[None, :]
    for row, part in enumerate((right, ~right)):
        expected, _ = np.histogram(similarity[part].clip(-1, 1), BIN_EDGES)
        assert np.abs(found[row].cumsum() - expected.cumsum()).max() <= 1, "but for rounding at an edge"
    assert found.sum() == 600


def test_an_epoch_without_division_keeps_its_similarities(tmp_path):
    write_epoch(tmp_path, 1, {"similarity": np.ones((2, 200), np.int64)})
    (epoch,) = read_history(tmp_path)
    assert epoch.pairs is None
    assert epoch.similarity.sum() == 400
    assert read_history(tmp_path / "nothing") == []


def test_a_damaged_epoch_is_told(tmp_path):
    write_epoch(tmp_path, 1, {"similarity": np.ones((2, 200), np.int64)})
    file = tmp_path / "epochs/0001.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"0001.npz is damaged"):
        read_history(tmp_path)
