"""Pretrained weights in all published formats, and downloading them, from a local server."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model import pretrained
from model.backbones.clip_config import read_config
from model.pretrained import BUILT_IN, read_clip
from model.weights import build_model
from tests import published
from utils.download import DownloadError, fetch
from utils.errors import WeightsError
from utils.settings import Options


def expected() -> dict[str, torch.Tensor]:
    """Weights expected from a float16 file of the golden CLIP."""
    return {name: value.half().float() for name, value in published.weights("clip").items()}


def assert_read(file: Path) -> None:
    state = read_clip(str(file)).state
    assert state.keys() == expected().keys()
    for name, value in expected().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)


def test_plain_state_dicts_are_read(tmp_path):
    state = {name: value.half() for name, value in published.weights("clip").items()}
    state |= {"logit_scale": torch.ones(()), "input_resolution": torch.tensor(56), "context_length": torch.tensor(77)}
    torch.save(state, tmp_path / "clip.pt")
    save_file(state, tmp_path / "clip.safetensors")
    published.write_clip_config(tmp_path / "clip.json")
    assert_read(tmp_path / "clip.pt")
    assert_read(tmp_path / "clip.safetensors")
    options = Options(pretrain_choice=str(tmp_path / "clip.pt"), img_size=(96, 32), stride_size=8, vocab_size=512)
    model = build_model(options.of)
    torch.testing.assert_close(model.backbone.visual.conv1.weight.data, expected()["visual.conv1.weight"])
    assert model.backbone.visual.positional_embedding.shape == (49, 64)
    assert model.backbone.visual.positional_embedding.dtype == torch.float32


class Archived(torch.nn.Module):
    """A module whose TorchScript archive has the names and dtypes of OpenAI's."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in published.weights("clip").items():
            module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.register_parameter(leaf, torch.nn.Parameter(value.half(), requires_grad=False))
        for name, number in {"input_resolution": 56, "context_length": 77, "vocab_size": 512}.items():
            self.register_buffer(name, torch.tensor(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:")
def test_openais_torchscript_archives_are_read(tmp_path):
    torch.jit.script(Archived()).save(str(tmp_path / "ViT.pt"))
    assert_read(tmp_path / "ViT.pt")


def as_huggingface() -> dict[str, torch.Tensor]:
    return published.under_huggingface_names({k: value.half() for k, value in published.weights("clip").items()})


def test_huggingface_names_are_read(tmp_path):
    save_file(as_huggingface(), tmp_path / "model.safetensors")
    assert_read(tmp_path / "model.safetensors")


def test_huggingface_files_that_lack_or_add_a_tensor_are_refused(tmp_path):
    state = as_huggingface()
    del state["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    save_file(state, tmp_path / "lacks.safetensors")
    with pytest.raises(WeightsError, match=r"in_proj_bias has only q, v"):
        read_clip(str(tmp_path / "lacks.safetensors"))
    save_file(as_huggingface() | {"text_model.head.weight": torch.zeros(1)}, tmp_path / "adds.safetensors")
    with pytest.raises(WeightsError, match=r"unknown text_model.head.weight"):
        read_clip(str(tmp_path / "adds.safetensors"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_model.encoder.layers.1.self_attn.q_proj.weight", torch.zeros(3, 5), "q, k and v of different shapes"),
        ("text_model.encoder.layers.1.self_attn.q_proj.weight", torch.zeros(4), "q, k and v of different shapes"),
        ("text_model.encoder.layers.1.self_attn.q_norm.weight", torch.zeros(4), "unknown text_model.*q_norm"),
        ("text_model.encoder.layers.1.self_attn.foo", torch.zeros(4), "unknown text_model.*foo"),
    ],
)
def test_huggingface_files_with_odd_attention_are_refused(tmp_path, name, value, message):
    save_file(as_huggingface() | {name: value}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=message):
        read_clip(str(tmp_path / "odd.safetensors"))


def test_token_embedding_rows_without_row_ids_are_refused(tmp_path):
    state = published.weights("clip")
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match=r"token_embedding.rows without token_embedding.row_ids"):
        read_clip(str(tmp_path / "clip.pt"))


@pytest.mark.parametrize("name", ["clip.pt", "clip.safetensors"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_broken_files_are_reported(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="can't be read as weights") as caught:
        read_clip(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_the_built_in_clip_is_small_and_complete():
    assert BUILT_IN["tiny"].stat().st_size < 5e6
    config = read_config(read_clip("tiny").state, "tiny")
    assert (config.shared_width, config.vocab_size, config.text_length) == (256, 49408, 77)


CONTENT = bytes(range(256)) * 20000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serves CONTENT, up to `server.breaks_after` bytes of it; counts the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: own.breaks_after])

        def log_message(self, *_: object) -> None:
            pass

    own = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    own.requests, own.breaks_after = 0, None
    own.url = f"http://127.0.0.1:{own.server_port}/ViT.pt"
    threading.Thread(target=own.serve_forever, daemon=True).start()
    yield own
    own.shutdown()
    own.server_close()


def test_a_file_is_fetched_once(server, tmp_path):
    for _ in range(2):
        assert fetch(server.url, SHA256, tmp_path / "cache/ViT.pt").read_bytes() == CONTENT
    assert server.requests == 1


@pytest.mark.parametrize(("sent", "sha256"), [(3_000_000, SHA256), (None, "0" * 64)], ids=["half", "other"])
def test_a_truncated_or_wrong_download_is_discarded(server, tmp_path, sent, sha256):
    server.breaks_after = sent
    with pytest.raises(DownloadError, match=r"can't be fetched \(.*\): download it elsewhere"):
        fetch(server.url, sha256, tmp_path / "ViT.pt")
    assert [file for file in tmp_path.iterdir() if file.suffix != ".lock"] == []


def test_a_cached_file_is_verified(server, tmp_path):
    (tmp_path / "ViT.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=r"ViT.pt is corrupted or a different file .*: delete it"):
        fetch(server.url, SHA256, tmp_path / "ViT.pt")
    assert server.requests == 0


def test_concurrent_fetches_download_once(server, tmp_path):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch(server.url, SHA256, tmp_path / "ViT.pt").read_bytes()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT, CONTENT]
    assert server.requests == 1


def test_the_download_error_says_where_to_put_the_file(tmp_path, monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setattr(pretrained, "CACHE", tmp_path)
    with pytest.raises(DownloadError) as caught:
        read_clip("ViT-B/16")
    for part in ("ViT-B-16.pt", "no route to host", str(tmp_path / "ViT-B-16.pt"), pretrained.OPENAI["ViT-B/16"]):
        assert part in str(caught.value)
