"""Extensions of the model by forks and plugins: heads, backbones, layers, frozen towers; and `accelerate`."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP as OpenClip
from torch import Tensor, nn

import assembly
from model import accelerate as accelerations
from model.accelerate import FastLinear, FastQuickGELU, accelerate
from model.backbones.base import Backbone, Needed, Tokens, union
from model.backbones.clip import Clip, ClipConfig
from model.encoder import DualEncoder
from model.heads.base import Head
from model.heads.bge import GlobalEmbedding
from model.pretrained import read_clip
from model.settings import BACKBONES, HEADS
from model.weights import build_model, model_from_checkpoint
from solver.optimizer import build_optimizer
from solver.settings import OptimizerSettings
from tests import published, small_clip
from tests.float64 import TOLERANCE
from tests.objectives import optimizer_arguments
from tests.test_model import golden_model
from utils.checkpoints import save_checkpoint
from utils.errors import OptionError, WeightsError
from utils.options import defaults
from utils.settings import Options

SIZE = (48, 16)
SMALL = Options(pretrain_choice=str(small_clip.FILE), img_size=SIZE, stride_size=8)


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """Remove what a test registers."""
    for registry in (HEADS, BACKBONES):
        monkeypatch.setattr(registry, "_found", {name: registry[name] for name in registry})


def built(**options: object) -> DualEncoder:
    torch.manual_seed(0)
    return build_model(Options(SMALL | options).of)


def inputs() -> tuple[Tensor, Tensor]:
    """Four images, and captions of 0, 1, 5 and 20 words."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(4, 22, dtype=torch.long)
    for row, words in enumerate((0, 1, 5, 20)):
        ids[row, : words + 2] = torch.tensor([49406, *torch.randint(1, 49000, (words,), generator=generator), 49407])
    return torch.randn(4, 3, *SIZE, generator=generator), ids


def gradients(model: DualEncoder) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch's embeddings, concatenated, and the gradients of their sum of squares."""
    model.zero_grad()
    image, text = model(*inputs())
    embeddings = torch.cat([*image.values(), *text.values()], dim=1)
    embeddings.square().sum().backward()
    return embeddings.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_embeddings_have_names_and_widths_in_the_order_of_the_heads():
    for heads in ("BGE+TSE", "TSE+BGE", "BGE", "TSE"):
        model = built(heads=heads)
        image, text = model(*inputs())
        assert list(image) == list(text) == list(model.heads) == list(model.widths) == heads.split("+")
        for name, width in model.widths.items():
            assert image[name].shape == text[name].shape == (4, width)
            assert image[name].dtype == text[name].dtype == torch.float32
    assert built().widths == {"BGE": 32, "TSE": 1024}
    assert built(tse_head="none").widths == {"BGE": 32, "TSE": 32}


@pytest.mark.parametrize(("heads", "message"), [("BGE+PGE", "choose from BGE, TSE"), ("BGE+BGE", "a head twice")])
def test_unknown_and_repeated_heads_are_refused(heads, message):
    with pytest.raises(OptionError, match=message):
        built(heads=heads)


class Mean(Head):
    """The mean of all tokens after a linear layer."""

    def __init__(self, width: int, tokens: int, settings: None) -> None:
        super().__init__(width, tokens, settings)
        self.width = 32
        self.layer = nn.Linear(width, 32)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.layer(tokens.features).mean(dim=1).float()


def test_a_third_head_is_trained_saved_and_loaded(tmp_path):
    HEADS.register("MEAN")(Mean)
    model, two = built(heads="BGE+TSE+MEAN"), built()
    assert model.widths == {"BGE": 32, "TSE": 1024, "MEAN": 32}
    for found, expected in zip(model(*inputs()), two(*inputs()), strict=True):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])
    new = {name for name in model.new_parameters() if "MEAN" in name}
    assert new == {
        f"heads.MEAN.{modality}.layer.{kind}" for modality in ("image", "text") for kind in ("weight", "bias")
    }
    save_checkpoint({"model": model.published_state(), "towers": model.towers()}, tmp_path / "last.pth")
    again = model_from_checkpoint(tmp_path / "last.pth", Options(SMALL | {"heads": "BGE+TSE+MEAN"}).of)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.raises(WeightsError, match=r"last.pth does not fit this model: unknown heads.MEAN.image.layer.bias, "):
        model_from_checkpoint(tmp_path / "last.pth", SMALL.of)


class Around(Head):
    """Features of the summary and of the tokens before and after it."""

    def positions(self, tokens: Tokens) -> Tensor:
        last = tokens.attention.shape[1] - 1
        return torch.cat([tokens.summary, (tokens.summary - 1) % last, tokens.summary + 1], dim=1)

    def forward(self, tokens: Tokens) -> Tensor:
        positions = self.positions(tokens)[:, :, None].expand(-1, -1, tokens.features.shape[2])
        return tokens.features.gather(1, positions).sum(dim=1)


