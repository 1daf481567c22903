"""Training and evaluation through the real commands, on small files in the real formats."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import assembly
import options as training_options
import test as evaluation_root
import train as training_root
from benchmarks.kill_resume import records_without_times as records
from datasets.annotations import read_splits
from datasets.augmentation import normalise
from datasets.images import read_image
from datasets.noise import draw_permutation
from datasets.tokenizer import Tokenizer
from model.weights import model_from_checkpoint
from processor import epoch, state
from processor.history import read_history
from processor.metrics import retrieval_metrics
from processor.settings import SAVED, LoopSettings
from processor.state import TrainState
from solver.correspondence.base import Facts
from solver.correspondence.fixed import All
from solver.objectives.base import cosine_similarity
from solver.objectives.training import TrainingLoss
from tests import datasets_on_disk, published, small_clip
from tests.objectives import state_of
from tests.test_model import golden_model
from tools import export
from tools.audit import __main__ as audit
from tools.search import __main__ as search
from utils.checkpoints import load_checkpoint
from utils.errors import UserError
from utils.options import defaults, parse
from utils.run_folder import RunFolder
from utils.settings import FLAGS, Options

pytestmark = pytest.mark.usefixtures("small_figures")

ROOT = Path(__file__).parents[1]
SMALL = ["--pretrain_choice", str(small_clip.FILE), "--img_size", "96", "32", "--stride_size", "8", "--device", "cpu"]
SMALL += ["--num_workers", "0", "--batch_size", "8", "--num_epoch", "3", "--warmup_epochs", "1", "--lr", "1e-4"]


def printed_by(program: ModuleType, *arguments: object) -> str:
    """A command's output, run in this process: a new one would take seconds to import torch."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        program.main([*map(str, arguments)])
    return printed.getvalue()


@pytest.fixture(scope="module")
def root_dir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for dataset_name in datasets_on_disk.FORMATS:
        datasets_on_disk.write(root, dataset_name)
    return root


def arguments(root_dir: Path, output_dir: Path, *more: str) -> list[str]:
    index = root_dir / "noise.npy"  # the shipped one fits only the real RSTPReid
    np.save(index, draw_permutation(24, 0.5))
    wanted = ["--dataset_name", "RSTPReid", "--root_dir", root_dir, "--output_dir", output_dir, "--noisy_rate", "0.5"]
    wanted += ["--noisy_file", index]
    return [*map(str, wanted), "--img_aug", "--txt_aug", *SMALL, *more]


def assert_same_outputs(run_dir: Path, other: Path) -> None:
    """Compare records, test results and histories."""
    assert records(run_dir) == records(other)
    assert RunFolder(run_dir).test_metrics() == RunFolder(other).test_metrics() != {}
    histories = [{file.name: file.read_bytes() for file in (run / "epochs").iterdir()} for run in (run_dir, other)]
    assert histories[0] == histories[1] != {}


