"""open_clip models as backbones: the embeddings of open_clip from the same weights, and whole runs of small models."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

import assembly
import test as evaluation_root
import train as training_root
from datasets.augmentation import augment_text, normalise
from datasets.tokenizer import Tokenizer
from model.weights import build_model
from options import resolve
from tests import datasets_on_disk
from tests.test_training import SMALL
from tools.onnx_towers import write_towers
from utils.errors import OptionError, UserError, WeightsError
from utils.run_folder import RunFolder

tokenizers = pytest.importorskip("tokenizers")
NAMES = ("tiny-ViT", "tiny-EVA02", "tiny-SigLIP2")
SIZE = (96, 32)
CAPTIONS = ["A woman in a red coat.", "he walks", "", "A man with a very long description " * 6]


def own(given: dict) -> dict:
    """timm's arguments for a model function, without those for downloading weights."""
    return {name: value for name, value in given.items() if name in ("num_classes", "global_pool")}


@register_model
def tiny_eva02(pretrained: bool = False, **kwargs) -> Eva:  # noqa: ARG001
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 8 / 3, "ref_feat_shape": (4, 4)}
    eva = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "use_rot_pos_emb": True}
    return Eva(img_size=64, patch_size=16, **shape, **eva, **own(kwargs))


@register_model
def tiny_siglip(pretrained: bool = False, **kwargs) -> VisionTransformer:  # noqa: ARG001
    shape = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return VisionTransformer(**shape, class_token=False, **own(kwargs))


TEXT = {"width": 24, "heads": 3, "layers": 2}
CONFIGS = {
    "tiny-ViT": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, **TEXT},
    },
    "tiny-EVA02": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "timm_model_name": "tiny_eva02", "timm_pool": "token", "timm_proj": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, **TEXT},
    },
    "tiny-SigLIP2": {
        "embed_dim": 48,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 64, "timm_model_name": "tiny_siglip", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            "context_length": 20,
            "vocab_size": 64,
            "hf_tokenizer_name": "somebody/tokenizer",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
            **TEXT,
        },
    },
}
LENGTH = {"tiny-ViT": 77, "tiny-EVA02": 77, "tiny-SigLIP2": 20}


@pytest.fixture(autouse=True)
def configs(tmp_path, monkeypatch):
    """Add the small models to open_clip's."""
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    (tmp_path / "configs").mkdir()
    for name, config in CONFIGS.items():
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")


