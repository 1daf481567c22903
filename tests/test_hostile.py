"""Untrusted files: they give a correct result or one of our errors, and no code in them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from PIL import ImageFile
from safetensors.torch import save

import train as training_root
from datasets.annotations import read_splits
from datasets.images import read_image
from datasets.noise import digest, draw_permutation, read_permutation
from datasets.tokenizer import EOS, SOS, Tokenizer
from model.pretrained import read_clip
from model.weights import build_model, model_from_checkpoint
from options import resolve, resolve_run
from tests import datasets_on_disk, published
from utils.checkpoints import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.log import logger, start_logging
from utils.options import read_config
from utils.run_folder import read_records
from utils.settings import FLAGS, Options

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
any_text = st.text(st.characters(exclude_categories=()), max_size=60)
ENTRY = datasets_on_disk.entries("CUHK-PEDES")[0]
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


def result_or_user_error(read: Callable[[], object]) -> object:
    """The result of `read`, or None for a user error of one line; other errors propagate."""
    try:
        return read()
    except UserError as error:
        if not error.line or "\n" in str(error):
            raise AssertionError(f"not one line: {error}") from error
        return None


def damaged(draw: st.DrawFn, content: bytes, other: bytes) -> bytes:
    """The content truncated, with bytes flipped, or with part of another file in it."""
    kind, at = draw(st.sampled_from(("cut", "flipped", "swapped"))), draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:at]
    if kind == "flipped":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    return content[:at] + other[at : at + draw(st.integers(1, len(other)))] + content[at + draw(st.integers(0, 99)) :]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@quick
@given(caption=any_text | st.text("<|>endofxjkly!&#;0D8\0\x1b", max_size=60))
def test_any_caption_becomes_tokens(tokenizer, caption):
    (ids,) = tokenizer([caption])
    assert ids.shape == (77,)
    end = int(ids.argmax())
    assert ids[0] == SOS
    assert ids[end] == EOS
    assert (ids == EOS).sum() == 1
    assert not ids[end + 1 :].any()
    assert tokenizer.encode(caption)[: end - 1] == ids[1:end].tolist()


def test_a_caption_that_is_one_endless_word_does_not_hang(tokenizer):
    assert tokenizer(["xq" * 500_000])[0, -1] == EOS


any_entry = st.fixed_dictionaries({}, optional={key: any_json | st.just(ENTRY[key]) for key in ENTRY})
any_key = st.sampled_from([*FLAGS, "_base_", "_run_"]) | any_text


@pytest.fixture(scope="module")
def annotated(tmp_path_factory) -> Path:
    return datasets_on_disk.write(tmp_path_factory.mktemp("data"), "CUHK-PEDES")


@quick
@given(entries=st.lists(any_entry | any_json) | any_json)
def test_any_json_is_read_or_refused(annotated, entries):
    file = annotated.parent / "any.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    result_or_user_error(lambda: read_splits(str(file), Path(), ["train"]))


@quick
@given(data=st.data())
def test_a_damaged_annotation_file_is_read_or_refused(annotated, data):
    content = annotated.read_bytes()
    file = annotated.parent / "damaged.json"
    file.write_bytes(damaged(data.draw, content, content[::-1]))
    result_or_user_error(lambda: read_splits(str(file), Path(), ["train"]))


@quick
@given(content=st.dictionaries(any_key, any_json, max_size=4) | any_json)
def test_any_yaml_is_read_or_refused(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("yaml") / "configs.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    result_or_user_error(lambda: resolve({"config": str(file)}))
    result_or_user_error(lambda: resolve_run(file, {}))


@quick
@given(text=st.text("&*[]{}!|>-:,a1.e+~'\"\n #%@<0", max_size=60))
def test_any_configuration_text_is_read_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("yaml") / "configs.yaml"
    file.write_text(text, encoding="utf-8")
    result_or_user_error(lambda: resolve({"config": str(file)}))


def test_exponential_yaml_aliases_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    for key in ("lr", "img_size", "name"):
        (tmp_path / "c.yaml").write_text(f"{key}: &top\n- {{{', '.join(lines)}}}\n", encoding="utf-8")
        with pytest.raises(UserError, match=f"{key}: expected"):
            resolve({"config": str(tmp_path / "c.yaml")})


@quick
@given(
    array=numpy_strategies.arrays(
        numpy_strategies.scalar_dtypes(), numpy_strategies.array_shapes(min_dims=0, max_dims=2, max_side=30)
    )
    | st.permutations(range(20)).map(np.array)
)
def test_any_array_is_a_permutation_or_refused(tmp_path_factory, array):
    file = tmp_path_factory.mktemp("index") / "index.npy"
    np.save(file, array)
    found = result_or_user_error(lambda: read_permutation(file, 20, 0.5))
    if found is not None:
        assert sorted(found.tolist()) == list(range(20))


@quick
@given(data=st.data())
def test_a_damaged_noise_index_is_a_permutation_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("index") / "index.npy"
    np.save(file, draw_permutation(20, 0.5))
    content = file.read_bytes()
    file.write_bytes(damaged(data.draw, content, content[::-1]))
    found = result_or_user_error(lambda: read_permutation(file, 20, 0.5))
    if found is not None:
        assert sorted(found.tolist()) == list(range(20))


def test_a_noise_index_that_claims_too_much_memory_is_refused(tmp_path):
    with (tmp_path / "index.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    with pytest.raises(UserError, match="can't be read"):
        read_permutation(tmp_path / "index.npy", 20, 0.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("checkpoint") / "last.pth"
    tensors = {f"base_model.weight{n}": torch.arange(40.0) + n for n in range(3)}
    save_checkpoint({"model": tensors, "epoch": 3, "options": {"lr": 1e-5}}, file)
    return file


@settings(quick, max_examples=200)
@given(data=st.data())
def test_a_damaged_checkpoint_is_read_exactly_or_refused(checkpoint, data):
    content = checkpoint.read_bytes()
    file = checkpoint.with_name("damaged.pth")
    file.write_bytes(damaged(data.draw, content, content[::-1]))
    found = result_or_user_error(lambda: load_checkpoint(file))
    if found is not None:
        torch.testing.assert_close(found, load_checkpoint(checkpoint), rtol=0, atol=0)


@quick
@given(data=st.data())
def test_damaged_safetensors_are_read_or_refused(tmp_path_factory, data):
    content = save({name: value for name, value in published.weights("clip").items() if "resblocks" not in name})
    file = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    at = data.draw(st.integers(0, 3000))  # the header, the only part that can be misread
    file.write_bytes(content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :])
    result_or_user_error(lambda: read_clip(str(file)))


@pytest.mark.parametrize("which", ["clip", "rde"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (7, 7), (64, 3, 0, 0), (1, 1, 1, 1), None])
def test_missing_or_misshapen_tensors_are_refused(tmp_path, which, shape):
    """For each tensor that determines a model's sizes; None omits it."""
    file = tmp_path / "file.pth"
    options = Options(pretrain_choice=str(file), img_size=(96, 32), stride_size=8, vocab_size=512)
    weights = published.weights(which)
    prefix = "" if which == "clip" else "base_model."
    published.write_clip_config(tmp_path / "file.json")
    for name in ("visual.conv1.weight", "visual.positional_embedding", "positional_embedding", "text_projection"):
        changed = dict(weights)
        if shape is None:
            del changed[prefix + name]
        else:
            changed[prefix + name] = torch.zeros(shape)
        torch.save(changed if which == "clip" else {"model": changed}, file)
        build = partial(build_model, options.of)
        with pytest.raises(UserError):
            build() if which == "clip" else model_from_checkpoint(file, options.of)