@pytest.fixture(scope="module")
def trained(root_dir, tmp_path_factory) -> tuple[Path, str]:
    """A finished run, and its output."""
    output_dir = tmp_path_factory.mktemp("logs")
    label = "TAL+sr0.3_tau0.015_margin0.1_n0.5"
    printed = printed_by(training_root, *arguments(root_dir, output_dir, "--loss_names", label, "--name", "first"))
    (run_dir,) = (output_dir / "RSTPReid").iterdir()
    assert run_dir.name.endswith(f"_first_{label}")
    return run_dir, printed


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of the finished run, to modify."""
    return shutil.copytree(trained[0], tmp_path / "run")


@pytest.mark.slow
def test_a_run_writes_the_expected_files(trained):
    run_dir, printed = trained
    names = {path.name for path in run_dir.iterdir()}
    expected = {"configs.yaml", "train_log.txt", "test_log.txt", "best.pth", "last.pth", "figures", "epochs"}
    assert expected | {"start_metrics.json", "metrics.jsonl", "test_metrics.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in (run_dir / "figures").iterdir()} == {"r1.png", "losses.png", "retrieval.png"}
    assert not [name for name in names if "partial" in name]
    assert "best.pth on RSTPReid, test" in printed
    assert "precision" in printed
    start = json.loads((run_dir / "start_metrics.json").read_text())
    assert set(start) == {"val"}, "the test split is evaluated only with --record_test"
    assert f"Before training: R1 {start['val']['BGE']['R1']:.2f} on val (BGE)" in printed
    log = (run_dir / "train_log.txt").read_text()
    assert log.count("CCD:") == 3
    assert "sizes that differ from the published ones: train has 12 images, published: 18,505 and 8 more" in log
    assert "python -m tools.check_data --dataset_name RSTPReid --root_dir /" in log


@pytest.mark.slow
def test_records_hold_the_documented_fields(trained):
    lines = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert {"lr", "loss", "bge_loss", "tse_loss", "seconds", "pairs_per_second", "ccd", "val"} <= line.keys()
        assert 0 <= line["data_wait_share"] < 1
        assert 0.1 < line["peak_memory_gb"] < 100
        assert line["loss"] == pytest.approx(line["bge_loss"] + line["tse_loss"])
        ccd = line["ccd"]
        assert ccd["clean"] + ccd["noisy"] + ccd["uncertain"] == 24
        assert 0 <= ccd["precision"] <= 1
        assert 0 <= ccd["recall"] <= 1
        for row in ("BGE", "TSE", "BGE+TSE"):
            assert {"R1", "R5", "R10", "mAP", "mINP", "rSum"} == line["val"][row].keys()
            assert all(math.isfinite(value) for value in line["val"][row].values())
    best = max(line["val"]["BGE+TSE"]["R1"] for line in lines)
    assert f"the best so far: R1 {best:.2f}" in (trained[0] / "train_log.txt").read_text()


@pytest.mark.slow
def test_the_config_holds_every_flag_and_can_be_read_back(trained):
    config = yaml.safe_load((trained[0] / "configs.yaml").read_text())
    assert {name for name, flag in FLAGS.items() if not flag.idle} <= config.keys()
    assert len(config["_run_"]["noise_index"]["sha256"]) == 64
    assert training_options.resolve({"config": str(trained[0] / "configs.yaml")}).img_size == (96, 32)


@pytest.mark.slow
def test_test_py_repeats_the_runs_own_test(trained):
    run_dir = trained[0]
    own = json.loads((run_dir / "test_metrics.json").read_text())
    assert set(own) == {"best.pth", "last.pth"}
    (run_dir / "test_metrics.json").unlink()
    assert "BGE+TSE" in printed_by(evaluation_root, "--output_dir", run_dir.parents[1])  # the newest run
    assert json.loads((run_dir / "test_metrics.json").read_text()) == own
    more = ("--device", "cpu", "--test_batch_size", "5")  # rounding may swap two images
    printed_by(evaluation_root, "--config_file", run_dir / "configs.yaml", *more)
    assert json.loads((run_dir / "test_metrics.json").read_text()).keys() == own.keys()


@pytest.mark.slow
def test_other_data_and_image_to_text_have_separate_result_files(trained):
    run_dir = trained[0]
    before = (run_dir / "test_metrics.json").read_bytes()
    printed_by(evaluation_root, run_dir, "--dataset_name", "ICFG-PEDES")
    printed_by(evaluation_root, "--checkpoint", run_dir / "best.pth", "--image_to_text")
    assert set(json.loads((run_dir / "test_metrics_ICFG-PEDES.json").read_text())) == {"best.pth", "last.pth"}
    assert set(json.loads((run_dir / "test_metrics_image_to_text.json").read_text())) == {"best.pth"}
    assert (run_dir / "test_metrics.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("direction", [(), ("--image_to_text",)])
def test_similarities_ranking_and_embeddings_are_saved(trained, root_dir, tmp_path, direction):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    files = [tmp_path / name for name in SAVED]
    printed = printed_by(evaluation_root, run, *direction, "--rerank", "5", "2", "0.5", "--save", *files)
    metrics = json.loads((run / f"test_metrics{'_image_to_text' if direction else ''}_reranked.json").read_text())
    saved, embeddings = load_file(files[0]), load_file(files[2])
    split = read_splits("RSTPReid", root_dir, ["test"])["test"]
    names = json.loads(files[0].with_suffix(".json").read_text())
    assert [image["image"] for image in names["images"]] == [f"cam_test/{path.name}" for path in split.images]
    assert [caption["caption"] for caption in names["captions"]] == split.captions
    ids = {"image": split.person_ids[split.image_pids], "text": split.person_ids[split.caption_pids]}
    query, gallery = ("image", "text") if direction else ("text", "image")
    with files[1].open(encoding="utf-8", newline="") as stream:
        ranking = list(csv.DictReader(stream))
    for name in ("BGE", "TSE", "BGE+TSE", "BGE+TSE re-ranked"):
        similarity = saved[name]
        if "re-ranked" not in name:
            expected = embeddings[f"{query}.{name}"] @ embeddings[f"{gallery}.{name}"].T
            torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-5)
        found = retrieval_metrics(similarity, saved["query_pids"], saved["gallery_pids"])
        assert found == pytest.approx(metrics["best.pth"][name]), "the similarities saved are those that were ranked"
        for modality, pids in ids.items():
            assert embeddings[f"{modality}.pids"].tolist() == pids.tolist()
        rows = [row for row in ranking if row["similarity"] == name]
        assert [int(row["rank"]) for row in rows] == [*range(1, similarity.shape[1] + 1)] * len(similarity)
        scores = similarity.sort(dim=1, descending=True).values.flatten()
        torch.testing.assert_close(torch.tensor([float(row["score"]) for row in rows]), scores, rtol=0, atol=2e-6)
        for row in rows[:20]:
            caption = int(row["caption"])
            image = [entry["image"] for entry in names["images"]].index(row["image"])
            assert (int(row["caption_pid"]), int(row["image_pid"])) == (ids["text"][caption], ids["image"][image])
            place = (image, caption) if direction else (caption, image)
            assert float(row["score"]) == pytest.approx(float(similarity[place]), abs=2e-6)
    assert "similarity.safetensors" in printed


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("scores.csv", "must be a file named similarity.safetensors, ranking.csv, embeddings.safetensors"),
        ("nowhere/ranking.csv", "no folder .*nowhere"),
    ],
)
def test_files_to_save_are_checked_first(tmp_path, file, message):
    with pytest.raises(UserError, match=f"--save .*{file}: {message}"):
        evaluation_root.main(["--config_file", str(ROOT / "configs/base.yaml"), "--save", str(tmp_path / file)])


@pytest.mark.slow
def test_an_epochs_data_wait_share_is_measured(monkeypatch):
    seconds = 0.0

    def passing(more: float) -> None:
        nonlocal seconds
        seconds += more

    class Batches(list):
        def __iter__(self) -> Iterator[SimpleNamespace]:
            for batch in super().__iter__():
                passing(3)
                yield batch

    def step(*_: object) -> dict[str, torch.Tensor]:
        passing(1)
        return {"BGE": torch.ones(()), "TSE": torch.ones(())}

    monkeypatch.setattr(epoch.time, "perf_counter", lambda: seconds)
    monkeypatch.setattr(epoch, "backward", step)
    layer = torch.nn.Linear(1, 1)
    batch = SimpleNamespace(pids=torch.zeros(2), pairs=torch.tensor([0, 1]))
    optimizer, scaler = torch.optim.SGD(layer.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    whole = TrainState(
        layer, TrainingLoss({}, ["BGE", "TSE"]), optimizer, scaler, All(None, Facts("all", 1, 0.0, "made up"))
    )
    result = epoch.train_epoch(whole, Batches([batch] * 5), np.ones(2, np.float32), LoopSettings(log_period=5))
    assert result.data_wait_share == pytest.approx(0.75)
    assert result.pairs_per_second == pytest.approx(10 / 20)


@pytest.mark.slow
def test_tensorboard_holds_losses_rates_division_and_validation(trained):
    events = EventAccumulator(str(trained[0])).Reload()
    tags = set(events.Tags()["scalars"])
    expected = {"pairs_per_second", "data_wait_share", "peak_memory_gb"}
    expected |= {"loss", "bge_loss", "tse_loss", "lr", "ccd/clean", "ccd/noisy", "ccd/uncertain", "ccd/precision"}
    assert expected | {"ccd/recall", "val/BGE/R1", "val/TSE/mAP", "val/BGE+TSE/R1"} <= tags
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert {"figures/r1", "figures/losses"} <= set(events.Tags()["images"])
    assert "epoch" not in tags
    (flags,) = trained[0].glob("events*.flags")
    kept = EventAccumulator(str(flags)).Reload()
    shown = kept.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    hyperparameters = HParamsPluginData.FromString(shown).session_start_info.hparams
    assert hyperparameters["select_ratio"].number_value == pytest.approx(0.3)
    assert "root_dir" not in hyperparameters
    tested = RunFolder(trained[0]).test_metrics()["best.pth"]["BGE+TSE"]
    assert kept.Scalars("best/test/R1")[0].value == pytest.approx(tested["R1"])


@pytest.mark.slow
def test_a_killed_run_resumes_as_if_it_had_never_stopped(trained, root_dir, tmp_path):
    """Data loader workers outlive a killed parent by seconds; they mustn't keep the run locked."""
    program = [sys.executable, str(ROOT / "train.py"), *arguments(root_dir, tmp_path, "--num_workers", "2")]
    child = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("*/*/last.pth")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.wait()
    (run_dir,) = (tmp_path / "RSTPReid").iterdir()
    assert not (run_dir / "test_metrics.json").exists(), "it was killed before it finished"
    training_root.main(["--resume", "--output_dir", str(tmp_path), "--num_workers", "0"])
    assert "Resuming after epoch" in (run_dir / "train_log.txt").read_text()
    assert_same_outputs(run_dir, trained[0])


