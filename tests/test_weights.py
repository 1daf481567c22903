"""CLIPs with any number of heads and activation, in all common wrappers, give the embeddings of open_clip."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP as OpenClip
from safetensors.torch import save_file
from torch import Tensor

import train as training_root
from datasets.noise import draw_permutation
from datasets.tokenizer import Tokenizer, count_cut
from model.positions import fit_positions, resize_text_positions
from model.pretrained import read_clip
from model.weights import build_model, model_from_checkpoint
from tests import datasets_on_disk, published, small_clip
from tools import export
from tools.loading import load_run
from utils.checkpoints import load_checkpoint
from utils.errors import WeightsError
from utils.run_folder import RunFolder
from utils.settings import Options

SIZE = (96, 32)  # a grid of 6×2 patches
# Cases built by open_clip: activations, and numbers of heads other than width / 64.
CASES = {
    "as OpenAI's": (True, {"width": 128, "head_width": 64}, {"width": 64, "heads": 1}),
    "GELU": (False, {"width": 128}, {"width": 128, "heads": 2}),
    "4 heads of 80": (False, {"width": 320, "head_width": 80}, {"width": 128, "heads": 4}),
    "narrow heads": (True, {"width": 96, "head_width": 32}, {"width": 64, "heads": 8}),
}


def config_of(case: str) -> dict:
    """open_clip's configuration of a small model."""
    quick_gelu, image, text = CASES[case]
    image = {"image_size": list(SIZE), "patch_size": 16, "layers": 2, **image}
    text = {"context_length": 77, "vocab_size": 512, "layers": 3, **text}
    return {"embed_dim": 48, "quick_gelu": quick_gelu, "vision_cfg": image, "text_cfg": text}


def reference(config: dict) -> OpenClip:
    """An open_clip model with random weights large enough for every part to matter. All callers share it."""
    return _reference(json.dumps(config))


@cache
def _reference(config: str) -> OpenClip:
    torch.manual_seed(0)
    model = OpenClip(**json.loads(config)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(".ln_" in name and name.endswith("weight")), std=0.1)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    """Two images, and two captions of 5 and 40 words."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *SIZE, generator=generator)
    ids = torch.zeros(2, 77, dtype=torch.long)
    for row, words in enumerate((5, 40)):
        ids[row, : words + 2] = torch.tensor([510, *torch.randint(1, 510, (words,), generator=generator), 511])
    return images, ids


def expected(config: dict) -> tuple[Tensor, Tensor]:
    """open_clip's embeddings of the inputs."""
    return _expected(json.dumps(config))


@cache
@torch.no_grad()
def _expected(config: str) -> tuple[Tensor, Tensor]:
    images, ids = inputs()
    model = _reference(config)
    return model.encode_image(images), model.encode_text(ids)


def build(file: Path, said: list[str] | None = None, **changed: object) -> torch.nn.Module:
    options = Options(pretrain_choice=str(file), img_size=SIZE, stride_size=16, vocab_size=512) | changed
    return build_model(Options(options).of, [].append if said is None else said.append).eval()


@torch.no_grad()
def found(file: Path, said: list[str] | None = None, **changed: object) -> tuple[Tensor, Tensor]:
    images, ids = inputs()
    model = build(file, said, **changed)
    return model.encode_image(images)["BGE"], model.encode_text(ids)["BGE"]


def equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("case", CASES)
def test_a_file_with_open_clips_configuration_gives_its_embeddings(tmp_path, case):
    config, said = config_of(case), []
    torch.save(reference(config).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (tmp_path / "config.json").write_text('{"architectures": ["something else"]}')
    equal(found(tmp_path / "open_clip_pytorch_model.bin", said), expected(config))
    assert any("(from open_clip_config.json)" in line for line in said)


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_named_after_the_file_takes_precedence(tmp_path, case):
    config = config_of(case)
    save_file(reference(config).state_dict(), tmp_path / "ViT.safetensors")
    (tmp_path / "ViT.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config_of("GELU") | {"quick_gelu": True}))
    equal(found(tmp_path / "ViT.safetensors"), expected(config))


def huggingface_config(case: str, activations: tuple[str, str]) -> dict:
    """Hugging Face's configuration for one of the cases, without default values, as its own writer omits them."""
    config = config_of(case)
    image, text = config["vision_cfg"], config["text_cfg"]
    heads = image["width"] // image.get("head_width", 64), text["heads"]
    towers = {}
    for name, tower, count, activation in zip(("vision", "text"), (image, text), heads, activations, strict=True):
        sizes = {"hidden_size": tower["width"], "num_hidden_layers": tower["layers"], "num_attention_heads": count}
        towers[f"{name}_config"] = sizes | ({} if activation == "quick_gelu" else {"hidden_act": activation})
    return {"model_type": "clip", **towers}


@pytest.mark.parametrize("activations", [("quick_gelu", "quick_gelu"), ("gelu", "gelu"), ("gelu", "quick_gelu")])
@pytest.mark.parametrize("case", ["GELU", "4 heads of 80", "narrow heads"])
def test_a_hugging_face_folder_configures_each_tower(tmp_path, case, activations):
    config = config_of(case)
    state = published.under_huggingface_names(reference(config).state_dict())
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(case, activations)))
    image, text = (
        expected(config | {"quick_gelu": activation == "quick_gelu"})[tower]
        for tower, activation in enumerate(activations)
    )
    equal(found(tmp_path / "model.safetensors"), (image, text))


def test_hugging_faces_older_keys_take_precedence(tmp_path):
    content = huggingface_config("GELU", ("gelu", "gelu"))
    content["text_config_dict"] = content.pop("text_config")
    content["text_config"] = {"hidden_act": "quick_gelu"}
    config = config_of("GELU")
    save_file(published.under_huggingface_names(reference(config).state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    equal(found(tmp_path / "model.safetensors"), expected(config))


def test_a_wrong_activation_or_head_count_changes_the_embeddings(tmp_path):
    """Checks that the comparisons above can fail."""
    config = config_of("4 heads of 80")
    torch.save(reference(config).state_dict(), tmp_path / "clip.pt")
    right = expected(config)
    for change in ({"quick_gelu": True}, {"vision_cfg": {"width": 320, "layers": 2}}):
        (tmp_path / "clip.json").write_text(json.dumps(config | change))
        with pytest.raises(AssertionError):
            equal(found(tmp_path / "clip.pt"), right)


def test_the_flag_decides_the_activation(tmp_path):
    config, said = config_of("GELU"), []
    torch.save(reference(config).state_dict(), tmp_path / "clip.pt")
    (tmp_path / "clip.json").write_text(json.dumps(config | {"quick_gelu": True}))
    equal(found(tmp_path / "clip.pt", said, activation="gelu"), expected(config))
    assert "activation gelu in both towers (--activation)" in said


def test_without_a_configuration_only_openais_widths_are_assumed(tmp_path):
    config = config_of("as OpenAI's")
    config["vision_cfg"] |= {"width": 512, "layers": 1}
    config["text_cfg"] |= {"width": 512, "heads": 8, "layers": 1}
    said = []
    torch.save(reference(config).state_dict(), tmp_path / "clip.pt")
    equal(found(tmp_path / "clip.pt", said), expected(config))
    assert any("image 8 heads, QuickGELU, text 8 heads, QuickGELU (assumed" in line for line in said)
    torch.save(reference(config_of("4 heads of 80")).state_dict(), tmp_path / "odd.pt")
    message = r"odd.pt: the image tower is 320 wide, which does not determine its number of heads: put its config.json"
    with pytest.raises(WeightsError, match=message):
        build(tmp_path / "odd.pt", activation="gelu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["vision_config"].update(hidden_act="gelu_new"), "activation 'gelu_new' is not supported"),
        (lambda c: c["vision_config"].update(hidden_act=["gelu"]), "activation .'gelu'. is not supported"),
        (lambda c: c["vision_config"].update(num_attention_heads=3), "3 heads do not divide its width 128"),
        (lambda c: c["vision_config"].update(num_attention_heads="2"), "heads must be a positive whole number"),
        (lambda c: c["text_config"].update(layer_norm_eps=1e-6), "layer_norm_eps 1e-06 is not supported"),
        (
            lambda c: c["text_config"].update(hidden_size=256),
            "text tower has 3 layers of width 128, but .* says 3 of 256",
        ),
        (
            lambda c: c["text_config"].update(num_hidden_layers=12),
            "text tower has 3 layers of width 128, but .* says 12 of",
        ),
        (lambda c: c.update(text_config=[1]), "text_config must be an object"),
        (lambda c: c.update(vision_cfg={"pool_type": "avg"}), "vision_cfg pool_type 'avg' is not supported"),
        (lambda c: c.update(vision_cfg={}, text_cfg={"no_causal_mask": True}), "text_cfg no_causal_mask True is not"),
        (lambda c: c.update(vision_cfg={"act_kwargs": {"approximate": "tanh"}}), "vision_cfg act_kwargs .* is not"),
        (lambda c: c.update(vision_cfg={"width": 128, "head_width": 80}), "head_width 80 does not divide its width"),
    ],
)
def test_a_configuration_that_asks_for_another_network_is_refused(tmp_path, change, message):
    content = huggingface_config("GELU", ("gelu", "gelu"))
    change(content)
    torch.save(reference(config_of("GELU")).state_dict(), tmp_path / "clip.pt")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        build(tmp_path / "clip.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\0"])
