"""Readers, noise, images, samplers and batches, on files in the real formats."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from datasets import noise
from datasets.annotations import read_annotations, read_splits
from datasets.check import check_dataset, odd_entries
from datasets.gallery import Gallery, GalleryLoading
from datasets.image_cache import image_cache_dir, open_images
from datasets.images import read_image
from datasets.loaders import LoadingSettings, TrainingPairs, trim
from datasets.samplers import identity_order, random_order
from datasets.settings import DataSettings
from datasets.tokenizer import Tokenizer
from tests import datasets_on_disk
from tools import noise_index
from tools.noise_index import PUBLISHED
from utils.errors import DataError, OptionError
from utils.log import logger


@pytest.mark.parametrize("dataset_name", datasets_on_disk.FORMATS)
def test_the_real_formats_are_read(tmp_path, dataset_name):
    listed = datasets_on_disk.entries(dataset_name)
    datasets_on_disk.write(tmp_path, dataset_name, listed)
    split = read_splits(dataset_name, tmp_path, ["train", "test"])["train"]
    own = [entry for entry in listed if entry["split"] == "train"]
    assert split.captions == [caption for entry in own for caption in entry["captions"]]
    assert split.image_pids.tolist() == [number for number in range(6) for _ in range(2)]
    assert split.caption_pids.tolist() == [number for number in range(6) for _ in range(4)]
    path_key = datasets_on_disk.FORMATS[dataset_name][1]
    assert [path.name for path in split.images] == [entry[path_key].split("/")[1] for entry in own]
    assert ("val" in read_splits(dataset_name, tmp_path, ["val"])) == (dataset_name != "ICFG-PEDES")


def test_icfgs_alternative_file_name_is_read(tmp_path):
    datasets_on_disk.write(tmp_path, "ICFG-PEDES", file="ICFG_PEDES.json")
    assert len(read_splits("ICFG-PEDES", tmp_path, ["train"])["train"].images) == 12


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("imgs", ["imgs", "."])
def test_a_custom_annotation_file_is_read(tmp_path, ending, imgs):
    listed = []
    for number, split in [(900, "train"), (-3, "train"), (900, "train"), (7, "test")]:
        path = f"pictures/{len(listed)}.jpg"
        (tmp_path / imgs / "pictures").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 20)).save(tmp_path / imgs / path)
        listed.append({"id": number, "img_path": path, "captions": [f"caption {len(listed)}"], "split": split})
    file = tmp_path / f"mine.{ending}"
    file.write_text(json.dumps(listed) if ending == "json" else "\n".join(map(json.dumps, listed)), encoding="utf-8")
    splits = read_splits(str(file), tmp_path / "not read", ["train", "val", "test"])
    assert set(splits) == {"train", "test"}
    assert splits["train"].image_pids.tolist() == [1, 0, 1]
    assert splits["train"].captions == ["caption 0", "caption 1", "caption 2"]
    file.write_text("{]", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not a (JSON|JSON Lines) file"):
        read_splits(str(file), tmp_path, ["train"])


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_one_caption_per_line_gives_the_same_splits_as_one_image_per_line(tmp_path, ending):
    listed = datasets_on_disk.entries("RSTPReid")
    listed.append({**listed[0], "id": 99})  # another person in the same image
    whole = datasets_on_disk.write(tmp_path, "RSTPReid", listed, file="whole.json")
    rows = [entry | {"captions": [caption]} for entry in listed for caption in entry["captions"]]
    file = whole.with_name(f"rows.{ending}")
    file.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    names = ["train", "val", "test"]
    expected, found = (read_splits(str(of), tmp_path, names) for of in (whole, file))
    checked, findings = check_dataset(str(file), tmp_path, noisy_rate=0.0)
    for name, split in expected.items():
        for other in (found[name], checked[name]):
            assert (other.images, other.captions) == (split.images, split.captions)
            assert other.image_pids.tolist() == split.image_pids.tolist()
            assert other.caption_images.tolist() == split.caption_images.tolist()
    (twice,) = [finding for finding in findings if finding.what == "images listed repeatedly"]
    assert len(twice.where) == 1


@pytest.mark.parametrize("dataset_name", datasets_on_disk.FORMATS)
def test_a_published_sets_entries_stay_as_listed(tmp_path, dataset_name):
    """Merging them would change the order of pairs, which noise indices refer to."""
    listed = datasets_on_disk.entries(dataset_name)
    listed.insert(4, listed[0])
    datasets_on_disk.write(tmp_path, dataset_name, listed)
    splits = read_splits(dataset_name, tmp_path, ["train"]), check_dataset(dataset_name, tmp_path)[0]
    for of in splits:
        assert len(of["train"].images) == 13
        assert of["train"].images[4] == of["train"].images[0]
        assert of["train"].captions[8:10] == listed[0]["captions"]


def test_json_lines_may_hold_any_separator_and_name_their_bad_line(tmp_path):
    Image.new("RGB", (10, 20)).save(tmp_path / "a.jpg")
    entry = {"id": 1, "file_path": "a.jpg", "captions": ["one\u2028two\u0085three"], "split": "train"}
    file = tmp_path / "mine.jsonl"
    line = json.dumps(entry, ensure_ascii=False)
    file.write_text("\ufeff" + line + "\r\n\n" + line + "\n", encoding="utf-8")
    assert read_splits(str(file), tmp_path, ["train"])["train"].captions == entry["captions"] * 2
    file.write_text(line + "\n" + line + "\n{]\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not a JSON Lines file: line 3: "):
        read_splits(str(file), tmp_path, ["train"])
    file.rename(tmp_path / "mine.json")
    with pytest.raises(DataError, match=r"is not a JSON file \(JSON Lines end in .jsonl\)"):
        read_splits(str(tmp_path / "mine.json"), tmp_path, ["train"])


def spoil(change):
    """CUHK-PEDES's annotations with one change."""
    listed = datasets_on_disk.entries("CUHK-PEDES")
    change(listed)
    return listed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[3].update(captions=[]), "entry 3: cam_train/0002_1.jpg has no captions"),
        (lambda e: e[3].update(captions=["ok", 7]), "entry 3: a caption must be a text, found 7"),
        (lambda e: e[0].pop("file_path"), "entry 0: 'file_path' must be a text, found None"),
        (lambda e: e[0].update(id=1.5), "entry 0: 'id' must be a whole number or a text, found 1.5"),
        (
            lambda e: e[0].update(ID=e[0].pop("id")),
            "'id' must be a whole number or a text, found None; its keys are file_path, captions, split, processed_tok",
        ),
        (lambda e: e[0].update(id=" "), "entry 0: 'id' must be a whole number or a text, found ' '"),
        (lambda e: [entry.update(id=99) for entry in e[2:4]], "from 1 without gaps, but 2 is missing"),
        (
            lambda e: [entry.update(split="x") for entry in e[:12]],
            "no entry of the split train, but of x, val, test",
        ),
        (lambda e: e.append("x"), "entry 36: expected an object, found str"),
        (lambda e: e[2].pop("split"), "entry 2: 'split' must be a text, found None; --split_all train reads"),
    ],
)
def test_errors_in_annotations_are_named(tmp_path, change, message):
    file = datasets_on_disk.write(tmp_path, "CUHK-PEDES")
    file.write_text(json.dumps(spoil(change)), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_splits("CUHK-PEDES", tmp_path, ["train"])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_subset_of_a_published_set_is_read_when_its_file_is_given(tmp_path):
    file = datasets_on_disk.write(tmp_path, "CUHK-PEDES", spoil(lambda e: e.__delitem__(slice(2, 4))))
    with pytest.raises(DataError, match=rf"2 is missing; for a subset, give the file: --dataset_name {file}$"):
        read_splits("CUHK-PEDES", tmp_path, ["train"])
    split = read_splits(str(file), tmp_path, ["train"])["train"]
    assert split.person_ids.tolist() == [1, 3, 4, 5, 6]
    assert split.image_pids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_annotations_of_other_projects_are_read_with_a_remark(tmp_path):
    for number in range(4):
        Image.new("RGB", (10, 20)).save(tmp_path / f"{number}.jpg")
        (tmp_path / "cam").mkdir(exist_ok=True)
        Image.new("RGB", (10, 20)).save(tmp_path / "cam" / f"{number}.jpg")
    listed = [
        {"image_id": "17", "image": "0.jpg", "caption": "one", "split": "train"},
        {"id": "-3", "image_path": "cam\\1.jpg", "captions": ["two", "three"], "split": "train"},
        {"id": 5, "img_path": "2.jpg", "captions": "four", "split": "valid"},
        {"id": 6, "file_path": "3.jpg", "captions": ["five"], "split": "validation"},
        {"id": 7, "file_path": "3.jpg", "captions": ["six"], "split": "test"},
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(listed), encoding="utf-8")
    splits = read_splits(str(file), tmp_path, ["train", "val", "test"])
    assert splits["train"].person_ids.tolist() == [-3, 17]
    assert splits["train"].captions == ["one", "two", "three"]
    assert splits["train"].images == [tmp_path / "0.jpg", tmp_path / "cam/1.jpg"]
    assert splits["val"].captions == ["four", "five"]
    remarks = {finding.what: len(finding.where) for finding in odd_entries(read_annotations(str(file), tmp_path)[1])}
    assert remarks == {
        "'image_id' in place of 'id'": 1,
        "'image' in place of 'file_path'": 1,
        "'image_path' in place of 'file_path'": 1,
        "'caption' in place of 'captions'": 1,
        "ids written as text": 2,
        "backslashes in image paths": 1,
        "a caption without a list": 2,
        "split 'valid' in place of 'val'": 1,
        "split 'validation' in place of 'val'": 1,
    }


def test_ids_of_any_kind_distinguish_persons(tmp_path):
    ids = ["c1_17", 17, "c1_18", 17.0, " c1_17", "17.0", "人\ud800", "-3"]
    listed = [{"id": n, "file_path": f"{i}.jpg", "captions": ["one"], "split": "train"} for i, n in enumerate(ids)]
    for entry in listed:
        Image.new("RGB", (10, 20)).save(tmp_path / entry["file_path"])
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(listed), encoding="utf-8")
    split = read_splits(str(file), tmp_path, ["train"])["train"]
    pids = split.image_pids.tolist()
    assert len(set(pids)) == 5
    assert pids[0] == pids[4]
    assert pids[1] == pids[3] == pids[5]
    assert {-3, 17} <= set(split.person_ids.tolist())
    assert max(split.person_ids) < 2**53, "exact in any JSON reader"
    remarks = {finding.what: len(finding.where) for finding in odd_entries(read_annotations(str(file), tmp_path)[1])}
    assert remarks["non-numeric ids, hashed to numbers"] == 4
    assert remarks["ids written with a decimal point"] == 1
    file.write_text(json.dumps([listed[0], listed[2], listed[0]]), encoding="utf-8")
    again = read_splits(str(file), tmp_path, ["train"])["train"]
    assert set(again.person_ids) <= set(split.person_ids), "the same number in any file"


