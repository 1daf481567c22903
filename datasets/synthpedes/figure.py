"""Draws a person from back to front."""

import numpy as np
from PIL import Image, ImageChops, ImageOps

from .bags import draw_bag_before, draw_bag_behind
from .body import Pose, build_figure
from .canvas import Canvas, Point
from .garments import draw_arm, draw_legs, draw_top, top_ink
from .head import draw_hair_behind, draw_head
from .identity import Identity


def draw_figure(who: Identity, pose: Pose, size: tuple[int, int], crown: Point, scale: float) -> Image.Image:
    """Draw a person on a transparent RGBA image of `size`, with the crown of the head at pixel `crown`.

    `scale` is the person's height in pixels.
    """
    crown = (size[0] - crown[0], crown[1]) if pose.mirrored else crown
    canvas = Canvas(size, crown, scale, pose.lean)
    figure = build_figure(who, pose)
    ink = top_ink(canvas, figure)
    far, near = figure.arms()
    draw_bag_behind(canvas, figure)
    draw_hair_behind(canvas, figure)
    if figure.side:
        draw_arm(canvas, figure, far, ink)
    draw_legs(canvas, figure)
    if figure.side:
        draw_top(canvas, figure, ink)
        draw_head(canvas, figure)
        draw_bag_before(canvas, figure, near[2])
        draw_arm(canvas, figure, near, ink)
    else:
        draw_top(canvas, figure, ink)
        draw_arm(canvas, figure, far, ink)
        draw_arm(canvas, figure, near, ink)
        if pose.view == "back":
            draw_bag_before(canvas, figure, near[2])
            draw_head(canvas, figure)
        else:
            draw_head(canvas, figure)
            draw_bag_before(canvas, figure, near[2])
    image = _shaded(canvas.image, crown[0], scale)
    return ImageOps.mirror(image) if pose.mirrored else image


def _shaded(image: Image.Image, centre: float, scale: float) -> Image.Image:
    """Darken the body's right side, so that it looks round."""
    x = (np.arange(image.width) - centre) / (0.13 * scale)
    row = 255 * (1 - 0.2 * np.clip(x, -0.3, 1.2) ** 2)
    light = Image.fromarray(row.astype(np.uint8)[None, :]).resize(image.size)
    solid = Image.new("L", image.size, 255)
    return ImageChops.multiply(image, Image.merge("RGBA", (light, light, light, solid)))
