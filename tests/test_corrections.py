"""Captions corrected by hand: reading the table, and a run that trains with them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train as training_root
from datasets.corrections import read_corrections, read_edits
from datasets.exclusion import original_of
from datasets.image_cache import open_images
from datasets.loaders import LoadingSettings, TrainingPairs
from datasets.noise import draw_permutation
from datasets.tokenizer import Tokenizer
from processor.history import read_history
from tests.test_training import arguments
from tools.audit import __main__ as audit
from utils.errors import UserError
from utils.run_folder import RunFolder

PERMUTATION = draw_permutation(24, 0.5)


def rows_of(split, pairs) -> list[dict[str, str]]:
    """Rows as written by the audit."""
    rows = []
    for pair in pairs:
        image, caption = split.images[split.caption_images[pair]], split.captions[PERMUTATION[pair]]
        row = {"pair": str(pair), "exclude": "", "image": f"{image.parent.name}/{image.name}", "caption": caption}
        rows.append(row | {"original": original_of(caption)})
    return rows


def write(file: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("left_out", [None, "original", "image", "exclude"])
def test_edited_captions_and_marks_are_read(split, tmp_path, delimiter, left_out):
    rows = rows_of(split, (5, 0, 3, 7, 23))
    rows[0]["caption"] = 'A man in "red"; he, too,\nwalks.'
    rows[1]["caption"] = f"  {rows[1]['caption']}  "  # only whitespace differs
    rows[2]["caption"] = "'-- a girl in blue"  # as a spreadsheet escapes a formula
    rows[3]["caption"] = "'tis a boy"
    rows[4] |= {"exclude": "x", "caption": "whatever"}
    rows = [{name: value for name, value in row.items() if name != left_out} for row in rows]
    edits = read_corrections(write(tmp_path / "a.csv", rows, delimiter), split, PERMUTATION)
    marked = left_out != "exclude"
    assert edits.excluded == ({23} if marked else set())
    assert edits.captions == {
        5: 'A man in "red"; he, too,\nwalks.',
        3: "-- a girl in blue",
        7: "'tis a boy",
    } | ({} if marked else {23: "whatever"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "changes no caption and marks no pair"),
        ({"caption": " "}, "line 2: pair 5 has an empty caption: write one, or mark the pair"),
        ({"original": "c00000000"}, "line 2: pair 5 had another caption than .*: made for other data or noise"),
        ({"image": "b.jpg", "caption": "new"}, r"line 2: pair 5 has the image .*not b\.jpg"),
        ({"pair": "99"}, "line 2: pair '99' is not in"),
        ({"pair": "6", "image": "", "original": ""}, "line 3: pair 6 is also in line 2"),
        ({"exclude": "perhaps"}, "line 2: exclude must be x or empty"),
    ],
)
def test_a_mismatched_corrections_table_is_refused(split, tmp_path, change, message):
    rows = rows_of(split, (5, 6))
    rows[0] |= change
    with pytest.raises(UserError, match=message):
        read_corrections(write(tmp_path / "a.csv", rows), split, PERMUTATION)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["caption", "image"], "has no column pair, but caption, image"),
        (["pair", "image"], "has no column caption, but pair, image"),
        (["pair", "caption"], "has no column image or original, but pair, caption"),
    ],
)
def test_missing_columns_are_named(split, tmp_path, columns, message):
    rows = [{name: row[name] for name in columns} for row in rows_of(split, (5, 6))]
    with pytest.raises(UserError, match=message):
        read_corrections(write(tmp_path / "a.csv", rows), split, PERMUTATION)


def test_corrected_pairs_are_clean_and_use_the_new_captions(split, tmp_path):
    ids, other = Tokenizer()(split.captions), Tokenizer()(["a new caption of a man"])
    settings = LoadingSettings(batch_size=8, device=torch.device("cpu"))
    images = open_images(split.images, (96, 32), tmp_path)
    pairs = TrainingPairs(split, images, ids, PERMUTATION, settings)
    wrong = int(np.flatnonzero(~pairs.truly_clean)[0])
    pairs.correct({wrong: other[0]})
    assert pairs.truly_clean[wrong]
    for batch in pairs.training_batches(0):
        for row, pair in enumerate(batch.pairs.tolist()):
            expected = other[0] if pair == wrong else ids[PERMUTATION[pair]]
            length = batch.ids.shape[1]
            assert batch.ids[row].tolist() == expected[:length].tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_training_uses_an_edited_audit_table(root, split, tmp_path):
    training_root.main(arguments(root, tmp_path / "logs", "--num_epoch", "1", "--name", "first"))
    (first,) = (tmp_path / "logs/RSTPReid").iterdir()
    audit.main([str(first)])
    table = first / "audit/pairs.csv"
    with table.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["caption"], rows[1]["exclude"] = "a tall man in a green coat", "x"
    pair, out = int(rows[0]["pair"]), int(rows[1]["pair"])
    write(table, rows)
    audit.main([str(first)])
    edits = read_edits(table, split, PERMUTATION)
    assert edits == ({out}, {pair: "a tall man in a green coat"}), "a later audit keeps both"

    training_root.main(
        arguments(root, tmp_path / "logs", "--num_epoch", "2", "--name", "b", "--corrections", str(table))
    )
    (run,) = (tmp_path / "logs/RSTPReid").glob("*_b_*")
    assert f"corrected: 1 captions, and 1 pairs excluded, by {table}" in (run / "train_log.txt").read_text()
    assert RunFolder(run).facts()["corrections"]["captions"] == 1
    last = read_history(run)[-1].pairs
    assert last.excluded.tolist() == [out]
    assert last.truly_clean[pair]
    audit.main([str(run), "--top", "24"])
    assert json.loads((run / "audit/audit.json").read_text())["pairs"] == 23
    table.write_text(table.read_text(encoding="utf-8-sig").replace("green", "blue"))
    with pytest.raises(UserError, match="the corrections are not the run's own"):
        audit.main([str(run)])
    with pytest.raises(UserError, match="the corrected captions are not the run's own"):
        training_root.main(["--resume", str(run)])
