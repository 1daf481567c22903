"""A transparent canvas in units of body height, and the textures of clothes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .palette import RGB

Point = tuple[float, float]
Ink = RGB | Image.Image  # a colour, or a texture as large as the canvas


class Canvas:
    """Draws in body units: (0, 0) is the crown of the head, y = 1 the sole of the shoes, x grows to the right."""

    def __init__(self, size: tuple[int, int], origin: Point, scale: float, lean: float) -> None:
        """`origin` is the crown in pixels, `scale` the pixels per body height, `lean` the horizontal shift at y = 0."""
        self.image = Image.new("RGBA", size, (0, 0, 0, 0))
        self.origin = origin
        self.scale = scale
        self._lean = lean

    def _at(self, point: Point) -> Point:
        x, y = point
        return self.origin[0] + (x + self._lean * (1 - y)) * self.scale, self.origin[1] + y * self.scale

    def _paint(self, ink: Ink, draw: Callable[[ImageDraw.ImageDraw, Any], None]) -> None:
        if isinstance(ink, tuple):
            draw(ImageDraw.Draw(self.image), (*ink, 255))
            return
        mask = Image.new("L", self.image.size, 0)
        draw(ImageDraw.Draw(mask), 255)
        self.image.paste(ink, mask=mask)

    def polygon(self, points: Sequence[Point], ink: Ink) -> None:
        """Fill a polygon."""
        pixels = [self._at(point) for point in points]
        self._paint(ink, lambda draw, fill: draw.polygon(pixels, fill=fill))

    def ellipse(self, centre: Point, rx: float, ry: float, ink: Ink) -> None:
        """Fill an axis-aligned ellipse with semi-axes `rx` and `ry`."""
        x, y = self._at(centre)
        box = (x - rx * self.scale, y - ry * self.scale, x + rx * self.scale, y + ry * self.scale)
        self._paint(ink, lambda draw, fill: draw.ellipse(box, fill=fill))

    def dome(self, centre: Point, rx: float, ry: float, ink: Ink) -> None:
        """Fill the upper half of an ellipse."""
        x, y = self._at(centre)
        box = (x - rx * self.scale, y - ry * self.scale, x + rx * self.scale, y + ry * self.scale)
        self._paint(ink, lambda draw, fill: draw.pieslice(box, 180, 360, fill=fill))

    def box(self, centre: Point, rx: float, ry: float, ink: Ink, corner: float = 0.02) -> None:
        """Fill a rounded rectangle of half width `rx` and half height `ry`."""
        x, y = self._at(centre)
        box = (x - rx * self.scale, y - ry * self.scale, x + rx * self.scale, y + ry * self.scale)
        self._paint(ink, lambda draw, fill: draw.rounded_rectangle(box, corner * self.scale, fill=fill))

    def line(self, points: Sequence[Point], width: float, ink: Ink) -> None:
        """Draw a line of the given width (body units, at least one pixel)."""
        pixels = [self._at(point) for point in points]
        self._paint(ink, lambda draw, fill: draw.line(pixels, fill=fill, width=max(1, round(width * self.scale))))

    def limb(self, joints: Sequence[Point], radii: Sequence[float], ink: Ink, edge: RGB | None = None) -> None:
        """Draw a tapering tube with round ends through the joints, outlined in `edge` if given."""
        if edge is not None:
            self.limb(joints, [radius + 0.005 for radius in radii], edge)
        pixels = [self._at(joint) for joint in joints]
        widths = [radius * self.scale for radius in radii]
        self._paint(ink, lambda draw, fill: _draw_tube(draw, pixels, widths, fill))


def _draw_tube(draw: ImageDraw.ImageDraw, joints: list[Point], radii: list[float], fill: Any) -> None:
    for (x, y), radius in zip(joints, radii, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    for (x0, y0), (x1, y1), r0, r1 in zip(joints, joints[1:], radii, radii[1:], strict=False):
        length = max(1e-6, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        corners = [
            (x0 + nx * r0, y0 + ny * r0),
            (x1 + nx * r1, y1 + ny * r1),
            (x1 - nx * r1, y1 - ny * r1),
            (x0 - nx * r0, y0 - ny * r0),
        ]
        draw.polygon(corners, fill=fill)


def patterned(canvas: Canvas, pattern: str, first: RGB, second: RGB) -> Ink:
    """Texture of striped, checked, dotted or two-tone cloth; `first` itself for any other pattern."""
    width, height = canvas.image.size
    y = (np.arange(height)[:, None] - canvas.origin[1]) / canvas.scale
    x = (np.arange(width)[None, :] - canvas.origin[0]) / canvas.scale
    if pattern == "striped":
        share = ((y / 0.066) % 1 < 0.45) + 0 * x
    elif pattern == "checked":
        share = 0.5 * ((y / 0.09) % 1 < 0.5) + 0.5 * ((x / 0.09) % 1 < 0.5)
    elif pattern == "dotted":
        row = np.floor(y / 0.06)
        share = np.hypot(((y / 0.06) % 1) - 0.5, ((x / 0.078 + 0.5 * (row % 2)) % 1 - 0.5) * 1.3) < 0.32
    elif pattern == "two-tone":
        share = (y > 0.345) + 0 * x
    else:
        return first
    weight = np.asarray(share, dtype=np.float32)[..., None]
    cloth = np.array(first, np.float32) * (1 - weight) + np.array(second, np.float32) * weight
    return Image.fromarray(cloth.astype(np.uint8)).convert("RGBA")