@pytest.mark.parametrize("folder", ["imgs", "images", ""])
@pytest.mark.parametrize("written_from", ["the folder", "the annotations"])
@pytest.mark.parametrize("published", [False, True])
def test_images_are_found_in_any_folder_layout(tmp_path, folder, written_from, published):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    data = tmp_path / "RSTPReid"
    prefix = f"{folder}/" if folder and written_from == "the annotations" else ""
    listed = [e | {"img_path": prefix + e["img_path"]} for e in datasets_on_disk.entries("RSTPReid")]
    (data / "data_captions.json").write_text(json.dumps(listed), encoding="utf-8")
    if folder:
        (data / "imgs").rename(data / folder)
    else:
        for images in list((data / "imgs").iterdir()):
            images.rename(data / images.name)
        (data / "imgs").rmdir()
    name = "RSTPReid" if published else str(data / "data_captions.json")
    splits = read_splits(name, tmp_path, ["train", "val", "test"])
    expected = [data / folder / e["img_path"].removeprefix(prefix) for e in listed if e["split"] == "test"]
    assert splits["test"].images == expected
    assert not [finding for finding in check_dataset(name, tmp_path, noisy_rate=0.0)[1] if finding.severity == "error"]
    (data / folder / "cam_test/0012_0.jpg").unlink()
    missing = data / (folder or ("imgs" if published else "")) / prefix / "cam_test/0012_0.jpg"
    with pytest.raises(DataError, match=rf"1 of 12 images are missing, first: {missing}"):
        read_splits(name, tmp_path, ["test"])