@pytest.mark.numeric
@pytest.mark.usefixtures("float64")
def test_a_head_that_reads_some_tokens_equals_one_that_reads_all():
    HEADS.register("ALL")(Around)
    HEADS.register("PART")(type("Part", (Around,), {"reads": Around.positions}))
    found, expected = gradients(built(heads="BGE+TSE+PART")), gradients(built(heads="BGE+TSE+ALL"))
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_subclass_with_its_own_forward_reads_all_tokens():
    """GlobalEmbedding reads the summary alone; without its `reads`, the others' last MLP would be left out."""

    class Average(GlobalEmbedding):
        def forward(self, tokens: Tokens) -> Tensor:
            return tokens.features.mean(dim=1)

    HEADS.register("AVERAGE")(Average)
    model = built(heads="BGE+AVERAGE")
    images, ids = inputs()
    complete, _, _ = model.with_tokens(images, ids)
    torch.testing.assert_close(model.encode_image(images), complete)


def test_a_union_has_every_position_once_in_order_of_first_mention():
    rng = np.random.default_rng(0)
    for length, sizes in ((9, (1, 4)), (9, (3, 3, 3)), (5, (4, 4)), (6, (2,))):
        parts = [torch.from_numpy(rng.integers(0, length, (50, size))) for size in sizes]
        found = union(parts, length)
        assert found.shape == (50, min(length, sum(sizes)))
        for row, mentioned in zip(found.tolist(), torch.cat(parts, dim=1).tolist(), strict=True):
            order = list(dict.fromkeys(mentioned))
            assert row[: len(order)] == order
            assert len(set(row)) == len(row)
    assert union([parts[0], None], 6) is None


class OpenClipBackbone(Backbone):
    """A plugin's backbone: an open_clip model with random weights and cosines instead of attention, which it hides."""

    width, grid, image_tokens, text_tokens = 48, (6, 2), 12, 20

    def __init__(self) -> None:
        super().__init__()
        image = {"image_size": list(SIZE), "patch_size": 8, "layers": 1, "width": 64, "output_tokens": True}
        text = {"context_length": 22, "vocab_size": 49408, "layers": 1, "width": 64, "heads": 1}
        self.model = OpenClip(self.width, image, text)

    @classmethod
    def build(cls, *_: object) -> OpenClipBackbone:
        return cls()

    def encode_image(self, images: Tensor, needed: Needed | None = None) -> Tokens:  # noqa: ARG002
        pooled, patches = self.model.visual(images)
        features = torch.cat([pooled[:, None], patches @ self.model.visual.proj], dim=1)
        cls = torch.zeros(len(images), 1, dtype=torch.long)
        return self.tokens(features, cls, cls, torch.full((len(images),), 12))

    def encode_text(self, ids: Tensor, needed: Needed | None = None) -> Tokens:  # noqa: ARG002
        clip, L = self.model, ids.shape[1]
        x = clip.token_embedding(ids) + clip.positional_embedding[:L]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:L, :L]))
        eos = ids.argmax(dim=1, keepdim=True)
        hidden = torch.cat([torch.zeros_like(eos), eos], dim=1)
        return self.tokens(x @ clip.text_projection, eos, hidden, (ids != 0).sum(dim=1) - 2)

    def tokens(self, features: Tensor, summary: Tensor, hidden: Tensor, selectable: Tensor) -> Tokens:
        row = features.gather(1, summary[:, :, None].expand(-1, -1, self.width))
        attention = torch.cosine_similarity(row, features, dim=2).detach().add(1).div(2)
        return Tokens(summary, hidden, selectable, attention, features)


def test_a_plugins_backbone_is_trained_saved_and_loaded(tmp_path):
    BACKBONES.register("open-clip")(OpenClipBackbone)
    model = accelerate(built(backbone="open-clip")).train()
    assert model.widths == {"BGE": 48, "TSE": 1024}
    images, ids = inputs()
    _, found = gradients(model)
    assert found.keys() == {name for name, _ in model.named_parameters() if not name.endswith("logit_scale")}
    with torch.no_grad():
        text = model.encode_text(ids)
        np.testing.assert_allclose(text["BGE"], model.backbone.model.encode_text(ids), rtol=1e-4, atol=1e-5)
        expected = model.backbone.model.visual(images)[0]
        np.testing.assert_allclose(model.encode_image(images)["BGE"], expected, rtol=1e-4, atol=1e-5)
    assert model.new_parameters() == {name for name, _ in model.named_parameters()}, "no pretrained weights"
    save_checkpoint({"model": model.published_state(), "towers": model.towers()}, tmp_path / "last.pth")
    again = model_from_checkpoint(tmp_path / "last.pth", Options(SMALL | {"backbone": "open-clip"}).of)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    model.backbone.set_grad_checkpointing(False)
    with pytest.raises(OptionError, match="--grad_checkpointing: this backbone does not implement it"):
        model.backbone.set_grad_checkpointing(True)
    with pytest.raises(OptionError, match="--compile: this backbone does not implement it"):
        model.backbone.compile_blocks()


