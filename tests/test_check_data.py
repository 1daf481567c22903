"""The data check: every kind of mistake is found, counted and listed, through the real command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.check import check_dataset
from datasets.noise import draw_permutation
from datasets.run_data import read_data
from datasets.settings import DATASETS, DataSettings
from options import resolve
from tests import datasets_on_disk
from tools import check_data
from utils.errors import UserError


def check(tmp_path: Path, *more: str, status: int) -> dict[str, dict]:
    """Run the command on RSTPReid; returns the findings in its JSON file by description."""
    command = ["--dataset_name", "RSTPReid", "--root_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), *more]
    if status:
        with pytest.raises(SystemExit) as left:
            check_data.main(command)
        assert left.value.code == status
    else:
        check_data.main(command)
    content = json.loads((tmp_path / "out/check_data_RSTPReid.json").read_text())
    assert all(finding["count"] == len(finding["where"]) > 0 for finding in content["findings"])
    assert all(finding["remedy"] for finding in content["findings"])
    return {finding["what"]: finding for finding in content["findings"]}


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Use the sizes of the small data sets as the published ones."""
    size = (12, 24, 6)
    monkeypatch.setitem(DATASETS["RSTPReid"].sizes, "train", size)
    monkeypatch.setitem(DATASETS["RSTPReid"].sizes, "val", size)
    monkeypatch.setitem(DATASETS["RSTPReid"].sizes, "test", size)
    monkeypatch.setattr("datasets.check.NOISEINDEX", Path("/nowhere"))


def test_a_clean_data_set_has_no_findings(tmp_path, capsys):
    listed = datasets_on_disk.entries("RSTPReid")
    for number, entry in enumerate(listed):
        entry["captions"] = [f"Person {number}, caption {which}." for which in range(2)]
    datasets_on_disk.write(tmp_path, "RSTPReid", listed)
    assert check(tmp_path, status=0) == {}
    printed = capsys.readouterr().out
    assert "no problems found" in printed
    assert printed.count("yes") == 3


def test_all_broken_and_missing_images_are_listed(tmp_path, capsys):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    imgs = tmp_path / "RSTPReid/imgs"
    broken = [imgs / f"cam_train/000{n}_0.jpg" for n in (1, 2, 4)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:300])
    (imgs / "cam_train/0003_1.jpg").unlink()
    (imgs / "cam_test").rename(imgs / "elsewhere")
    found = check(tmp_path, status=1)
    assert sorted(line.split()[1] for line in found["images that can't be read"]["where"]) == sorted(map(str, broken))
    missing = found["missing images"]["where"]
    assert len(missing) == 13
    assert str(imgs / "cam_train/0003_1.jpg") in missing
    assert found["missing image folders"]["where"] == [str(imgs / "cam_test")]
    assert "| error " in capsys.readouterr().out


def test_every_error_in_annotations_is_found(tmp_path):
    listed = datasets_on_disk.entries("RSTPReid")
    captions = [[f"{number}"] * 2 for number in range(36)]
    captions[1] = ["a man in red", "a man in red "]
    captions[4] = ["A man in red", "  "]
    captions[5] = ["a\x07bell", "一个人 in blue"]
    for entry, of_entry in zip(listed, captions, strict=True):
        entry["captions"] = of_entry
    listed[7]["id"] = 99
    listed[6]["id"] = 99
    listed[13]["id"] = listed[25]["id"]
    listed[30]["split"] = "query"
    listed[31]["captions"] = []
    listed[32]["captions"] = 7
    datasets_on_disk.write(tmp_path, "RSTPReid", listed)
    found = check(tmp_path, status=1)
    assert "3 is missing" in found["ids with gaps"]["where"][0]
    assert found["malformed entries"]["where"][0].startswith("entry 31: ")
    assert found["malformed entries"]["count"] == 2
    assert found["entries of unknown splits"]["where"] == ["entry 30: 'query'"]
    assert found["persons in two splits"]["where"] == [f"id {listed[25]['id']} in test, val"]
    assert found["empty captions"]["count"] == 1
    assert found["duplicate captions of an image"]["count"] == 36 - 4 - 1  # 1 is in the unknown split "query"
    assert found["captions shared by several persons"]["where"] == ["2 persons: a man in red"]
    assert "a\\x07bell" in found["control characters"]["where"][0]
    assert found["CJK characters"]["count"] == 1
    sizes = found["sizes that differ from the published ones"]["where"]
    assert {place.split()[0] for place in sizes} == {"val", "test"}, "one cause is one row"
    assert any(place.startswith("test has 9 images") for place in sizes)