def write_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer in the layout of Gemma's: padding is 0, and it appends the end token 1."""
    words = sorted({word for caption in CAPTIONS for word in caption.lower().replace(".", "").split()})
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocabulary["<eos>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    """Random weights of an open_clip model. All callers share the tensors."""
    torch.manual_seed(0)
    native = open_clip.create_model(name, pretrained=None)
    for parameter in native.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # no parameter stays at 0 or 1
    return {key: value.contiguous() for key, value in native.state_dict().items()}


def write_weights(folder: Path, name: str) -> Path:
    """Write the random weights of an open_clip model, and a tokenizer; returns the weights' file."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    file = folder / "open_clip_model.safetensors"
    save_file(weights(name), file)
    return file


def flags(name: str, file: Path) -> dict:
    given = {"backbone": f"open_clip:{name}", "pretrain_choice": str(file), "img_size": SIZE}
    return given | {"text_length": LENGTH[name], "num_workers": 0}


@pytest.mark.numeric
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), SIZE])
def test_embeddings_equal_open_clips_own(tmp_path, name, size):
    file = write_weights(tmp_path / "w", name)
    theirs = open_clip.create_model(name, pretrained=str(file), force_image_size=size).eval()
    remarks: list[str] = []
    options = resolve(flags(name, file) | {"img_size": size})
    model = assembly.build(options, remarks.append).eval()
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    ids = assembly.inputs(options, model).tokenizer(CAPTIONS, LENGTH[name])
    of_theirs = torch.from_numpy(ids).long()
    if name == "tiny-SigLIP2":
        of_theirs[of_theirs == 64] = 1
        single = tokenizers.Tokenizer.from_file(str(file.with_name("tokenizer.json")))
        expected = single.encode("a woman in a red coat").ids
        assert of_theirs[0, : len(expected)].tolist() == expected, "canonical, as open_clip's tokenizer has it"
        assert of_theirs[3, -1] == 1
    if name == "tiny-ViT" and size == SIZE:  # open_clip resizes positions differently
        theirs.visual.positional_embedding.data = model.backbone.visual.positional_embedding.data.clone()
    with torch.no_grad():
        expected = theirs.encode_image(images), theirs.encode_text(of_theirs)
        short = torch.from_numpy(ids[:3, :16]).long()
        found = model.encode_image(images)["BGE"], model.encode_text(torch.from_numpy(ids).long())["BGE"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        cut = model.encode_text(short)
        torch.testing.assert_close(cut["BGE"], expected[1][:3], rtol=0, atol=1e-4)
        torch.testing.assert_close(cut["TSE"], model.encode_text(torch.from_numpy(ids[:3]).long())["TSE"])
    assert not [name for name in model.new_parameters() if name.startswith("backbone.")]
    assert any("mean and deviation" in remark for remark in remarks)


def embeddings(model: torch.nn.Module, name: str) -> tuple:
    """All embeddings of two images and four captions."""
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    ids = (model.backbone.tokenizer or Tokenizer())(CAPTIONS, LENGTH[name])
    with torch.no_grad():
        return model.eval().encode_image(images), model.encode_text(torch.from_numpy(ids).long())


WRAPPERS = {
    "a run": lambda model, name: {
        "model": model.published_state(),
        "towers": model.towers(),
        "options": {"backbone": f"open_clip:{name}"},
    },
    "of several GPUs": lambda model, _: {
        "model": {f"module.{key}": value for key, value in model.published_state().items()},
        "epoch": 3,
    },
    "flat": lambda model, _: {
        **{key: value for key, value in model.published_state().items() if key.startswith("base_model.")},
        "classifier.weight": torch.zeros(3, 2),
    },
    "open_clip's training": lambda model, _: {
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "epoch": 1,
    },
}


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [*product(("tiny-ViT", "tiny-SigLIP2"), WRAPPERS), ("tiny-EVA02", "a run"), ("tiny-EVA02", "open_clip's training")],
)
def test_weights_of_a_run_and_within_other_models_are_found(tmp_path, name, wrapper):
    file = write_weights(tmp_path / "w", name)
    model = assembly.build(resolve(flags(name, file)))
    wrapped = file.with_name("wrapped.pth")
    trained = wrapper == "open_clip's training"
    native = open_clip.create_model(name, pretrained=str(file)) if trained else model
    if wrapper == "a run":
        model.backbone.mean = (0.5, 0.4, 0.3)
    if not trained:
        for parameter in model.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
    torch.save(WRAPPERS[wrapper](native, name), wrapped)
    remarks: list[str] = []
    found = assembly.build(resolve(flags(name, wrapped)), remarks.append)
    compared = ["BGE"] if wrapper in ("flat", "open_clip's training") else ["BGE", "TSE"]
    for one, other in zip(embeddings(found, name), embeddings(model, name), strict=True):
        for head in compared:
            assert torch.equal(one[head], other[head])
    assert (found.backbone.mean == (0.5, 0.4, 0.3)) == (wrapper == "a run")
    assert any("not part of CLIP: " in remark for remark in remarks)


def test_weights_of_another_backbone_are_refused(tmp_path):
    """ViT-B-16 and ViT-B-16-quickgelu have the same tensors."""
    file = write_weights(tmp_path / "w", "tiny-ViT")
    model = assembly.build(resolve(flags("tiny-ViT", file)))
    content = WRAPPERS["a run"](model, "tiny-ViT-quickgelu")
    torch.save(content, file.with_name("best.pth"))
    message = "best.pth was trained with --backbone open_clip:tiny-ViT-quickgelu: pass that one"
    with pytest.raises(WeightsError, match=message):
        assembly.build(resolve(flags("tiny-ViT", file.with_name("best.pth"))))
    told = {"backbone": json.dumps("open_clip:tiny-ViT-quickgelu"), "towers": json.dumps(model.towers())}
    save_file(model.published_state(), file.with_name("best.safetensors"), told)
    with pytest.raises(WeightsError, match=message.replace("pth", "safetensors")):
        assembly.build(resolve(flags("tiny-ViT", file.with_name("best.safetensors"))))


@pytest.mark.numeric
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_towers_in_onnx_give_the_models_embeddings(tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = write_weights(tmp_path / "w", name)
    options = resolve(flags(name, file))
    model = build_model(options.of).eval()  # as in tools.export
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, *SIZE), dtype=np.uint8)
    ids = assembly.inputs(options, model).tokenizer(CAPTIONS, LENGTH[name])[:, :17]
    with torch.no_grad():
        expected = (
            model.encode_image(normalise(torch.from_numpy(pixels))),
            model.encode_text(torch.from_numpy(ids).long()),
        )
    files = write_towers(model, options, "these", tmp_path)
    for path, given, own in zip(files, (pixels, ids.astype(np.int64)), expected, strict=True):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(list(own), {session.get_inputs()[0].name: given})
        torch.testing.assert_close(dict(zip(own, map(torch.from_numpy, found))), own, rtol=0, atol=1e-4)


