"""Half precision against float32, and what the published code keeps in float16."""

from __future__ import annotations

import pytest
import torch

from model.encoder import DualEncoder
from model.precision import PRECISIONS
from model.settings import PrecisionSettings
from solver.objectives.base import cosine_similarity
from solver.optimizer import build_optimizer
from solver.settings import OptimizerSettings
from tests import published
from tests.objectives import optimizer_arguments, pairwise
from tests.test_model import golden_model
from utils.devices import choose_device
from utils.settings import FLAGS

pytestmark = pytest.mark.numeric

# Bounds on the difference of a cosine similarity from float32's: about half of the dtype's last place (2⁻⁸, 2⁻¹¹).
BOUNDS = {"bf16": 2e-3, "fp16": 3e-4, "fp16_weights": 3e-4}


def precisions() -> list:
    """`BOUNDS`' keys. With AVX-512 disabled in ATen alone, PyTorch's bf16 attention fails on CPUs that have AMX."""
    x = torch.zeros(1, 1, 128, 64, dtype=torch.bfloat16)
    try:
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
        reason = ""
    except RuntimeError as error:
        reason = str(error)
    skip = pytest.mark.skipif("pack_vnni2" in reason, reason=reason)
    return [pytest.param(name, marks=skip) if name == "bf16" else name for name in BOUNDS]


def embed(model: DualEncoder) -> list[torch.Tensor]:
    golden = published.numbers("model")
    image, text = model(torch.from_numpy(golden["images"]), torch.from_numpy(golden["caption_ids"]))
    return [*image.values(), *text.values()]


def gradients(precision: str) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of one step of TAL on the golden batch, and every parameter's gradient."""
    model = golden_model(precision=precision).train()
    image_bge, image_tse, text_bge, text_tse = embed(model)
    golden = published.numbers("model")
    pids, label = torch.from_numpy(golden["pids"]), torch.from_numpy(golden["label_hat"])
    parts = [cosine_similarity(image_bge, text_bge), cosine_similarity(image_tse, text_tse)]
    tal = pairwise("TAL")
    loss = sum(tal.reduce(tal.per_pair(s, pids), label) for s in parts)
    loss.backward()
    return loss.item(), {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def test_the_precision_flag_offers_the_models_precisions():
    assert FLAGS["precision"].choices == (*PRECISIONS, "published")
    assert FLAGS["precision"].owner.endswith(PrecisionSettings.__name__)


@pytest.mark.parametrize("precision", precisions())
def test_similarities_stay_near_float32s(precision):
    with torch.no_grad():
        exact, half = embed(golden_model().eval()), embed(golden_model(precision=precision).eval())
    assert all(part.dtype == torch.float32 for part in half)
    for image, text in ((0, 2), (1, 3)):
        s, found = cosine_similarity(exact[image], exact[text]), cosine_similarity(half[image], half[text])
        torch.testing.assert_close(found, s, rtol=0, atol=BOUNDS[precision])
        assert not torch.equal(found, s), "half precision is in use"


@pytest.fixture(scope="module")
def exact_gradients() -> tuple[float, dict[str, torch.Tensor]]:
    return gradients("fp32")


@pytest.mark.parametrize("precision", precisions())
def test_half_precision_gradients_align_with_float32s(exact_gradients, precision):
    (loss, exact), (half_loss, half) = exact_gradients, gradients(precision)
    assert half_loss == pytest.approx(loss, rel=BOUNDS[precision])
    exact, half = (torch.cat([g[name].double().flatten() for name in sorted(g)]) for g in (exact, half))
    assert torch.cosine_similarity(exact, half, dim=0) > 1 - BOUNDS[precision]
    assert half.norm().item() == pytest.approx(exact.norm().item(), rel=4 * BOUNDS[precision])


def test_exactly_the_published_weights_are_float16():
    model = golden_model(precision="fp16_weights")
    float32 = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert {name for name in float32 if "ln_" not in name and "mlp.1." not in name} == {
        "backbone.positional_embedding",
        "backbone.token_embedding.weight",
        "backbone.visual.class_embedding",
        "backbone.visual.positional_embedding",
    }
    halves = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16}
    assert {
        "backbone.text_projection",
        "backbone.visual.proj",
        "backbone.visual.conv1.weight",
        "heads.TSE.image.fc.bias",
    } <= halves
    assert not [name for name in halves if "ln_" in name]


def test_adam_keeps_the_types_of_the_weights_and_steps():
    model = golden_model(precision="fp16_weights").train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(*optimizer_arguments(model), OptimizerSettings(lr=1e-3))
    sum(part.square().sum() for part in embed(model)).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert optimizer.state[parameter]["exp_avg_sq"].dtype == parameter.dtype
        assert torch.isfinite(parameter).all(), name
    assert not torch.equal(before["backbone.visual.proj"], model.backbone.visual.proj)


def test_tf32_is_disabled_for_convolutions(monkeypatch):
    """cuDNN's default, TF32, keeps 10 bits of each factor."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32