class Killed(BaseException):
    """Simulates SIGKILL: none of our code may catch it."""


def train_killed_and_resumed(
    given: list[str], output_dir: Path, monkeypatch: pytest.MonkeyPatch, epoch: int = 2, name: str = "last.pth"
) -> None:
    """Train, die while an epoch's checkpoint is written, and resume."""
    save, saved = state.save_checkpoint, []

    def dies(content, file):
        if content["epoch"] == epoch and file.name == name and not saved:
            saved.append(file)
            file.with_name(file.name + ".partial").write_bytes(b"half a checkpoint")
            raise Killed
        save(content, file)

    monkeypatch.setattr(state, "save_checkpoint", dies)
    with contextlib.suppress(Killed):
        training_root.main(given)
    assert saved
    epochs = {file.name: load_checkpoint(file)["epoch"] for file in output_dir.glob("*/*/*.pth")}
    assert epochs.get("best.pth", 0) <= epochs.get("last.pth", 0), "best.pth is never newer than last.pth"
    training_root.main(["--resume", "--output_dir", str(output_dir)])


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "name"), [(2, "last.pth"), (1, "best.pth")])
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(trained, root_dir, tmp_path, monkeypatch, epoch, name):
    train_killed_and_resumed(arguments(root_dir, tmp_path), tmp_path, monkeypatch, epoch, name)
    (run_dir,) = (tmp_path / "RSTPReid").iterdir()
    assert_same_outputs(run_dir, trained[0])


@pytest.mark.slow
def test_resuming_from_an_older_copy_reselects_the_best_epoch(copied):
    """best.pth has been overwritten since the copy was made."""
    last, best = (torch.load(copied / name, weights_only=True) for name in ("last.pth", "best.pth"))
    torch.save(last | {"epoch": 2, "best": 100.0, "best_epoch": 1}, copied / "copy.pth")
    torch.save(best | {"epoch": 3}, copied / "best.pth")
    training_root.main(["--resume_ckpt_file", str(copied / "copy.pth")])
    last, best = (torch.load(copied / name, weights_only=True) for name in ("last.pth", "best.pth"))
    assert best["epoch"] == last["best_epoch"] == 3
    torch.testing.assert_close(best["model"], last["model"], rtol=0, atol=0)
    assert "best.pth is from epoch 3, not 1: the best epoch is selected again" in (copied / "train_log.txt").read_text()


