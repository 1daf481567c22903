"""A run's record of every epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from processor import history
from processor.evaluation import Encoded
from processor.history import BIN_EDGES, read_history, similarity_histograms, vote_arrays, write_epoch
from solver.correspondence.ccd import COARSE, divide
from utils.errors import DataError


def test_a_division_round_trips_up_to_float16(tmp_path):
    rng = np.random.default_rng(0)
    drawn = (np.concatenate([rng.normal(0.2, 0.05, 70), rng.normal(0.8, 0.1, 31)]) for _ in range(3))
    losses = dict(zip(("BGE", "TSE", "mine"), drawn, strict=True))
    votes = divide(losses, COARSE, (1, 0)).votes
    excluded, truth = np.array([0, 50, 103]), np.arange(101) < 70
    write_epoch(tmp_path, 3, vote_arrays(votes, losses, truth, excluded))
    (epoch,) = read_history(tmp_path)
    assert epoch.epoch == 3
    assert epoch.similarity is None
    kept = np.setdiff1d(np.arange(104), excluded)
    assert epoch.pairs.names == ("BGE", "TSE", "mine")
    for row, (name, vote) in enumerate(votes.items()):
        assert np.array_equal(epoch.pairs.clean[row, kept], vote.clean)
        assert epoch.pairs.clean_probability[row, kept] == pytest.approx(vote.clean_probability, abs=1e-3)
        assert epoch.pairs.loss[row, kept] == pytest.approx(losses[name], abs=1e-3)
        assert np.array_equal(epoch.pairs.components[row], vote.components)
        assert epoch.pairs.scaled_loss[row, kept] == pytest.approx(vote.loss, abs=2e-3)
    assert np.array_equal(epoch.pairs.truly_clean[kept], truth)
    assert np.isnan(epoch.pairs.loss[:, excluded]).all()
    assert not epoch.pairs.clean[:, excluded].any()


def test_histories_without_embedding_names_are_read(tmp_path):
    losses = {name: np.linspace(0, 1, 9, dtype=np.float32) for name in ("BGE", "TSE")}
    arrays = vote_arrays(divide(losses, COARSE, (1, 0)).votes, losses, np.ones(9, bool), np.empty(0, np.int64))
    del arrays["names"]
    write_epoch(tmp_path, 1, arrays)
    (epoch,) = read_history(tmp_path)
    assert epoch.pairs.names == ("BGE", "TSE")


def test_constant_losses_have_no_components(tmp_path):
    losses = {"BGE": np.ones(5, np.float32), "TSE": np.ones(5, np.float32)}
    votes, none = divide(losses, COARSE, (1, 0)).votes, np.empty(0, np.int64)
    write_epoch(tmp_path, 1, vote_arrays(votes, losses, np.ones(5, bool), none))
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
    encoded = Encoded(image={"BGE": unit[2], "TSE": unit[3]}, text={"BGE": unit[0], "TSE": unit[1]})
    captions, images = rng.integers(0, 4, 30), rng.integers(0, 4, 20)
    monkeypatch.setattr(history, "queries_at_a_time", lambda _: 7)
    found = similarity_histograms(encoded, captions, images)
    similarity = ((unit[0] @ unit[2].T + unit[1] @ unit[3].T) / 2).numpy()
    right = captions[:, None] == images[None, :]
    for row, part in enumerate((right, ~right)):
        expected, _ = np.histogram(similarity[part].clip(-1, 1), BIN_EDGES)
        assert np.abs(found[row].cumsum() - expected.cumsum()).max() <= 1, "up to rounding at a bin edge"
    assert found.sum() == 600


def test_an_epoch_without_division_keeps_its_similarities(tmp_path):
    write_epoch(tmp_path, 1, {"similarity": np.ones((2, 200), np.int64)})
    (epoch,) = read_history(tmp_path)
    assert epoch.pairs is None
    assert epoch.similarity.sum() == 400
    assert read_history(tmp_path / "nothing") == []


def test_a_damaged_epoch_is_reported(tmp_path):
    write_epoch(tmp_path, 1, {"similarity": np.ones((2, 200), np.int64)})
    file = tmp_path / "epochs/0001.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"0001.npz is damaged"):
        read_history(tmp_path)


def test_an_epoch_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "0001.npz")

    write_epoch(tmp_path, 1, {"similarity": np.ones((2, 200), np.int64)})
    monkeypatch.setattr(np, "load", refuses)
    with pytest.raises(DataError, match=r"0001.npz can't be read: Permission denied$"):
        read_history(tmp_path)
