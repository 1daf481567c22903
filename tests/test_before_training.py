"""Checks made before hours of training or large downloads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

import assembly
import train as training_root
from datasets.noise import draw_permutation
from tests import datasets_on_disk
from tests.test_training import SMALL
from tools import check_data
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("small_figures")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root_dir", "/no/such/folder"], "no folder /no/such/folder/RSTPReid"),
        (["--noisy_file", "none.npy"], "noise index .*none.npy can't be read"),
        (["--exclude", "none.csv"], "none.csv can't be read"),
    ],
)
def test_data_checks_run_before_weights_are_loaded(tmp_path, monkeypatch, flags, message):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    np.save(tmp_path / "noise.npy", draw_permutation(24, 0.2))
    monkeypatch.setattr(assembly, "build", lambda *_: pytest.fail("weights were read"))
    given = ["--dataset_name", "RSTPReid", "--root_dir", str(tmp_path), "--noisy_file", str(tmp_path / "noise.npy")]
    with pytest.raises(UserError, match=message):
        training_root.main([*given, *SMALL, "--output_dir", str(tmp_path / "logs"), *flags])


@pytest.mark.slow
def test_missing_training_images_are_skipped_on_request(tmp_path):
    own = datasets_on_disk.write(tmp_path, "RSTPReid")
    missing = tmp_path / "RSTPReid/imgs/cam_train/0003_1.jpg"
    missing.unlink()
    given = ["--dataset_name", str(own), *SMALL, "--num_epoch", "1", "--output_dir", str(tmp_path / "logs")]
    with pytest.raises(UserError, match=r"1 of 36 images are missing, first: .*0003_1.jpg \(.*--on_bad_image skip"):
        training_root.main(given)
    training_root.main([*given, "--on_bad_image", "skip"])
    (run,) = tmp_path.glob("logs/*/*")
    facts = yaml.safe_load((run / "configs.yaml").read_text())["_run_"]
    assert len(facts["skipped_pairs"]) == 2
    assert "2 of 24 training pairs are skipped" in (run / "train_log.txt").read_text()
    (tmp_path / "RSTPReid/imgs/cam_test/0012_0.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 24 images are missing, first: .*0012_0.jpg$"):
        training_root.main([*given, "--on_bad_image", "skip"])


def test_findings_are_grouped_by_cause_in_a_narrow_table(tmp_path, capsys):
    listed = datasets_on_disk.entries("RSTPReid")
    listed[0]["captions"][0] = "a red coat and " * 20
    datasets_on_disk.write(tmp_path, "RSTPReid", listed)
    command = ["--dataset_name", "RSTPReid", "--root_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        check_data.main(command)
    found = {f["what"]: f for f in json.loads((tmp_path / "out/check_data_RSTPReid.json").read_text())["findings"]}
    (cut,) = found["captions cut to 77 tokens"]["where"]
    assert "0000_0.jpg: 82 tokens" in cut
    assert found["noise indices that do not match"]["count"] == 3, "the three that are shipped"
    printed = capsys.readouterr().out
    assert printed.count("| error ") == 1
    assert max(len(line) for line in printed.splitlines() if line.startswith(("|", "+"))) <= 100
