"""The colours of SynthPEDES: few, and distinct enough to survive surveillance lighting."""

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "black": (30, 30, 34),
    "white": (240, 240, 236),
    "grey": (134, 137, 142),
    "red": (204, 36, 42),
    "orange": (243, 128, 28),
    "yellow": (246, 212, 50),
    "green": (44, 142, 68),
    "blue": (40, 84, 190),
    "purple": (122, 58, 158),
    "pink": (244, 146, 182),
    "brown": (110, 66, 36),
    "beige": (214, 188, 146),
}

HAIR_COLOURS: dict[str, RGB] = {
    "black": (26, 23, 24),
    "brown": (98, 58, 32),
    "blonde": (226, 188, 104),
    "grey": (166, 166, 168),
    "red": (172, 70, 28),
}

SKIN_TONES: dict[str, RGB] = {
    "light": (240, 204, 178),
    "medium": (208, 160, 122),
    "tan": (170, 118, 82),
    "dark": (108, 70, 48),
}


def colour_distance(first: str, second: str) -> float:
    """Euclidean distance in RGB between two names of `COLOURS` (0 to about 380)."""
    return sum((a - b) ** 2 for a, b in zip(COLOURS[first], COLOURS[second], strict=True)) ** 0.5


def shade(colour: RGB, factor: float) -> RGB:
    """`colour` darkened (factor below 1) or lightened towards white (factor above 1, at most 2)."""
    red, green, blue = (c * factor if factor <= 1 else c + (255 - c) * (factor - 1) for c in colour)
    return int(red), int(green), int(blue)