ORDINARY = [
    "The man(s) at the left wear 3/4 trousers & a T-shirt; he's 20-30 years old.",
    'A woman (about thirty) with a "NIKE" bag, seen from behind - 50% hidden.',
    "她 wears size < 40 shoes",
]
MARKED = [
    "{} print(x)",
    "A man in black. print('hello world')",
    "<b>A woman</b> in white",
    "a red &amp; white shirt",
    "see https://example.org/1.jpg",
    "if x == 3 a dog",
    "a man \\u0041",
    "main() a girl",
    "```python",
]


def test_code_and_markup_in_captions_are_reported(tmp_path):
    listed = datasets_on_disk.entries("RSTPReid")
    for entry, caption in zip(listed, [*ORDINARY, *MARKED], strict=False):
        entry["captions"][0] = caption
    for entry, caption in zip(
        listed[20:25:2], ["A person walking by.", "a person  walking by. ", "A PERSON walking by."]
    ):
        entry["captions"][0] = caption
    datasets_on_disk.write(tmp_path, "RSTPReid", listed)
    found = check(tmp_path, status=0)
    assert [place.split(".jpg: ")[1] for place in found["code or markup in captions"]["where"]] == MARKED
    assert "3 persons: a person walking by." in found["captions shared by several persons"]["where"]


