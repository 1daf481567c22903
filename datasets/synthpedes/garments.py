"""Legs, lower garments, shoes, tops and sleeves."""

from .body import HIP_Y, SHOULDER_Y, Figure, slice_limb
from .canvas import Canvas, Ink, Point, patterned
from .palette import COLOURS, RGB, shade

_HEMS = {
    "t-shirt": 0.505,
    "tank top": 0.495,
    "shirt": 0.53,
    "sweater": 0.515,
    "hoodie": 0.525,
    "jacket": 0.515,
    "coat": 0.63,
}
_SLEEVES = {"t-shirt": 0.42, "tank top": 0.0}  # fraction of the arm covered; other sleeves reach the wrist


def draw_legs(canvas: Canvas, figure: Figure) -> None:
    """Draw both legs with shoes and the lower garment."""
    kind = figure.who.lower
    cloth = COLOURS[figure.who.lower_colour]
    for near, leg in enumerate(figure.legs()):
        tone = 1.0 if near or not figure.side else 0.82  # the far leg is in shade
        _draw_leg(canvas, figure, leg, shade(cloth, tone), shade(figure.skin, tone))
        _draw_shoe(canvas, figure, leg[2], near=bool(near))
    if "skirt" in kind:
        _draw_skirt(canvas, figure, cloth, hem=0.7 if kind == "short skirt" else 0.89)
    else:
        canvas.box((0, HIP_Y - 0.005), figure.hip, 0.045, cloth, corner=0.015)


def _draw_leg(canvas: Canvas, figure: Figure, leg: list[Point], cloth: RGB, skin: RGB) -> None:
    kind, thigh = figure.who.lower, figure.thigh
    radii = [thigh, thigh * 0.80, thigh * 0.66]
    if kind in ("shorts", "short skirt", "long skirt"):
        canvas.limb(leg, [thigh * 0.8, thigh * 0.62, thigh * 0.4], skin, shade(skin, 0.8))
        if kind == "shorts":
            canvas.limb(slice_limb(leg, 0.46), [thigh, thigh * 1.05], cloth, shade(cloth, 0.72))
        return
    canvas.limb(leg, radii, cloth, shade(cloth, 0.7))
    if kind == "jeans":
        (x0, y0), (x1, y1), (x2, y2) = leg
        canvas.limb([(x0, y0 + 0.07), (x1, y1 - 0.02)], [thigh * 0.4, thigh * 0.4], shade(cloth, 1.25))
        canvas.limb([(x1, y1 + 0.05), (x2, y2 - 0.07)], [thigh * 0.3, thigh * 0.2], shade(cloth, 1.16))
        canvas.box((x2, y2 - 0.012), thigh * 0.74, 0.012, shade(cloth, 1.5), corner=0.004)
    else:
        canvas.line(leg, 0.006, shade(cloth, 0.78))


def _draw_skirt(canvas: Canvas, figure: Figure, cloth: RGB, hem: float) -> None:
    flare = figure.hip + 0.03 + 0.05 * (hem - 0.6)
    sway = 0.012 * figure.pose.stride
    outline = [(-figure.waist, 0.44), (figure.waist, 0.44), (figure.hip + 0.012, 0.53)]
    outline += [(flare + sway, hem), (sway, hem + 0.012), (-flare + sway, hem), (-figure.hip - 0.012, 0.53)]
    canvas.polygon(outline, cloth)
    for share in (-0.55, -0.15, 0.3, 0.65):
        canvas.line([(share * figure.hip, 0.54), (share * flare + sway, hem)], 0.006, shade(cloth, 0.78))


def _draw_shoe(canvas: Canvas, figure: Figure, ankle: Point, near: bool) -> None:
    colour = COLOURS[figure.who.shoe_colour]
    x, y = ankle
    sole = shade(colour, 0.55) if sum(colour) > 150 else (190, 190, 190)
    if figure.side:
        tone = colour if near else shade(colour, 0.82)
        canvas.box((x + 0.02, y + 0.03), 0.056, 0.025, tone, corner=0.02)
        canvas.box((x + 0.02, y + 0.052), 0.058, 0.006, sole, corner=0.005)
        return
    out = 0.008 if x > 0 else -0.008
    canvas.ellipse((x + out, y + 0.026), 0.038, 0.03, colour)
    if figure.front:
        canvas.box((x + out, y + 0.053), 0.036, 0.006, sole, corner=0.005)


def top_ink(canvas: Canvas, figure: Figure) -> Ink:
    """Colour or texture of the upper garment."""
    who = figure.who
    return patterned(canvas, who.pattern, COLOURS[who.top_colour], COLOURS.get(who.second_colour, (0, 0, 0)))