@pytest.mark.parametrize("with_test", [False, True])
def test_split_all_assigns_entries_without_a_split(tmp_path, with_test):
    for number in range(4):
        Image.new("RGB", (10, 20)).save(tmp_path / f"{number}.jpg")
    listed: list[dict] = [{"id": n, "file_path": f"{n}.jpg", "captions": [f"caption {n}"]} for n in range(4)]
    listed[0]["split"] = None
    listed[3] |= {"split": "test"} if with_test else {}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(DataError, match=r"entry 0: 'split' must be a text, found None; --split_all train"):
        read_splits(str(file), tmp_path, ["train"])
    splits = read_splits(str(file), tmp_path, ["train", "test"], "train")
    assert splits["train"].person_ids.tolist() == ([0, 1, 2] if with_test else [0, 1, 2, 3])
    assert splits["test"].person_ids.tolist() == ([3] if with_test else [0, 1, 2, 3])
    remarks = {finding.what for finding in odd_entries(read_annotations(str(file), tmp_path, "train")[1])}
    assert ("training entries used as a test split" in remarks) == (not with_test)
    findings = check_dataset(str(file), tmp_path, split_all="train")[1]
    assert not [finding for finding in findings if finding.severity == "error"]


def test_a_file_name_with_a_backslash_is_kept(tmp_path):
    Image.new("RGB", (10, 20)).save(tmp_path / "a\\b.jpg")
    entry = {"id": 1, "file_path": "a\\b.jpg", "captions": ["one"], "split": "train"}
    (tmp_path / "mine.json").write_text(json.dumps([entry]), encoding="utf-8")
    assert read_splits(str(tmp_path / "mine.json"), tmp_path, ["train"])["train"].images == [tmp_path / "a\\b.jpg"]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("gbk", r"seems to be GBK"), ("utf-16", "seems to be UTF-16"), ("latin-1", "binary or in another encoding")],
)
def test_the_encoding_of_non_utf8_annotations_is_reported(tmp_path, encoding, message):
    caption = "café noir" if encoding == "latin-1" else "一个穿红衣服的人"
    entry = {"id": 1, "file_path": "a.jpg", "captions": [caption], "split": "train"}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([entry], ensure_ascii=False), encoding=encoding)
    with pytest.raises(DataError, match=rf"mine.json is not UTF-8 but {message}.*: convert it to UTF-8"):
        read_splits(str(file), tmp_path, ["train"])