@pytest.mark.numeric
@pytest.mark.parametrize("name", NAMES)
def test_the_attention_is_the_last_blocks(tmp_path, name):
    """Against the attention weights of torch's own module, and of timm's without its fused kernel."""
    file = write_weights(tmp_path / "w", name)
    backbone = assembly.build(resolve(flags(name, file))).eval().backbone
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    ids = torch.from_numpy((backbone.tokenizer or Tokenizer())(CAPTIONS, LENGTH[name])).long()
    inputs: list = []
    hook = backbone.text.transformer.resblocks[-1].ln_1.register_forward_hook(lambda *parts: inputs.append(parts[2]))
    with torch.no_grad():
        of_image, of_text = backbone.encode_image(images), backbone.encode_text(ids)
        hook.remove()
        x, mask = inputs[0], backbone.text.attn_mask
        _, whole = backbone.text.transformer.resblocks[-1].attn(x, x, x, attn_mask=mask, average_attn_weights=True)
    for row, (summary, end) in enumerate(zip(of_text.summary[:, 0], ids.argmax(dim=1), strict=True)):
        torch.testing.assert_close(of_text.attention[row, : end + 1], whole[row, summary, : end + 1])
        assert not of_text.attention[row, end + 1 :].any(), "padding is never selected before words"
    assert of_image.attention.shape == (2, 1 + 6 * 2)
    assert of_image.features.shape == (2, 13, backbone.width)
    total = of_image.attention.sum(dim=1)
    torch.testing.assert_close(total, torch.ones(2))
    if name == "tiny-SigLIP2":
        assert not of_image.attention[:, 0].any()
        with torch.no_grad():  # a patch attended to alone is the pooled vector
            patches = backbone.trunk.forward_features(images)
            alone = backbone.pool(patches[:, 4:5])
        torch.testing.assert_close(of_image.features[:, 5], alone)


@pytest.mark.parametrize("name", ["tiny-ViT", "tiny-SigLIP2"])
def test_normalisation_comes_from_the_weights_configuration(tmp_path, name):
    file = write_weights(tmp_path / "w", name)
    (tmp_path / "w/open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIGS[name], "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}})
    )
    model = assembly.build(resolve(flags(name, file)))
    assert (model.backbone.mean, model.backbone.std) == ((0.5,) * 3, (0.5,) * 3)
    assert model.towers()["preprocessing"]["mean"] == [0.5] * 3


def test_siglip_captions_are_masked_with_its_own_mask_token(tmp_path):
    file = write_weights(tmp_path / "w", "tiny-SigLIP2")
    tokenizer = assembly.build(resolve(flags("tiny-SigLIP2", file))).backbone.tokenizer
    ids = tokenizer(["a woman in a red coat"] * 500, 20)
    rng = np.random.default_rng(0)
    changed = np.stack([augment_text(row, rng, tokenizer.mask, tokenizer.words) for row in ids])
    assert tokenizer.mask == 4
    assert 0.08 < (changed[:, :6] == 4).mean() < 0.16
    assert (changed.max(axis=1) == 64).all(), "the end stays the highest id"
    assert not (changed > 64).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "open_clip"}, "--backbone open_clip: give it as open_clip:NAME"),
        ({"backbone": "clip:ViT-B-16"}, "--backbone clip:ViT-B-16: give it as clip"),
        ({"backbone": "nothing:ViT-B-16"}, "--backbone nothing:ViT-B-16: choose from clip, open_clip"),
        ({"backbone": "open_clip:ViT-B-17"}, "open_clip:ViT-B-17: give one of open_clip's models .*ViT-B-16"),
        pytest.param(
            {"backbone": "open_clip:convnext_base"},
            "the attention of this kind of image tower can't be read",
            marks=pytest.mark.slow,  # open_clip builds the full-size model
        ),
        ({"backbone": "open_clip:coca_ViT-B-32"}, "a captioner or another library's text tower is not supported"),
        ({"pretrain_choice": "ViT-B/16"}, "needs a file of open_clip weights"),
        ({"backbone": "open_clip:tiny-EVA02"}, "does not fit this model: missing visual"),
        ({"precision": "fp16_weights"}, "--precision fp16_weights: this backbone does not support it"),
    ],
)
def test_unsupported_backbones_and_weights_are_one_line_errors(tmp_path, given, message):
    file = write_weights(tmp_path / "w", "tiny-ViT")
    with pytest.raises(UserError, match=message) as caught:
        assembly.build(resolve(flags("tiny-ViT", file) | given))
    assert isinstance(caught.value, OptionError | WeightsError)
    assert "\n" not in str(caught.value)


