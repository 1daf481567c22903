"""Exporting: which folders it may replace, and the model card."""

from __future__ import annotations

import pytest

from tools import export
from tools.model_card import model_card
from utils.errors import OptionError


@pytest.mark.parametrize(
    ("there", "refused"),
    [
        (["README.md"], True),
        (["configs.yaml", "last.pth"], True),
        (["best.pth", "model.safetensors"], True),
        (["model.safetensors", "test_metrics.json"], False),
        (["model.safetensors.partial"], False),
        ([], False),
    ],
)
def test_only_an_earlier_export_is_replaced(tmp_path, there, refused):
    out = tmp_path / "out"
    out.mkdir()
    for name in there:
        (out / name).write_text("mine")
    message = f"--out {out}: holds files that are not an earlier export's" if refused else "configs.yaml can't be read"
    with pytest.raises(OptionError, match=message):
        export.main([str(tmp_path / "run"), "--out", str(out)])
    assert all((out / name).read_text() == "mine" for name in there)


RDE_PAPER = "(Qin et al., Noisy-Correspondence Learning"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"loss_names": "TAL+sr0.3_tau0.015_margin0.1_n0.2"}, ["# RDE on RSTPReid", RDE_PAPER]),
        ({"loss_names": "TAL", "division": "ccd"}, ["# RDE on RSTPReid", RDE_PAPER, "--root_dir /path/to/data"]),
        ({"loss_names": "sdm+id+mlm"}, ["# IRRA on RSTPReid", "(Jiang and Ye, Cross-Modal Implicit"]),
        ({"loss_names": "CRCL", "division": "crcl"}, ["# CRCL on RSTPReid", "Self-refining"]),
        (
            {"loss_names": "TAL", "division": "all", "heads": "BGE"},
            ["# TAL, division all, embeddings BGE, on RSTPReid", "by a sentence.\n"],
        ),
        ({"dataset_name": "own"}, ["# RDE on own", "test.py THIS_FOLDER --dataset_name /path/to/annotations\n"]),
        ({"pretrain_choice": "ViT-B/16"}, ["trained from OpenAI's CLIP ViT-B/16 (MIT), and on RSTPReid"]),
        ({"pretrain_choice": "ham"}, ["from the weights of ham.", "trained from the weights ham, and"]),
    ],
)
def test_the_card_says_what_the_flags_say(flags, expected):
    given = {"dataset_name": "RSTPReid", "loss_names": "TAL", **flags}
    card = model_card(given, {"selected_on": "test"}, {}, ("best.pth", 3))
    for part in (*expected, "license: other", "best.pth, after epoch 3, chosen on the split test"):
        assert part in card
    assert (RDE_PAPER in card) == ("# RDE on" in card)
    assert ("OpenAI" in card) == (flags.get("pretrain_choice") == "ViT-B/16")


def test_older_runs_do_not_say_which_split_selected():
    for data, split in (("ICFG-PEDES", "test"), ("RSTPReid", "val")):
        card = model_card({"dataset_name": data, "val_dataset": "val"}, {}, {}, ("best.pth", None))
        assert f"best.pth, chosen on the split {split}" in card
