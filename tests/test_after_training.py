"""After training: more epochs, fine-tuning, testing on the validation split, failed queries."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import test as evaluation_root
import train as training_root
from assembly import build
from options import resolve
from processor.evaluate_run import failed_queries
from processor.evaluation import Encoded
from solver.schedule import learning_rate
from solver.settings import ScheduleSettings
from tests import datasets_on_disk, figures
from tests.test_training import SMALL, printed_by
from tools.visualize import __main__ as visualize
from utils.checkpoints import save_checkpoint
from utils.errors import UserError
from utils.figures import evenly_spaced
from utils.run_folder import RunFolder


@pytest.fixture(scope="module")
def run_dir(root, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("logs")
    given = ["--dataset_name", "RSTPReid", "--root_dir", str(root), "--noisy_rate", "0", *SMALL, "--num_epoch", "2"]
    with figures.single_pixels():
        training_root.main([*given, "--warmup_epochs", "0", "--output_dir", str(output_dir)])
    return next(output_dir.glob("*/*"))


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_a_finished_run_is_extended_on_the_longer_schedule(run_dir, tmp_path):
    longer = shutil.copytree(run_dir, tmp_path / "RSTPReid/run")
    with pytest.raises(UserError, match="--num_epoch 1: the run to resume has 2"):
        training_root.main(["--resume", str(longer), "--num_epoch", "1"])
    printed = printed_by(training_root, "--resume", longer, "--num_epoch", "4")
    records = RunFolder(longer).records()
    schedule = ScheduleSettings(num_epoch=4, warmup_epochs=0)
    expected = [learning_rate(1e-4, n, ScheduleSettings(num_epoch=2, warmup_epochs=0)) for n in (0, 1)]
    expected += [learning_rate(1e-4, n, schedule) for n in (2, 3)]
    assert [record["lr"] for record in records] == pytest.approx(expected)
    assert "extended from 2 to 4 epochs: the longer schedule applies from epoch 3 on" in printed
    assert f"(learning rate {expected[2]:.3g} after {expected[1]:.3g})" in printed
    config = yaml.safe_load((longer / "configs.yaml").read_text())
    assert config["num_epoch"] == 4
    assert config["_run_"]["extended_from"] == [2]
    assert RunFolder(longer).is_finished()
    assert RunFolder(longer).tested()["last.pth"]["epoch"] == 4


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_validation_results_have_their_own_file(run_dir, tmp_path):
    before = (run_dir / "test_metrics.json").read_text()
    assert "best.pth on RSTPReid, val (epoch " in printed_by(
        evaluation_root, run_dir, "--split", "val", "--device", "cpu"
    )
    best = RunFolder(run_dir).tested("_val")["best.pth"]
    recorded = RunFolder(run_dir).records()[best["epoch"] - 1]["val"]
    assert best["BGE+TSE"]["R1"] == pytest.approx(recorded["BGE+TSE"]["R1"])
    assert (run_dir / "test_metrics.json").read_text() == before
    datasets_on_disk.write(tmp_path, "ICFG-PEDES")
    with pytest.raises(UserError, match="--split val: ICFG-PEDES has none"):
        evaluation_root.main(
            [str(run_dir), "--split", "val", "--dataset_name", "ICFG-PEDES", "--root_dir", str(tmp_path)]
        )


def test_fine_tuning_from_a_run_loads_its_heads(tmp_path):
    flags = {"pretrain_choice": "tiny", "img_size": (96, 32), "stride_size": 8}
    torch.manual_seed(7)
    trained = build(resolve(flags))
    weights = trained.published_state()
    save_checkpoint({"model": weights, "towers": trained.towers(), "epoch": 3}, tmp_path / "best.pth")
    said: list[str] = []
    torch.manual_seed(1)
    model = build(resolve(flags | {"pretrain_choice": str(tmp_path / "best.pth")}), said.append)
    ours = model.published_state()
    assert ours.keys() == weights.keys()
    assert all(torch.equal(ours[name], weights[name]) for name in weights)
    assert "head TSE is loaded from the file" in said
    said.clear()
    model.load_heads(weights | {"visul_emb_layer.fc.weight": torch.ones(2, 2)}, said.append)
    assert said == [
        "head TSE is newly initialised, the file's does not match: "
        "of another shape visul_emb_layer.fc.weight (2, 2) for (1024, 256)"
    ]
    said.clear()
    model.load_heads({name: value for name, value in weights.items() if name.startswith("base_model.")}, said.append)
    assert said == [], "a bare CLIP has no heads"


class Data:
    image_pids, caption_pids = np.array([0, 1, 2]), np.array([0, 1, 2, 0])


def test_failed_queries_rank_another_person_first():
    images = torch.eye(3)
    texts = images[[0, 2, 2, 1]]
    encoded = Encoded({"BGE": images}, {"BGE": texts})
    assert failed_queries(encoded, Data()).tolist() == [1, 3]
    assert evenly_spaced(10, 3).tolist() == [0, 4, 9]
    assert evenly_spaced(2, 40).tolist() == [0, 1]


@pytest.mark.slow
def test_only_failures_are_drawn(run_dir, tmp_path):
    visualize.main([str(run_dir), "--wrong", "3", "--out", str(tmp_path), "--device", "cpu"])
    assert {file.name for file in tmp_path.iterdir()} == {"retrieval_wrong.png", "retrieval_wrong.pdf"}
    with pytest.raises(UserError, match="--wrong 3: must be at least 1, with one run"):
        visualize.main([str(run_dir), str(tmp_path), "--wrong", "3"])
    with pytest.raises(UserError, match="--wrong 0: must be at least 1"):
        visualize.main([str(run_dir), "--wrong", "0"])
