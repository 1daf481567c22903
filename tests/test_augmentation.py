"""Augmentations against torchvision's: equal values for a given draw, equal distributions over many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as TF

from datasets.augmentation import MEAN, STD, apply_image, augment_text, draw_image, normalise
from datasets.tokenizer import EOS, MASK, SOS

pytestmark = pytest.mark.numeric

SIZE = (96, 32)


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_torchvision(image: torch.Tensor, draw: np.ndarray) -> torch.Tensor:
    """Augment one image with torchvision's functions, in the published order."""
    flip, top, left, e_top, e_left, e_height, e_width = draw.tolist()
    image = TF.hflip(image) if flip else image
    image = TF.crop(TF.pad(image, 10), top, left, *SIZE)
    image = TF.normalize(image.float() / 255, MEAN, STD)
    if e_height:
        image = TF.erase(image, e_top, e_left, e_height, e_width, torch.tensor(MEAN).view(3, 1, 1))
    return image


@pytest.mark.parametrize("img_aug", [False, True])
def test_batches_equal_torchvision_image_by_image(img_aug):
    batch = images(64)
    draws = np.stack([draw_image(np.random.default_rng(n), SIZE, img_aug) for n in range(64)])
    ours = apply_image(batch, torch.from_numpy(draws))
    theirs = torch.stack([by_torchvision(image, draw) for image, draw in zip(batch, draws, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert {0, 1} == set(draws[:, 0].tolist())
    assert (draws[:, 5] > 0).any() == img_aug


def test_evaluation_images_are_only_normalised():
    batch = images(3)
    torch.testing.assert_close(normalise(batch), TF.normalize(batch.float() / 255, MEAN, STD))


@pytest.mark.parametrize("size", [(96, 32), (384, 128)])
def test_erased_rectangles_are_distributed_as_torchvisions(size):
    rng, count = np.random.default_rng(0), 4000
    ours = np.array([draw_image(rng, size, True) for _ in range(count)])
    ours = ours[ours[:, 5] > 0, 3:]
    torch.manual_seed(0)
    blank = torch.zeros(3, *size)
    theirs = []
    for _ in range(count):
        top, left, h, w, _ = transforms.RandomErasing.get_params(blank, (0.02, 0.4), (0.3, 3.3), [0.0])
        if (h, w) != size:
            theirs.append((top, left, h, w))
    theirs = np.array(theirs)
    assert abs(len(ours) / count - len(theirs) / count / 2) < 0.03, "erased half of the time, where a rectangle fits"
    for column, name in enumerate(("top", "left", "height", "width")):
        scale = size[column % 2]
        for q in (0.1, 0.25, 0.5, 0.75, 0.9):
            gap = abs(np.quantile(ours[:, column], q) - np.quantile(theirs[:, column], q))
            assert gap < 0.04 * scale, (name, q)


def test_flip_and_crop_are_uniform():
    rng = np.random.default_rng(0)
    draws = np.array([draw_image(rng, SIZE, True) for _ in range(4000)])
    assert abs(draws[:, 0].mean() - 0.5) < 0.03
    for offsets in (draws[:, 1], draws[:, 2]):
        assert set(offsets.tolist()) == set(range(21))
        assert abs(offsets.mean() - 10) < 0.4


def caption(words: int, length: int = 77) -> np.ndarray:
    ids = np.zeros(length, np.int32)
    ids[: words + 2] = [SOS, *range(1000, 1000 + words), EOS]
    return ids


def test_words_change_with_the_published_probabilities():
    rng, original = np.random.default_rng(0), caption(40)
    masked = replaced = removed = 0
    rounds = 2000
    for _ in range(rounds):
        ids = augment_text(original, rng)
        length = int((ids != 0).sum())
        assert ids[0] == SOS
        assert ids[length - 1] == EOS
        assert not ids[length:].any()
        words = ids[1 : length - 1]
        assert ((words > 0) & (words <= MASK)).all()
        removed += 40 - len(words)
        masked += int((words == MASK).sum())
        replaced += int(((words < 1000) | ((words >= 1040) & (words < MASK))).sum())
    for found, share in ((masked, 0.12), (replaced, 0.04), (removed, 0.04)):
        assert found / (rounds * 40) == pytest.approx(share, abs=0.003)


def test_an_empty_caption_stays_empty():
    np.testing.assert_array_equal(augment_text(caption(0), np.random.default_rng(0)), caption(0))