def test_the_older_release_of_rstpreid_is_named_and_no_noise_is_offered(tmp_path):
    listed = [
        {"id": person, "img_path": f"{person}.jpg", "captions": ["a man", "a woman"] * 5, "split": split}
        for split, persons in (("train", range(3901)), ("val", range(3901, 4001)), ("test", range(4001, 4101)))
        for person in persons
    ]
    file = tmp_path / "RSTPReid" / "data_captions.json"
    (tmp_path / "RSTPReid" / "imgs").mkdir(parents=True)
    file.write_text(json.dumps(listed), encoding="utf-8")
    for names in (["train", "val", "test"], ["test"]):
        with pytest.raises(DataError, match=r"is an older release with other splits .*: download the current one"):
            read_splits("RSTPReid", tmp_path, names)
    _, findings = check_dataset("RSTPReid", tmp_path)
    assert [finding.remedy for finding in findings if finding.what == "an older release"] == [
        "download the current one"
    ]
    assert not [finding for finding in findings if "noise_index" in finding.remedy]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*CUHK-PEDES"):
        read_splits("CUHK-PEDES", tmp_path, ["train"])
    file = datasets_on_disk.write(tmp_path, "CUHK-PEDES")
    (tmp_path / "CUHK-PEDES/imgs/cam_train/0003_1.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 12 images are missing, first: .*0003_1.jpg"):
        read_splits("CUHK-PEDES", tmp_path, ["train"])
    file.rename(file.with_name("caption_all.json"))
    with pytest.raises(DataError, match=r"no reid_raw.json; it holds caption_all.json, which is another format"):
        read_splits("CUHK-PEDES", tmp_path, ["train"])
    file.write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match="is not a JSON file"):
        read_splits("CUHK-PEDES", tmp_path, ["train"])
    with pytest.raises(OptionError, match="--dataset_name CUHK: choose from CUHK-PEDES, ICFG-PEDES"):
        read_splits("CUHK", tmp_path, ["train"])


@pytest.mark.parametrize("file", sorted(noise.NOISEINDEX.glob("*.npy")), ids=lambda path: path.stem)
def test_the_shipped_indices_are_the_published_ones(file):
    dataset_name, rate = file.stem.rsplit("_", 1)
    ((pairs, digests),) = [(n, digests) for (name, n), digests in PUBLISHED.items() if name == dataset_name]
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:12] == digests[float(rate)]
    np.testing.assert_array_equal(noise.read_permutation(file, pairs, float(rate)), np.load(file))


