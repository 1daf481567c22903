"""`python -m tools.pretrain_tiny`: reproducible bytes, atomic writing, and embeddings in a narrow cone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model.backbones.clip import Clip
from model.pretrained import read_clip
from tools import pretrain_tiny


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pretrain_tiny, "RECIPE", replace(pretrain_tiny.RECIPE, identities={"train": 6}))
    monkeypatch.setattr(pretrain_tiny, "BATCH", 8)
    image, text = (
        replace(tower, width=32, heads=1) for tower in (pretrain_tiny.CONFIG.image, pretrain_tiny.CONFIG.text)
    )
    monkeypatch.setattr(pretrain_tiny, "CONFIG", replace(pretrain_tiny.CONFIG, image=image, text=text))


def test_output_is_reproducible_and_loads_as_a_clip(tmp_path, capsys):
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in files:
        pretrain_tiny.main(["--epochs", "1", "--out", str(file)])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert "epoch 1/1: loss" in capsys.readouterr().out
    assert read_clip(str(files[0])).state.keys() == read_clip("tiny").state.keys()


@pytest.mark.parametrize("out", ["folder", ""])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, out):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain_tiny, "draw", lambda _: pytest.fail("the work began"))
    with pytest.raises(IsADirectoryError):
        pretrain_tiny.main(["--epochs", "1", "--out", out])


@pytest.mark.parametrize("step", ["draw", "pretrain", "save_file"])
def test_an_interrupt_leaves_no_partial_file_and_keeps_the_older_one(tmp_path, monkeypatch, step):
    def stop(*arguments: object) -> None:
        for argument in arguments:
            if isinstance(argument, Path) and argument.suffix == ".partial":
                argument.write_bytes(b"half")
        raise KeyboardInterrupt

    file = tmp_path / "older.safetensors"
    file.write_bytes(b"older")
    monkeypatch.setattr(pretrain_tiny, step, stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain_tiny.main(["--epochs", "1", "--out", str(file)])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


def test_the_cone_narrows_cosines_and_brings_the_modalities_together():
    torch.manual_seed(0)
    model = Clip(pretrain_tiny.CONFIG)
    images, ids = torch.randn(12, 3, 56, 56), torch.randint(1, 1000, (12, 9))
    ids[:, -1] = 49407

    @torch.no_grad()
    def cosines() -> torch.Tensor:
        image = model.encode_image(images).features[:, 0]
        text = model.encode_text(ids).features[:, 8]
        return F.normalize(image, dim=1) @ F.normalize(text, dim=1).T

    before = cosines()
    pretrain_tiny.shift_into_cone(model)
    after = cosines()
    assert after.std() < 0.5 * before.std()
    assert after.mean() > before.mean() + 0.3
