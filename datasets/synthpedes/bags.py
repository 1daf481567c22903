"""Backpacks, handbags and shoulder bags."""

from .body import HIP_Y, SHOULDER_Y, Figure
from .canvas import Canvas, Point
from .palette import COLOURS, RGB, shade


def draw_bag_behind(canvas: Canvas, figure: Figure) -> None:
    """Draw the part of a backpack behind the trunk, in front and side views."""
    if figure.who.bag != "backpack" or figure.pose.view == "back":
        return
    colour, dark = _tones(figure)
    if figure.side:
        x = -figure.shoulder - 0.03
        canvas.box((x, 0.30), 0.068, 0.125, colour, corner=0.04)
        canvas.box((x - 0.03, 0.345), 0.034, 0.05, dark, corner=0.02)
    else:
        canvas.box((0, 0.29), figure.shoulder + 0.022, 0.13, colour, corner=0.04)


def draw_bag_before(canvas: Canvas, figure: Figure, hand: Point) -> None:
    """Draw the bag, or a backpack's straps, over the trunk; a handbag hangs from `hand`."""
    if figure.who.bag == "backpack":
        _draw_backpack(canvas, figure)
    elif figure.who.bag == "handbag":
        _draw_handbag(canvas, figure, hand)
    elif figure.who.bag == "shoulder bag":
        _draw_shoulder_bag(canvas, figure)


def _tones(figure: Figure) -> tuple[RGB, RGB]:
    colour = COLOURS[figure.who.bag_colour]
    return colour, shade(colour, 0.7) if sum(colour) > 120 else (80, 80, 86)


def _draw_backpack(canvas: Canvas, figure: Figure) -> None:
    colour, dark = _tones(figure)
    if figure.pose.view == "back":
        breadth = figure.shoulder * 0.84
        canvas.box((0, 0.305), breadth, 0.13, dark, corner=0.045)
        canvas.box((0, 0.303), breadth - 0.008, 0.122, colour, corner=0.04)
        canvas.box((0, 0.36), breadth * 0.68, 0.05, dark, corner=0.02)
        canvas.box((0, 0.362), breadth * 0.68 - 0.008, 0.042, colour, corner=0.015)
        return
    if figure.side:
        canvas.line([(0.0, SHOULDER_Y - 0.01), (0.035, 0.24), (-0.03, 0.37)], 0.024, colour)
        return
    x = figure.shoulder * 0.6
    for sign in (-1, 1):
        canvas.line([(sign * x, SHOULDER_Y - 0.018), (sign * x * 1.02, 0.3), (sign * x * 1.25, 0.39)], 0.03, colour)


def _draw_handbag(canvas: Canvas, figure: Figure, hand: Point) -> None:
    colour, dark = _tones(figure)
    x, y = hand
    x += 0.0 if figure.side else 0.012
    canvas.line([(x - 0.035, y + 0.07), (x - 0.012, y), (x + 0.012, y), (x + 0.035, y + 0.07)], 0.014, dark)
    canvas.box((x, y + 0.11), 0.068, 0.052, dark, corner=0.016)
    canvas.box((x, y + 0.11), 0.06, 0.044, colour, corner=0.012)


def _draw_shoulder_bag(canvas: Canvas, figure: Figure) -> None:
    colour, dark = _tones(figure)
    x = figure.hip * 0.92
    canvas.line([(-figure.shoulder * 0.62, SHOULDER_Y - 0.016), (x, HIP_Y - 0.03)], 0.026, colour)
    canvas.box((x, HIP_Y + 0.015), 0.066, 0.056, dark, corner=0.014)
    canvas.box((x, HIP_Y + 0.015), 0.058, 0.048, colour, corner=0.012)
    canvas.box((x, HIP_Y - 0.008), 0.058, 0.012, dark, corner=0.006)