def test_all_nine_indices_are_shipped_and_can_be_regenerated(tmp_path):
    noise_index.main(["--out", str(tmp_path)])
    written = sorted(tmp_path.iterdir())
    assert [path.name for path in written] == sorted(path.name for path in noise.NOISEINDEX.glob("*.npy"))
    assert len(written) == 9
    for path in written:
        assert path.read_bytes() == (noise.NOISEINDEX / path.name).read_bytes()
    noise_index.main(["--out", str(tmp_path), "--dataset_name", "Mine", "--pairs", "50", "--noisy_rate", "0.3"])
    np.testing.assert_array_equal(np.load(tmp_path / "Mine_0.3.npy"), noise.draw_permutation(50, 0.3))
    with pytest.raises(OptionError, match="one index needs"):
        noise_index.main(["--dataset_name", "Mine"])
    with pytest.raises(OptionError, match="RSTPReid has 37010; write other sizes elsewhere, with --out"):
        noise_index.main(["--dataset_name", "RSTPReid", "--pairs", "24", "--noisy_rate", "0.5"])


def test_plugin_is_unknown_where_it_would_do_nothing(tmp_path):
    (tmp_path / "not_for_noise_index.py").write_text("")
    with pytest.raises(OptionError, match="unknown argument --plugin"):
        noise_index.main(["--plugin", str(tmp_path / "not_for_noise_index.py"), "--out", str(tmp_path)])


def test_published_noise_indices_are_not_replaced_by_other_sizes_or_in_parts(tmp_path, monkeypatch):
    (tmp_path / "noiseindex").mkdir()
    monkeypatch.setattr(noise_index, "NOISEINDEX", tmp_path / "noiseindex")
    monkeypatch.chdir(tmp_path)
    given = ["--dataset_name", "RSTPReid", "--noisy_rate", "0.5", "--out", "noiseindex", "--pairs"]
    with pytest.raises(OptionError, match="--pairs 24: RSTPReid has 37010"):
        noise_index.main([*given, "24"])
    file = tmp_path / "noiseindex/RSTPReid_0.5.npy"
    file.write_bytes(b"published")

    def fills_the_disk(stream: BinaryIO, _: np.ndarray) -> None:
        stream.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(noise_index.np, "save", fills_the_disk)
    with pytest.raises(OSError, match="No space left"):
        noise_index.main([*given, "37010"])
    assert file.read_bytes() == b"published"


def test_a_noise_index_is_checked(tmp_path):
    file = tmp_path / "index.npy"
    good = noise.draw_permutation(1000, 0.5)
    np.save(file, good)
    np.testing.assert_array_equal(noise.read_permutation(file, 1000, 0.5), good)
    for pairs, rate, message in ((999, 0.5, "is for 1,000 pairs"), (1000, 0.2, "moves 49.8%.*--noisy_rate is 0.2")):
        with pytest.raises(DataError, match=message):
            noise.read_permutation(file, pairs, rate)
    for content, message in (
        (np.zeros(1000, np.int64), "not a permutation"),
        (good.astype(float), "array of integers"),
        (np.array([{}], dtype=object), "can't be read"),
    ):
        np.save(file, content, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            noise.read_permutation(file, 1000, 0.5)
    file.write_bytes(b"\x93NUMPY truncated")
    with pytest.raises(DataError, match="can't be read"):
        noise.read_permutation(file, 1000, 0.5)
    with pytest.raises(DataError, match="can't be read"):
        noise.find_noise("X", 1000, 0.5, str(tmp_path / "none.npy"))


def test_noise_without_an_index_is_drawn_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "NOISEINDEX", tmp_path)
    drawn = noise.find_noise("Mine", 1000, 0.5, "")
    np.testing.assert_array_equal(drawn.permutation, noise.draw_permutation(1000, 0.5))
    assert "drawn" in drawn.summary
    np.save(tmp_path / "Mine_0.5.npy", drawn.permutation)
    assert noise.find_noise("Mine", 1000, 0.5, "").summary.endswith("Mine_0.5.npy")
    clean = noise.find_noise("Mine", 1000, 0.0, "")
    np.testing.assert_array_equal(clean.permutation, np.arange(1000))


@pytest.fixture
def pictures(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    return sorted((tmp_path / "RSTPReid/imgs").rglob("*.jpg"))


def test_cached_images_equal_decoding_bit_for_bit(tmp_path, pictures):
    cached = open_images(pictures, (96, 32), tmp_path / "cache")
    assert cached.shape == (36, 3, 96, 32)
    for image, path in zip(cached[:], pictures, strict=True):
        np.testing.assert_array_equal(image, read_image(path, (96, 32)))
        slow = Image.open(path).convert("RGB").resize((32, 96), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(slow))
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} <= {".npy", ""}, "no partial file is left"


