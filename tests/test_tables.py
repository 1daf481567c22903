"""Annotations as tables: text, Parquet, Arrow and Hugging Face's folders give what the same JSON gives."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

import train as training_root
from datasets.annotations import Split, read_annotations, read_splits
from datasets.check import check_dataset, odd_entries
from datasets.formats import read_entries
from datasets.image_cache import image_cache_dir
from datasets.images import read_image
from datasets.settings import DataSettings
from options import resolve
from tests import datasets_on_disk
from tests.test_training import SMALL
from tools.search.examples import captions_of
from utils.errors import DataError, OptionError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ("train", "val", "test")


@pytest.fixture(scope="module")
def listed() -> list[dict]:
    entries = datasets_on_disk.entries("RSTPReid", persons=3)
    return [
        {"id": e["id"], "file_path": e["img_path"], "captions": e["captions"], "split": e["split"]} for e in entries
    ]


@pytest.fixture
def folder(tmp_path, listed) -> Path:
    """Annotations as JSON with their images."""
    datasets_on_disk.write(tmp_path, "RSTPReid", [{**entry, "img_path": entry["file_path"]} for entry in listed])
    (tmp_path / "RSTPReid/mine.json").write_text(json.dumps(listed))
    return tmp_path / "RSTPReid"


def of_json(folder: Path) -> dict[str, Split]:
    return read_splits(str(folder / "mine.json"), folder, NAMES)


def assert_same(found: dict[str, Split], expected: dict[str, Split], *, embedded: bool = False) -> None:
    assert found.keys() == expected.keys()
    for name, split in expected.items():
        assert found[name].captions == split.captions
        for array in ("image_pids", "caption_images", "person_ids"):
            assert np.array_equal(getattr(found[name], array), getattr(split, array))
        if embedded:
            for path, own in zip(found[name].images, split.images, strict=True):
                assert path != own
                assert np.array_equal(read_image(path, (60, 24)), read_image(own, (60, 24)))
        else:
            assert found[name].images == split.images


def one_row_per_caption(listed: list[dict]) -> list[dict]:
    return [{**entry, "captions": caption} for entry in listed for caption in entry["captions"]]


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
@pytest.mark.parametrize("as_list", [False, True])
def test_text_tables_are_read(folder, listed, ending, delimiter, as_list):
    rows = [{**entry, "captions": json.dumps(entry["captions"])} for entry in listed]
    rows = rows if as_list else one_row_per_caption(listed)
    file = folder / f"mine.{ending}"
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, ["split", "id", "captions", "file_path"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    assert_same(read_splits(str(file), folder, NAMES), of_json(folder))
    assert not odd_entries(read_annotations(str(file), folder)[1])


TRICKY = ["A man's \"red\" coat, [blurred]\nin 'blue'.", "A woman, 30–40.", "a \\ b\u2028c"]


@pytest.mark.parametrize("captions", [TRICKY[:1], TRICKY, ["[a bag] in red"], ["[", "]"]])
@pytest.mark.parametrize("write", [json.dumps, str])
def test_a_list_in_a_text_cell_is_read_as_python_and_json_write_it(tmp_path, captions, write):
    write_csv(tmp_path / "mine.csv", [write(captions)])
    assert read_entries(tmp_path / "mine.csv")[0]["captions"] == captions


@pytest.mark.parametrize("caption", ["[blurred] a man", "a man [blurred]", "[a", ""])
def test_a_caption_with_a_bracket_is_a_caption(tmp_path, caption):
    write_csv(tmp_path / "mine.csv", [caption])
    assert read_entries(tmp_path / "mine.csv")[0]["captions"] == [caption]


@pytest.mark.parametrize(
    "cell", ["['a' 'b']", "['a'\n 'b']", "['a', 7]", "['a', nan]", "[a man]", "[b'a']", "[" * 9999 + "]"]
)
def test_a_list_of_something_else_names_its_line(tmp_path, cell):
    write_csv(tmp_path / "mine.csv", ["fine", cell])
    line = 3 + cell.count("\n")
    with pytest.raises(
        DataError, match=rf"mine.csv, line {line}: captions must be a text or a list of texts"
    ) as caught:
        read_entries(tmp_path / "mine.csv")
    assert "\n" not in str(caught.value)
    parquet.write_table(pyarrow.table({"id": [1, 2], "captions": ["fine", cell]}), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"mine.parquet, entry 1: captions must be a text or a list of texts"):
        read_entries(tmp_path / "mine.parquet")


def test_empty_rows_are_skipped_and_errors_name_the_line(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("id,file_path,captions,split\n,,,\n1,a.jpg,a man,train\n , ,,,,\n\n,,,\n")
    assert [entry.where for entry in read_annotations(str(file), tmp_path)[1]] == ["line 3"]
    with file.open("a") as stream:
        stream.write('2,b.jpg,"a\nb",trian\n,c.jpg,a man,train\n')
    with pytest.raises(DataError, match=rf"{file}, line 9: 'id' must be a whole number or a text, found ''"):
        read_annotations(str(file), tmp_path)
    findings = {finding.what: finding.where for finding in check_dataset(str(file), tmp_path, noisy_rate=0.0)[1]}
    assert findings["malformed entries"] == ["line 9: 'id' must be a whole number or a text, found ''"]
    assert findings["entries of unknown splits"] == ["line 8: 'trian'"]


@pytest.mark.parametrize(
    ("ids", "persons"), [(["0012", "0012", "7"], [7, 12]), (["0012", "12"], None), (["12", "-12"], [-12, 12])]
)
def test_an_id_with_and_without_leading_zeros_is_refused(tmp_path, ids, persons):
    """One might mean another person than the other."""
    file = tmp_path / "mine.csv"
    file.write_text("id,file_path,captions,split\n" + "".join(f"{n},{n}.jpg,a man,train\n" for n in ids))
    for number in ids:
        Image.new("RGB", (10, 20)).save(tmp_path / f"{number}.jpg")
    findings = {finding.what: finding.where for finding in check_dataset(str(file), tmp_path, noisy_rate=0.0)[1]}
    if persons:
        assert read_splits(str(file), tmp_path, ["train"])["train"].person_ids.tolist() == persons
        assert "ids in two spellings" not in findings
        return
    message = f"{file}: line 2 and line 3 write id 12 with and without leading zeros: one person or two?"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        read_annotations(str(file), tmp_path)
    assert findings["ids in two spellings"] == [message]


def write_csv(file: Path, cells: list[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "file_path", "captions", "split"])
        writer.writerows([str(number), f"{number}.jpg", cell, "train"] for number, cell in enumerate(cells))


@pytest.mark.parametrize("rows", [lambda listed: listed, one_row_per_caption])
def test_parquet_with_paths_is_read(folder, listed, rows):
    rows = [{**row, "id": float(row["id"])} for row in rows(listed)]  # as pandas makes of a column with gaps
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "mine.parquet")
    assert_same(read_splits(str(folder / "mine.parquet"), folder, NAMES), of_json(folder))


def embedded(entry: dict, imgs: Path, *, as_struct: bool = True) -> dict:
    content = (imgs / entry["file_path"]).read_bytes()
    image = {"bytes": content, "path": Path(entry["file_path"]).name} if as_struct else content
    return {"image": image, "image_id": entry["id"], "caption": entry["captions"], "split": entry["split"]}


@pytest.mark.parametrize("as_struct", [False, True])
def test_embedded_images_are_written_out_once(folder, listed, as_struct):
    rows = [embedded(entry, folder / "imgs", as_struct=as_struct) for entry in listed]
    file = folder / "mine.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=5)
    assert_same(read_splits(str(file), folder, NAMES), of_json(folder), embedded=True)
    written = sorted((folder / ".mine_images").glob("[!.]*"))
    assert len(written) == len(listed)
    assert as_struct == any(path.name.endswith("_0000_0.jpg") for path in written)
    stamps = [path.stat().st_mtime_ns for path in written]
    read_splits(str(file), folder, NAMES)
    assert [path.stat().st_mtime_ns for path in written] == stamps


def test_two_runs_write_embedded_images_once(tmp_path):
    """The second waits for the first and takes its files, whose time stamps the image cache depends on."""
    path, started = tmp_path / "mine.parquet", threading.Event()
    (tmp_path / ".mine_images").mkdir()
    lock, stamp, found = FileLock(tmp_path / ".mine_images/.lock"), 10**18, []
    parquet.write_table(pyarrow.table({"image": [b"pixels"], "captions": ["a"]}), path)
    with lock:
        second = threading.Thread(target=lambda: (started.set(), found.extend(read_entries(path))))
        second.start()
        started.wait()
        file = tmp_path / f".mine_images/{hashlib.blake2b(b'pixels', digest_size=12).hexdigest()}_image"
        second.join(0.2)
        assert not found
        file.write_bytes(b"pixels")
        os.utime(file, ns=(stamp, stamp))
    second.join()
    assert found[0]["file_path"] == str(file)
    assert file.stat().st_mtime_ns == stamp


def save_to_disk(folder: Path, by_split: dict[str, list[dict]]) -> None:
    """As `datasets.DatasetDict.save_to_disk` does."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(by_split)}))
    for name, rows in by_split.items():
        (folder / name).mkdir()
        table = pyarrow.Table.from_pylist(rows)
        files = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
        for file, half in zip(files, (table.slice(0, 3), table.slice(3)), strict=True):
            path = str(folder / name / file)
            with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(half)
        (folder / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in files]}))
        (folder / name / "dataset_info.json").write_text("{}")