class Forked(Clip):
    """CLIP with a layer that no pretrained weights have."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self.visual.transformer.resblocks[0].adapter = nn.Linear(2, 3)


ADAPTER = "visual.transformer.resblocks.0.adapter"


def test_a_layer_added_to_clip_is_new_and_missing_clip_weights_are_refused():
    BACKBONES.register("forked")(Forked)
    logged = []
    model = build_model(Options(SMALL | {"backbone": "forked"}).of, logged.append)
    assert any(ADAPTER in line for line in logged)
    in_backbone = {name for name in model.new_parameters() if name.startswith("backbone.")}
    assert in_backbone == {f"backbone.{ADAPTER}.weight", f"backbone.{ADAPTER}.bias"}
    state = {
        **read_clip(SMALL.pretrain_choice).state,
        "visual.positional_embedding": model.backbone.visual.positional_embedding,
    }
    del state["visual.ln_post.bias"]
    with pytest.raises(WeightsError, match=r"weights does not fit this model: missing visual.ln_post.bias$"):
        model.backbone.load_openai(state, "weights")


def test_weights_without_published_names_are_saved_under_their_own():
    model, other = built(), built()
    for changed in (model, other):
        changed.classifier = nn.Linear(4, 2)
        changed.backbone.logit_scale = nn.Parameter(torch.rand(()))  # unused in published files
        changed.backbone.visual.adapter = nn.Linear(3, 3)
        changed.heads["TSE"]["text"].gate = nn.Linear(2, 2)
    names = {
        "base_model.logit_scale",
        "classifier.weight",
        "base_model.visual.adapter.bias",
        "heads.TSE.text.gate.bias",
    }
    assert names < model.published_state().keys()
    assert {"classifier.weight", "backbone.visual.adapter.bias", "heads.TSE.text.gate.bias"} < model.new_parameters()
    other.load_published(model.published_state(), "file")
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.raises(WeightsError) as extra:
        built().load_published(model.published_state(), "last.pth")
    with pytest.raises(WeightsError) as lacks:
        other.load_published(built().published_state(), "last.pth")
    added = "base_model.visual.adapter.bias, base_model.visual.adapter.weight, classifier.bias, classifier.weight, "
    added += "heads.TSE.text.gate.bias, heads.TSE.text.gate.weight"
    assert str(extra.value) == f"last.pth does not fit this model: unknown {added}"
    assert str(lacks.value) == f"last.pth does not fit this model: missing base_model.logit_scale, {added}"


def test_a_frozen_tower_is_kept_saved_and_loaded(tmp_path):
    model = accelerate(built()).train()
    model.backbone.visual.requires_grad_(False)
    optimizer = build_optimizer(*optimizer_arguments(model), OptimizerSettings(lr=1e-3))
    before = copy.deepcopy(model.state_dict())
    gradients(model)
    optimizer.step()
    for name, value in model.state_dict().items():
        if name.startswith("backbone.visual."):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.backbone.text_projection, before["backbone.text_projection"])
    save_checkpoint({"model": model.published_state(), "towers": model.towers()}, tmp_path / "last.pth")
    again = model_from_checkpoint(tmp_path / "last.pth", SMALL.of)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    other = built()
    other.backbone.visual.requires_grad_(False)
    other.load_published(model.published_state(), "last.pth")
    assert not any(parameter.requires_grad for parameter in other.backbone.visual.parameters())
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.numeric
@pytest.mark.parametrize("onednn", [True, False])
def test_accelerate_changes_only_rounding_and_is_idempotent(monkeypatch, onednn):
    monkeypatch.setattr(accelerations, "ONEDNN", onednn)
    monkeypatch.setattr(accelerations, "_SMALL", 0)
    plain, model = built().train(), built().train()
    names, modules = list(model.state_dict()), list(model.modules())
    assert accelerate(model) is model
    classes = [type(module) for module in model.modules()]
    assert [type(module) for module in accelerate(model).modules()] == classes
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert FastLinear in classes
    assert nn.Linear not in classes
    assert FastQuickGELU in classes
    (found, found_gradients), (expected, expected_gradients) = gradients(model), gradients(plain)
    assert found_gradients.keys() == expected_gradients.keys()
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert not torch.equal(found, expected), "it is in use"
    for name, gradient in expected_gradients.items():
        assert (found_gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(gradients(again)[0], found)


def test_the_plain_model_is_plain_pytorch_and_training_accelerates_it():
    options = Options(defaults() | SMALL)
    plain, model = built(), assembly.build(options)
    own = {type(module) for module in plain.modules() if isinstance(module, nn.Linear)}
    assert own == {nn.Linear}
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {FastLinear}


@pytest.mark.numeric
def test_plain_and_accelerated_gradients_agree():
    golden = published.numbers("model")
    found = []
    for accelerated in (False, True):
        model = golden_model(accelerated=accelerated).train()
        image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
        sum(part.square().sum() for part in (*image.values(), *text.values())).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (found[0] - found[1]).norm() <= 1e-5 * found[1].norm()


def test_the_models_settings_need_no_torch():
    code = "import model.settings, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
