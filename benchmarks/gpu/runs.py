"""Whole runs of train.py on the device: under a launcher, killed and resumed, and projected to CUHK-PEDES's size."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import whole_run
from benchmarks.gpu.checks import compared
from benchmarks.kill_resume import finished_run, only_run
from benchmarks.setting import Rows, Setting
from benchmarks.synthetic import write_dataset
from utils.errors import UserError
from utils.run_folder import read_records

ROOT = Path(__file__).parents[2]
_IMAGES = {"train": 96, "val": 16, "test": 16}
_FLAGS = "--pretrain_choice tiny --img_size 48 16 --stride_size 8 --batch_size 32 --num_epoch 2 --warmup_epochs 0 "
_FLAGS += "--lr 1e-4 --noisy_rate 0.5 --img_aug --txt_aug --precision fp32 --num_workers 0"


def launched_and_resumed(setting: Setting) -> Rows:
    """Short, complete float32 runs in parallel: a plain one; one process per GPU (NCCL); one killed after an epoch and
    resumed; and on a GPU, where steps aren't bit-deterministic, the plain one again, to show the variation."""
    data = write_dataset(setting.folder / "few", _IMAGES, (48, 16), captions_per_image=2, images_per_person=2)
    processes = max(1, torch.cuda.device_count()) if setting.device.type == "cuda" else 1
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    starts = {"plain": [sys.executable], "launched": launch, "killed": [sys.executable]}
    if setting.device.type == "cuda":
        starts["again"] = [sys.executable]
    device, children = ("cuda" if setting.device.type == "cuda" else str(setting.device)), {}
    for name, start in starts.items():
        command = [*start, str(ROOT / "train.py"), "--dataset_name", str(data), "--device", device, *_FLAGS.split()]
        command += ["--output_dir", str(setting.folder / name), "--image_cache", str(setting.folder / name / "cache")]
        children[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _kill_after_first_epoch(children["killed"], setting.folder / "killed")
    resume = [sys.executable, str(ROOT / "train.py"), "--resume", "--output_dir", str(setting.folder / "killed")]
    children["killed"] = subprocess.Popen(resume, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for name, child in children.items():
        _, errors = child.communicate()
        if child.returncode:
            raise UserError(f"the {name} run ended with status {child.returncode}: {errors[-2000:]}")
    names = {"launched": f"{processes} processes launched", "killed": "killed and resumed", "again": "the same again"}
    expected, rows = _losses(setting.folder / "plain"), []
    for name in list(starts)[1:]:
        losses = zip(_losses(setting.folder / name), expected, strict=True)
        rows += [
            compared(f"{names[name]}, loss of epoch {number}", abs(loss / plain - 1), 1e-2)
            for number, (loss, plain) in enumerate(losses, start=1)
        ]
    return rows


def _kill_after_first_epoch(child: subprocess.Popen, folder: Path) -> None:
    while child.poll() is None:
        run = only_run(folder)
        if run and (run / "last.pth").is_file():
            child.kill()
        time.sleep(0.01)
    child.communicate()


def _losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(finished_run(folder) / "metrics.jsonl")]


def epoch(setting: Setting) -> Rows:
    """The paper's recipe on part of CUHK-PEDES, eager and with CUDA graphs."""
    return _epochs(setting, [[], ["--cuda_graphs"]] if setting.device.type == "cuda" else [[]])


def fastest_epoch(setting: Setting) -> Rows:
    """The same, compiled and with CUDA graphs."""
    if setting.device.type != "cuda":
        return [{"epoch": f"--cuda_graphs: not on {setting.device}"}]
    return _epochs(setting, [["--compile", "--cuda_graphs"]])


def _epochs(setting: Setting, ways: list[list[str]]) -> Rows:
    quick = setting.scale < 1
    share, workers = (0.001, "0") if quick else (0.15, "8")
    rows = []
    for flags in ways:
        train_args = ["--device", setting.device.type, "--num_workers", workers, *flags]
        run_dir = whole_run.trained(setting.folder, share, 1 if quick else 2, train_args, tiny=quick, quiet=True)
        rows.append(_projected(whole_run.last_epoch(run_dir), " ".join(flags) or "eager", share))
    return rows


def _projected(rows: Rows, name: str, share: float) -> dict:
    """Project an epoch on part of the pairs to all pairs, without validation and checkpoints."""
    by_name = {row["what"]: row for row in rows}
    ccd, training = (by_name[what]["seconds"] for what in ("CCD pass and division", "training"))
    return {
        "epoch": f"{share:.1%} of CUHK-PEDES, {name}",
        "CCD, s": ccd,
        "training, s": training,
        "validation, checkpoints, s": by_name["epoch with validation and checkpoints"]["seconds"] - ccd - training,
        "pairs/s": by_name["training pairs/s"]["value"],
        "data wait share": by_name["data wait share"]["value"],
        "peak memory, GB": by_name["peak memory, GB"]["value"],
        f"CCD and training of {whole_run.EPOCHS} whole epochs, min": whole_run.EPOCHS * (ccd + training) / share / 60,
    }
