"""Pairs excluded by hand: reading the list, and a run without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import train as training_root
from datasets.exclusion import original_of, read_excluded
from datasets.image_cache import open_images
from datasets.loaders import LoadingSettings, TrainingPairs
from datasets.noise import draw_permutation
from datasets.tokenizer import Tokenizer
from processor.history import read_history
from tests.test_training import arguments
from utils.errors import UserError
from utils.run_folder import RunFolder

PERMUTATION = draw_permutation(24, 0.5)


def write(file: Path, *lines: str, encoding: str = "utf-8") -> Path:
    file.write_text("\n".join(lines) + "\n", encoding=encoding)
    return file


def row(split, pair: int, mark: str) -> str:
    image = split.images[split.caption_images[pair]]
    return f'{pair},{mark},{image.parent.name}/{image.name},"{split.captions[PERMUTATION[pair]]}"'


def test_marked_rows_are_read_and_compared_with_the_data(split, tmp_path):
    lines = [row(split, pair, mark) for pair, mark in ((5, "x"), (0, ""), (3, "Yes"), (7, "no"), (23, "1"))]
    file = write(tmp_path / "a.csv", "pair,exclude,image,caption", *lines)
    assert read_excluded(file, split, PERMUTATION).tolist() == [3, 5, 23]


def test_marks_are_read_beside_edited_captions(split, tmp_path):
    """As `python -m tools.audit` promises of its table."""
    original = original_of(split.captions[PERMUTATION[5]])
    file = write(tmp_path / "a.csv", "pair,exclude,caption,original", f"5,x,an edited caption,{original}")
    assert read_excluded(file, split, PERMUTATION).tolist() == [5]
    with pytest.raises(UserError, match="line 2: pair 6 has another caption"):
        read_excluded(write(file, "pair,exclude,original", f"6,x,{original}"), split, PERMUTATION)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_lists_saved_by_spreadsheets_are_read(split, tmp_path, delimiter):
    lines = [delimiter.join(cells) for cells in (("pair", "note", "exclude"), ("4", "", "x"), ("5", "seen", ""))]
    file = write(tmp_path / "a.csv", *lines, encoding="utf-8-sig")
    assert read_excluded(file, split, PERMUTATION).tolist() == [4]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["pair,caption", "1,a"], "has no column 'exclude'"),
        ([""], "has no column 'pair'"),
        (["pair,exclude", "1,"], "marks no pair"),
        (["pair,exclude", *(f"{n},x" for n in range(24))], "excludes every pair"),
        (["pair,exclude", "1,x", "24,x"], r"line 3: pair '24' is not in 0 … 23"),
        (["pair,exclude", "-1,x"], r"line 2: pair '-1' is not in"),
        (["pair,exclude", "²,x"], r"line 2: pair '²' is not in"),
        (["pair,exclude", "1,perhaps"], "line 2: exclude must be x or empty, found 'perhaps'"),
        (["pair,exclude,image", "1,x,b.jpg"], "line 2: pair 1 has the image .*not b.jpg"),
        (["pair,exclude,caption", "1,x,a dog"], "line 2: pair 1 has another caption"),
        (["pair,exclude", "1"], "marks no pair"),
    ],
)
def test_a_mismatched_exclusion_list_is_refused(split, tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_excluded(write(tmp_path / "a.csv", *lines), split, PERMUTATION)


def test_an_exclusion_list_that_is_not_utf8_is_refused(split, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a.csv is not UTF-8 but seems to be UTF-16"):
        read_excluded(tmp_path / "a.csv", split, PERMUTATION)
    (tmp_path / "a.csv").write_text("pair,exclude,caption\n1,x,caf\xe9\n", encoding="cp1252")
    with pytest.raises(UserError, match=r"a.csv is not UTF-8 but .*another encoding.* \(Excel: save as 'CSV UTF-8'\)"):
        read_excluded(tmp_path / "a.csv", split, PERMUTATION)
    with pytest.raises(UserError, match="can't be read: No such file"):
        read_excluded(tmp_path / "b.csv", split, PERMUTATION)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'pair', but none"),
        ("Pair,Exclude\n3,x\n", "has no column 'pair', but Pair, Exclude"),
    ],
)
def test_exclusion_lists_without_a_pair_column_are_refused(split, tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_excluded(tmp_path / "a.csv", split, PERMUTATION)


def test_excluded_pairs_are_in_no_batch_and_the_others_are_unchanged(split, tmp_path):
    images = open_images(split.images, (96, 32), tmp_path)
    ids = Tokenizer()(split.captions)
    settings = LoadingSettings(batch_size=8, device=torch.device("cpu"))
    pairs = TrainingPairs(split, images, ids, PERMUTATION, settings, np.array([3, 5, 23]))
    kept = [pair for pair in range(24) if pair not in (3, 5, 23)]
    assert np.flatnonzero(pairs.usable).tolist() == kept
    for batches in (pairs.scoring_batches(0), pairs.training_batches(0)):
        seen = []
        for batch in batches:
            assert np.array_equal(batch.pids, split.caption_pids[batch.pairs])
            assert np.array_equal(batch.ids, ids[PERMUTATION][batch.pairs][:, : batch.ids.shape[1]])
            seen += batch.pairs.tolist()
        assert sorted(seen) == kept


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_a_run_excludes_marked_pairs_and_resumes_only_with_the_same_list(root, tmp_path):
    marks = write(tmp_path / "marks.csv", "pair,exclude", "3,x", "5,x")
    training_root.main(arguments(root, tmp_path / "logs", "--num_epoch", "2", "--exclude", str(marks)))
    (run_dir,) = (tmp_path / "logs/RSTPReid").iterdir()
    assert "excluded: 2 pairs" in (run_dir / "train_log.txt").read_text()
    assert RunFolder(run_dir).facts()["excluded"]["pairs"] == 2
    for epoch in read_history(run_dir):
        assert epoch.pairs.excluded.tolist() == [3, 5]
        assert np.flatnonzero(np.isnan(epoch.pairs.loss[0])).tolist() == [3, 5]
        assert np.isfinite(np.delete(epoch.pairs.loss, [3, 5], axis=1)).all()
        assert not epoch.pairs.clean[:, [3, 5]].any()
    with pytest.raises(UserError, match="--exclude"):
        training_root.main(["--resume", str(run_dir), "--exclude", ""])
    write(marks, "pair,exclude", "3,x", "6,x")
    with pytest.raises(UserError, match="the excluded pairs are not the run's own"):
        training_root.main(["--resume", str(run_dir)])
