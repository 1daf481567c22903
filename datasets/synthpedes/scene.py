"""Backgrounds with clutter, and occluders."""

import numpy as np
from PIL import Image, ImageDraw

from .palette import RGB, shade

_WALLS: tuple[RGB, ...] = ((176, 168, 156), (150, 158, 166), (188, 180, 160), (140, 128, 120), (200, 200, 196))
_BRICKS: tuple[RGB, ...] = ((158, 108, 88), (172, 140, 116), (132, 120, 114))
_GROUNDS: tuple[RGB, ...] = ((150, 150, 150), (122, 124, 128), (170, 162, 150), (136, 130, 122))
_GRASSES: tuple[RGB, ...] = ((112, 146, 84), (134, 154, 92), (96, 128, 82))
_CARS: tuple[RGB, ...] = ((178, 182, 190), (66, 70, 80), (150, 60, 56), (70, 96, 138), (216, 216, 212))
_CLUTTER_CLOTHES: tuple[RGB, ...] = ((70, 74, 88), (128, 118, 110), (96, 60, 62), (60, 88, 80), (150, 150, 158))
_SCENES = ("street", "brick", "park", "hall")


def draw_background(size: tuple[int, int], rng: np.random.Generator, difficulty: float) -> Image.Image:
    """A background as an RGB image of `size` pixels; a bare wall and floor at difficulty 0."""
    height = size[1]
    image = Image.new("RGB", size, _one_of(_WALLS, rng))
    draw = ImageDraw.Draw(image)
    horizon = int(height * (0.62 + 0.22 * rng.uniform(-1, 1) * difficulty))
    scene = str(rng.choice(_SCENES)) if rng.random() < 1.4 * difficulty else "hall"
    {"street": _street, "brick": _brick, "park": _park, "hall": _hall}[scene](draw, size, horizon, rng)
    for _ in range(int(rng.poisson(2.2 * difficulty))):
        _add_clutter(draw, size, horizon, rng)
    return image


def draw_shadow(image: Image.Image, feet: tuple[float, float], scale: float) -> None:
    """Darken the ground under the feet of a person `scale` pixels tall."""
    x, y = feet
    box = (x - 0.17 * scale, y - 0.02 * scale, x + 0.17 * scale, y + 0.022 * scale)
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).ellipse(box, fill=96)
    image.paste((20, 20, 24), mask=mask)


def draw_occluder(
    image: Image.Image, crown: tuple[float, float], scale: float, rng: np.random.Generator, difficulty: float
) -> None:
    """Put a car, pole, bush or box in front of the person; its probability and size grow with difficulty.

    At difficulty 1 up to about a quarter of the figure is hidden.
    """
    if rng.random() > 0.5 * difficulty:
        return
    draw = ImageDraw.Draw(image)
    x, top = crown
    sole = top + scale
    share = rng.uniform(0.08, 0.25) * difficulty
    sign = 1 if rng.random() < 0.5 else -1
    kind = str(rng.choice(["car", "pole", "bush", "box"]))
    if kind == "car":
        _draw_car(draw, (x + sign * 0.3 * scale, sole - share * scale), scale, _one_of(_CARS, rng))
    elif kind == "pole":
        middle = x + sign * rng.uniform(0.0, 0.13) * scale
        half = 0.3 * share * 0.5 * scale
        colour = _one_of(_GROUNDS, rng)
        draw.rectangle((middle - half, 0, middle + half, image.height), fill=shade(colour, 0.7))
        draw.rectangle((middle - half, 0, middle - 0.3 * half, image.height), fill=shade(colour, 0.9))
    elif kind == "bush":
        _draw_bush(draw, (x + sign * 0.12 * scale, sole - 0.6 * share * scale), 1.7 * share * scale, rng)
    else:
        left, low = x + sign * 0.2 * scale, sole - 1.5 * share * scale
        colour = _one_of(_BRICKS + _WALLS, rng)
        box = (left - 0.2 * scale, low, left + 0.2 * scale, image.height)
        draw.rectangle(box, fill=shade(colour, 0.8), outline=shade(colour, 0.55), width=2)


def _one_of(colours: tuple[RGB, ...], rng: np.random.Generator) -> RGB:
    factor = rng.uniform(0.82, 1.12)
    return shade(colours[int(rng.integers(len(colours)))], float(factor))


