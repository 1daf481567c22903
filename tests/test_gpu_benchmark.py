"""`python -m benchmarks.gpu`, rehearsed on a CPU; and what it does when a check fails or a part can't be run."""

from __future__ import annotations

import json

import pytest
import torch

import assembly
from benchmarks.__main__ import SECTIONS
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.checks import compared
from options import resolve
from utils.errors import OptionError

CPU = ["--quick", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.usefixtures("whole_run_here")
def test_every_part_runs_and_passes_on_a_cpu(tmp_path):
    """Except two that are also sections of `python -m benchmarks`, and tested there."""
    file = tmp_path / "gpu.json"
    parts = [name for name, part in command.PARTS.items() if part.run not in {run for _, run in SECTIONS.values()}]
    assert len(parts) == len(command.PARTS) - 2
    command.main([*CPU, *parts, "--out", str(file)])
    results = json.loads(file.read_text(encoding="utf-8"))
    assert list(results) == parts
    rows = [row for part in results.values() for row in part["rows"]]
    assert not any("failed" in row for row in rows)
    held = [row for row in rows if "holds" in row]
    assert len(held) == 25
    assert {row["holds"] for row in held} == {"yes"}


def test_failures_are_recorded_and_the_other_parts_are_run(tmp_path, monkeypatch, capsys):
    def breaks(_):
        raise RuntimeError("CUDA error: out of memory")

    parts = {
        "first": command.Part("First", lambda _: [compared("a", 1e-3, 1e-4), compared("b", float("nan"), 1)], 1),
        "second": command.Part("Second", breaks, 1),
        "third": command.Part("Third", lambda _: [{"what": "c", "value": 1.0}], 1),
    }
    monkeypatch.setattr(command, "PARTS", parts)
    with pytest.raises(SystemExit) as ended:
        command.main([*CPU, "--out", str(tmp_path / "gpu.json")])
    assert ended.value.code == 1
    assert capsys.readouterr().out.endswith("Failed: first, second\n")
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [row["holds"] for row in results["first"]["rows"]] == ["NO", "NO"]
    assert results["second"]["rows"] == [{"failed": "RuntimeError: CUDA error: out of memory"}]
    assert results["third"]["rows"] == [{"what": "c", "value": 1.0}]


def test_a_part_that_may_exceed_the_time_limit_is_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PARTS", {"long": command.Part("Long", lambda _: pytest.fail("was run"), 60)})
    command.main(["--device", "cpu", "--minutes", "0.5", "--out", str(tmp_path / "gpu.json")])
    assert "Long: skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["speed"], "no part speed: choose from step, precisions"),
        (["--minutes", "0"], "--minutes 0.0: must be above 0"),
        (["--device", "cuda:77"], "--device cuda:77: not available here"),
    ],
)
def test_bad_arguments_are_named(tmp_path, argv, message):
    with pytest.raises(OptionError, match=message):
        command.main([*argv, "--out", str(tmp_path / "gpu.json")])


@pytest.mark.parametrize(
    ("flags", "obstacle"),
    [
        ({}, "the device cpu"),
        ({"device": "cuda", "grad_accum": 2}, "--grad_accum"),
        ({"device": "cuda", "loss_names": "TAL+mlm"}, r"--loss_names TAL\+mlm"),
        ({"device": "cuda", "loss_names": "CRCL", "division": "crcl"}, "--division crcl"),
        ({"device": "cuda", "loss_names": "DECL", "division": "decl"}, "--loss_names DECL"),
    ],
)
def test_flags_incompatible_with_cuda_graphs_are_refused(monkeypatch, flags, obstacle):
    monkeypatch.setattr(assembly, "choose_device", torch.device)
    own = {"dataset_name": "SynthPEDES", "pretrain_choice": "tiny", "device": "cpu", "cuda_graphs": True}
    with pytest.raises(OptionError, match=f"--cuda_graphs: not supported with {obstacle}"):
        assembly.train(resolve(own | flags), None)