def test_missing_or_conflicting_files_beside_the_weights_are_named(tmp_path):
    file = write_weights(tmp_path / "w", "tiny-SigLIP2")
    file.with_name("tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer.json is missing: put tiny-SigLIP2's tokenizer file beside"):
        assembly.build(resolve(flags("tiny-SigLIP2", file)))
    file = write_weights(tmp_path / "v", "tiny-ViT")
    (tmp_path / "v/open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    with pytest.raises(WeightsError, match=r"was trained with QuickGELU .*open_clip:tiny-ViT has the other one"):
        assembly.build(resolve(flags("tiny-ViT", file)))


def test_fp16_adam_rounds_attention_and_projections_too(tmp_path):
    """They are float16 in the published code's CLIP; in open_clip they are parameters outside linear layers."""
    file = write_weights(tmp_path / "w", "tiny-ViT")
    model = assembly.build(resolve(flags("tiny-ViT", file) | {"precision": "fp16_adam"}))
    kept = {name for name, _ in model.named_parameters()} - model.rounded_parameters()
    assert kept
    assert all("ln_" in name or "embedding" in name or "mlp.1." in name for name in kept), kept


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_cfg": {"vision_cfg": {"head_width": 24}}}, r"head_width 24 .*vision_cfg.*:tiny-ViT has 16"),
        ({"model_cfg": {"text_cfg": {"heads": 2}}}, r"heads 2 .*text_cfg.*:tiny-ViT has 3"),
        ({"model_cfg": {"text_cfg": {"no_causal_mask": True}}}, r"no_causal_mask True .*:tiny-ViT has False"),
        ({"model_cfg": {"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}}}, r"act_kwargs .*:tiny-ViT has None"),
        ({"preprocess_cfg": {"mean": [0.5], "std": [0.5] * 3}}, r"mean of the images' channels must be three numbers"),
        ({"preprocess_cfg": {"mean": [0.5] * 3, "std": [0, 1, 1]}}, r"std of the images' channels must be three"),
        ({"preprocess_cfg": {"mean": "0.5", "std": [1, 1, 1]}}, r"mean of the images' channels must be three"),
        ({"model_cfg": CONFIGS["tiny-ViT"], "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, ""),
        ({"model_cfg": {"vision_cfg": {}, "text_cfg": None}, "preprocess_cfg": []}, ""),
    ],
)
def test_a_configuration_that_contradicts_the_model_name_is_refused(tmp_path, config, message):
    """Tensors don't show it: the weights would load and give wrong embeddings."""
    file = write_weights(tmp_path / "w", "tiny-ViT")
    file.with_name("open_clip_config.json").write_text(json.dumps(config))
    if not message:
        assembly.build(resolve(flags("tiny-ViT", file)))
        return
    with pytest.raises(WeightsError, match=message) as caught:
        assembly.build(resolve(flags("tiny-ViT", file)))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
@pytest.mark.parametrize("name", ["tiny-EVA02", "tiny-SigLIP2"])
def test_a_run_is_tested_without_its_pretrained_files(tmp_path, name):
    file = write_weights(tmp_path / "w", name)
    datasets_on_disk.write(tmp_path, "RSTPReid")
    given = ["--dataset_name", "RSTPReid", "--root_dir", str(tmp_path), "--output_dir", str(tmp_path / "logs")]
    given += [*SMALL, "--backbone", f"open_clip:{name}", "--pretrain_choice", str(file), "--txt_aug"]
    given += ["--text_length", str(LENGTH[name]), "--noisy_rate", "0", "--num_epoch", "1", "--grad_accum", "2"]
    training_root.main([*given, "--grad_checkpointing", "--activation", "gelu", "--stride_size", "8"])
    (run,) = (tmp_path / "logs/RSTPReid").iterdir()
    assert "no effect in this run: --activation, --stride_size\n" in (run / "train_log.txt").read_text()
    before = RunFolder(run).test_metrics()
    file.rename(tmp_path / "elsewhere.safetensors")
    file.with_name("tokenizer.json").unlink(missing_ok=True)
    evaluation_root.main([str(run), "--device", "cpu"])
    after = RunFolder(run).test_metrics()
    assert after["best.pth"]["BGE"] == pytest.approx(before["best.pth"]["BGE"])
