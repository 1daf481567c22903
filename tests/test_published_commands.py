"""Commands and configurations of the published code have the same meaning here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

import train as training_root
from datasets import loaders, noise
from options import build_parser, resolve
from solver.correspondence import ccd
from solver.correspondence.base import Facts
from solver.schedule import learning_rate
from solver.settings import ScheduleSettings
from tests import datasets_on_disk
from tests.test_training import SMALL
from utils.errors import UserError
from utils.options import parse
from utils.settings import FLAGS

pytestmark = pytest.mark.usefixtures("small_figures")

ROOT = Path(__file__).parents[1]
IDLE = {name for name, flag in FLAGS.items() if flag.idle}
# The published script's command, with its defaults.
PUBLISHED_COMMAND = """--noisy_rate 0.0 --noisy_file ./noiseindex/CUHK-PEDES_0.0.npy --name RDE --img_aug --txt_aug
--batch_size 64 --select_ratio 0.3 --tau 0.015 --root_dir /data --output_dir run_logs --margin 0.1
--dataset_name CUHK-PEDES --loss_names TAL+sr0.3_tau0.015_margin0.1_n0.0 --num_epoch 60"""
WITHOUT_EFFECT = ["--lr_factor", "3.0", "--cmt_depth", "2", "--masked_token_rate", "0.7"]
WITHOUT_EFFECT += ["--masked_token_unchanged_rate", "0.2", "--MLM", "--local_rank", "0"]
WITHOUT_EFFECT += ["--temperature", "0.5", "--momentum", "0.5", "--milestones", "1", "--gamma", "0.5", "--power", "0.5"]
WITHOUT_EFFECT += ["--num_instance", "2"]
# Keys in the published program's saved namespace beyond the flags common to both.
AUTHORS_CONFIG = """cmt_depth: 4
distributed: false
img_size: !!python/tuple
- 384
- 128
local_rank: 0
lr_factor: 5.0
masked_token_rate: 0.8
masked_token_unchanged_rate: 0.1
milestones: !!python/tuple
- 20
- 50
resume: false
training: true
"""


def options_of(command: str) -> dict:
    return resolve(parse(build_parser(""), command.split()))


def test_the_published_scripts_own_command_is_accepted():
    options = options_of(PUBLISHED_COMMAND)
    assert options.noisy_rate == 0
    more = {"lr_factor": 3.0, "cmt_depth": 2, "masked_token_rate": 0.7, "masked_token_unchanged_rate": 0.2}
    more |= {"temperature": 0.5, "momentum": 0.5, "milestones": (1,), "gamma": 0.5, "power": 0.5, "num_instance": 2}
    found = options_of(f"{PUBLISHED_COMMAND} {' '.join(WITHOUT_EFFECT)}")
    assert found == options | more | {"MLM": True, "local_rank": 0}


def test_the_noise_file_is_ignored_at_rate_0(tmp_path):
    found = noise.find_noise("CUHK-PEDES", 50, 0.0, "./noiseindex/CUHK-PEDES_0.0.npy")
    np.testing.assert_array_equal(found.permutation, np.arange(50))
    assert found.summary == "none; --noisy_file is ignored at rate 0"
    with pytest.raises(UserError, match="can't be read"):
        noise.find_noise("CUHK-PEDES", 50, 0.1, str(tmp_path / "none.npy"))


def flags_of_run_rde(tmp_path: Path, *arguments: str, **variables: str) -> dict:
    """The flags with which run_rde.sh would train."""
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    spy.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(spy), **variables}
    command = ["sh", ROOT / "run_rde.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    return resolve(parse(build_parser(""), done.stdout.splitlines()[3:]))


def test_run_rde_sh_trains_real_data_clean_by_default(tmp_path):
    real = {"DATASET_NAME": "ICFG-PEDES", "ROOT_DIR": "/data"}
    assert flags_of_run_rde(tmp_path, **real).noisy_rate == 0
    assert flags_of_run_rde(tmp_path, **real).precision == "published"
    assert flags_of_run_rde(tmp_path, **real, NOISY_RATE="0.5").noisy_rate == 0.5
    assert flags_of_run_rde(tmp_path, "--noisy_rate", "0.8", **real).noisy_rate == 0.8
    assert flags_of_run_rde(tmp_path).noisy_rate == 0.5, "SynthPEDES has a recipe of its own"
    assert flags_of_run_rde(tmp_path, CONFIG="configs/main/CUHK-PEDES_0.2.yaml").noisy_rate == 0.2


@pytest.mark.parametrize("schedule", ["cosine", "step", "exp", "poly", "linear"])
def test_a_run_may_end_within_its_warm_up(schedule):
    options = options_of(f"--num_epoch 3 --lrscheduler {schedule}")
    settings = options.of(ScheduleSettings)
    rates = [learning_rate(1.0, epoch, settings) for epoch in range(3)]
    assert rates == pytest.approx([0.1, 0.28, 0.46])


@pytest.mark.slow
def test_flags_without_effect_are_taken_from_anywhere_and_named_in_the_log(tmp_path):
    annotations = datasets_on_disk.write(tmp_path, "RSTPReid")
    (tmp_path / "configs.yaml").write_text(AUTHORS_CONFIG)
    shared = ["--dataset_name", str(annotations), *SMALL, "--img_size", "48", "16", "--num_epoch", "1", "--output_dir"]
    runs = {}
    for name, more in {
        "plain": [],
        "flags": WITHOUT_EFFECT,
        "file": ["--config", str(tmp_path / "configs.yaml")],
    }.items():
        training_root.main([*shared, str(tmp_path / name), *more])
        (runs[name],) = tmp_path.glob(f"{name}/*/*")
    configs = {name: yaml.safe_load((folder / "configs.yaml").read_text()) for name, folder in runs.items()}
    assert configs["flags"].keys() == configs["plain"].keys() | IDLE
    assert configs["file"].keys() == configs["plain"].keys() | {"local_rank"}
    logs = {name: (folder / "train_log.txt").read_text() for name, folder in runs.items()}
    assert "no effect" not in logs["plain"]
    for name, flags in {"flags": WITHOUT_EFFECT, "file": ["--local_rank"]}.items():
        (line,) = [line for line in logs[name].splitlines() if "no effect in this run: " in line]
        assert set(line.split("run: ")[1].split(", ")) == {flag for flag in flags if flag.startswith("--")}
    metrics = {(folder / "test_metrics.json").read_text() for folder in runs.values()}
    assert len(metrics) == 1
    (runs["plain"] / "test_metrics.json").unlink()
    training_root.main(["--resume", str(runs["plain"]), "--local_rank", "2"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--cmt_depth four", "--cmt_depth: invalid int value: 'four'"),
        ("--lr_factor nan", "--lr_factor nan: must be a finite number"),
        ("--distributed", "unknown argument --distributed"),
    ],
)
def test_errors_in_flags_without_effect_are_reported(command, message):
    with pytest.raises(UserError, match=message):
        options_of(command)
    assert {"local_rank", "MLM"} == IDLE


def test_configurations_explain_the_papers_best_and_fail_entries():
    texts = {file: file.read_text() for file in (ROOT / "configs").rglob("*.yaml")}
    best = re.compile(r"best checkpoint(.)")
    found = {file.parent.name for file, text in texts.items() if best.search(text)}
    assert found == {"main", "clip-c", "irra", "decl", "ablation", "tse", "configs"}
    for file, text in texts.items():
        for line in text.splitlines():
            if "best checkpoint" in line:
                assert re.search(r"best checkpoint(,| \() ?chosen on the test split", line), file
        if file.stem.startswith("tau_"):
            below = float(file.stem.removeprefix("tau_")) < 0.012
            assert ('"Fail"' in text and "expect no such failure" in text) == below


def test_rstpreid_given_as_a_file_has_its_fine_mixtures(tmp_path):
    own = datasets_on_disk.write(tmp_path, "RSTPReid")
    renamed = own.rename(own.with_name("my_captions.json"))
    for name in ("RSTPReid", str(own), str(renamed), "elsewhere/data_captions.json"):
        assert ccd.choose_fit("published", Facts("ccd", 1, 0.2, name)) == ccd.FINE
        assert ccd.choose_fit("coarse", Facts("ccd", 1, 0.2, name)) == ccd.COARSE
    for name in ("CUHK-PEDES", "/data/CUHK-PEDES/reid_raw.json", "/data/mine.json"):
        assert ccd.choose_fit("published", Facts("ccd", 1, 0.2, name)) == ccd.COARSE


@pytest.mark.parametrize("seed", [1, 2**40])
def test_the_division_has_its_own_random_stream(seed):
    """numpy fills short seeds with zeros: (seed, epoch) is (seed, epoch, 0, 0), pair 0's in the scoring pass."""

    def drawn(*key: int) -> int:
        return int(np.random.default_rng(key).integers(2**62))

    keys = {(seed, 3, purpose, pair) for purpose in (loaders.SCORING, loaders.TRAINING) for pair in range(100)}
    keys |= {(seed, 3, loaders._ORDER, purpose) for purpose in (loaders.SCORING, loaders.TRAINING)}
    assert drawn(seed, 3, ccd._PURPOSE) not in {drawn(*key) for key in keys}
    assert len({drawn(*key) for key in keys}) == len(keys)


@pytest.mark.slow
def test_ccd_draws_from_its_own_random_stream(tmp_path, monkeypatch):
    keys, divide = [], ccd.divide
    monkeypatch.setattr(ccd, "divide", lambda *arguments: keys.append(arguments[-1]) or divide(*arguments))
    datasets_on_disk.write(tmp_path, "ICFG-PEDES")
    given = ["--dataset_name", "ICFG-PEDES", "--root_dir", str(tmp_path), "--output_dir", str(tmp_path / "logs")]
    more = ["--img_size", "48", "16", "--num_epoch", "2", "--noisy_rate", "0", "--seed", "7"]
    training_root.main([*given, *SMALL, *more])
    assert keys == [(7, 0, ccd._PURPOSE), (7, 1, ccd._PURPOSE)]