@pytest.mark.slow
def test_resume_without_an_unfinished_run_is_refused(trained):
    with pytest.raises(UserError, match="no unfinished run in"):
        training_root.main(["--resume", "--output_dir", str(trained[0].parents[1])])


@pytest.mark.numeric
@pytest.mark.usefixtures("float64")
def test_the_authors_released_runs_are_evaluated_as_they_are(tmp_path):
    """Their checkpoint layout and configs.yaml with the golden weights give the golden model's similarities."""
    run_dir = tmp_path / "logs/RSTPReid/20240101_000000_RDE"
    run_dir.mkdir(parents=True)
    weights = {f"module.{name}": value for name, value in published.weights("rde").items()}
    weights["module.base_model.token_embedding.weight"] = torch.randn(49408, 64, generator=torch.manual_seed(0))
    torch.save({"model": weights, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 60}}, run_dir / "best.pth")
    text = "img_size: !!python/tuple\n- 96\n- 32\nmilestones: !!python/tuple\n- 20\n- 50\nstride_size: 8\n"
    text += "local_rank: 0\ncmt_depth: 4\nmasked_token_rate: 0.8\ndistributed: false\nroot_dir: /home/somebody/data\n"
    text += "output_dir: run_logs/RSTPReid\ndataset_name: RSTPReid\nselect_ratio: 0.3\nlr: 1.0e-05\nnum_workers: 0\n"
    (run_dir / "configs.yaml").write_text(text)
    datasets_on_disk.write(tmp_path, "RSTPReid")
    evaluation_root.main([str(run_dir), "--root_dir", str(tmp_path), "--device", "cpu"])
    metrics = json.loads((run_dir / "test_metrics.json").read_text())["best.pth"]

    model = golden_model("frozen").eval()
    model.backbone.token_embedding.weight = torch.nn.Parameter(weights["module.base_model.token_embedding.weight"])
    split = read_splits("RSTPReid", tmp_path, ["test"])["test"]
    images = torch.from_numpy(np.stack([read_image(path, (96, 32)) for path in split.images]))
    with torch.no_grad():
        image, text = model(normalise(images), torch.from_numpy(Tokenizer()(split.captions)).long())
    s = (cosine_similarity(text["BGE"], image["BGE"]) + cosine_similarity(text["TSE"], image["TSE"])) / 2
    expected = retrieval_metrics(s, torch.from_numpy(split.caption_pids), torch.from_numpy(split.image_pids))
    assert metrics["BGE+TSE"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.numeric
def test_a_released_checkpoint_gives_the_golden_embeddings(tmp_path):
    """Loaded as by test.py, with the options of the authors' configs.yaml."""
    weights = {f"module.{name}": value for name, value in published.weights("rde").items()}
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    content = {"model": weights, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "epoch": 60}
    torch.save(content, tmp_path / "best.pth")
    text = "img_size: !!python/tuple\n- 96\n- 32\nstride_size: 8\nselect_ratio: 0.3\nlocal_rank: 0\nlr: 1.0e-05\n"
    (tmp_path / "configs.yaml").write_text(text)
    with pytest.raises(UserError, match=r"--vocab_size 49408: .*best.pth was made for 512"):
        model_from_checkpoint(tmp_path / "best.pth", training_options.resolve_run(tmp_path / "configs.yaml", {}).of)
    (tmp_path / "configs.yaml").write_text(text + "vocab_size: 512\n")
    options = training_options.resolve_run(tmp_path / "configs.yaml", {})
    model = model_from_checkpoint(tmp_path / "best.pth", options.of).eval()
    golden = published.numbers("model")
    with torch.no_grad():
        image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    found = {f"image_{name.lower()}": value for name, value in image.items()}
    found |= {f"text_{name.lower()}": value for name, value in text.items()}
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), golden[f"eval.{name}"], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_run_rde_sh_turns_variables_into_flags_and_forwards_arguments(tmp_path):
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    spy.chmod(0o755)
    own = {"PATH": os.environ["PATH"], "PYTHON": str(spy)}
    environment = {**own, "NAME": "a b'c", "TAU": "0.02", "ROOT_DIR": "my data"}
    done = subprocess.run(
        ["sh", ROOT / "run_rde.sh", "--tau", "0.5"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    argv = done.stdout.splitlines()
    config = str(ROOT / "configs/SynthPEDES.yaml")
    assert argv[:7] == ["-P", "-m", "tools.train_and_report", "--config", config, "--dataset_name", "SynthPEDES"]
    options = parse(training_options.build_parser(""), argv[3:])
    assert options["name"] == "a b'c"
    assert options["root_dir"] == "my data"
    assert options["tau"] == 0.5, "later arguments win"
    environment |= {"DATASET_NAME": "CUHK-PEDES"}
    done = subprocess.run(["sh", ROOT / "run_rde.sh"], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[4].endswith("configs/base.yaml")
    environment = {**own, "CONFIG": "configs/ablation/trl_0.5.yaml"}
    done = subprocess.run(["sh", ROOT / "run_rde.sh"], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[3:] == ["--config", "configs/ablation/trl_0.5.yaml"], "it names its data set"
    refused = subprocess.run(["sh", ROOT / "run_rde.sh", "--dataset_name", "X"], capture_output=True, env=environment)
    assert refused.returncode == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--root_dir", "/nowhere"], "no folder /nowhere/RSTPReid"),
        (["--dataset_name", "MARS"], "--dataset_name MARS: choose from CUHK-PEDES"),
        (["--dataset_name", "/nowhere/mine.json"], "--dataset_name /nowhere/mine.json: no such file; choose from"),
        (["--loss_names", "TAL+TAL"], "--loss_names TAL+TAL: an objective is listed twice"),
        (["--loss_names", "TALL"], "'TALL' is not one of TAL, TRL, TRL-S, InfoNCE, SDM"),
        (
            ["--loss_names", "sdm+mlm+id+foo"],
            "'foo' is not one of TAL, TRL, TRL-S, InfoNCE, SDM, sdm, itc, cmpm, id, mlm, DECL, CRCL, nor",
        ),
        (["--sampler", "rando"], "--sampler rando: choose from random, identity"),
        (["--optimizer", "Lion"], "--optimizer Lion: choose from Adam, SGD, AdamW"),
        (["--tau", "0"], "--tau 0.0: must be above 0"),
        (["--select_ratio", "1.5"], "--select_ratio 1.5: must be above 0 and below 1"),
        (["--noisy_rate", "2"], "--noisy_rate 2.0: must be at least 0 and at most 1"),
        (["--batch_size", "0"], "--batch_size 0: must be at least 2"),
        (["--lr", "nan"], "--lr nan: must be a finite number"),
        (["--num_epoch", "1.5"], "--num_epoch: invalid int value: '1.5'"),
        (["--img_size", "96"], "--img_size: expected 2 arguments"),
        (["--nonsense", "1"], "unknown argument --nonsense"),
        (["--noisy_file", "/nowhere.npy"], "noise index /nowhere.npy can't be read"),
        (["--pretrain_choice", "/nowhere.pt"], "--pretrain_choice /nowhere.pt: no such file"),
        (["--vocab_size", "50"], f"--vocab_size 50: {small_clip.FILE} was made for 49408"),
        (["--img_size", "4", "4"], "--img_size 4 4: smaller than a patch of 8 pixels"),
        (["--device", "cuda:99"], "--device cuda:99: not available here"),
        (["--device", "tpu"], "--device tpu: not available here: no such device; choose"),
        (["--sampler", "identity", "--num_instance", "3"], "--num_instance 3: must divide --batch_size 8"),
        (["--sampler", "identity", "--num_instance", "1"], "a batch needs 8 persons"),
        (["--name", "../x"], "--name '../x'"),
        (["--name", "a\nb"], "--name 'a\\nb'"),
        (["--lr", "inf"], "--lr inf: must be a finite number"),
        (["--batch_size", "1"], "--batch_size 1: must be at least 2"),
        (["--output_dir", ""], "--output_dir: must not be empty"),
        (["--grad_accum", "2", "--tse_bn", "batch"], "--grad_accum 2: with --tse_bn batch the whole batch must be"),
        (["--milestones", "50", "20"], "--milestones 50 20: must increase"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999: must be"),
        (["--resume", "--config", "x.yaml"], "--config: a run is resumed with its own configuration"),
        (
            ["--resume", "a", "--resume_ckpt_file", "b"],
            "--resume_ckpt_file: give either this or a folder with --resume",
        ),
        (["--resume", "/nowhere"], "no checkpoint /nowhere/last.pth to resume from"),
        (["--resume_ckpt_file", "/nowhere/last.pth"], "no checkpoint /nowhere/last.pth"),
    ],
)
def test_user_errors_are_one_line_and_leave_no_run(root_dir, tmp_path, more, message):
    with pytest.raises(UserError) as caught:
        training_root.main(arguments(root_dir, tmp_path / "logs", *more))
    assert message in caught.value.line
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "'learning_rate' is not a flag"),
        ("lr: fast", "lr: expected float, found 'fast'"),
        ("img_size: 96", "expected 2 numbers, found 96"),
        ("img_aug: 1", "expected bool, found 1"),
        ("- lr", "expected 'flag: value' lines"),
        ("lr: [", "is not YAML"),
        ("lr: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("_base_: c.yaml", "is its own _base_"),
        ("_base_: missing.yaml", "missing.yaml can't be read"),
        ("resume_ckpt_file: last.pth", "c.yaml: resume_ckpt_file is not allowed here, give it as a flag"),
    ],
)
def test_errors_in_a_configuration_are_one_line(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        training_root.main(["--config", str(file)])
    assert "\n" not in str(caught.value)


def test_flags_override_a_configuration_and_it_overrides_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 1e-3\nname: a\ntau: 0.5\nimg_aug: true\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("_base_: base.yaml\nname: b\ntau: 0.25\n", encoding="utf-8")
    command = ["--config", str(tmp_path / "c.yaml"), "--tau", "0.1", "--no-img_aug"]
    options = training_options.resolve(parse(training_options.build_parser(""), command))
    assert (options.lr, options.name, options.tau, options.img_aug) == (1e-3, "b", 0.1, False)
    assert options.margin == 0.1


@pytest.mark.slow
def test_a_drawn_noise_index_is_kept_with_the_run(root_dir, tmp_path):
    """There is no shipped index for 30%."""
    more = ["--noisy_rate", "0.3", "--noisy_file", "", "--num_epoch", "1"]
    training_root.main(arguments(root_dir, tmp_path, *more))
    (run_dir,) = (tmp_path / "RSTPReid").iterdir()
    np.testing.assert_array_equal(np.load(run_dir / "noise_index.npy"), draw_permutation(24, 0.3))
    assert "kept in the run folder as noise_index.npy" in (run_dir / "train_log.txt").read_text()


@pytest.mark.slow
def test_clip_c_leaves_tse_as_it_was(root_dir, tmp_path):
    """The baseline trains only BGE, on the truly clean pairs."""
    more = ["--trained", "BGE", "--loss_names", "InfoNCE", "--division", "oracle", "--record_test", "--num_epoch", "1"]
    training_root.main(arguments(root_dir, tmp_path, *more))
    (run_dir,) = (tmp_path / "RSTPReid").iterdir()
    (record,) = records(run_dir)
    assert record["loss"] == record["bge_loss"]
    assert record["test"] == RunFolder(run_dir).test_metrics()["last.pth"]
    assert f"the best so far: R1 {record['val']['BGE']['R1']:.2f}" in (run_dir / "train_log.txt").read_text()
    options = training_options.resolve({"config": str(run_dir / "configs.yaml")})
    torch.manual_seed(options.seed)
    fresh = assembly.build(options).published_state()
    trained = torch.load(run_dir / "last.pth", weights_only=True)["model"]
    changed = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert not [name for name in changed if "emb_layer" in name]
    assert "base_model.text_projection" in changed


@pytest.mark.slow
def test_tse_alone_trains_votes_and_selects_the_best_epoch(root_dir, tmp_path):
    training_root.main(arguments(root_dir, tmp_path, "--trained", "TSE", "--num_epoch", "1"))
    (run_dir,) = (tmp_path / "RSTPReid").iterdir()
    (record,) = records(run_dir)
    assert record["loss"] == record["tse_loss"]
    assert "bge_loss" not in record
    assert read_history(run_dir)[0].pairs.names == ("TSE",)
    assert record["ccd"]["uncertain"] == 0, "a single vote can't disagree"
    assert f"the best so far: R1 {record['val']['TSE']['R1']:.2f}" in (run_dir / "train_log.txt").read_text()


HALF = ["--img_size", "48", "16", "--text_length", "24", "--num_epoch"]  # a CPU is slow in float16


@pytest.mark.slow
def test_a_run_under_loss_scaling_resumes(root_dir, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--precision", "fp16", *HALF, "2"]
    training_root.main(arguments(root_dir, whole, *more))
    train_killed_and_resumed(arguments(root_dir, cut, *more), cut, monkeypatch)
    runs = [next((output_dir / "RSTPReid").iterdir()) for output_dir in (whole, cut)]
    assert records(runs[0]) == records(runs[1])
    scalers = [torch.load(run_dir / "last.pth", weights_only=True)["scaler"] for run_dir in runs]
    assert scalers[0] == scalers[1] != {}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16_weights"])
def test_a_run_in_half_precision_is_tested_as_it_was_trained(root_dir, tmp_path, precision):
    training_root.main(arguments(root_dir, tmp_path, "--precision", precision, *HALF, "1"))
    (run_dir,) = (tmp_path / "RSTPReid").iterdir()
    metrics = json.loads((run_dir / "test_metrics.json").read_text())
    evaluation_root.main([str(run_dir)])
    assert json.loads((run_dir / "test_metrics.json").read_text()) == metrics
    evaluation_root.main(["--checkpoint", str(run_dir / "best.pth"), "--precision", "fp32"])
    assert json.loads((run_dir / "test_metrics.json").read_text()) == metrics, "the run's own results are kept"
    assert set(json.loads((run_dir / "test_metrics_fp32.json").read_text())) == {"best.pth"}
    last = torch.load(run_dir / "last.pth", weights_only=True)
    half = last["model"]["base_model.visual.proj"].dtype == torch.float16
    assert half == (precision == "fp16_weights")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(file):
    training_options.resolve({"config": str(file)})


def test_a_broken_image_is_reported_before_training(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    broken = tmp_path / "RSTPReid/imgs/cam_test/0013_0.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=f"^image {broken} can't be read"):
        training_root.main(arguments(tmp_path, tmp_path / "logs"))
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_a_machine_that_cannot_compile_is_reported(root_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")  # where inductor looks for a compiler
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # an empty cache
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # without compile workers
    command = [sys.executable, ROOT / "train.py", *arguments(root_dir, tmp_path / "logs", "--compile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: --compile: torch.compile does not work on this machine: ")
    )
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_a_changed_option_is_refused_on_resume(trained):
    with pytest.raises(UserError, match=r"--tau 0\.5: the run to resume has 0.015"):
        training_root.main(["--resume", str(trained[0]), "--tau", "0.5"])
    with pytest.raises(UserError, match="--milestones 1 2: the run to resume has 20 50"):
        training_root.main(["--resume", str(trained[0]), "--milestones", "1", "2"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["/nowhere"], "/nowhere holds no best.pth or last.pth: is it a run folder?"),
        (["--output_dir", "/nowhere"], "no run in /nowhere/ holds best.pth"),
        (["--checkpoint", "/nowhere/best.pth"], "--checkpoint /nowhere/best.pth: no such file"),
        (["--config_file", "/nowhere/c.yaml"], "--config_file /nowhere/c.yaml: no such file"),
        (["a", "--checkpoint", "b"], "give only one of RUN_DIR"),
    ],
)
def test_user_errors_of_test_py_are_one_line(more, message):
    with pytest.raises(UserError) as caught:
        evaluation_root.main(more)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_not_resumed(trained, tmp_path):
    run_dir = tmp_path / "RSTPReid/20260101_000000_live"
    shutil.copytree(trained[0], run_dir)
    (run_dir / "test_metrics.json").unlink()
    with RunFolder(run_dir).lock():
        with pytest.raises(UserError, match="is being trained by another process"):
            training_root.main(["--resume", str(run_dir)])
        older = shutil.copytree(run_dir, run_dir.with_name("20250101_000000_older"))
        with pytest.raises(UserError, match=f"{run_dir} is being trained by another process; to resume an older one"):
            training_root.main(["--resume", "--output_dir", str(tmp_path)])
        assert (older / "train_log.txt").read_bytes() == (run_dir / "train_log.txt").read_bytes()


@pytest.mark.slow
def test_a_run_is_not_resumed_on_other_noise(copied):
    config = yaml.safe_load((copied / "configs.yaml").read_text())
    config["_run_"]["noise_index"]["sha256"] = "0" * 64
    (copied / "configs.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="the noise index is not the run's own"):
        training_root.main(["--resume", str(copied)])
    assert (copied / "test_metrics.json").is_file()


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_in_its_first_epoch_restarts_it(trained, root_dir, tmp_path):
    program = [sys.executable, str(ROOT / "train.py"), *arguments(root_dir, tmp_path, "--log_period", "1")]
    child = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in child.stdout:
        if "step 1/" in line:
            break
    child.send_signal(signal.SIGTERM)
    printed, complaint = child.communicate(timeout=60)
    (run_dir,) = (tmp_path / "RSTPReid").iterdir()
    assert child.returncode == 128 + signal.SIGTERM
    assert complaint == "interrupted\n"
    assert f"resume with: train.py --resume {run_dir}" in printed
    assert not (run_dir / "last.pth").exists()
    training_root.main(["--resume", str(run_dir)])
    assert records(run_dir) == records(trained[0])
    assert "Resuming after epoch 0" in (run_dir / "train_log.txt").read_text()


@pytest.mark.slow
def test_a_run_that_lost_its_checkpoint_is_not_restarted(copied, trained):
    (copied / "last.pth").unlink()
    with pytest.raises(UserError, match=r"no checkpoint .*last.pth to resume from"):
        training_root.main(["--resume", str(copied)])
    assert records(copied) == records(trained[0])


def states(content: dict) -> list[dict]:
    return list(content["optimizer"]["state"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("epoch"),
        lambda content: content.update(epoch=99),
        lambda content: content.update(best_epoch=99),
        lambda content: content.update(optimizer=3),
        lambda content: content["optimizer"]["param_groups"].pop(),
        lambda content: [s.update(exp_avg=torch.zeros(2)) for s in states(content)],
        lambda content: content.pop("format"),
        lambda content: content["options"].update(loss_names="SDM"),
        lambda content: content.pop("options"),
        lambda content: content.update(format=torch.ones(3)),
        lambda content: content.update(epoch=torch.ones(2)),
        lambda content: content["options"].update(lr=torch.ones(3)),
        lambda content: [s.update(step=torch.zeros(0)) for s in states(content)],
    ],
)
def test_an_inconsistent_checkpoint_is_not_resumed(copied, change):
    content = torch.load(copied / "last.pth", weights_only=True)
    change(content)
    torch.save(content, copied / "last.pth")
    best = (copied / "best.pth").read_bytes()
    with pytest.raises(UserError, match=r"last.pth can't be resumed from") as caught:
        training_root.main(["--resume", str(copied)])
    assert "\n" not in str(caught.value)
    assert (copied / "best.pth").read_bytes() == best
    assert (copied / "test_metrics.json").is_file(), "nothing is lost"


def stepped(options: Options, folder: Path) -> TrainState:
    """A training state after one step, saved in the folder as after an epoch."""
    whole = state_of(options)
    ids = torch.zeros(2, options["text_length"], dtype=torch.long)
    ids[:, :6] = torch.arange(1, 7)
    image, text = whole.model(torch.rand(2, 3, *options["img_size"]), ids)
    sum((image[name] * text[name]).sum() for name in whole.loss.trained).backward()
    whole.optimizer.step()
    whole.epoch, whole.best, whole.best_epoch = 1, 50.0, 1
    whole.save(folder, options)
    return whole


def options_with(**more: object) -> Options:
    given = dict(zip(("img_size", "stride_size", "pretrain_choice"), ([48, 16], 8, str(small_clip.FILE))))
    return training_options.resolve({"dataset_name": "RSTPReid", **given, **more})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": "AdamW", "precision": "fp16"},
        {"optimizer": "SGD", "precision": "fp16_weights"},
        {"optimizer": "SGD", "momentum": 0.0},
        {"trained": "BGE"},
        {"trained": "BGE", "tse_head": "none"},
    ],
)
def test_an_optimizers_saved_state_is_restored(tmp_path, more):
    options = options_with(**more)
    saved, found = stepped(options, tmp_path), state_of(options)
    found.restore(tmp_path / "last.pth", options)
    assert (found.epoch, found.best, found.best_epoch) == (1, 50.0, 1)
    torch.testing.assert_close(found.model.state_dict(), saved.model.state_dict(), rtol=0, atol=0)
    states = (whole.optimizer.state_dict()["state"] for whole in (found, saved))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_restored_moments_are_contiguous_and_unshared(tmp_path, monkeypatch):
    """Fused steps assume that each has its parameter's memory layout, and are silently wrong otherwise."""
    options = options_with()
    stepped(options, tmp_path)
    content, expected = (load_checkpoint(tmp_path / "last.pth") for _ in range(2))
    monkeypatch.setattr(state, "load_checkpoint", lambda _: content)
    step = states(content)[0]["step"]
    for moments in states(content):
        moments["step"] = step
        average = moments["exp_avg"]
        moments["exp_avg"] = average.T.contiguous().T if average.dim() == 2 else average
    whole = state_of(options)
    whole.restore(tmp_path / "last.pth", options)
    found = whole.optimizer.state_dict()["state"]
    torch.testing.assert_close(found, expected["optimizer"]["state"], rtol=0, atol=0)
    assert all(value.is_contiguous() for moments in found.values() for value in moments.values())
    assert len({value.data_ptr() for moments in found.values() for value in moments.values()}) == 3 * len(found)


@pytest.mark.slow
def test_other_data_of_the_same_name_do_not_overwrite_a_runs_results(trained, tmp_path):
    own = (trained[0] / "test_metrics.json").read_bytes()
    listed = datasets_on_disk.entries("RSTPReid")
    listed[-1]["captions"][0] = "\ud83d half a surrogate pair, $\\frac{ and \0"
    datasets_on_disk.write(tmp_path / "elsewhere", "RSTPReid", listed)
    evaluation_root.main([str(trained[0]), "--root_dir", str(tmp_path / "elsewhere")])
    assert (trained[0] / "test_metrics.json").read_bytes() == own
    assert (trained[0] / "test_metrics_elsewhere.json").is_file()
    assert (trained[0] / "figures/retrieval_elsewhere.png").is_file()


def test_annotation_files_of_the_same_name_have_separate_results(tmp_path):
    options = [defaults() for _ in range(3)]
    for folder, of_folder in zip("abc", options):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").touch()
        of_folder.dataset_name = str(tmp_path / folder / "x.json")
    assert [assembly._suffix(other, options[0]) for other in options] == ["", "_b_x", "_c_x"]


@pytest.mark.slow
def test_a_run_of_the_first_version_is_tested_exported_searched_and_audited(trained, root_dir, tmp_path, monkeypatch):
    """Before embeddings, heads and backbones had names."""
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    own = json.loads((run_dir / "test_metrics.json").read_text())
    config = yaml.safe_load((run_dir / "configs.yaml").read_text())
    for name in ("heads", "backbone", "plugin", "head_lr"):
        del config[name]
    (run_dir / "configs.yaml").write_text(yaml.safe_dump(config))
    for file in (run_dir / "epochs").iterdir():
        with np.load(file) as arrays:
            kept = {name: arrays[name] for name in arrays.files if name != "names"}
        np.savez_compressed(file, **kept)
    (run_dir / "test_metrics.json").unlink()
    evaluation_root.main([str(run_dir)])
    assert json.loads((run_dir / "test_metrics.json").read_text()) == own
    export.main([str(run_dir)])
    evaluation_root.main([str(run_dir / "export"), "--root_dir", str(root_dir)])
    found = json.loads((run_dir / "export/test_metrics.json").read_text())["model.safetensors"]
    assert found == own["best.pth"]
    monkeypatch.chdir(tmp_path)
    search.main(["index", "--run", str(run_dir), "--gallery", str(root_dir / "RSTPReid/imgs"), "--device", "cpu"])
    search.main(["query", "a man in a red coat", "--device", "cpu"])
    assert len(read_history(run_dir)) == 3
    audit.main([str(run_dir)])
    assert (run_dir / "audit/pairs.csv").is_file()


@pytest.mark.slow
def test_nan_weights_are_not_evaluated(copied):
    content = torch.load(copied / "best.pth", weights_only=True)
    content["model"]["base_model.text_projection"].fill_(float("nan"))
    torch.save(content, copied / "best.pth")
    with pytest.raises(UserError, match="NaN or infinite"):
        evaluation_root.main(["--checkpoint", str(copied / "best.pth")])


@pytest.mark.slow
def test_a_flipped_byte_in_a_checkpoint_is_noticed(copied):
    content = bytearray((copied / "best.pth").read_bytes())
    content[len(content) // 2] ^= 255
    (copied / "best.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"best.pth can't be read: .* is damaged"):
        evaluation_root.main([str(copied)])


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut"])
def test_a_broken_checkpoint_is_reported(trained, tmp_path, content):
    (tmp_path / "configs.yaml").write_bytes((trained[0] / "configs.yaml").read_bytes())
    (tmp_path / "best.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint .*best.pth can't be read") as caught:
        evaluation_root.main([str(tmp_path)])
    assert "\n" not in str(caught.value)
