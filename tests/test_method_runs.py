"""IRRA, DECL, CRCL and combinations as runs: trained, killed, resumed, tested, audited, exported, searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import test as evaluation_root
import train as training_root
from assembly import build
from datasets.noise import draw_permutation
from options import resolve
from processor.history import read_history
from tests import datasets_on_disk
from tests.test_training import SMALL, records, train_killed_and_resumed
from tools import export
from tools.audit import __main__ as audit
from tools.search import __main__ as search
from utils.errors import UserError
from utils.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_figures")]

BGE = "--heads BGE --trained BGE"
METHODS = {
    "irra": f"{BGE} --loss_names sdm+mlm+id --division all --cmt_depth 2",
    "irra, whole captions": f"{BGE} --loss_names cmpm+mlm+id --division all --cmt_depth 1 --mlm_captions whole "
    "--grad_accum 2",
    "TAL and soft labels": "--loss_names TAL+id+mlm --division ccd-soft --cmt_depth 1",
    "decl": f"{BGE} --loss_names DECL --division decl --decl_warmup 1",
    "crcl": f"{BGE} --loss_names CRCL --division crcl --crcl_rounds 1 1 --crcl_warmup 1 --crcl_beta 0.2 --num_epoch 4",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    datasets_on_disk.write(folder, "RSTPReid")
    np.save(folder / "noise.npy", draw_permutation(24, 0.5))
    return folder


def command(folder: Path, flags: str) -> list[str]:
    given = ["--dataset_name", "RSTPReid", "--root_dir", str(folder), *SMALL, "--img_size", "48", "16"]
    return [*given, "--noisy_rate", "0.5", "--noisy_file", str(folder / "noise.npy"), *flags.split()]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_trained_killed_resumed_tested_and_searched(folder, tmp_path, monkeypatch, name):
    given = command(folder, METHODS[name])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    training_root.main([*given, "--output_dir", str(whole)])
    train_killed_and_resumed([*given, "--output_dir", str(cut)], cut, monkeypatch, epoch=3 if name == "crcl" else 2)
    (run_dir,), (resumed,) = (list(logs.glob("*/*")) for logs in (whole, cut))
    assert records(run_dir) == records(resumed)
    first, second = (torch.load(run / "last.pth", weights_only=True) for run in (run_dir, resumed))
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
    torch.testing.assert_close(first["correspondence"], second["correspondence"], rtol=0, atol=0)
    own = RunFolder(run_dir).test_metrics()
    evaluation_root.main([str(run_dir)])
    assert RunFolder(run_dir).test_metrics() == own
    if name.startswith("irra"):
        export.main([str(run_dir), "--out", str(tmp_path / "export")])
        pictures = ["--gallery", str(folder / "RSTPReid/imgs"), "--index", str(tmp_path / "index")]
        search.main(["index", "--run", str(tmp_path / "export"), *pictures, "--device", "cpu"])
        search.main(["query", "a man", "--index", str(tmp_path / "index"), "--run", str(run_dir), "--device", "cpu"])
        with pytest.raises(UserError, match="has no votes"):
            audit.main([str(run_dir)])
        return
    audit.main([str(run_dir)])
    assert (run_dir / "audit/pairs.html").is_file()
    with pytest.raises(UserError, match="--division all: the run to resume has"):
        training_root.main(["--resume", str(run_dir), "--division", "all"])


def test_crcls_rounds_begin_from_the_same_weights(folder, tmp_path, monkeypatch):
    """The second round's warm-up keeps labels like the first one's: with these labels it equals a first epoch."""
    begun = []
    from processor import run

    train_epoch = run.train_epoch

    def watched(state, *more):
        begun.append({name: value.clone() for name, value in state.weights().items()})
        assert bool(state.optimizer.state) == (state.epoch in (1, 3)), "Adam is reset, too"
        return train_epoch(state, *more)

    monkeypatch.setattr(run, "train_epoch", watched)
    given = [*command(folder, METHODS["crcl"]), "--output_dir", str(tmp_path)]
    training_root.main(given)
    fresh = build(resolve(training_root.parse("", given))).published_state()
    torch.testing.assert_close(begun[2], begun[0], rtol=0, atol=0)
    assert begun[0].keys() == fresh.keys()
    assert not torch.equal(begun[1]["base_model.visual.proj"], begun[0]["base_model.visual.proj"])


def test_irras_released_runs_are_tested_and_searched_as_they_are(folder, tmp_path):
    """Their checkpoint's names and their configs.yaml give the similarities of the saved model."""
    training_root.main([*command(folder, METHODS["irra"] + " --num_epoch 1"), "--output_dir", str(tmp_path / "own")])
    (own,) = (tmp_path / "own").glob("*/*")
    run_dir = tmp_path / "logs/RSTPReid/20230101_000000_irra"
    run_dir.mkdir(parents=True)
    content = torch.load(own / "best.pth", weights_only=True)
    kinds = {name.split(".")[0] for name in content["model"]}
    norms = {"ln_pre_t", "ln_pre_i", "ln_post"}
    assert kinds == {"base_model", "classifier", "cross_attn", "cross_modal_transformer", "mlm_head"} | norms
    weights = {f"module.{name}": value for name, value in content["model"].items()}
    torch.save({"model": weights, "optimizer": {}, "scheduler": {}, "epoch": 60}, run_dir / "best.pth")
    text = "MLM: true\nimg_size: !!python/tuple\n- 48\n- 16\nstride_size: 8\nloss_names: sdm+mlm+id\ncmt_depth: 4\n"
    text += f"dataset_name: RSTPReid\nroot_dir: {folder}\nnum_workers: 0\nactivation: quick_gelu\ntemperature: 0.02\n"
    (run_dir / "configs.yaml").write_text(text)
    evaluation_root.main([str(run_dir), "--root_dir", str(folder), "--device", "cpu"])
    found, expected = (RunFolder(run).test_metrics()["best.pth"] for run in (run_dir, own))
    assert found == expected
    assert found.keys() == {"BGE"}
    pictures = ["--gallery", str(folder / "RSTPReid/imgs"), "--index", str(tmp_path / "index")]
    search.main(["index", "--run", str(run_dir), *pictures, "--device", "cpu"])
    search.main(["query", "a man", "--index", str(tmp_path / "index"), "--device", "cpu"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--loss_names CRCL", "--division ccd: needs a pairwise objective"),
        ("--division crcl", "--division crcl: needs the objective CRCL in --loss_names"),
        ("--division decl", "--division decl: needs the objective DECL in --loss_names"),
        ("--loss_names DECL --division decl --decl_warmup 9", "--decl_warmup 9: must be below"),
        ("--loss_names TAL+id --heads TSE --trained TSE", "--loss_names id: needs the embedding BGE among --heads"),
    ],
)
def test_incompatible_flags_are_one_line_errors_and_leave_no_run(folder, tmp_path, more, message):
    with pytest.raises(UserError, match=message) as caught:
        training_root.main([*command(folder, more), "--output_dir", str(tmp_path / "logs")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "logs").exists()


def test_ccd_votes_only_by_pairwise_losses(folder, tmp_path):
    given = command(folder, f"{BGE} --loss_names TAL+DECL+CRCL --division ccd --num_epoch 1")
    training_root.main([*given, "--output_dir", str(tmp_path)])
    (run_dir,) = tmp_path.glob("*/*")
    (epoch,) = read_history(run_dir)
    assert epoch.pairs is not None
    assert epoch.pairs.names == ("BGE",)
