"""The model against the published numbers, and its fast paths against slow, obvious ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from model import accelerate
from model.accelerate import FastQuickGELU
from model.backbones.base import Tokens
from model.backbones.clip import Clip
from model.backbones.clip_config import read_config
from model.backbones.transformer import Block, Tower, Transformer
from model.encoder import DualEncoder
from model.heads import tse
from model.heads.tse import TokenSelectionEmbedding
from model.positions import resize_positions
from model.settings import TseSettings
from model.weights import with_heads
from solver.objectives.base import cosine_similarity
from solver.objectives.triplet import TRL, positive_similarity
from tests import published
from tests.float64 import TOLERANCE
from tests.objectives import pairwise
from utils.errors import WeightsError
from utils.layers import QuickGELU
from utils.settings import Options

pytestmark = pytest.mark.numeric

GRID = (12, 4)


def golden_model(tse_bn: str = "frozen", precision: str = "fp32", *, accelerated: bool = True) -> DualEncoder:
    """The model with the golden weights, in the default dtype or the precision's."""
    return copy.deepcopy(_golden_model(tse_bn, precision, accelerated, torch.get_default_dtype()))


@cache
def _golden_model(tse_bn: str, precision: str, accelerated: bool, _: torch.dtype) -> DualEncoder:
    backbone = Clip(replace(read_config(published.weights("clip"), "golden weights"), grid=GRID))
    backbone.pretrained = frozenset(name for name, _ in backbone.named_parameters())
    model = with_heads(backbone, Options(tse_bn=tse_bn, precision=precision).of)
    model.load_published(published.weights("rde"), "golden weights")
    return accelerate.accelerate(model) if accelerated else model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return published.numbers("model")


@pytest.mark.parametrize("accelerated", [True, False])
def test_embeddings_equal_the_published_ones(golden, accelerated):
    model = golden_model("frozen", accelerated=accelerated).eval()
    with torch.no_grad():
        image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    for name, value in {
        "image_bge": image["BGE"],
        "text_bge": text["BGE"],
        "image_tse": image["TSE"],
        "text_tse": text["TSE"],
    }.items():
        np.testing.assert_allclose(value.numpy(), golden[f"eval.{name}"], rtol=1e-4, atol=1e-5, err_msg=name)