def test_a_broken_configuration_is_named(tmp_path, content):
    torch.save(reference(config_of("GELU")).state_dict(), tmp_path / "clip.pt")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config.json, beside the weights, can't be read as JSON"):
        build(tmp_path / "clip.pt")


def test_the_error_for_a_folder_suggests_the_weights_file_in_it(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(WeightsError, match=r"is a folder: pass the weights file in it, such as .*model.safetensors"):
        build(tmp_path)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


HEADS = {"classifier.weight": torch.zeros(3, 2), "classifier.bias": torch.zeros(3), "mlm_head.ln.bias": torch.zeros(2)}
OPTIMIZER = {"state": {0: {"step": torch.zeros(())}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict]] = {
    "NAM, HAM": lambda s: {"model": under("base_model.", s) | HEADS},
    "of several GPUs": lambda s: {"model": under("module.", under("base_model.", s) | HEADS), "epoch": 3},
    "flat": lambda s: under("base_model.", s) | HEADS,
    "flat, of several GPUs": lambda s: under("module.base_model.", s) | under("module.", HEADS),
    "flat, with a number": lambda s: under("base_model.", s) | HEADS | {"epoch": 1},
    "a state_dict": lambda s: {"state_dict": s | HEADS, "epoch": 1},
    "open_clip's training": lambda s: {
        "epoch": 1,
        "name": "run",
        "state_dict": under("module.", s | HEADS),
        "optimizer": OPTIMIZER,
    },
    "a part of any name": lambda s: {"net": under("encoder.clip.", s) | under("encoder.", HEADS)},
    "beside its average": lambda s: {"model": s | HEADS, "model_ema": {k: v + 1 for k, v in s.items()}},
    "a text tower of its own": lambda s: (
        {k if k.startswith(("visual.", "logit_scale")) else f"text.{k}": v for k, v in (s | HEADS).items()} | HEADS
    ),
}


@pytest.mark.parametrize(
    ("case", "wrapper"),
    [*(("GELU", wrapper) for wrapper in WRAPPERS), ("as OpenAI's", "flat"), ("4 heads of 80", "flat")],
)
def test_a_clip_in_a_checkpoint_is_found_and_other_tensors_are_named(tmp_path, case, wrapper):
    config, said = config_of(case), []
    wrapped = WRAPPERS[wrapper](reference(config).state_dict())
    if wrapper == "a text tower of its own":
        wrapped = {name: value for name, value in wrapped.items() if not name.startswith(("text.cl", "text.mlm"))}
    torch.save(wrapped, tmp_path / "checkpoint.pth")
    (tmp_path / "checkpoint.json").write_text(json.dumps(config))
    equal(found(tmp_path / "checkpoint.pth", said), expected(config))
    (others,) = (line for line in said if "not part of CLIP" in line)
    for name in ("classifier (2 tensors)", "mlm_head", "logit_scale") if "encoder" not in others else ("encoder",):
        assert name in others
    assert "image positions already match 6×2 patches, kept unchanged" in said


def test_a_nested_hugging_face_model_is_found(tmp_path):
    config = config_of("GELU")
    state = published.under_huggingface_names(reference(config).state_dict())
    torch.save({"state_dict": under("clip.", state) | HEADS}, tmp_path / "clip.ckpt")
    (tmp_path / "clip.json").write_text(json.dumps(huggingface_config("GELU", ("gelu", "gelu"))))
    equal(found(tmp_path / "clip.ckpt"), expected(config))


def test_several_clips_and_none_are_refused(tmp_path):
    state = reference(config_of("GELU")).state_dict()
    torch.save(under("student.", state) | under("teacher.", state), tmp_path / "two.pth")
    with pytest.raises(WeightsError, match=r"contains several CLIPs \(student.\*, teacher.\*\)"):
        build(tmp_path / "two.pth")
    torch.save({"model": HEADS}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"no tensor is named visual.conv1.weight or vision_model"):
        build(tmp_path / "none.pth")
    torch.save(under("base_model.", state | {"visual.adapter": torch.zeros(1)}), tmp_path / "more.pth")
    (tmp_path / "more.json").write_text(json.dumps(config_of("GELU")))
    with pytest.raises(WeightsError, match=r"unknown visual.adapter"):
        build(tmp_path / "more.pth")


def test_image_positions_are_kept_where_they_fit():
    positions = torch.randn(17, 8)
    assert fit_positions(positions, (8, 2), "file", wrapped=True) is positions
    square = fit_positions(positions, (8, 2), "file", wrapped=False)
    assert square.shape == (17, 8), "16 patches of a plain CLIP are 4×4"
    assert not torch.allclose(square, positions)
    thin = torch.randn(13, 8)
    assert fit_positions(thin, (6, 2), "file", wrapped=False) is thin
    with pytest.raises(WeightsError, match=r"12 patches, neither a square grid nor the 5×2 of --img_size"):
        fit_positions(thin, (5, 2), "file", wrapped=True)


def slow_stretch(positions: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation with half-pixel centres, one position at a time: (l, D) → (length, D)."""
    stretched = np.empty((length, positions.shape[1]))
    for row in range(length):
        at = min(max((row + 0.5) * len(positions) / length - 0.5, 0), len(positions) - 1)
        low = int(at)
        high = min(low + 1, len(positions) - 1)
        stretched[row] = (1 - at + low) * positions[low] + (at - low) * positions[high]
    return stretched


@pytest.mark.parametrize("length", [78, 128, 168, 248])
def test_text_positions_are_interpolated_linearly(length):
    positions = torch.randn(77, 16, generator=torch.Generator().manual_seed(0))
    stretched = resize_text_positions(positions, length)
    np.testing.assert_allclose(stretched, slow_stretch(positions.double().numpy(), length), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("text_length", "selected"), [(168, 49), (77, 22), (64, 18), (56, 16)])
def test_text_length_sets_positions_and_the_number_of_selected_tokens(text_length, selected):
    said = []
    options = Options(pretrain_choice=str(small_clip.FILE), img_size=SIZE, stride_size=8, text_length=text_length)
    model = build_model(options.of, said.append).eval()
    own = read_clip(str(small_clip.FILE)).state["positional_embedding"]
    assert model.heads["TSE"]["text"].selects == selected
    assert model.backbone.positional_embedding.shape == (text_length, 16)
    if text_length <= 77:
        assert torch.equal(model.backbone.positional_embedding, own[:text_length])
    assert bool(said) == (text_length != 77)
    caption = "a man in a red coat " * 40
    ids = torch.from_numpy(Tokenizer()([caption, "a man"], text_length)).long()
    with torch.no_grad():
        text = model.encode_text(ids)
    assert ids[0, -1] == ids.max()
    assert text["TSE"].isfinite().all()


def test_captions_that_are_cut_are_counted():
    tokenizer = Tokenizer()
    captions = ["man " * words for words in (3, 4, 5, 9)] + [""]
    assert [count_cut(tokenizer, captions, tokenizer(captions, length)) for length in (5, 6, 7, 12)] == [3, 2, 1, 0]


NUMBERS = [
    np.float64(61.5),
    np.float32(0.25),
    np.float16(0.5),
    np.int64(-3),
    np.int32(7),
    np.uint8(255),
    np.bool_(True),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.dtype.name)
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_in_a_checkpoint_are_read(tmp_path, number, zipped):
    other = [number.astype(number.dtype, copy=True)]
    content = {"model": {"weight": torch.ones(2)}, "best_top1": number, "other": other}
    torch.save(content, tmp_path / "best.pth", _use_new_zipfile_serialization=zipped)
    read = load_checkpoint(tmp_path / "best.pth")
    assert read["best_top1"] == number.item()
    assert type(read["best_top1"]) is type(number.item())
    assert read["other"] == [number.item()]


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Namespace(lr=1), r"argparse\.Namespace"),
        (np.zeros(3), r"numpy\.ndarray"),
        (np.str_("a"), r"numpy\.dtype\['U1'\]"),
        (Path("a"), r"pathlib\.PosixPath"),
    ],
)
def test_other_objects_are_named_with_a_command_that_strips_them(tmp_path, monkeypatch, thing, name):
    state = reference(config_of("GELU")).state_dict()
    (tmp_path / "it's.json").write_text(json.dumps(config_of("GELU")))
    torch.save({"model": under("base_model.", state), "args": thing}, tmp_path / "it's.pth")
    for read in (load_checkpoint, lambda file: read_clip(str(file))):
        with pytest.raises(
            WeightsError, match=rf"it's.pth can't be read: it contains {name}, which is not a tensor"
        ) as caught:
            read(tmp_path / "it's.pth")
    python, flag, program, file = shlex.split(str(caught.value).split("only the weights: ")[1])
    assert (python, flag) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [flag, file])
    exec(program, {})
    assert load_checkpoint(tmp_path / "stripped.pth")["model"].keys() == under("base_model.", state).keys()


SMALL = ["--img_size", "96", "32", "--stride_size", "8", "--num_workers", "0", "--batch_size", "8", "--device", "cpu"]
SMALL += ["--num_epoch", "1", "--warmup_epochs", "0", "--dataset_name", "RSTPReid"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_the_trained_architecture_is_rebuilt_wherever_weights_are_used(tmp_path):
    """Training, testing, resuming, exporting and loading for search all rebuild the same network."""
    datasets_on_disk.write(tmp_path, "RSTPReid")
    np.save(tmp_path / "noise.npy", draw_permutation(24, 0.2))
    clip = read_clip(str(small_clip.FILE)).state
    save_file({f"base_model.{name}": value for name, value in clip.items()} | HEADS, tmp_path / "ours.safetensors")
    towers = {"vision_cfg": {"width": 32, "layers": 1, "head_width": 8}}
    towers |= {"text_cfg": {"width": 16, "layers": 1, "heads": 8}}
    (tmp_path / "ours.json").write_text(json.dumps(towers))
    given = ["--root_dir", tmp_path, "--output_dir", tmp_path / "logs", "--noisy_file", tmp_path / "noise.npy"]
    given += ["--pretrain_choice", tmp_path / "ours.safetensors", "--text_length", "8", *SMALL]
    training_root.main([*map(str, given)])
    (run_dir,) = (tmp_path / "logs" / "RSTPReid").iterdir()
    log = (run_dir / "train_log.txt").read_text()
    lines = [line for line in log.splitlines() if "ours.safetensors: " in line]
    towers_of_both = "image 4 heads, GELU, text 8 heads, GELU (from ours.json)"
    for part in (towers_of_both, "classifier (2 tensors)", "cut from 77 to 8"):
        assert any(part in line for line in lines), part
    assert "captions of train are cut to --text_length 8" in log

    image = {"width": 32, "layers": 1, "heads": 4, "activation": "gelu"}
    record = {"image": image, "text": {"width": 16, "layers": 1, "heads": 8, "activation": "gelu"}}
    assert RunFolder(run_dir).facts()["towers"] == record
    export.main([str(run_dir), "--out", str(tmp_path / "exported")])
    assert RunFolder(tmp_path / "exported").facts()["towers"] == record
    (tmp_path / "ours.json").unlink()
    ids = torch.from_numpy(Tokenizer()(["a man in a red coat"], 8)).long()
    embedded = []
    for folder, names in ((run_dir, ("best.pth", "last.pth")), (tmp_path / "exported", ("model.safetensors",))):
        for name in names:
            model = load_run(folder, torch.device("cpu"), folder / name).model
            assert model.towers() == record
            assert {block.attn.heads for block in model.backbone.visual.transformer.resblocks} == {4}
            assert isinstance(model.backbone.transformer.resblocks[0].mlp.gelu, torch.nn.GELU)
            with torch.no_grad():
                embedded.append(model.encode_text(ids)["BGE"])
    assert torch.equal(embedded[0], embedded[1])
    assert torch.equal(embedded[0], embedded[2])

    assert read_clip(str(tmp_path / "exported" / "model.safetensors")).towers.record() == record
    resume = ["--resume", str(run_dir)]
    with pytest.raises(WeightsError, match="number of heads"):
        training_root.main(resume)
    (tmp_path / "ours.json").write_text(json.dumps(towers | {"quick_gelu": True}))
    with pytest.raises(
        WeightsError, match=r"last.pth can't be resumed from: its towers are .*gelu.* now gives .*quick_gelu"
    ):
        training_root.main(resume)
    (tmp_path / "ours.json").write_text(json.dumps(towers))
    training_root.main(resume)


@pytest.mark.parametrize("record", [3, {}, {"image": {}, "text": {}}, {"image": 1, "text": 2}, "heads", "activation"])
def test_a_checkpoint_with_invalid_towers_is_refused(tmp_path, record):
    weights = published.weights("rde")
    tower = {"width": 64, "layers": 3, "heads": 1, "activation": "quick_gelu"}
    if record in ("heads", "activation"):
        record = {"image": tower, "text": tower | {"layers": 2, record: "many"}}
    torch.save({"model": weights, "towers": record}, tmp_path / "best.pth")
    options = Options(img_size=SIZE, stride_size=8, vocab_size=512)
    with pytest.raises(WeightsError, match=r"best.pth"):
        model_from_checkpoint(tmp_path / "best.pth", options.of)
    with pytest.raises(WeightsError, match=r"best.pth"):
        read_clip(str(tmp_path / "best.pth"))


def test_a_checkpoint_without_towers_gets_the_published_architecture(tmp_path):
    """The authors' files and our older ones: heads of 64 channels and QuickGELU, unless the options differ."""
    torch.save({"model": published.weights("rde")}, tmp_path / "best.pth")
    for given, activation in (("auto", "quick_gelu"), ("gelu", "gelu")):
        options = Options(img_size=SIZE, stride_size=8, vocab_size=512, activation=given)
        towers = model_from_checkpoint(tmp_path / "best.pth", options.of).towers()
        assert [tower["heads"] for tower in towers.values()] == [1, 1]
        assert [tower["activation"] for tower in towers.values()] == [activation, activation]
