"""Head, face, hair and hat."""

from .body import SHOULDER_Y, Figure
from .canvas import Canvas
from .palette import COLOURS, HAIR_COLOURS, shade

_Y, _RX, _RY = 0.082, 0.052, 0.064  # centre and semi-axes of the head
_HAIR_END = {"medium": 0.175, "long": 0.28}


def draw_hair_behind(canvas: Canvas, figure: Figure) -> None:
    """Draw the part of medium and long hair behind the neck."""
    end = _HAIR_END.get(figure.who.hair)
    if end is None or figure.pose.view == "back":
        return
    hair = HAIR_COLOURS[figure.who.hair_colour]
    if figure.side:
        canvas.limb([(-0.03, _Y), (-0.055, 0.15), (-0.06, end - 0.02)], [0.04, 0.034, 0.024], hair)
    else:
        canvas.limb([(0, _Y), (0, min(end, 0.2))], [0.06, 0.062], hair)


def draw_head(canvas: Canvas, figure: Figure) -> None:
    """Draw neck, head, face, hair and hat."""
    skin = figure.skin
    canvas.limb([(0, 0.12), (0, SHOULDER_Y - 0.02)], [0.027, 0.03], shade(skin, 0.86))
    canvas.ellipse((0, _Y), _RX, _RY, skin)
    if figure.pose.view == "back":
        _draw_hair_back(canvas, figure)
    elif figure.side:
        _draw_face_side(canvas, figure)
    else:
        _draw_face_front(canvas, figure)
    _draw_hat(canvas, figure)


def _draw_face_front(canvas: Canvas, figure: Figure) -> None:
    for sign in (-1, 1):
        canvas.ellipse((sign * 0.02, 0.085), 0.0065, 0.0085, (34, 28, 30))
        canvas.ellipse((sign * 0.032, 0.106), 0.009, 0.007, shade(figure.skin, 0.88))
    canvas.line([(-0.013, 0.116), (0.013, 0.116)], 0.006, (168, 74, 72))
    if figure.who.hair == "bald":
        return
    hair = HAIR_COLOURS[figure.who.hair_colour]
    canvas.dome((0, 0.062), 0.058, 0.062, hair)
    for sign in (-1, 1):
        end = {"short": 0.088, "medium": 0.16, "long": 0.26}[figure.who.hair]
        canvas.limb([(sign * 0.05, 0.06), (sign * 0.056, end)], [0.013, 0.012], hair)


def _draw_face_side(canvas: Canvas, figure: Figure) -> None:
    canvas.ellipse((_RX, 0.092), 0.012, 0.009, figure.skin)
    canvas.ellipse((0.03, 0.082), 0.006, 0.0085, (34, 28, 30))
    canvas.line([(0.028, 0.117), (0.044, 0.116)], 0.006, (168, 74, 72))
    if figure.who.hair == "bald":
        return
    hair = HAIR_COLOURS[figure.who.hair_colour]
    canvas.dome((-0.003, 0.062), 0.058, 0.062, hair)
    canvas.ellipse((-0.03, 0.08), 0.032, 0.05, hair)


def _draw_hair_back(canvas: Canvas, figure: Figure) -> None:
    if figure.who.hair == "bald":
        return
    hair = HAIR_COLOURS[figure.who.hair_colour]
    canvas.ellipse((0, 0.074), 0.058, 0.074 if figure.who.hair == "short" else 0.078, hair)
    end = _HAIR_END.get(figure.who.hair)
    if end is not None:
        canvas.limb([(0, 0.08), (0, end - 0.03)], [0.056, 0.05], hair)
        canvas.line([(0.006, 0.1), (0.004, end)], 0.006, shade(hair, 1.18))


def _draw_hat(canvas: Canvas, figure: Figure) -> None:
    if figure.who.hat == "none":
        return
    colour = COLOURS[figure.who.hat_colour]
    dark = shade(colour, 0.7) if sum(colour) > 120 else (78, 78, 84)
    if figure.who.hat == "beanie":
        canvas.dome((0, 0.056), 0.062, 0.074, colour)
        canvas.box((0, 0.052), 0.064, 0.014, dark, corner=0.01)
        canvas.ellipse((0, -0.016), 0.018, 0.016, dark)
        return
    canvas.dome((0, 0.052), 0.062, 0.064, colour)
    if figure.side:
        canvas.box((0.075, 0.05), 0.042, 0.009, dark, corner=0.008)
    elif figure.front:
        canvas.ellipse((0, 0.054), 0.062, 0.014, dark)