def draw_arm(canvas: Canvas, figure: Figure, arm: list[Point], ink: Ink) -> None:
    """Draw an arm with its sleeve."""
    radius, skin = figure.arm, figure.skin
    edge = shade(COLOURS[figure.who.top_colour], 0.7)
    canvas.ellipse(arm[2], radius * 0.95, radius * 1.15, skin)
    covered = _SLEEVES.get(figure.who.top, 0.97)
    if covered < 0.9:
        canvas.limb(arm, [radius * 0.85, radius * 0.8, radius * 0.65], skin, shade(skin, 0.8))
    if covered == 0.0:
        return
    sleeve = slice_limb(arm, covered)
    bulk = 1.12 if figure.who.top in ("coat", "jacket", "hoodie") else 1.0
    canvas.limb(sleeve, [radius * 1.1 * bulk, radius * bulk, radius * 0.88 * bulk][: len(sleeve)], ink, edge)
    if figure.who.top in ("sweater", "hoodie"):
        canvas.ellipse(sleeve[-1], radius * 0.85, radius * 0.5, edge)


def draw_top(canvas: Canvas, figure: Figure, ink: Ink) -> None:
    """Draw the trunk of the upper garment with the details of its kind."""
    kind = figure.who.top
    hem = _HEMS[kind]
    colour = COLOURS[figure.who.top_colour]
    dark = shade(colour, 0.68) if sum(colour) > 120 else (74, 74, 80)
    outline = figure.trunk(hem, flare=0.022 if kind == "coat" else 0.0)
    if kind == "tank top":
        outline = _without_shoulders(canvas, figure, outline)
    canvas.polygon(outline, ink)
    if kind in ("sweater", "hoodie", "jacket"):
        canvas.box((0, hem - 0.008), figure.hip + 0.006, 0.012, dark, corner=0.006)
    if figure.front:
        _draw_front(canvas, figure, hem, dark)
    elif kind == "hoodie":
        canvas.ellipse((0 if not figure.side else -0.05, SHOULDER_Y + 0.02), 0.062, 0.05, dark)
        canvas.ellipse((0 if not figure.side else -0.05, SHOULDER_Y + 0.01), 0.05, 0.035, colour)
    elif kind == "coat" and not figure.side:
        canvas.line([(0, 0.52), (0, hem)], 0.008, dark)
        canvas.line([(-figure.waist, 0.42), (figure.waist, 0.42)], 0.012, dark)


def _without_shoulders(canvas: Canvas, figure: Figure, outline: list[Point]) -> list[Point]:
    canvas.polygon(outline, figure.skin)
    strap = figure.shoulder * 0.62
    right = [(0.036, SHOULDER_Y + 0.035), (strap * 0.75, SHOULDER_Y - 0.014), (strap, SHOULDER_Y - 0.012)]
    right += [(strap * 1.02, 0.225), (figure.shoulder * 0.94, 0.27)]
    half = len(outline) // 2
    right += [point for point in outline[:half] if point[1] > 0.28]
    return right + [(-x, y) for x, y in reversed(right)]


def _draw_front(canvas: Canvas, figure: Figure, hem: float, dark: RGB) -> None:
    kind, who = figure.who.top, figure.who
    if who.pattern == "open":
        inner = COLOURS[who.second_colour]
        canvas.polygon(
            [(-0.034, 0.15), (0.034, 0.15), (0.04, 0.35), (0.046, 0.515), (-0.046, 0.515), (-0.04, 0.35)], inner
        )
        for sign in (-1, 1):
            canvas.line([(sign * 0.036, 0.15), (sign * 0.045, 0.35), (sign * 0.05, hem)], 0.009, dark)
        if hem > 0.6:
            canvas.box((0, 0.55), 0.046, 0.04, COLOURS[who.lower_colour], corner=0.001)
        return
    neck = 0.034 if kind in ("t-shirt", "sweater", "tank top") else 0.024
    if kind != "tank top":
        canvas.ellipse((0, SHOULDER_Y - 0.026), 0.036, neck, figure.skin)
    if kind in ("shirt", "jacket", "coat"):
        canvas.line([(0, SHOULDER_Y), (0, hem)], 0.009 if kind != "shirt" else 0.006, dark)
        for sign in (-1, 1):
            canvas.polygon([(sign * 0.048, 0.142), (sign * 0.03, 0.2), (0, 0.178)], dark)
    if kind == "coat":
        canvas.line([(-figure.waist, 0.42), (figure.waist, 0.42)], 0.016, dark)
    if kind == "hoodie":
        canvas.polygon([(-0.055, 0.47), (0.055, 0.47), (0.038, 0.4), (-0.038, 0.4)], dark)
        canvas.line([(-0.055, 0.165), (0, 0.195), (0.055, 0.165)], 0.016, dark)
        for sign in (-1, 1):
            canvas.line([(sign * 0.018, 0.19), (sign * 0.02, 0.26)], 0.007, (236, 236, 230))