def save_hub(folder: Path, by_split: dict[str, list[dict]]) -> None:
    """The layout of data sets on the Hugging Face hub."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("about")
    for name, rows in by_split.items():
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{name}-00000-of-00001.parquet")


@pytest.mark.parametrize("write", [save_to_disk, save_hub])
def test_a_hugging_face_folder_is_read(folder, listed, write):
    by_split = {name: [] for name in ("train", "validation", "test")}
    for entry in listed:
        row = embedded(entry, folder / "imgs")
        row.pop("split")
        by_split["validation" if entry["split"] == "val" else entry["split"]].append(row)
    write(folder / "people", by_split)
    assert_same(read_splits(str(folder / "people"), folder, NAMES), of_json(folder), embedded=True)


def test_arrow_files_of_the_other_format_are_read(folder, listed):
    table = pyarrow.Table.from_pylist(listed)
    with pyarrow.OSFile(str(folder / "mine.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert_same(read_splits(str(folder / "mine.arrow"), folder, NAMES), of_json(folder))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: file.write_bytes(b"no parquet"), "mine.parquet can't be read: "),
        (lambda file: file.mkdir(), "mine.parquet contains no data set: expected Parquet files, or what datasets.save"),
        (
            lambda file: parquet.write_table(pyarrow.table({"id": [1], "split": ["train"]}), file),
            "mine.parquet, entry 0: 'file_path' must be a text, found None",
        ),
    ],
)
def test_unreadable_tables_are_one_line_errors(tmp_path, write, message):
    write(tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=message) as caught:
        read_splits(str(tmp_path / "mine.parquet"), tmp_path, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [1, 5000])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_gbk_table_is_recognised(tmp_path, ending, rows):
    """Also if the first such caption is beyond the first chunk, and a chunk ends within a character."""
    file = tmp_path / f"mine.{ending}"
    text = "id,file_path,captions,split\n" + "1,a.jpg,a man,train\n" * (rows - 1) + "1,a.jpg,一个穿红衣服的人,train\n"
    file.write_text(text.replace(",", {"csv": ",", "tsv": "\t"}[ending]) * 3, encoding="gbk")
    with pytest.raises(DataError, match=r"mine.[ct]sv is not UTF-8 but seems to be GBK .*Excel: save as 'CSV UTF-8'"):
        read_splits(str(file), tmp_path, ["train"])


def test_missing_pyarrow_is_reported(tmp_path, monkeypatch):
    (tmp_path / "mine.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"mine.parquet needs pyarrow: pip install -r requirements-tables.txt"):
        read_splits(str(tmp_path / "mine.parquet"), tmp_path, ["train"])


def test_example_captions_are_found_for_absolute_image_paths(folder, listed):
    """Absolute paths, such as those of embedded images, aren't in `imgs`."""
    images, captions = folder / "imgs", {caption for entry in listed for caption in entry["captions"]}
    for entry in listed:
        entry_of = {**entry, "file_path": str(images / entry["file_path"])}
        (folder / "other").mkdir(exist_ok=True)
        with (folder / "other/mine.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry_of) + "\n")
    (folder / "other/imgs").mkdir()
    assert captions >= set(captions_of(images, folder / "other/mine.jsonl")) != set()
    assert captions_of(folder / "other/imgs", folder / "other/mine.jsonl") == []


def test_a_data_folder_needs_a_slash_in_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "people").mkdir()
    (tmp_path / "CUHK-PEDES").mkdir()
    assert resolve({"dataset_name": "CUHK-PEDES"}).dataset_name == "CUHK-PEDES"
    for name in ("people/", "./people", str(tmp_path / "people")):
        options = resolve({"dataset_name": name})
        assert options.dataset_name == os.fspath(tmp_path / "people")
        assert image_cache_dir(options.of(DataSettings), [], (8, 8)) == tmp_path / "people/.image_cache"
    with pytest.raises(OptionError, match=r"--dataset_name people: choose from .*needs a slash in its path"):
        resolve({"dataset_name": "people"})


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_a_folder_of_tables_is_trained_on(folder, listed, tmp_path, monkeypatch):
    rows = [embedded(entry, folder / "imgs") for entry in listed]
    save_hub(folder / "people", {name: [row for row in rows if row["split"] == name] for name in NAMES})
    monkeypatch.chdir(folder)
    given = ["--dataset_name", "./people", "--output_dir", str(tmp_path / "logs"), "--noisy_rate", "0", *SMALL]
    training_root.main([*given, "--num_epoch", "1"])
    (run_dir,) = (tmp_path / "logs/people").iterdir()
    assert (run_dir / "test_metrics.json").is_file()
