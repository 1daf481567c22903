"""ONNX: both towers give the model's embeddings, and search works with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.augmentation import normalise
from datasets.images import read_image
from datasets.tokenizer import Tokenizer
from tests.galleries import SIZE, Gallery, write_gallery, write_run
from tools import export
from tools.loading import load_run
from tools.search import __main__ as search
from utils.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.numeric, pytest.mark.slow]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("logs") / "SynthPEDES/run")


@pytest.fixture(scope="module")
def exported(run_dir) -> Path:
    export.main([str(run_dir), "--onnx"])
    return run_dir / "export"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Gallery:
    return write_gallery(tmp_path_factory.mktemp("pictures") / "mine", persons=6)


def compute(file: Path, given: np.ndarray) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {session.get_inputs()[0].name: given})
    return dict(zip(names, map(torch.from_numpy, found), strict=True))


@pytest.mark.parametrize("count", [1, 5])
def test_images_have_the_models_embeddings(run_dir, exported, gallery, count):
    paths = sorted(gallery.captions)[:count]
    pixels = np.stack([read_image(gallery.folder / path, SIZE) for path in paths])
    with torch.no_grad():
        expected = load_run(run_dir, torch.device("cpu")).model.encode_image(normalise(torch.from_numpy(pixels)))
    torch.testing.assert_close(compute(exported / "image.onnx", pixels), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [2, 9, 40, 77])
def test_captions_of_any_length_have_the_models_embeddings(run_dir, exported, length):
    """An empty caption, one of few words, equal tokens, a truncated one."""
    captions = ["", "a man", "red red red red red red", "a woman in a long red coat with a bag " * 9]
    ids = Tokenizer()(captions, length)
    with torch.no_grad():
        expected = load_run(run_dir, torch.device("cpu")).model.encode_text(torch.from_numpy(ids).long())
    found = compute(exported / "text.onnx", ids.astype(np.int64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_search_results_agree_between_onnx_and_torch(exported, gallery, tmp_path):
    text = next(iter(gallery.captions.values()))
    found = []
    for engine in ("torch", "onnx"):
        index = ["--index", str(tmp_path / engine), "--device", "cpu", "--engine", engine]
        search.main(["index", "--run", str(exported), "--gallery", str(gallery.folder), *index])
        search.main(["query", text, "--top", "12", *index])
        (result,) = json.loads((tmp_path / engine / "query.json").read_text())
        found.append({hit["file"]: [hit[name] for name in ("score", "bge", "tse")] for hit in result["results"]})
    assert found[0].keys() == found[1].keys()
    for file, scores in found[0].items():
        assert found[1][file] == pytest.approx(scores, abs=1e-4)
    picture, captions = gallery.folder / next(iter(gallery.captions)), tmp_path / "captions.txt"
    captions.write_text(text)
    search.main(["captions", str(picture), "--run", str(exported), "--from", str(captions), "--engine", "onnx"])


def test_missing_or_mismatched_onnx_towers_are_reported(run_dir, exported, gallery, tmp_path):
    def index(run: Path) -> None:
        command = ["index", "--run", str(run), "--gallery", str(gallery.folder), "--index", str(tmp_path / "i")]
        search.main([*command, "--engine", "onnx"])

    with pytest.raises(UserError, match=r"--engine onnx: no .*image.onnx; tools.export RUN_DIR --onnx writes it"):
        index(run_dir)
    other = write_run(tmp_path / "logs/SynthPEDES/other", seed=2)
    for name in ("image.onnx", "text.onnx"):
        (other / name).write_bytes((exported / name).read_bytes())
    with pytest.raises(UserError, match=r"image.onnx was exported from other weights than .*best.pth: export again"):
        index(other)
    (other / "image.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"image.onnx can't be read: "):
        index(other)