def test_the_cache_follows_size_and_files(tmp_path, pictures):
    before = open_images(pictures, (96, 32), tmp_path / "cache")
    assert open_images(pictures, (48, 16), tmp_path / "cache").shape == (36, 3, 48, 16)
    Image.new("RGB", (24, 60), "red").save(pictures[5])
    after = open_images(pictures, (96, 32), tmp_path / "cache")
    changed = [n for n in range(36) if (before[n] != after[n]).any()]
    assert changed == [5]


def test_a_finished_cache_beside_data_of_others_is_used(tmp_path, pictures, monkeypatch):
    data, home, size = tmp_path / "RSTPReid", tmp_path / "home/.cache/rde/images", (96, 32)
    settings = DataSettings("RSTPReid", str(tmp_path))
    assert image_cache_dir(settings, pictures, size) == data / ".image_cache"
    with datasets_on_disk.unreadable(pictures[0]):
        open_images(pictures, size, data / ".image_cache", skip_broken=True)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and may(path, mode))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert image_cache_dir(settings, pictures, size) == home, "a broken image couldn't be tried again"
    open_images(pictures, size, data / ".image_cache")
    assert image_cache_dir(settings, pictures, size) == data / ".image_cache"
    assert image_cache_dir(settings, pictures, (48, 16)) == image_cache_dir(settings, pictures[1:], size) == home
    assert image_cache_dir(replace(settings, image_cache="here"), pictures, size) == Path("here")


def test_space_for_the_cache_is_checked_before_decoding(tmp_path, pictures, monkeypatch):
    needed = 36 * 3 * 384 * 128
    for free, enough in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with nullcontext() if enough else pytest.raises(DataError, match=r"needs 0.0 GB, 0.0 GB are free in .*cache:"):
            open_images(pictures, (384, 128), tmp_path / "cache")
        assert len(list((tmp_path / "cache").glob("images*"))) == enough


def test_waiting_for_another_process_is_reported(tmp_path, pictures, monkeypatch):
    folder, lines, found = tmp_path / "cache", [], []
    reported = threading.Event()
    monkeypatch.setattr(logger, "warning", lambda line, *of: (lines.append(line % of), reported.set()))
    folder.mkdir()
    waiting = threading.Thread(target=lambda: found.append(open_images(pictures, (96, 32), folder)))
    with FileLock(folder / ".lock"):
        waiting.start()
        assert reported.wait(10)
    waiting.join()
    assert len(found[0]) == 36
    open_images(pictures, (48, 16), folder)
    assert lines == [f"another process is decoding images into {folder}, waiting"]


def test_cached_images_are_pickled_by_reference(tmp_path, pictures):
    cached = open_images(pictures, (96, 32), tmp_path / "cache")
    sent = pickle.dumps(cached)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[3:7], cached[np.arange(3, 7)])


@pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows allow no such names")
def test_file_names_that_are_not_utf8_are_read(tmp_path, pictures):
    odd = pictures[0].rename(pictures[0].with_name(os.fsdecode(b"caf\xe9.jpg")))
    listed = datasets_on_disk.entries("RSTPReid")
    listed[24]["img_path"] = f"cam_test/{odd.name}"
    file = tmp_path / "RSTPReid/mine.json"
    file.write_text(json.dumps(listed), encoding="utf-8")
    images = read_splits(str(file), tmp_path, ["test"])["test"].images
    assert images[0] == odd
    np.testing.assert_array_equal(open_images(images, (96, 32), tmp_path / "cache")[:1][0], read_image(odd, (96, 32)))


def test_names_that_no_file_can_have_are_broken_images(tmp_path, pictures):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    names = ["x" * 300 + ".jpg", f"{pictures[0]}/x.jpg", "loop.jpg", "a\0b.jpg", "\ud800.jpg", "none.jpg"]
    paths = [pictures[1], *(tmp_path / name for name in names)]
    for _ in range(2):
        images = open_images(paths, (96, 32), tmp_path / "cache", skip_broken=True)
        assert list(images.broken) == list(range(1, 7))
    with pytest.raises(DataError, match="6 of 7 images can't be read"):
        open_images(paths, (96, 32), tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"not a picture", "truncated"])