def trl_as_published(objective: TRL, s: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """TRL as in the published code, which differs from the method in one respect."""
    hardest = s.masked_fill(positive, 0.0).amax(dim=1)
    settings = objective.settings
    return (settings.margin - positive_similarity(s, positive, settings.tau) + hardest).clamp_min(0)


@pytest.mark.parametrize("loss", ["TAL", "TRL", "InfoNCE", "SDM"])
@pytest.mark.parametrize(("mode", "tse_bn"), [("eval", "frozen"), ("train", "batch")])
def test_losses_and_every_gradient_norm_equal_the_published_ones(golden, mode, tse_bn, loss, monkeypatch):
    # With fewer words than are selected, padding enters the BatchNorm's statistics, and in the published code topk
    # decides which. This arbitrary choice is taken from topk here; ours is the earliest padding.
    monkeypatch.setattr(tse, "select_tokens", lambda scores, count: scores.topk(count, dim=1).indices)
    # Published TRL takes its hardest negative over s·q, so never below 0.
    monkeypatch.setattr(TRL, "one_direction", trl_as_published)
    model = golden_model(tse_bn).train()
    image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    pids, label = torch.from_numpy(golden["pids"]), torch.from_numpy(golden["label_hat"])
    total, objective = {}, pairwise(loss)
    for part in ("bge", "tse"):
        s = cosine_similarity(image[part.upper()], text[part.upper()])
        total[part] = objective.reduce(objective.per_pair(s, pids), label)
    sum(total.values()).backward()

    for name, value in {"image_bge": image["BGE"], "text_bge": text["BGE"]}.items():
        np.testing.assert_allclose(value.detach(), golden[f"{mode}.{name}"], rtol=1e-4, atol=1e-5)

    for part, value in total.items():
        assert value.item() == pytest.approx(float(golden[f"{mode}.{loss}.{part}_loss"]), rel=1e-4)
    expected = json.loads(str(golden[f"{mode}.{loss}.gradient_norms"]))
    names = model.published_names()
    norms = {names[name]: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == expected.keys()
    for name, norm in expected.items():
        # The gradient of a bias before a BatchNorm is pure rounding: it is compared at the scale of its neighbours.
        assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-5), name


def slow_resize(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres, cell by cell: (r, c, D) → (rows, columns, D)."""
    resized = np.empty((rows, columns, grid.shape[2]))
    for y in range(rows):
        for x in range(columns):
            v = np.clip((y + 0.5) * grid.shape[0] / rows - 0.5, 0, grid.shape[0] - 1)
            u = np.clip((x + 0.5) * grid.shape[1] / columns - 0.5, 0, grid.shape[1] - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
            upper = (1 - u + left) * grid[top, left] + (u - left) * grid[top, right]
            lower = (1 - u + left) * grid[bottom, left] + (u - left) * grid[bottom, right]
            resized[y, x] = (1 - v + top) * upper + (v - top) * lower
    return resized


def test_positions_are_resized_bilinearly():
    # `resized_positional_embedding` in the golden file can't serve: it is the unresized embedding of the "rde" weights.
    positions = published.weights("clip")["visual.positional_embedding"]
    resized = resize_positions(positions, (7, 7), GRID)
    slow = slow_resize(positions[1:].view(7, 7, -1).numpy(), *GRID)
    np.testing.assert_allclose(resized[1:], slow.reshape(48, -1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(resized[0], positions[0], rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 171, 64), (343, 64), (7, 64), (1, 1, 64), (0, 5, 64)], ids=str)
def test_a_linear_layer_as_convolution_equals_pytorchs(shape, bias, monkeypatch):
    torch.manual_seed(0)
    weight, added = torch.randn(96, 64, requires_grad=True), torch.randn(96, requires_grad=True)
    parameters = [torch.randn(shape, requires_grad=True), weight, *([added] if bias else [])]
    towards = torch.randn(*shape[:-1], 96)
    results = []
    for onednn in (True, False):
        monkeypatch.setattr(accelerate, "ONEDNN", onednn)
        value = accelerate.linear(*parameters)
        results.append([value, *torch.autograd.grad(value, parameters, towards)])
    for value, wanted in zip(*results, strict=True):
        assert value.is_contiguous()
        # Two sums of up to 343 products, whose rounding errors of at most 2⁻²⁴ add up like a random walk.
        assert (value - wanted).norm() <= 2 * 343**0.5 * 2**-24 * wanted.norm()


def test_a_linear_layer_takes_transposed_tokens_and_weights(monkeypatch):
    monkeypatch.setattr(accelerate, "ONEDNN", True)
    x, weight = torch.randn(64, 3, 150).permute(1, 2, 0), torch.randn(64, 96).T
    torch.testing.assert_close(accelerate.linear(x, weight), x @ weight.T)


def test_compiled_graphs_keep_plain_linear_layers(monkeypatch):
    monkeypatch.setattr(accelerate, "ONEDNN", True)
    traced = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable:
        traced.append(graph.code)
        return graph.forward

    x, weight = torch.randn(3, 150, 64), torch.randn(96, 64)
    torch.testing.assert_close(torch.compile(accelerate.linear, backend=backend)(x, weight), x @ weight.T)
    assert ["linear" in code and "conv" not in code for code in traced] == [True]


@pytest.mark.parametrize("activation", [QuickGELU, FastQuickGELU])
@pytest.mark.parametrize(("precision", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_quick_gelu_equals_its_formula_in_value_and_gradient(precision, bound, activation):
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64, requires_grad=True)
    expected = x * torch.sigmoid(1.702 * x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    rounded = x.detach().to(precision).requires_grad_()
    value = activation()(rounded)
    (found,) = torch.autograd.grad(value.sum(), rounded)
    before = rounded.detach().clone()
    assert torch.equal(activation()(rounded.detach()), value), "the same without a gradient, where less memory is taken"
    assert torch.equal(rounded, before)
    for a, b in ((value, expected), (found, slope)):
        assert (a.double() - b).norm() <= bound * b.norm()


def slow_attention(block: Block, x: torch.Tensor, width: int, *, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention with heads of `width` channels and the full attention matrix: (L, D) → (L, D), (heads, L, L)."""
    L, D = x.shape
    q, k, v = (block.attn.in_proj(x)).chunk(3, dim=1)
    heads, maps = [], []
    for start in range(0, D, width):
        part = slice(start, start + width)
        logits = q[:, part] @ k[:, part].T / width**0.5
        if causal:
            logits = logits.masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), float("-inf"))
        maps.append(logits.softmax(dim=1))
        heads.append(maps[-1] @ v[:, part])
    return block.attn.out_proj(torch.cat(heads, dim=1)), torch.stack(maps)


