"""The commands beside train.py and test.py."""

from __future__ import annotations

import json

import pytest

from tests import datasets_on_disk
from tests.test_training import SMALL
from tools import reproduce
from utils.errors import UserError


def test_reproduce_runs_every_row_once_and_reports(tmp_path, capsys):
    annotations = datasets_on_disk.write(tmp_path / "data", "RSTPReid")
    command = ["--table", "synthpedes", "--seeds", "1", "--output_dir", str(tmp_path / "out"), "--"]
    command += ["--dataset_name", str(annotations), *SMALL]
    command += ["--num_epoch", "1", "--warmup_epochs", "0"]
    reproduce.main(command)
    report = json.loads((tmp_path / "out/synthpedes/report.json").read_text())
    assert set(report) == {row.slug for row in reproduce.TABLES["synthpedes"]}
    for row in reproduce.TABLES["synthpedes"]:
        (metrics,) = (tmp_path / "out/synthpedes" / row.slug).glob("seed1/*/*/test_metrics.json")
        r1 = json.loads(metrics.read_text())["last.pth"]["BGE+TSE"]["R1"]
        assert report[row.slug]["R1"]["last"] == [r1]
        assert f"{row.title} " in (tmp_path / "out/synthpedes/report.md").read_text()
    capsys.readouterr()
    reproduce.main(command)
    assert "train.py" not in capsys.readouterr().out, "what is done is not run again"


def test_reproduce_refuses_runs_that_other_flags_made(tmp_path):
    run_dir = tmp_path / "synthpedes/tal/seed1/SynthPEDES/20260101_000000_RDE_TAL"
    run_dir.mkdir(parents=True)
    (run_dir / "configs.yaml").write_text("lr: 0.5\n", encoding="utf-8")
    (run_dir / "test_metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"was run with .*: delete it or choose another --output_dir"):
        reproduce.main(["--table", "synthpedes", "--output_dir", str(tmp_path)])


def test_reproduce_tells_which_run_failed_and_why(tmp_path):
    command = ["--table", "synthpedes", "--output_dir", str(tmp_path), "--", "--root_dir", "/nowhere", "--dataset_name"]
    with pytest.raises(UserError, match=r"TAL with CCD, seed 1, ended with status 2: error: no folder"):
        reproduce.main([*command, "RSTPReid"])


@pytest.mark.parametrize(("more", "message"), [(["--table", "x"], "choose from"), (["--seeds", "0"], "at least 1")])
def test_mistakes_are_one_line(more, message):
    with pytest.raises(UserError, match=message):
        reproduce.main(["--table", "synthpedes", *more])
