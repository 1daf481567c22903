"""Image degradation by a surveillance camera: light, colour cast, blur, noise and JPEG artefacts."""

import io

import numpy as np
from PIL import Image, ImageFilter


def photograph(scene: Image.Image, rng: np.random.Generator, difficulty: float) -> Image.Image:
    """Degrade an RGB image; only by faint noise at difficulty 0."""
    sigma = rng.uniform(0, 1.1) * difficulty
    if sigma > 0.25:
        scene = scene.filter(ImageFilter.GaussianBlur(sigma))
    pixels = _relight(np.asarray(scene, dtype=np.float32), rng, difficulty)
    grain = np.float32(1.0 + rng.uniform(0, 11) * difficulty)
    pixels += grain * rng.standard_normal(pixels.shape, dtype=np.float32)
    shot = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return _through_jpeg(shot, quality=int(95 - rng.uniform(0, 62) * difficulty))


def _relight(pixels: np.ndarray, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Change contrast, brightness and colour cast, and darken the image towards one side."""
    gain = float(np.exp(rng.uniform(-0.5, 0.3) * difficulty))
    contrast = 1 + rng.uniform(-0.32, 0.18) * difficulty
    cast = np.exp(rng.normal(0, 0.075, size=3) * difficulty).astype(np.float32)
    slope = rng.uniform(-0.22, 0.22) * difficulty
    fall = 1 + slope * np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[None, :, None]
    veil = rng.uniform(0, 18) * difficulty
    return (((pixels - 118) * np.float32(contrast) + 118) * np.float32(gain) * cast + np.float32(veil)) * fall


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")