@pytest.mark.parametrize("heads", [2, 3, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_the_one_row_formed_equal_the_slow_way(causal, heads):
    torch.manual_seed(0)
    block = Block(Tower(192, layers=1, heads=heads, activation="gelu"), causal=causal)
    torch.nn.init.normal_(block.attn.in_proj.bias)
    x, query = torch.randn(3, 11, 192), torch.tensor([0, 10, 4])
    mixed, row = block.attn(x, query)
    for n in range(3):
        slow_mixed, maps = slow_attention(block, x[n], 192 // heads, causal=causal)
        torch.testing.assert_close(mixed[n], slow_mixed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(row[n], maps.mean(dim=0)[query[n]], rtol=1e-4, atol=1e-6)


def slow_tse(head: TokenSelectionEmbedding, tokens: torch.Tensor, ranked: list[int]) -> torch.Tensor:
    """The embedding of one sample from its selected positions, token by token."""
    rows = []
    for position in ranked:
        x = tokens[position] / (tokens[position].norm() + 1e-8)
        rows.append(head.fc(x) + head.mlp(x[None])[0])
    return torch.stack(rows).max(dim=0).values


def test_token_selection_equals_the_slow_way(golden):
    model = golden_model("frozen").eval()
    images, ids = torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"])
    with torch.no_grad():
        image, text = model(images, ids)
        tokens = model.backbone.encode_image(images)
        features, attention, head = tokens.features, tokens.attention, model.heads["TSE"]["image"]
        for n in range(8):
            ranked = sorted(range(1, 49), key=lambda p: -attention[n, p].item())[: int(0.3 * 48)]
            torch.testing.assert_close(image["TSE"][n], slow_tse(head, features[n], ranked), rtol=1e-4, atol=1e-5)
        tokens = model.backbone.encode_text(ids)
        features, attention, head = tokens.features, tokens.attention, model.heads["TSE"]["text"]
        for n in range(8):
            words = range(1, int((ids[n] != 0).sum()) - 1)
            ranked = sorted(words, key=lambda p: -attention[n, p].item())[: int(0.3 * 75)]
            torch.testing.assert_close(text["TSE"][n], slow_tse(head, features[n], ranked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["mlp", "none"])
@pytest.mark.parametrize("pool", ["max", "avg", "topk10"])
def test_table_7s_variants_equal_the_slow_way(head, pool):
    torch.manual_seed(0)
    tse = TokenSelectionEmbedding(64, 50, TseSettings(tse_head=head, tse_pool=pool)).eval()  # selects 15
    tokens, scores, pooled = torch.randn(4, 20, 64), torch.rand(4, 20), torch.tensor([15, 10, 3, 1])
    first, none = torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 0, dtype=torch.long)
    with torch.no_grad():
        fast = tse(Tokens(first, none, pooled, scores, tokens))
        for n in range(4):
            ranked = sorted(range(20), key=lambda p: -scores[n, p].item())[: pooled[n]]
            rows = torch.stack([tokens[n, p] / tokens[n, p].norm() for p in ranked])
            if head == "mlp":
                rows = tse.fc(rows) + tse.mlp(rows)
            rows = rows.sort(dim=0, descending=True).values
            slow = {"max": rows[0], "avg": rows.mean(dim=0), "topk10": rows[:10].mean(dim=0)}[pool]
            torch.testing.assert_close(fast[n], slow, rtol=1e-4, atol=1e-5)


def gradients(model: DualEncoder, golden: dict[str, np.ndarray]) -> tuple[float, list[torch.Tensor], int]:
    """A training step's loss, its gradients, and the bytes kept for the backward pass."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
        loss = sum(
            pairwise("TAL").per_pair(cosine_similarity(image[name], text[name]), torch.from_numpy(golden["pids"])).sum()
            for name in image
        )
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("tse_bn", ["frozen", "batch"])
def test_gradient_checkpointing_gives_the_same_bits_for_less_memory(golden, tse_bn):
    plain, checkpointed = golden_model(tse_bn).train(), golden_model(tse_bn).train()
    checkpointed.backbone.set_grad_checkpointing(True)
    loss, grads, kept = gradients(plain, golden)
    loss_again, grads_again, kept_again = gradients(checkpointed, golden)
    assert loss == loss_again
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    assert kept_again < 0.7 * kept, "two blocks per tower; the heads are not recomputed"
    for (name, a), b in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_gradient_checkpointing_recomputes_with_the_same_dropout(golden):
    found = []
    for checkpointing in (False, True):
        model = golden_model().train()
        for tower in (model.backbone.visual.transformer, model.backbone.transformer):
            for block in tower.resblocks:
                block.mlp.append(torch.nn.Dropout(0.5))
        model.backbone.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        found.append(gradients(model, golden)[1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_compiled_blocks_give_the_same_numbers_under_the_same_names(golden, grad_checkpointing):
    plain, compiled = (accelerate.accelerate(golden_model()).train() for _ in range(2))
    names = list(compiled.state_dict())
    compiled.backbone.compile_blocks(backend="aot_eager")  # traced and differentiated, without a C++ compiler
    compiled.backbone.set_grad_checkpointing(grad_checkpointing)
    assert list(compiled.state_dict()) == names
    for length in (77, 30):
        cut = golden | {"caption_ids": golden["caption_ids"][:, :length]}
        with torch.no_grad():  # as before every epoch
            compiled(*(torch.from_numpy(cut[name]) for name in ("images", "caption_ids")))
        (loss, grads, _), (loss_again, grads_again, _) = gradients(plain, cut), gradients(compiled, cut)
        assert loss == pytest.approx(loss_again, rel=1e-6)
        for grad, grad_again in zip(grads, grads_again, strict=True):
            assert (grad - grad_again).norm() <= 1e-5 * grad.norm()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tse_bn", ["frozen", "batch"])
def test_skipping_unused_tokens_in_the_last_block_changes_nothing(golden, tse_bn, monkeypatch):
    golden = golden | {"caption_ids": golden["caption_ids"].copy()}
    golden["caption_ids"][0] = 0
    golden["caption_ids"][0, :2] = 510, 511  # a caption without a word, whose EOS is both its BGE and its TSE
    loss, grads, kept = gradients(golden_model(tse_bn).train(), golden)
    forward = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, x, query, _: forward(self, x, query, None))
    loss_of_all, grads_of_all, kept_of_all = gradients(golden_model(tse_bn).train(), golden)
    assert loss == pytest.approx(loss_of_all, rel=TOLERANCE["rtol"])
    torch.testing.assert_close(grads, grads_of_all, **TOLERANCE)
    assert kept < 0.96 * kept_of_all, "two thirds of the tokens, in one block of two"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tse_bn", ["frozen", "batch"])
def test_cutting_padding_changes_no_embedding_and_no_gradient(golden, tse_bn):
    ids = torch.from_numpy(golden["caption_ids"])[[0, 1, 7]]  # 3, 10 and 1 words: fewer than are selected
    results = []
    for length in (77, 30, 12):
        model = golden_model(tse_bn).train()
        text = model.encode_text(ids[:, :length])
        (text["BGE"].square().sum() + text["TSE"].square().sum()).backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((text["BGE"], text["TSE"], grads))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], **TOLERANCE)


def test_a_caption_without_words_selects_its_eos_and_affects_no_other(golden):
    model = golden_model("frozen").eval()
    ids = torch.from_numpy(golden["caption_ids"])
    empty = torch.zeros_like(ids[:1])
    empty[0, :2] = torch.tensor([510, 511])
    with torch.no_grad():
        alone, among = model.encode_text(ids), model.encode_text(torch.cat([empty, ids]))
        features = model.backbone.encode_text(empty).features
    torch.testing.assert_close(among["TSE"][1:], alone["TSE"])
    expected = slow_tse(model.heads["TSE"]["text"], features[0], [1])
    torch.testing.assert_close(among["TSE"][0], expected, rtol=1e-4, atol=1e-5)


def test_frozen_batch_norm_learns_but_keeps_its_statistics(golden):
    model = golden_model("frozen").train()
    norm = model.heads["TSE"]["image"].mlp[1]
    before = norm.running_mean.clone()
    image, _ = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    image["TSE"].sum().backward()
    assert model.training
    assert torch.equal(norm.running_mean, before)
    assert norm.weight.grad.abs().sum() > 0


def test_published_names_round_trip():
    model = golden_model("frozen")
    state = model.published_state()
    listed = published.weights("rde")
    unused = {name for name in listed if "bns.1" in name or name.startswith("visul_emb_layer.linear")}
    assert state.keys() == listed.keys() - unused
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_published({f"module.{name}": value for name, value in listed.items()}, "several GPUs' file")
    for name, value in model.published_state().items():
        assert torch.equal(value, listed[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("base_model.ln_final.bias"), "missing base_model.ln_final.bias"),
        (lambda s: s.update({"base_model.extra": torch.zeros(1)}), "unknown base_model.extra"),
        (
            lambda s: s.update({"classifier.weight": torch.zeros(1)}),
            "file does not fit this model: unknown classifier.weight",
        ),
        (lambda s: s.update({"base_model.ln_final.bias": torch.zeros(3)}), r"of another shape .*ln_final.bias \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_none_is_copied(change, message):
    model, state = golden_model("frozen"), {k: v + 1 for k, v in published.weights("rde").items()}
    change(state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        model.load_published(state, "file")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