def test_a_broken_image_is_named_and_leaves_no_cache(tmp_path, pictures, content):
    pictures[7].write_bytes(pictures[7].read_bytes()[:400] if content == "truncated" else content)
    with pytest.raises(DataError, match=f"image {pictures[7]} can't be read") as caught:
        open_images(pictures, (96, 32), tmp_path / "cache")
    assert "\n" not in caught.value.line
    assert list((tmp_path / "cache").glob("*.*npy*")) == []


def test_text_is_not_an_image_and_mpo_files_are_read(tmp_path):
    (tmp_path / "a.jpg").write_text("a text")
    with pytest.raises(DataError, match="can't be read: cannot identify image file"):
        read_image(tmp_path / "a.jpg", (96, 32))
    red = Image.new("RGB", (32, 96), (250, 0, 0))
    red.save(tmp_path / "b.jpg", "MPO", save_all=True, append_images=[red])
    assert read_image(tmp_path / "b.jpg", (96, 32))[0].min() > 240


@pytest.mark.parametrize(
    ("kind", "ending", "scale"),
    [("int32", "tiff", 1), ("int32", "tiff", 257), ("uint16", "tiff", 257), ("uint16", "png", 257)],
)
def test_grey_of_any_depth_is_scaled_to_8_bits(tmp_path, kind, ending, scale):
    grey = np.tile(np.arange(256), (8, 1))
    Image.fromarray((scale * grey).astype(kind)).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}", grey.shape), [grey] * 3)


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_32_bit_pixels_are_refused(tmp_path, kind):
    Image.fromarray((2.0**20 * np.ones((8, 8))).astype(kind)).save(tmp_path / "a.tiff")
    message = "a.tiff can't be read: its pixels have 32 bits: save it with 8 or 16 as JPEG, PNG, BMP, WEBP, TIFF"
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "a.tiff", (8, 8))


def test_several_broken_images_are_counted(tmp_path, pictures):
    for path in pictures[3:6]:
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"\(3 of 36 images can't be read\)"):
        open_images(pictures, (96, 32), tmp_path / "cache")


def test_an_image_that_can_be_read_again_is_put_into_the_cache(tmp_path, pictures):
    with datasets_on_disk.unreadable(pictures[4]):
        assert list(open_images(pictures, (96, 32), tmp_path, skip_broken=True).broken) == [4]
    assert list(open_images(pictures, (96, 32), tmp_path, skip_broken=True, retry_broken=False).broken) == [4]
    images = open_images(pictures, (96, 32), tmp_path)
    assert images.broken == {}
    assert len(list(tmp_path.glob("images_*"))) == 1
    for row, path in enumerate(pictures):
        np.testing.assert_array_equal(images[slice(row, row + 1)][0], read_image(path, (96, 32)))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_cache_that_cannot_be_written_or_read_is_reported(tmp_path, pictures):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"the image cache .* can't be written"):
        open_images(pictures, (96, 32), tmp_path / "file")
    open_images(pictures, (96, 32), tmp_path / "cache")
    (cache,) = (tmp_path / "cache").glob("*.npy")
    whole = cache.read_bytes()
    others = [np.zeros((3, 3, 96, 32), np.uint8), np.zeros((len(pictures), 3, 96, 32), np.float32)]
    for content in (whole[:50], *map(npy, others)):
        cache.write_bytes(content)
        with pytest.raises(DataError, match=r"the image cache .* is damaged, delete it"):
            open_images(pictures, (96, 32), tmp_path / "cache")


def test_identity_batches_hold_num_instance_pairs_per_identity():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(30), rng.integers(1, 12, 30))
    rng.shuffle(pids)
    order = identity_order(pids, 32, 4, np.random.default_rng(1))
    assert len(order) % 32 == 0
    assert len(order) > 0
    for batch in order.reshape(-1, 32):
        assert sorted(Counter(pids[batch].tolist()).values()) == [4] * 8
    usable = {pid: count for pid, count in Counter(pids.tolist()).items() if count >= 4}
    drawn = Counter(order.tolist())
    assert all(drawn[n] <= 1 for n in range(len(pids)) if pids[n] in usable), "pairs repeat only if there are too few"
    np.testing.assert_array_equal(order, identity_order(pids, 32, 4, np.random.default_rng(1)))


def test_random_order_visits_every_pair_once():
    assert sorted(random_order(100, np.random.default_rng(0)).tolist()) == list(range(100))