def _street(draw: ImageDraw.ImageDraw, size: tuple[int, int], horizon: int, rng: np.random.Generator) -> None:
    width, height = size
    step = int(rng.integers(height // 7, height // 4))
    for y in range(int(rng.integers(-step, step // 2)), horizon - step // 2, step):
        for x in range(int(rng.integers(-20, 10)), width, step):
            glass = _one_of(((96, 112, 130), (124, 138, 150)), rng)
            draw.rectangle((x, y, x + step * 0.55, y + step * 0.6), fill=glass)
    road = _one_of(_GROUNDS, rng)
    draw.rectangle((0, horizon, width, height), fill=road)
    draw.rectangle((0, horizon, width, horizon + height // 40), fill=shade(road, 1.4))
    slope = int(rng.integers(-height // 9, height // 9))
    y = int(rng.uniform(horizon + 0.1 * height, height))
    draw.line((0, y, width, y + slope), fill=(214, 212, 200), width=max(2, height // 60))


def _brick(draw: ImageDraw.ImageDraw, size: tuple[int, int], horizon: int, rng: np.random.Generator) -> None:
    width, height = size
    wall = _one_of(_BRICKS, rng)
    draw.rectangle((0, 0, width, horizon), fill=wall)
    step = max(6, height // 26)
    for row, y in enumerate(range(0, horizon, step)):
        draw.line((0, y, width, y), fill=shade(wall, 0.84), width=1)
        for x in range(step * (row % 2), width, 2 * step):
            draw.line((x, y, x, y + step), fill=shade(wall, 0.84), width=1)
    _tiles(draw, size, horizon, _one_of(_GROUNDS, rng))


def _park(draw: ImageDraw.ImageDraw, size: tuple[int, int], horizon: int, rng: np.random.Generator) -> None:
    width, height = size
    draw.rectangle((0, 0, width, horizon), fill=_one_of(((186, 200, 212), (202, 206, 206)), rng))
    for _ in range(int(rng.integers(2, 6))):
        _draw_bush(draw, (rng.uniform(0, width), horizon - rng.uniform(0, 0.4) * height), 0.12 * height, rng)
    draw.rectangle((0, horizon, width, height), fill=_one_of(_GRASSES, rng))
    if rng.random() < 0.7:
        x = rng.uniform(0.1, 0.9) * width
        spread = rng.uniform(0.4, 1.0) * width
        path = _one_of(_GROUNDS, rng)
        draw.polygon([(x - 6, horizon), (x + 6, horizon), (x + spread, height), (x - spread, height)], fill=path)


def _hall(draw: ImageDraw.ImageDraw, size: tuple[int, int], horizon: int, rng: np.random.Generator) -> None:
    floor = _one_of(_GROUNDS, rng)
    _tiles(draw, size, horizon, floor)
    draw.rectangle((0, horizon - size[1] // 50, size[0], horizon), fill=shade(floor, 0.7))


def _tiles(draw: ImageDraw.ImageDraw, size: tuple[int, int], horizon: int, colour: RGB) -> None:
    width, height = size
    draw.rectangle((0, horizon, width, height), fill=colour)
    line = shade(colour, 0.88)
    for x in range(-2 * width, 3 * width, width // 3):
        draw.line((x * 0.4 + width * 0.3, horizon, x, height), fill=line, width=1)
    y, gap = float(horizon), height / 50
    while y < height:
        draw.line((0, y, width, y), fill=line, width=1)
        y, gap = y + gap, gap * 1.5


def _add_clutter(draw: ImageDraw.ImageDraw, size: tuple[int, int], horizon: int, rng: np.random.Generator) -> None:
    width, height = size
    x = rng.uniform(0, width)
    kind = int(rng.integers(5))
    if kind == 0:
        _draw_car(draw, (x, horizon - 0.1 * height), 0.7 * height, _one_of(_CARS, rng))
    elif kind == 1:
        half = rng.uniform(0.008, 0.02) * height
        draw.rectangle((x - half, 0, x + half, horizon + 0.06 * height), fill=_one_of(_GROUNDS, rng))
    elif kind == 2:
        _draw_passer(draw, (x, horizon + 0.1 * height), 0.5 * height, rng)
    elif kind == 3:
        w, h, y = (rng.uniform(0.06, 0.14) * height, rng.uniform(0.04, 0.16) * height, rng.uniform(0, 0.5) * height)
        sign = _one_of(_CARS + _BRICKS, rng)
        draw.rectangle((x - w, y, x + w, y + h), fill=sign, outline=shade(sign, 0.7), width=2)
    else:
        _draw_bush(draw, (x, horizon), rng.uniform(0.05, 0.11) * height, rng)


def _draw_car(draw: ImageDraw.ImageDraw, roof: tuple[float, float], scale: float, colour: RGB) -> None:
    """Bonnet and windscreen of a car whose body starts at `roof`, next to persons `scale` pixels tall."""
    x, y = roof
    half, low = 0.33 * scale, y + 0.3 * scale
    draw.rounded_rectangle((x - half, y, x + half, low), 0.04 * scale, fill=colour, outline=shade(colour, 0.6), width=2)
    draw.rectangle((x - 0.8 * half, y + 0.02 * scale, x + 0.8 * half, y + 0.055 * scale), fill=(70, 84, 98))
    for sign in (-1, 1):
        lamp = x + sign * 0.8 * half
        draw.ellipse(
            (lamp - 0.03 * scale, y + 0.09 * scale, lamp + 0.03 * scale, y + 0.13 * scale), fill=(244, 236, 196)
        )


def _draw_bush(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    green = shade(_one_of(_GRASSES, rng), 0.72)
    for tone in (0.8, 0.9, 1.0, 1.1, 1.2):
        x = centre[0] + rng.uniform(-0.6, 0.6) * radius
        y = centre[1] + rng.uniform(-0.4, 0.4) * radius
        r = 0.62 * radius
        draw.ellipse((x - r, y - r, x + r, y + r), fill=shade(green, tone))


def _draw_passer(draw: ImageDraw.ImageDraw, feet: tuple[float, float], scale: float, rng: np.random.Generator) -> None:
    """A distant passer-by in dull clothes, so that no caption could describe them."""
    x, y = feet
    top, lower = _one_of(_CLUTTER_CLOTHES, rng), _one_of(_CLUTTER_CLOTHES, rng)
    draw.rectangle((x - 0.07 * scale, y - 0.48 * scale, x + 0.07 * scale, y), fill=lower)
    draw.rounded_rectangle(
        (x - 0.12 * scale, y - 0.84 * scale, x + 0.12 * scale, y - 0.45 * scale), 0.04 * scale, fill=top
    )
    draw.ellipse((x - 0.06 * scale, y - scale, x + 0.06 * scale, y - 0.85 * scale), fill=(150, 118, 98))
