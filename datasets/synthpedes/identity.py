"""The persons of SynthPEDES: their attributes, and sampling many distinct ones."""

from dataclasses import dataclass, replace

import numpy as np

from .palette import COLOURS, HAIR_COLOURS, SKIN_TONES, colour_distance

_TOP_PATTERNS: dict[str, tuple[str, ...]] = {
    "t-shirt": ("plain", "striped", "checked", "dotted", "two-tone"),
    "tank top": ("plain", "striped", "dotted"),
    "shirt": ("plain", "striped", "checked", "dotted"),
    "sweater": ("plain", "striped", "dotted", "two-tone"),
    "hoodie": ("plain", "two-tone"),
    "jacket": ("plain", "two-tone", "open"),
    "coat": ("plain", "checked", "open"),
}
_LOWER_COLOURS: dict[str, tuple[str, ...]] = {
    "trousers": ("black", "white", "grey", "red", "green", "blue", "brown", "beige"),
    "jeans": ("black", "grey", "blue"),
    "shorts": ("black", "white", "grey", "red", "orange", "green", "blue", "beige", "pink"),
    "short skirt": ("black", "white", "red", "yellow", "green", "blue", "purple", "pink"),
    "long skirt": ("black", "grey", "red", "orange", "green", "blue", "purple", "brown"),
}
_SHOE_COLOURS = ("black", "white", "brown", "red", "blue", "yellow", "green", "pink")
_BAGS = ("none", "backpack", "handbag", "shoulder bag")
_HATS = ("none", "cap", "beanie")
_BUILDS = ("slim", "average", "heavy")

_FAMILY_SIZES = (1, 2, 3, 4)
_FAMILY_SIZE_ODDS = (0.6, 0.16, 0.14, 0.10)  # two thirds of the persons end up with a sibling
_SIBLING_TRAITS: tuple[tuple[str, ...], ...] = (
    ("top",),
    ("top_colour",),
    ("pattern", "second_colour"),
    ("lower",),
    ("lower_colour",),
    ("shoe_colour",),
    ("bag", "bag_colour"),
    ("hat", "hat_colour"),
    ("hair_colour",),
)
_MIN_CONTRAST = 105.0  # RGB distance below which colours are indistinguishable at 96x32 pixels


@dataclass(frozen=True)
class Identity:
    """The attributes of one person; colours are names from `palette`, "" for an absent item."""

    gender: str
    build: str
    skin: str
    hair: str
    hair_colour: str
    top: str
    top_colour: str
    pattern: str
    second_colour: str
    lower: str
    lower_colour: str
    shoe_colour: str
    bag: str
    bag_colour: str
    hat: str
    hat_colour: str


def draw_identities(count: int, rng: np.random.Generator, taken: set[Identity] | None = None) -> list[Identity]:
    """Draw `count` distinct persons, about two thirds of them in families of similar ones.

    A family's members are adjacent and differ from the first in one or two attributes.
    Persons in `taken` are never drawn; those drawn are added to it.
    """
    taken = set() if taken is None else taken
    drawn: list[Identity] = []
    while len(drawn) < count:
        size = int(rng.choice(_FAMILY_SIZES, p=_FAMILY_SIZE_ODDS))
        head = _new_person(rng, taken)
        drawn.append(head)
        for _ in range(min(size - 1, count - len(drawn))):
            drawn.append(_new_sibling(head, rng, taken))
    return drawn


def draw_splits(counts: dict[str, int], rng: np.random.Generator) -> dict[str, list[Identity]]:
    """Draw the persons of every split; splits share no attribute combination and no family."""
    taken: set[Identity] = set()
    return {split: draw_identities(count, rng, taken) for split, count in counts.items()}


def _new_person(rng: np.random.Generator, taken: set[Identity]) -> Identity:
    while True:
        person = _random_person(rng)
        if _is_readable(person) and person not in taken:
            taken.add(person)
            return person


def _new_sibling(head: Identity, rng: np.random.Generator, taken: set[Identity]) -> Identity:
    while True:
        changes = rng.choice(len(_SIBLING_TRAITS), size=int(rng.integers(1, 3)), replace=False)
        donor = _random_person(rng)
        fields = [field for change in changes for field in _SIBLING_TRAITS[change]]
        sibling = replace(head, **{field: getattr(donor, field) for field in fields})
        if donor.gender == head.gender and _is_readable(sibling) and sibling not in taken:
            taken.add(sibling)
            return sibling


def _is_readable(person: Identity) -> bool:
    """Whether the attributes are compatible and their colours distinguishable."""
    checks = [
        person.pattern in _TOP_PATTERNS[person.top],
        person.lower_colour in _LOWER_COLOURS[person.lower],
        person.lower_colour != person.top_colour or person.top_colour == "black",
        (person.hair == "bald") == (person.hair_colour == ""),
        person.shoe_colour != person.lower_colour or person.lower in ("shorts", "short skirt"),
    ]
    if person.second_colour:
        checks.append(colour_distance(person.top_colour, person.second_colour) > _MIN_CONTRAST)
    if person.bag_colour:
        checks.append(colour_distance(person.top_colour, person.bag_colour) > _MIN_CONTRAST)
        checks.append(person.bag == "backpack" or person.bag_colour != person.lower_colour)
    if person.hat_colour:
        checks.append(person.hat_colour != person.hair_colour)
    return all(checks)


def _random_person(rng: np.random.Generator) -> Identity:
    """A random combination of attributes, readable or not."""

    def pick(values: tuple[str, ...], odds: tuple[float, ...] | None = None) -> str:
        return values[int(rng.choice(len(values), p=odds))]

    colours = tuple(COLOURS)
    female = rng.random() < 0.5
    hair = pick(("short", "medium", "long"), (0.15, 0.35, 0.5)) if female else pick(("bald", "short"), (0.15, 0.85))
    top = pick(tuple(_TOP_PATTERNS))
    pattern = "plain" if rng.random() < 0.4 else pick(_TOP_PATTERNS[top])
    lowers = tuple(_LOWER_COLOURS) if female else ("trousers", "jeans", "shorts")
    lower = pick(lowers)
    bag = pick(_BAGS, (0.34, 0.28, 0.19, 0.19) if female else (0.4, 0.35, 0.05, 0.2))
    hat = pick(_HATS, (0.64, 0.2, 0.16))
    return Identity(
        gender="woman" if female else "man",
        build=pick(_BUILDS, (0.3, 0.45, 0.25)),
        skin=pick(tuple(SKIN_TONES)),
        hair=hair,
        hair_colour="" if hair == "bald" else pick(tuple(HAIR_COLOURS), (0.34, 0.28, 0.2, 0.09, 0.09)),
        top=top,
        top_colour=pick(colours),
        pattern=pattern,
        second_colour="" if pattern == "plain" else pick(colours),
        lower=lower,
        lower_colour=pick(_LOWER_COLOURS[lower]),
        shoe_colour=pick(_SHOE_COLOURS),
        bag=bag,
        bag_colour="" if bag == "none" else pick(colours),
        hat=hat,
        hat_colour="" if hat == "none" else pick(colours),
    )
