"""SynthPEDES: reproducible bytes, layout, correct captions, and interruptions."""

import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import synthpedes
from datasets.synthpedes import Recipe, contact_sheet, ensure_synthpedes, write, write_synthpedes
from datasets.synthpedes.captions import describe
from datasets.synthpedes.identity import Identity, draw_identities, draw_splits
from datasets.synthpedes.palette import COLOURS, HAIR_COLOURS
from datasets.synthpedes.render import render

SMALL = Recipe(
    identities={"train": 13, "val": 3, "test": 5},
    images_per_identity={"train": 3, "val": 1, "test": 2},
    captions_per_image=2,
    seed=5,
    difficulty=0.7,
    attributes_named=(4, 8),
    rich_colours=0.5,
)

# Repeated independently of the package's vocabulary: the kinds that a word may refer to.
WORDS = {
    "t-shirt": "tee t-shirt short-sleeved shirt",
    "shirt": "shirt long-sleeved button-up",
    "tank top": "tank sleeveless",
    "sweater": "sweater jumper pullover",
    "hoodie": "hoodie hooded sweatshirt",
    "jacket": "jacket zip-up",
    "coat": "coat overcoat",
    "trousers": "trousers slacks pants",
    "shorts": "pants shorts",
    "jeans": "jeans denim",
    "long skirt": "skirt",
    "short skirt": "skirt mini",
    "backpack": "backpack rucksack",
    "handbag": "handbag purse",
    "shoulder bag": "shoulder messenger",
    "cap": "cap",
    "beanie": "beanie knit",
    "striped": "striped",
    "checked": "checked plaid",
    "dotted": "dotted polka",
    "two-tone": "two-tone above",
    "open": "open",
    "slim": "slim thin slender",
    "average": "average medium",
    "heavy": "heavy stocky heavyset",
    "bald": "bald shaved",
    "man": "man guy male he his",
    "woman": "woman lady female she her",
    "medium": "medium-length shoulder-length",
}
GARMENT_WORDS = {
    word: {kind for kind, words in WORDS.items() if word in words.split()} for word in " ".join(WORDS.values()).split()
}
COLOUR_WORDS = {name: name for name in (*COLOURS, *HAIR_COLOURS)} | {"gray": "grey", "tan": "beige", "violet": "purple"}
COLOUR_WORDS |= {
    word: colour
    for colour, words in {
        "black": "jet ebony",
        "white": "ivory snowy",
        "grey": "charcoal ash",
        "red": "crimson scarlet",
        "orange": "tangerine amber",
        "yellow": "golden lemon",
        "green": "olive emerald",
        "blue": "navy azure",
        "purple": "plum lavender",
        "pink": "rose salmon",
        "brown": "chestnut coffee",
        "beige": "cream khaki",
    }.items()
    for word in words.split()
}
HEADS = {"shoes": "shoe_colour", "sneakers": "shoe_colour", "footwear": "shoe_colour"}
HEADS |= dict.fromkeys(["trousers", "pants", "slacks", "jeans", "shorts", "skirt", "bottoms"], "lower_colour")
HEADS |= dict.fromkeys(["backpack", "rucksack", "handbag", "purse", "bag"], "bag_colour")
HEADS |= dict.fromkeys(["cap", "beanie", "hat"], "hat_colour") | {"hair": "hair_colour"}


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _records(folder: Path) -> list[dict]:
    return json.loads((folder / "reid_raw.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "set"
    write_synthpedes(folder, SMALL)
    return folder


def test_a_recipe_always_gives_the_same_bytes(written, tmp_path):
    write_synthpedes(tmp_path / "two", SMALL)
    write_synthpedes(tmp_path / "other", replace(SMALL, seed=6))
    one, other = _tree(written), _tree(tmp_path / "other")
    assert one == _tree(tmp_path / "two")
    assert one.keys() == other.keys()
    assert not any(one[path] == other[path] for path in one)


def test_layout_counts_and_ids_are_those_of_cuhk_pedes(written):
    records = _records(written)
    assert all(set(record) == {"id", "file_path", "captions", "split"} for record in records)
    assert [record["split"] for record in records] == ["train"] * 39 + ["val"] * 3 + ["test"] * 10
    ids = [record["id"] for record in records]
    assert ids == sorted(ids)
    assert sorted(set(ids)) == list(range(1, 22))
    assert {record["id"] for record in records if record["split"] == "train"} == set(range(1, 14))
    files = {str(path.relative_to(written / "imgs")) for path in (written / "imgs").rglob("*.jpg")}
    assert files == {record["file_path"] for record in records}
    for record in records:
        assert record["file_path"].startswith(f"{record['split']}/{record['id']}_")
        assert len(record["captions"]) == 2
    assert [path.name for path in written.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("difficulty", [0.0, 0.7, 1.0])
def test_pictures_have_the_size_of_surveillance_crops_and_differ(difficulty):
    who = draw_identities(1, np.random.default_rng(0))[0]
    images = [render(who, np.random.default_rng(seed), difficulty) for seed in range(6)]
    assert all(image.mode == "RGB" for image in images)
    assert all(48 <= image.width <= 54 and 128 <= image.height <= 144 for image in images)
    assert len({image.tobytes() for image in images}) == 6


def test_difficulty_makes_the_pictures_of_a_person_differ_more():
    people = draw_identities(8, np.random.default_rng(3))
    spread = []
    for difficulty in (0.0, 0.5, 1.0):
        shots = [
            [render(who, np.random.default_rng([i, j]), difficulty).resize((32, 96)) for j in range(4)]
            for i, who in enumerate(people)
        ]
        spread.append(float(np.asarray([[np.asarray(s, float) for s in row] for row in shots]).std(axis=1).mean()))
    assert spread[0] < spread[1] < spread[2]


def test_render_and_describe_refuse_values_out_of_range():
    who = draw_identities(1, np.random.default_rng(0))[0]
    with pytest.raises(ValueError, match="difficulty"):
        render(who, np.random.default_rng(0), 1.2)
    with pytest.raises(ValueError, match="attributes"):
        describe(who, np.random.default_rng(0), 5, 4, 0)
    with pytest.raises(ValueError, match="rich_colours"):
        describe(who, np.random.default_rng(0), 4, 5, 1.5)


def test_captions_say_only_what_is_true():
    rng = np.random.default_rng(11)
    lengths = []
    for who in draw_identities(300, rng):
        for _ in range(3):
            caption = describe(who, rng, 4, 8, 0.5)
            lengths.append(len(caption.split()))
            _check_caption(caption, who)
    assert 12 <= np.median(lengths) <= 30
    assert max(lengths) <= 50


def _check_caption(caption: str, who: Identity) -> None:
    assert caption[0].isupper(), caption
    assert caption.endswith("."), caption
    assert not re.search(r"\s\s|\s[.,]|\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|,\.|none", caption), caption
    values = {who.gender, who.build, who.hair, who.top, who.pattern, who.lower, who.bag, who.hat}
    colours = {who.hair_colour, who.top_colour, who.second_colour, who.lower_colour, who.shoe_colour}
    colours |= {who.bag_colour, who.hat_colour}
    text = re.sub(r"over an? \w+ (?:shirt|top)", lambda m: " ".join(m[0].split()[:3]), caption.lower())
    words = re.findall(r"[a-z-]+|[,.]", text)
    for before, word in zip(["", *words], words, strict=False):
        if word in GARMENT_WORDS:
            assert GARMENT_WORDS[word] & values, (word, caption)
        if word in COLOUR_WORDS:
            assert COLOUR_WORDS[word] in colours, (word, caption)
        if word in HEADS and before in COLOUR_WORDS:
            assert getattr(who, HEADS[word]) == COLOUR_WORDS[before], (before, word, caption)
        if word in ("hair", "skirt") and before in ("short", "long"):
            assert before == (who.hair if word == "hair" else who.lower.split()[0]), caption


def test_more_attributes_make_longer_captions():
    rng = np.random.default_rng(2)
    people = draw_identities(100, rng)
    mean = [np.mean([len(describe(who, rng, n, n, 0.0).split()) for who in people]) for n in (1, 4, 8)]
    assert mean[0] < mean[1] < mean[2]


def test_splits_share_no_attribute_combination_and_most_people_have_a_sibling():
    splits = draw_splits({"train": 300, "val": 100, "test": 200}, np.random.default_rng(0))
    everyone = [who for people in splits.values() for who in people]
    assert {split: len(people) for split, people in splits.items()} == {"train": 300, "val": 100, "test": 200}
    assert len(set(everyone)) == len(everyone)
    fields = np.array([list(vars(who).values()) for who in splits["test"]])
    differing = (fields[:, None] != fields[None]).sum(axis=2)
    np.fill_diagonal(differing, 99)
    assert (differing.min(axis=1) <= 4).mean() > 0.5  # two attributes are at most four fields, as each has a colour


def test_ensure_writes_the_default_set_once(tmp_path, monkeypatch):
    monkeypatch.setattr(synthpedes, "RECIPE", SMALL)
    folder = ensure_synthpedes(tmp_path)
    assert folder == tmp_path / "SynthPEDES"
    stamp = (folder / "reid_raw.json").stat().st_mtime_ns
    assert ensure_synthpedes(tmp_path) == folder
    assert (folder / "reid_raw.json").stat().st_mtime_ns == stamp
    monkeypatch.setattr(synthpedes, "RECIPE", replace(SMALL, seed=1))
    with pytest.raises(FileExistsError, match="is not this version's SynthPEDES: move or delete it"):
        ensure_synthpedes(tmp_path)


def test_a_file_in_place_of_the_folder_of_data_sets_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as raised:
        ensure_synthpedes(tmp_path / "file")
    assert raised.value.filename == str(tmp_path / "file")


def test_a_folder_without_annotations_is_an_error(tmp_path):
    (tmp_path / "SynthPEDES" / "imgs").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is not this version's SynthPEDES"):
        ensure_synthpedes(tmp_path)
    assert [path.name for path in (tmp_path / "SynthPEDES").iterdir()] == ["imgs"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "describe", stop)
    with pytest.raises(KeyboardInterrupt):
        write_synthpedes(tmp_path / "set", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_removed_later(tmp_path, monkeypatch):
    """After an hour, as another process may be writing; also if the set has been written meanwhile."""
    monkeypatch.setattr(synthpedes, "RECIPE", SMALL)
    ensure_synthpedes(tmp_path)
    left = [tmp_path / f".SynthPEDES-{name}" for name in ("old", "new")]
    for folder, hours in zip(left, (2, 0), strict=True):
        (folder / "imgs").mkdir(parents=True)
        os.utime(folder, (time.time() - 3600 * hours,) * 2)
    ensure_synthpedes(tmp_path)
    assert [folder.exists() for folder in left] == [False, True]


def test_a_faster_processs_set_is_kept(written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "ready")
    ready = _tree(written)
    put_in_place = write._move_into_place

    def overtaken(work: Path, folder: Path) -> None:
        (tmp_path / "ready").rename(folder)
        put_in_place(work, folder)

    monkeypatch.setattr(write, "_move_into_place", overtaken)
    write_synthpedes(tmp_path / "set", replace(SMALL, seed=6))
    assert _tree(tmp_path / "set") == ready
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    with pytest.raises(FileExistsError):
        write_synthpedes(tmp_path / "set", SMALL)


def test_contact_sheet_is_a_small_png(written, tmp_path):
    contact_sheet(written, tmp_path / "sheet.png", rows=2, columns=2)
    assert (tmp_path / "sheet.png").stat().st_size < 70_000
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 400
    with pytest.raises(ValueError, match="persons"):
        contact_sheet(written, tmp_path / "sheet.png", rows=4, split="val")
