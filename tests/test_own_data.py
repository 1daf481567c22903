"""Training on your own annotation file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import train as training_root
from options import resolve
from tests import datasets_on_disk
from tests.test_published_commands import flags_of_run_rde, options_of
from tests.test_training import SMALL

pytestmark = pytest.mark.usefixtures("small_figures")


@pytest.fixture
def own(tmp_path) -> Path:
    return datasets_on_disk.write(tmp_path, "RSTPReid", file="own.json")


def test_own_captions_stay_in_place_unless_noise_is_asked_for(own, tmp_path):
    assert options_of(f"--dataset_name {own}").noisy_rate == 0
    assert options_of(f"--dataset_name {own} --noisy_rate 0.2").noisy_rate == 0.2
    assert options_of(f"--dataset_name {own} --noisy_file pi.npy").noisy_rate == 0.2
    assert options_of("--dataset_name CUHK-PEDES").noisy_rate == options_of("").noisy_rate == 0.2
    (tmp_path / "c.yaml").write_text(f"dataset_name: {own}\n")
    assert resolve({"config": str(tmp_path / "c.yaml")}).noisy_rate == 0
    (tmp_path / "c.yaml").write_text(f"dataset_name: {own}\nnoisy_rate: 0.5\n")
    assert resolve({"config": str(tmp_path / "c.yaml")}).noisy_rate == 0.5


def test_run_rde_sh_gives_own_data_the_recipe_without_noise(own, tmp_path):
    options = flags_of_run_rde(tmp_path, DATASET_NAME=str(own))
    assert (options.noisy_rate, options.img_aug, options.batch_size, options.name) == (0, True, 64, "RDE")


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["", "0.5"])
def test_requested_noise_on_own_data_is_warned_about_and_scored(own, tmp_path, rate):
    more = ["--noisy_rate", rate] if rate else []
    given = ["--dataset_name", str(own), *SMALL, "--num_epoch", "1", "--output_dir", str(tmp_path / "logs"), *more]
    training_root.main(given)
    (run,) = tmp_path.glob("logs/*/*")
    log = (run / "train_log.txt").read_text()
    assert ("--noisy_rate 0.5 shuffles captions of your own data" in log) == bool(rate)
    assert ("clean set: precision" in log) == bool(rate)
    assert yaml.safe_load((run / "configs.yaml").read_text())["noisy_rate"] == float(rate or 0)
    ccd = json.loads((run / "metrics.jsonl").read_text())["ccd"]
    assert (ccd["precision"] is not None) == (ccd["recall"] is not None) == bool(rate)