@pytest.mark.parametrize("content", [[1], {"model": 3}, {"model": {"a": 3}}, {"model": {3: torch.zeros(1)}}, {3: 4}])
def test_a_file_of_anything_but_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "file.pth")
    with pytest.raises(UserError):
        read_clip(str(tmp_path / "file.pth"))


class Crafted:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("what", ["resume_ckpt_file", "pretrain_choice", "config", "noisy_file"])
@pytest.mark.parametrize("how", ["pickle", "torch", "torch legacy", "numpy"])
def test_a_crafted_pickle_runs_nothing(tmp_path, what, how):
    file, ran = tmp_path / "file.npy", tmp_path / "ran"
    content = {"model": Crafted(ran)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    elif how == "numpy":
        np.save(file, np.array([Crafted(ran)], dtype=object), allow_pickle=True)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    datasets_on_disk.write(tmp_path, "RSTPReid")
    run = {"dataset_name": "RSTPReid", "root_dir": str(tmp_path), "noisy_rate": 0, "pretrain_choice": "tiny"}
    run |= {"img_size": [48, 16], "stride_size": 8, "num_workers": 0, "device": "cpu"}
    facts = {"noise_index": {"sha256": digest(np.arange(24))}}
    (tmp_path / "configs.yaml").write_text(yaml.safe_dump(run | {"_run_": facts}))
    given = [] if what in ("resume_ckpt_file", "config") else ["--config", str(tmp_path / "configs.yaml")]
    given += ["--noisy_rate", "0.5"] if what == "noisy_file" else []
    with pytest.raises(UserError, match=re.escape(file.name)):
        training_root.main([*given, f"--{what}", str(file), "--output_dir", str(tmp_path / "logs")])
    assert not ran.exists()
    pickle.loads(pickle.dumps(Crafted(ran)))
    assert ran.exists(), "it would have run where pickles are loaded"


class Armed(torch.nn.Module):
    """A TorchScript module that runs its own code when loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1))
        self.training = False

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        raise ValueError("the file's own code ran")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:")
def test_the_code_of_a_torchscript_archive_is_not_run(tmp_path):
    torch.jit.script(Armed()).save(str(tmp_path / "ViT.pt"))
    with pytest.raises(UserError, match="contains code that"):
        read_clip(str(tmp_path / "ViT.pt"))


@pytest.mark.parametrize("read", [load_checkpoint, read_clip])
@pytest.mark.parametrize("name", ["archive/data/0", "archive/code/__torch__.py"])
def test_a_zip_bomb_is_refused_before_it_is_expanded(tmp_path, monkeypatch, read, name):
    file = tmp_path / "file.pth"
    torch.save({"model": {"weight": torch.zeros(1)}}, file)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(name, "w") as entry:
        for _ in range(70):
            entry.write(bytes(1 << 20))
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("it was unfolded"))
    with pytest.raises(UserError, match=r"file.pth can't be read.*: its .* bytes would expand to 73,4"):
        read(str(file)) if read is read_clip else read(file)


@quick
@given(lines=st.lists(any_json.map(json.dumps) | st.text(max_size=20), max_size=5))
def test_any_metrics_file_gives_records(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert all(isinstance(record["epoch"], int) for record in read_records(file))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_text_is_logged_without_terminal_control_characters(tmp_path, monkeypatch, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", console)
    start_logging(tmp_path / "log.txt")
    logger.info("%s", "half a pair \ud83d, an escape \x1b[2J, Ä")
    console.flush()
    told = "half a pair \\ud83d, an escape \\x1b[2J, " + ("Ä" if encoding == "utf-8" else "\\xc4")
    assert console.buffer.getvalue().decode(encoding).splitlines() == [told]
    assert "half a pair \\ud83d" in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    ["lr: !!bool foo", 'lr: !!int ""', "lr: !!timestamp foo", "? !!python/tuple [[1]]\n: 2", "lr: 1" + "0" * 5000],
)
def test_malformed_yaml_values_are_refused(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_config(file)
    assert "\n" not in caught.value.line


def test_decoding_an_image_starts_no_program(tmp_path, monkeypatch):
    """PostScript with an image's file name would be passed to Ghostscript."""
    spy = tmp_path / "bin/gs"
    spy.parent.mkdir()
    spy.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}:{os.environ['PATH']}")
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"a.jpg can't be read"):
        read_image(tmp_path / "a.jpg", (8, 8))
    assert not (tmp_path / "started").exists()


def test_a_picture_that_claims_to_be_huge_is_not_decoded(tmp_path, monkeypatch):
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    for upright in (False, True):
        with pytest.raises(
            UserError, match=r"a.png can't be read: its header claims 10000×9000 pixels, more than 89,478,485$"
        ):
            read_image(tmp_path / "a.png", (8, 8), upright=upright)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(1).expand(1 << 20, 1 << 20),
    ],
    ids=["meta", "sparse", "complex", "repeating"],
)
def test_unusual_tensors_are_refused(tmp_path, value):
    torch.save({"model": published.weights("rde") | {"base_model.visual.proj": value}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a.pth (holds no model|can't be read)"):
        load_checkpoint(tmp_path / "a.pth")
