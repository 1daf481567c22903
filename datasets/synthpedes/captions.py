"""English captions in the style of CUHK-PEDES: one or two sentences about some of a person's attributes."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from .identity import Identity

T = TypeVar("T")
Form = Callable[[list[str], list[str]], str]

_SUBJECTS = {"man": ("man", "man", "guy", "male", "male pedestrian"), "woman": ("woman", "woman", "lady", "female")}
_BUILDS = {
    "slim": ("slim", "thin", "slender"),
    "average": ("medium build", "average build"),
    "heavy": ("heavy", "stocky", "heavyset"),
}
_HAIR_LENGTHS = {"short": ("short",), "medium": ("shoulder-length", "medium-length"), "long": ("long",)}
_TOPS = {
    "t-shirt": ("t-shirt", "t-shirt", "tee", "short-sleeved shirt"),
    "tank top": ("tank top", "sleeveless top"),
    "shirt": ("long-sleeved shirt", "shirt", "button-up shirt"),
    "sweater": ("sweater", "jumper", "pullover"),
    "hoodie": ("hoodie", "hooded sweatshirt"),
    "jacket": ("jacket", "zip-up jacket"),
    "coat": ("coat", "long coat", "overcoat"),
}
_LOWERS = {
    "trousers": ("trousers", "pants", "slacks"),
    "jeans": ("jeans", "denim jeans"),
    "shorts": ("shorts", "short pants"),
    "short skirt": ("short skirt", "skirt", "mini skirt"),
    "long skirt": ("long skirt", "skirt"),
}
_SHOES = ("shoes", "shoes", "sneakers", "footwear")
_BAGS = {
    "backpack": ("backpack", "rucksack"),
    "handbag": ("handbag", "purse"),
    "shoulder bag": ("shoulder bag", "messenger bag"),
}
_HATS = {"cap": ("cap", "baseball cap"), "beanie": ("beanie", "knit hat")}
_COLOURS = {"grey": ("grey", "gray"), "beige": ("beige", "tan"), "purple": ("purple", "violet")}
_RICH_COLOURS = {
    "black": ("jet", "ebony"),
    "white": ("ivory", "snowy"),
    "grey": ("charcoal", "ash"),
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine", "amber"),
    "yellow": ("golden", "lemon"),
    "green": ("olive", "emerald"),
    "blue": ("navy", "azure"),
    "purple": ("plum", "lavender"),
    "pink": ("rose", "salmon"),
    "brown": ("chestnut", "coffee"),
    "beige": ("cream", "khaki"),
}
_PATTERNS = {"striped": ("striped",), "checked": ("checked", "plaid"), "dotted": ("dotted", "polka dot")}

# How likely an annotator is to mention each attribute (relative weights).
_SALIENCE = {
    "top colour": 3.0,
    "top kind": 2.5,
    "pattern": 2.5,
    "lower colour": 3.0,
    "lower kind": 2.0,
    "shoes": 1.5,
    "bag": 3.0,
    "hat": 2.5,
    "hair": 1.5,
    "build": 0.5,
}
_GARMENT_ATTRIBUTES = ("top colour", "top kind", "lower colour", "lower kind")


def describe(
    identity: Identity, rng: np.random.Generator, min_attributes: int, max_attributes: int, rich_colours: float
) -> str:
    """Describe a person truthfully in one or two sentences.

    Mentions `min_attributes` to `max_attributes` attributes besides the gender, or all if the person has fewer (at
    least 7), and at least one of the garments.
    A colour gets a rarer name (crimson, navy, …) with probability `rich_colours`; hair keeps its plain name.
    Raises ValueError unless 1 <= min_attributes <= max_attributes and 0 <= rich_colours <= 1.
    """
    if not 0 <= rich_colours <= 1:
        raise ValueError(f"rich_colours must be in [0, 1], got {rich_colours}")
    if not 1 <= min_attributes <= max_attributes:
        raise ValueError(f"need 1 <= min_attributes <= max_attributes, got {min_attributes} and {max_attributes}")
    named = _choose(identity, rng, int(rng.integers(min_attributes, max_attributes + 1)))
    return _Writer(identity, rng, named, rich_colours).text()


def _choose(identity: Identity, rng: np.random.Generator, count: int) -> set[str]:
    absent = {"pattern": identity.pattern == "plain", "bag": identity.bag == "none", "hat": identity.hat == "none"}
    visible = [name for name in _SALIENCE if not absent.get(name, False)]
    first = _GARMENT_ATTRIBUTES[int(rng.integers(len(_GARMENT_ATTRIBUTES)))]
    others = [name for name in visible if name != first]
    odds = np.array([_SALIENCE[name] for name in others])
    picks = rng.choice(len(others), size=min(count - 1, len(others)), replace=False, p=odds / odds.sum())
    return {first, *(others[i] for i in picks)}


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _join(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


class _Writer:
    """Verbalises the chosen attributes of one person."""

    def __init__(self, identity: Identity, rng: np.random.Generator, named: set[str], rich_colours: float) -> None:
        self._who = identity
        self._rng = rng
        self._named = named
        self._rich_colours = rich_colours
        self._he, self._his = ("She", "her") if identity.gender == "woman" else ("He", "his")

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self._rng.integers(len(options)))]

    def _colour(self, name: str) -> str:
        rich = self._rich_colours > 0 and self._rng.random() < self._rich_colours
        return self._pick(_RICH_COLOURS[name] if rich else _COLOURS.get(name, (name,)))

    def text(self) -> str:
        """The whole caption."""
        worn = [phrase for phrase in (self._top(), self._lower()) if phrase]
        self._rng.shuffle(worn)
        worn += [phrase for phrase in (self._shoes(), self._hat()) if phrase]
        had = [phrase for phrase in (self._hair(), self._bag()) if phrase]
        self._rng.shuffle(had)
        forms: tuple[Form, ...] = (self._plain, self._with_first, self._dressed, self._split)
        return self._pick(forms)(worn, had)

    # ---- sentence forms ----

    def _plain(self, worn: list[str], had: list[str]) -> str:
        first = f"{self._subject('A')} {self._pick(('is wearing', 'wears', 'is dressed in'))} {_join(worn)}."
        return f"{first} {self._he} {self._pick(('has', 'also has'))} {_join(had)}." if had else first

    def _with_first(self, worn: list[str], had: list[str]) -> str:
        owner = f" with {_join(had)}" if had else ""
        return f"{self._subject(self._pick(('A', 'The')))}{owner} {self._pick(('is wearing', 'wears'))} {_join(worn)}."

    def _dressed(self, worn: list[str], had: list[str]) -> str:
        walks = self._pick(("is walking", "walks by", "is on foot", "is passing by"))
        first = f"{self._pick(('Dressed in', 'Wearing'))} {_join(worn)}, {self._subject('a')} {walks}."
        return f"{first} {self._he} has {_join(had)}." if had else first

    def _split(self, worn: list[str], had: list[str]) -> str:
        first = f"{self._subject(self._pick(('This', 'The')))} has on {worn[0]}."
        if len(worn) == 1 and not had:
            return first
        rest = f"is {self._pick(('wearing', 'also wearing'))} {_join(worn[1:])}" if len(worn) > 1 else ""
        owns = f"has {_join(had)}" if had else ""
        return f"{first} {self._he} {' and '.join(part for part in (rest, owns) if part)}."

    # ---- phrases, "" if the attribute isn't mentioned ----

    def _subject(self, determiner: str) -> str:
        noun = self._pick(_SUBJECTS[self._who.gender])
        if "build" in self._named:
            build = self._pick(_BUILDS[self._who.build])
            noun = f"{noun} of {build}" if self._who.build == "average" else f"{build} {noun}"
        if determiner.lower() == "a":
            return determiner + _article(noun)[1:]
        return f"{determiner} {noun}"

    def _top(self) -> str:
        who, named = self._who, self._named
        patterned = "pattern" in named
        if not patterned and not named & {"top colour", "top kind"}:
            return ""
        noun = self._pick(_TOPS[who.top]) if "top kind" in named else "top"
        colour = self._colour(who.top_colour) if "top colour" in named else ""
        if not patterned:
            return _article(" ".join(filter(None, (colour, noun))))
        second = self._colour(who.second_colour)
        if who.pattern == "open":
            inner = self._pick(("shirt", "top"))
            return f"{_article(' '.join(filter(None, ('open', colour, noun))))} over {_article(f'{second} {inner}')}"
        if who.pattern == "two-tone":
            split = f"{noun} that is {colour} above and {second} below"
            return _article(split if colour else f"two-tone {noun}")
        pattern = self._pick(_PATTERNS[who.pattern])
        return _article(" ".join(filter(None, (f"{colour} and {second}" if colour else "", pattern, noun))))

    def _lower(self) -> str:
        who, named = self._who, self._named
        if not named & {"lower colour", "lower kind"}:
            return ""
        colour = self._colour(who.lower_colour) if "lower colour" in named else ""
        if "lower kind" not in named:
            return f"{colour} {'bottoms' if 'skirt' not in who.lower else 'lower clothing'}"
        phrase = " ".join(filter(None, (colour, self._pick(_LOWERS[who.lower]))))
        if "skirt" in phrase:
            return _article(phrase)
        return phrase if self._rng.random() < 0.7 else f"a pair of {phrase}"

    def _shoes(self) -> str:
        if "shoes" not in self._named:
            return ""
        return f"{self._colour(self._who.shoe_colour)} {self._pick(_SHOES)}"

    def _hat(self) -> str:
        if "hat" not in self._named:
            return ""
        hat = _article(f"{self._colour(self._who.hat_colour)} {self._pick(_HATS[self._who.hat])}")
        return self._pick((hat, f"{hat} on {self._his} head"))

    def _hair(self) -> str:
        if "hair" not in self._named:
            return ""
        if self._who.hair == "bald":
            return self._pick(("a bald head", "a shaved head"))
        return f"{self._pick(_HAIR_LENGTHS[self._who.hair])} {self._who.hair_colour} hair"

    def _bag(self) -> str:
        if "bag" not in self._named:
            return ""
        bag = _article(f"{self._colour(self._who.bag_colour)} {self._pick(_BAGS[self._who.bag])}")
        place = {"backpack": f"on {self._his} back", "handbag": f"in {self._his} hand"}.get(self._who.bag, "")
        return f"{bag} {place}" if place and self._rng.random() < 0.4 else bag