def training_pairs(tmp_path, **settings) -> TrainingPairs:
    datasets_on_disk.write(tmp_path, "RSTPReid")
    split = read_splits("RSTPReid", tmp_path, ["train"])["train"]
    images = open_images(split.images, (96, 32), tmp_path / "cache")
    permutation = noise.draw_permutation(len(split.captions), 0.5)
    ids = Tokenizer()(split.captions)
    defaults = {"batch_size": 10, "device": torch.device("cpu"), "img_aug": True, "txt_aug": True}
    return TrainingPairs(split, images, ids, permutation, LoadingSettings(**(defaults | settings)))


def test_trimming_does_not_cut_captions_at_exclamation_marks():
    ids = Tokenizer()(["a man !% b", "a"])  # the "!" within a word has the padding's id
    assert 0 in ids[0, : ids[0].argmax()]
    np.testing.assert_array_equal(trim(ids), ids[:, : ids[0].argmax() + 1])


def test_noise_moves_captions_and_leaves_images_and_identities(tmp_path):
    pairs, tokenizer = training_pairs(tmp_path, img_aug=False, txt_aug=False), Tokenizer()
    for batch in pairs.scoring_batches(0):
        for row, pair in enumerate(batch.pairs.tolist()):
            ids = tokenizer([pairs.split.captions[pairs.permutation[pair]]])[0]
            np.testing.assert_array_equal(batch.ids[row], ids[: batch.ids.shape[1]])
            assert batch.pids[row] == pairs.split.image_pids[pairs.image_of_pair[pair]]
    assert 0 < (~pairs.truly_clean).sum() <= 12
    of_own_person = pairs.split.caption_pids[pairs.permutation] == pairs.split.caption_pids
    np.testing.assert_array_equal(pairs.truly_clean, of_own_person)
    assert (pairs.truly_clean & (pairs.permutation != np.arange(24))).any(), "the draw must have such a caption"


def collect(batches) -> dict[int, tuple[torch.Tensor, list[int]]]:
    found = {}
    for batch in batches:
        for row, pair in enumerate(batch.pairs.tolist()):
            found[pair] = batch.images[row], [number for number in batch.ids[row].tolist() if number]
    return found


@pytest.mark.parametrize("changed", [{"num_workers": 2}, {"batch_size": 7}])
def test_augmentation_is_independent_of_batches_and_workers(tmp_path, changed):
    one = collect(training_pairs(tmp_path).training_batches(3))
    other = collect(training_pairs(tmp_path, **changed).training_batches(3))
    assert one.keys() == other.keys() == set(range(24))
    for pair in one:
        torch.testing.assert_close(one[pair][0], other[pair][0], rtol=0, atol=0)
        assert one[pair][1] == other[pair][1]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows start workers anew")
def test_workers_are_forked_whatever_pythons_default(tmp_path):
    batches = training_pairs(tmp_path, num_workers=1).training_batches(0)
    assert batches._loader.multiprocessing_context.get_start_method() == "fork"


def test_epochs_passes_and_seeds_draw_differently(tmp_path):
    pairs = training_pairs(tmp_path)
    passes = [
        pairs.training_batches(0),
        pairs.training_batches(1),
        pairs.scoring_batches(0),
        training_pairs(tmp_path, seed=2).training_batches(0),
    ]
    images = [torch.stack([collected[pair][0] for pair in range(24)]) for collected in map(collect, passes)]
    orders = [[pair for batch in batches for pair in batch.pairs.tolist()] for batches in passes]
    for a in range(4):
        for b in range(a):
            assert not torch.equal(images[a], images[b])
            assert orders[a] != orders[b]


def test_the_scoring_pass_visits_every_pair_with_identity_sampling(tmp_path):
    pairs = training_pairs(tmp_path, sampler="identity", batch_size=8, num_instance=2)
    assert sorted(n for batch in pairs.scoring_batches(0) for n in batch.pairs.tolist()) == list(range(24))


def test_a_gallery_gives_every_image_and_caption_once(tmp_path):
    datasets_on_disk.write(tmp_path, "RSTPReid")
    split = read_splits("RSTPReid", tmp_path, ["test"])["test"]
    images = open_images(split.images, (96, 32), tmp_path / "cache")
    ids = Tokenizer()(split.captions)
    gallery = Gallery("test", split, images, ids, GalleryLoading(5, 0, torch.device("cpu")))
    assert sum(len(batch) for batch in gallery.image_batches()) == 12
    positions = torch.cat([position for position, _ in gallery.text_batches()])
    assert sorted(positions.tolist()) == list(range(24))
    for position, rows in gallery.text_batches():
        np.testing.assert_array_equal(rows, ids[position][:, : rows.shape[1]])
        assert not ids[position][:, rows.shape[1] :].any()