def test_added_captions_and_a_mismatched_noise_index_are_found(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid", datasets_on_disk.entries("RSTPReid", captions=3))
    np.save(tmp_path / "index.npy", draw_permutation(24, 0.5))
    found = check(tmp_path, "--noisy_file", str(tmp_path / "index.npy"), status=1)
    size = found["sizes that differ from the published ones"]
    assert size["where"][0] == "train has 36 captions, published: 24"
    assert "some copies have added captions: get the original" in size["remedy"]
    index = found["noise indices that do not match"]
    assert "is for 24 pairs, but the training split has 36" in index["where"][0]
    assert "--pairs 36" in index["remedy"]


def test_the_shipped_index_is_checked_against_the_data(tmp_path, monkeypatch):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    monkeypatch.undo()
    _, findings = check_dataset("RSTPReid", tmp_path)
    (wrong,) = [finding for finding in findings if finding.what == "noise indices that do not match"]
    for line, rate in zip(wrong.where, (0.2, 0.5, 0.8), strict=True):
        assert f"RSTPReid_{rate}.npy is for 37,010 pairs" in line
    assert "--pairs 24 --noisy_rate RATE --out FOLDER" in wrong.remedy


def test_odd_paths_and_characters_are_listed_in_printable_characters(tmp_path, capsys):
    listed = datasets_on_disk.entries("RSTPReid")
    datasets_on_disk.write(tmp_path, "RSTPReid", listed)
    for entry, path in zip(listed, ("/nowhere/x.jpg", "", ".", "x" * 300 + "/y.jpg", "a\0b.jpg"), strict=False):
        entry["img_path"] = path
    listed[7]["img_path"] = listed[6]["img_path"]
    listed[8]["captions"] = ["\ud83d half", "\x1b[31mred"]
    listed[9]["captions"] = ["\x1b[31mred"] * 2
    (tmp_path / "RSTPReid/data_captions.json").write_text(json.dumps(listed))
    found = check(tmp_path, status=1)
    missing = found["missing images"]["where"]
    assert len(missing) == 4, "two of them name the folder itself"
    assert "/nowhere/x.jpg" in missing
    assert any("a\\x00b.jpg" in place for place in missing)
    assert found["images listed repeatedly"]["count"] == 2
    assert found["half surrogate pairs"]["count"] == 1
    assert found["control characters"]["count"] == 3
    assert found["duplicate captions of an image"]["where"][-1].isprintable()
    assert "\x1b" not in capsys.readouterr().out


def test_the_same_pixels_are_found_across_splits_and_data_sets(tmp_path):
    for name in ("RSTPReid", "ICFG-PEDES"):
        datasets_on_disk.write(tmp_path, name)
    for image in (tmp_path / "ICFG-PEDES/imgs").rglob("*.jpg"):  # the helper gives both sets one random sequence
        Image.open(image).transpose(Image.Transpose.ROTATE_180).save(image, quality=90)
    imgs, other = tmp_path / "RSTPReid/imgs", tmp_path / "ICFG-PEDES/imgs"
    shutil.copy(imgs / "cam_train/0001_0.jpg", imgs / "cam_test/0013_1.jpg")
    Image.open(imgs / "cam_train/0002_1.jpg").save(other / "cam_test/0007_0.jpg", format="png")
    shutil.copy(other / "cam_train/0000_0.jpg", imgs / "cam_val/0008_0.jpg")
    (other / "cam_train/0001_0.jpg").write_bytes(b"no image")
    found = check(tmp_path, "--against", "ICFG-PEDES", status=0)
    same = {what: finding["where"] for what, finding in found.items() if "pixels" in what}
    assert same == {
        "the same pixels in train and test": [f"{imgs}/cam_train/0001_0.jpg and {imgs}/cam_test/0013_1.jpg"],
        "the same pixels in train and in ICFG-PEDES's test": [
            f"{imgs}/cam_train/0002_1.jpg and {other}/cam_test/0007_0.jpg"
        ],
        "the same pixels in val and in ICFG-PEDES's train": [
            f"{imgs}/cam_val/0008_0.jpg and {other}/cam_train/0000_0.jpg"
        ],
    }
    assert found["images of ICFG-PEDES that can't be read"]["count"] == 1
    assert not [what for what in check(tmp_path, status=0) if "ICFG" in what]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_own_images_with_an_exif_rotation_are_listed(tmp_path, ending):
    datasets_on_disk.write(tmp_path, "RSTPReid", file="mine.json")
    exif, image = Image.Exif(), tmp_path / "RSTPReid/imgs/cam_train/0001_0.jpg"
    for orientation, other in ((6, image), (1, image.with_name("0001_1.jpg"))):
        exif[0x0112] = orientation
        Image.open(other).save(tmp_path / f"a.{ending}", exif=exif)
        (tmp_path / f"a.{ending}").rename(other)
    other = image.with_name("0002_0.jpg")
    Image.open(other).save(other, exif=b"Exif\0\0damaged")
    (image.parents[2] / "data_captions.json").write_bytes((image.parents[2] / "mine.json").read_bytes())
    for name, places in ((str(image.parents[2] / "mine.json"), [str(image)]), ("RSTPReid", None)):
        found = {finding.what: finding for finding in check_dataset(name, tmp_path, noisy_rate=0.0)[1]}
        turned = found.get("images with an EXIF rotation")
        assert (turned and turned.where) == places
        assert turned is None or turned.severity == "warning"


def test_a_noise_rate_without_an_index_is_reported(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    assert "for rate 0.3" in check(tmp_path, "--noisy_rate", "0.3", status=0)["no noise index found"]["where"]


def test_no_noise_index_is_checked_at_rate_0(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    found = check(tmp_path, "--noisy_rate", "0", "--noisy_file", str(tmp_path / "none.npy"), status=0)
    assert not [what for what in found if "noise index" in what]


def test_read_data_returns_remarks_on_annotations(tmp_path):
    listed = datasets_on_disk.entries("RSTPReid")
    listed[3]["captions"][0] = ""
    listed[7]["split"] = "trian"
    datasets_on_disk.write(tmp_path, "RSTPReid", listed)
    given = {"dataset_name": "RSTPReid", "root_dir": str(tmp_path), "noisy_rate": 0.0, "batch_size": 8}
    options = resolve(given)
    lines = read_data(options.of(DataSettings)).remarks
    assert lines[0] == "entries of unknown splits: entry 7: 'trian'; only train, val and test are read"
    assert any(line.startswith("empty captions: ") and "0001_1.jpg" in line for line in lines)


@pytest.mark.parametrize(
    ("prepare", "command", "message"),
    [
        (lambda _: None, [], "give --dataset_name: CUHK-PEDES"),
        (lambda _: None, ["--dataset_name", "MARS"], "choose from CUHK-PEDES"),
        (lambda _: None, ["--dataset_name", "RSTPReid", "--noisy_rate", "5"], "--noisy_rate 5.0: must be at least 0"),
        (lambda _: None, ["--dataset_name", "CUHK-PEDES"], "no folder .*CUHK-PEDES: --root_dir must be"),
        (
            lambda root: datasets_on_disk.write(root, "CUHK-PEDES", file="caption_all.json"),
            ["--dataset_name", "CUHK-PEDES"],
            "no reid_raw.json; it holds caption_all.json, which is another format: its authors distribute it",
        ),
        (
            lambda root: datasets_on_disk.write(root, "CUHK-PEDES").write_text("{}"),
            ["--dataset_name", "CUHK-PEDES"],
            "expected a list of entries, found dict",
        ),
    ],
)
def test_a_missing_or_unreadable_data_set_is_a_one_line_error(tmp_path, prepare, command, message):
    prepare(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        check_data.main([*command, "--root_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
