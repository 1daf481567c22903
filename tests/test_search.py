"""Search through the real commands: a user's image folder, and what can be wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from safetensors.numpy import load_file

from benchmarks import search as measure
from datasets.augmentation import normalise
from datasets.images import read_image
from datasets.tokenizer import Tokenizer
from solver.objectives.base import cosine_similarity
from tests.galleries import SIZE, Gallery, write_bomb, write_gallery, write_large, write_run
from tools import export
from tools.loading import load_run
from tools.search import __main__ as search
from tools.search import files, results
from tools.search.encode import Encoder
from tools.search.engines import Exact, Faiss, best_first
from tools.search.results import CELL, table, thumbnail
from tools.search.rows import About, Row, Stamp
from tools.search.search import Hit
from tools.search.store import open_or_create_store, open_store, writing
from utils.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("logs") / "SynthPEDES/20260101_000000_own")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Gallery:
    return write_gallery(tmp_path_factory.mktemp("pictures") / "mine")


@pytest.fixture(scope="module")
def indexed(run_dir, gallery, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "i"
    index(run_dir, gallery.folder, folder)
    return folder


def index(run_dir: Path, gallery: Path, folder: Path, *more: str) -> None:
    command = ["index", "--run", str(run_dir), "--gallery", str(gallery), "--index", str(folder), "--device", "cpu"]
    search.main([*command, *more])


def model_similarities(run_dir: Path, gallery: Gallery) -> tuple[list[str], dict[str, np.ndarray]]:
    """Paths, and (captions, images) similarities computed directly, one image and caption at a time."""
    model = load_run(run_dir, torch.device("cpu")).model
    paths = sorted(gallery.captions)
    with torch.no_grad():
        images = [
            model.encode_image(normalise(torch.from_numpy(read_image(gallery.folder / p, SIZE).copy())[None]))
            for p in paths
        ]
        texts = [model.encode_text(torch.from_numpy(Tokenizer()([gallery.captions[p]])).long()) for p in paths]
    parts = {
        name: cosine_similarity(torch.cat([t[name] for t in texts]), torch.cat([i[name] for i in images])).numpy()
        for name in ("BGE", "TSE")
    }
    return paths, parts | {"BGE+TSE": (parts["BGE"] + parts["TSE"]) / 2}


@pytest.fixture(scope="module")
def oracle(run_dir, gallery) -> tuple[list[str], dict[str, np.ndarray]]:
    return model_similarities(run_dir, gallery)


@pytest.mark.numeric
@pytest.mark.slow
def test_sentences_find_images_through_the_commands(gallery, tmp_path, capsys):
    run_dir = write_run(tmp_path / "run", clip="tiny")
    folder, captions = tmp_path / "index", tmp_path / "captions.txt"
    command = [sys.executable, "-m", "tools.search", "index"]
    command += ["--run", str(run_dir), "--gallery", str(gallery.folder), "--index", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "24 images of" in done.stdout
    assert "24 of them new" in done.stdout
    paths, expected = model_similarities(run_dir, gallery)
    captions.write_text("\n".join(gallery.captions[path] for path in paths), encoding="utf-8")
    search.main(["query", "--from", str(captions), "--index", str(folder), "--top", "5", "--similarity", "BGE"])
    results = json.loads((folder / "query.json").read_text())
    assert len(results) == 24
    for row, result in zip(expected["BGE"], results, strict=True):
        order = np.argsort(-row, kind="stable")[:5]
        assert [hit["score"] for hit in result["results"]] == pytest.approx(row[order], abs=1e-5)
        assert [hit["rank"] for hit in result["results"]] == [1, 2, 3, 4, 5]
        for hit in result["results"]:
            position = paths.index(Path(hit["file"]).relative_to(gallery.folder).as_posix())
            assert hit["bge"] == pytest.approx(row[position], abs=1e-5)
    best = [Path(result["results"][0]["file"]).stem for result in results]
    right = sum(int(found) // 2 == int(Path(path).stem) // 2 for found, path in zip(best, paths, strict=True))
    assert right >= 8, "by chance two of 24, and eight only once in two thousand times"
    with Image.open(folder / "query.png") as sheet:
        assert sheet.height > 20 * 100
    assert "camera 0/00.jpg" in capsys.readouterr().out


@pytest.mark.numeric
@pytest.mark.parametrize("similarity", ["BGE", "TSE", "BGE+TSE"])
def test_one_inner_product_gives_each_similarity(gallery, indexed, oracle, similarity, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "picture_rows", lambda *_: None)
    paths, expected = oracle
    query = ["query", gallery.captions[paths[3]], "--top", "24", "--similarity", similarity]
    search.main([*query, "--index", str(indexed), "--out", str(tmp_path / "q")])
    (result,) = json.loads((tmp_path / "q.json").read_text())
    assert len(result["results"]) == 24
    for hit in result["results"]:
        position = paths.index(Path(hit["file"]).relative_to(gallery.folder).as_posix())
        for name, key in ((similarity, "score"), ("BGE", "bge"), ("TSE", "tse")):
            assert hit[key] == pytest.approx(expected[name][3, position], abs=1e-5)


@pytest.mark.slow
def test_reindexing_reads_only_changes_and_forgets_deleted_files(run_dir, gallery, tmp_path, capsys):
    folder, pictures = tmp_path / "index", tmp_path / "pictures"
    shutil.copytree(gallery.folder, pictures)
    index(run_dir, pictures, folder)
    index(run_dir, pictures, folder)
    assert "0 of them new or changed" in capsys.readouterr().out
    old = open_store(folder).stamps()
    Image.new("RGB", (40, 80), "red").save(pictures / "camera 0/00.jpg")
    shutil.copy(pictures / "camera 1/01.jpg", pictures / "new.png.jpg")
    (pictures / "camera 2/02.jpg").unlink()
    index(run_dir, pictures, folder)
    assert "24 images of" in (told := capsys.readouterr().out)
    assert "2 of them new or changed" in told
    new = open_store(folder).stamps()
    changed = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    assert changed == {Path("camera 0/00.jpg"), Path("new.png.jpg"), Path("camera 2/02.jpg")}


@pytest.mark.slow
def test_files_that_are_not_images_are_listed_and_skipped(run_dir, gallery, tmp_path, capsys):
    folder, pictures = tmp_path / "index", tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(gallery.folder / "camera 0/00.jpg", pictures / "<img src=x onerror=alert(1)>.jpg")
    shutil.copy(gallery.folder / "camera 1/01.jpg", os.fsencode(pictures) + b"/not utf-8 \xff.jpg")
    (pictures / "notes.txt").write_text("no image")
    (pictures / "letter.jpg").write_text("no picture either")
    (pictures / "cut.jpg").write_bytes((gallery.folder / "camera 0/03.jpg").read_bytes()[:500])
    (pictures / "empty.png").write_bytes(b"")
    (pictures / ".hidden.jpg").write_bytes(b"")
    write_bomb(pictures / "bomb.png")
    write_large(pictures / "large.jpg")
    index(run_dir, pictures, folder)
    told = capsys.readouterr().out
    assert "3 images of" in told
    skipped = (folder / "skipped.txt").read_text().splitlines()
    assert {line.split(": ")[0] for line in skipped} == {
        "letter.jpg", "cut.jpg", "empty.png", "bomb.png", "notes.txt"
    }  # fmt: skip
    assert "skipped 5 files" in told
    assert any(line.startswith("bomb.png: ") and "pixels" in line for line in skipped)
    assert not [line for line in skipped if str(pictures) in line], "a path is printed once, relative to the gallery"
    index(run_dir, pictures, folder)
    assert "0 of them new or changed" in (told := capsys.readouterr().out)
    assert "skipped 5 files" in told, "they are listed again, but not read again"
    search.main(["query", "<script>alert(1)</script>", "--index", str(folder)])
    told = capsys.readouterr().out
    assert "\N{REPLACEMENT CHARACTER}" not in told.split("not utf-8")[0]
    assert "<img src=x onerror=alert(1)>.jpg" in told
    shutil.copy(gallery.folder / "camera 0/03.jpg", pictures / "cut.jpg")
    index(run_dir, pictures, folder)
    assert "4 images of" in capsys.readouterr().out, "a repaired file is read"


def turned(picture: Image.Image, file: Path) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    return picture


def transparent(picture: Image.Image, file: Path) -> Image.Image:
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width // 2, picture.height))
    picture.putalpha(mask)
    picture.save(file)
    return Image.composite(picture, Image.new("RGBA", picture.size, "white"), mask).convert("RGB")


def grey_16_bit(picture: Image.Image, file: Path, **more: int) -> Image.Image:
    grey = picture.convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 99).save(file, **more)
    return grey


def grey_16_bit_with_transparency(picture: Image.Image, file: Path) -> Image.Image:
    return grey_16_bit(picture, file, transparency=65535)


@pytest.mark.parametrize("write", [turned, transparent, grey_16_bit, grey_16_bit_with_transparency])
def test_a_picture_is_read_as_viewers_show_it(gallery, tmp_path, write):
    with Image.open(gallery.folder / "camera 0/00.jpg") as picture:
        write(picture.copy(), tmp_path / "a.png").save(tmp_path / "plain.png")
    images = [read_image(tmp_path / name, SIZE, upright=True) for name in ("a.png", "plain.png")]
    assert np.array_equal(*images)


KILLED = """
import os, signal, sys
from tools.search import __main__, encode, files
images, put, calls = encode.Encoder.images, files.FileStore.put, []
def dies(*arguments):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return {original}(*arguments)
{target} = dies
__main__.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("original", "target"),
    [("images", "encode.Encoder.images"), ("put", "files.FileStore.put")],
    ids=["encoding", "keeping"],
)
def test_a_killed_index_resumes_where_it_ended(run_dir, gallery, tmp_path, capsys, original, target):
    folder = tmp_path / "index"
    script = KILLED.format(original=original, target=target)
    command = [sys.executable, "-c", script, "index", "--run", run_dir, "--gallery", gallery.folder, "--index", folder]
    done = subprocess.run([*map(str, command), "--batch_size", "5"], cwd=ROOT, timeout=300, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(open_store(folder)) == 10
    index(run_dir, gallery.folder, folder)
    assert "14 of them new or changed" in capsys.readouterr().out
    index(run_dir, gallery.folder, tmp_path / "whole")
    found = [dict(zip(*open_store(f).everything(), strict=True)) for f in (folder, tmp_path / "whole")]
    assert found[0].keys() == found[1].keys()
    for path, vector in found[0].items():
        assert vector == pytest.approx(found[1][path], abs=1e-5)


def test_concurrent_indexing_is_refused(run_dir, gallery, tmp_path):
    with (
        writing(tmp_path / "index"),
        pytest.raises(UserError, match=r"another process is indexing into .*: wait for it"),
    ):
        index(run_dir, gallery.folder, tmp_path / "index")
    index(run_dir, gallery.folder, tmp_path / "index")


def test_an_index_of_another_model_or_folder_is_refused(run_dir, gallery, indexed, tmp_path):
    other = write_run(tmp_path / "logs/SynthPEDES/20260101_000000_other", seed=2)
    with pytest.raises(UserError, match="was built with another model"):
        index(other, gallery.folder, indexed)
    with pytest.raises(UserError, match="was built with another model"):
        search.main(["query", "a man", "--index", str(indexed), "--run", str(other)])
    (tmp_path / "others").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "others/a.png")
    with pytest.raises(UserError, match=r"is an index of .*: choose another --index"):
        index(run_dir, tmp_path / "others", indexed)


@pytest.mark.slow
def test_weights_outside_a_run_are_found_again(run_dir, gallery, tmp_path):
    weights, folder = tmp_path / "elsewhere.pth", tmp_path / "index"
    shutil.copy(write_run(tmp_path / "other", seed=4) / "best.pth", weights)
    index(run_dir, gallery.folder, folder, "--checkpoint", str(weights))
    search.main(["query", "a man", "--index", str(folder)])
    assert open_store(folder).about.run == run_dir
    with pytest.raises(UserError, match=r"was built with another model .*: pass its weights with --checkpoint"):
        search.main(["query", "a man", "--index", str(folder), "--run", str(run_dir)])
    weights.rename(tmp_path / "moved.pth")
    with pytest.raises(UserError, match="is missing: pass the run with --run, or its weights with --checkpoint"):
        search.main(["query", "a man", "--index", str(folder)])
    search.main(["query", "a man", "--index", str(folder), "--checkpoint", str(tmp_path / "moved.pth")])


@pytest.mark.parametrize("size", [(2000, 4), (4, 2000), (1, 1)])
def test_images_one_pixel_wide_have_thumbnails(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "line.png")
    shown = thumbnail(tmp_path / "line.png", CELL)
    assert shown.size == (CELL[1], CELL[0])
    assert shown.getpixel(((CELL[1] - 1) // 2, (CELL[0] - 1) // 2)) == (255, 0, 0)


@pytest.mark.slow
def test_an_exported_model_searches_its_runs_index(run_dir, indexed, tmp_path):
    export.main([str(run_dir), "--out", str(tmp_path / "export")])
    search.main(["query", "a man", "--index", str(indexed), "--run", str(tmp_path / "export")])


@pytest.mark.slow
def test_a_changed_run_is_refused_and_a_moved_one_is_found(gallery, tmp_path):
    run_dir, folder = write_run(tmp_path / "run"), tmp_path / "index"
    index(run_dir, gallery.folder, folder)
    run_dir.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is missing: pass the run with --run"):
        search.main(["query", "a man", "--index", str(folder)])
    search.main(["query", "a man", "--index", str(folder), "--run", str(tmp_path / "moved")])
    search.main(["query", "a man", "--index", str(folder), "--checkpoint", str(tmp_path / "moved/best.pth")])
    index(tmp_path / "moved", gallery.folder, folder)
    search.main(["query", "a man", "--index", str(folder)])
    shutil.copy(write_run(tmp_path / "other", seed=3) / "best.pth", tmp_path / "moved/best.pth")
    with pytest.raises(UserError, match="was built with another model"):
        search.main(["query", "a man", "--index", str(folder), "--run", str(tmp_path / "moved")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "  "], "the query is empty"),
        (["query"], "no query"),
        (["query", "a", "--top", "0"], "--top 0: must be at least 1"),
        (["query", "a", "--similarity", "cosine"], "--similarity cosine: choose from BGE, TSE, BGE"),
        (["query", "--from", "/nowhere.txt"], "/nowhere.txt can't be read"),
        (["query", "a", "--faiss"], "index again with --faiss"),
        (["query", "a", "--store", "a.db", "--faiss"], "--store and --faiss: Milvus has"),
        (["query", "a", "--index", "/nowhere"], "no index in /nowhere: build one"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["serve", "--port", "99999"], "--port 99999: must be"),
        (["serve", "--port", "0"], "--port 0: must be"),
        (["query", "--from", str(ROOT)], "can't be read: Is a directory"),
        (["query", "a", "--index", str(ROOT / "README.md")], "no index in .*README.md"),
        (["query", "a", "--run", "/nowhere"], "/nowhere holds no best.pth"),
        (["query", "a", "--checkpoint", "/nowhere.pth"], "no checkpoint /nowhere.pth"),
    ],
)
def test_user_errors_are_one_line(indexed, arguments, message):
    more = [] if "--index" in arguments or arguments[0] == "frobnicate" else ["--index", str(indexed)]
    with pytest.raises(UserError, match=message) as caught:
        search.main([*arguments, *more])
    assert "\n" not in str(caught.value)


def test_empty_galleries_are_reported_and_leave_the_index_unchanged(run_dir, indexed, tmp_path):
    before = (indexed / "index.json").read_bytes()
    (tmp_path / "file").write_text("no folder")
    for folder, message in (
        (tmp_path, "no images in it"),
        (tmp_path / "none", "no such folder"),
        (tmp_path / "file", "not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            index(run_dir, folder, indexed)
        with pytest.raises(UserError, match=message):
            index(run_dir, folder, tmp_path / "index")
        assert not (tmp_path / "index").exists()
    assert (indexed / "index.json").read_bytes() == before


@pytest.mark.slow
def test_the_index_is_never_part_of_its_gallery(run_dir, gallery, tmp_path):
    shutil.copytree(gallery.folder / "camera 0", tmp_path / "mine")
    with pytest.raises(UserError, match="is the gallery itself: choose another folder"):
        index(run_dir, tmp_path / "mine", tmp_path / "mine")
    for file in (tmp_path / "mine/00.jpg", tmp_path / "mine/00.jpg/below"):
        with pytest.raises(UserError, match=r"--index .*00.jpg.* can't be created"):
            index(run_dir, tmp_path / "mine", file)
    for expected in range(2):
        index(run_dir, tmp_path / "mine", tmp_path / "mine/index")
        search.main(["query", "a man", "--index", str(tmp_path / "mine/index")])
        assert len(open_store(tmp_path / "mine/index").stamps()) == 8, f"{expected}: its contact sheet is none of them"


@pytest.mark.slow
def test_names_that_are_not_utf8_are_kept(run_dir, gallery, tmp_path, capsys):
    pictures, folder, out = (Path(os.fsdecode(os.fsencode(tmp_path / name) + b"\xff\x1b")) for name in "pio")
    shutil.copytree(gallery.folder / "camera 0", pictures)
    index(run_dir, pictures, folder, *(["--faiss"] if find_spec("faiss") else []))
    search.main(["query", "a man", "--index", str(folder), *(["--faiss"] if find_spec("faiss") else [])])
    search.main(["export", "--index", str(folder), "--out", str(out)])
    capsys.readouterr().out.encode()  # the output can be encoded, and has no control characters
    hits = json.loads((folder / "query.json").read_text())[0]["results"]
    lines = [json.loads(line) for line in (out / "vectors.jsonl").read_text().splitlines()]
    assert len(lines) == len(hits) == 8
    assert all(Path(line["file"]).is_file() for line in (*hits, *lines))


@pytest.mark.parametrize("out", [".", "query", "query.json", "query.png", "new/query"])
def test_results_are_written_where_out_says(indexed, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    search.main(["query", "a man", "--index", str(indexed), "--top", "1", "--out", out])
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    name = "new/query" if "/" in out else "query"
    assert written == {f"{name}.json", f"{name}.png"}


def test_sentences_are_split_by_line_and_printed_escaped(indexed, tmp_path, capsys):
    for name, text in (("raw", "a man\u2028in \x1b[31mred"), ("spelt", r"a man\u2028in \x1b[31mred")):
        (tmp_path / "captions.txt").write_text(text + "\r\n\n", encoding="utf-8")
        command = ["query", "--from", str(tmp_path / "captions.txt"), "--index", str(indexed), "--top", "1"]
        search.main([*command, "--out", str(tmp_path / name)])
        assert len(json.loads((tmp_path / f"{name}.json").read_text())) == 1
        assert r"a man\u2028in \x1b[31mred" in capsys.readouterr().out.splitlines()[0]
    sheets = [np.asarray(Image.open(tmp_path / f"{name}.png"))[:, :300] for name in ("raw", "spelt")]
    assert np.array_equal(*sheets), "no boxes on the contact sheet"


def test_an_index_without_a_readable_image_is_reported(run_dir, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_text("none")
    index(run_dir, tmp_path / "pictures", tmp_path / "index")
    with pytest.raises(UserError, match="contains no readable image"):
        search.main(["query", "a man", "--index", str(tmp_path / "index")])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("index.json", lambda content: content[:0]),
        ("index.json", lambda content: content[:-9]),
        ("index.json", lambda content: content.replace(b'"format": 3', b'"format": 4')),
        ("index.json", lambda content: content.replace(b'"TSE": ', b'"TSE": 9')),
        ("index.json", lambda content: content.replace(b'"fingerprint"', b'"finger"')),
        ("*.npy", lambda content: content[:-9]),
        ("*.jsonl", lambda content: content.split(b"\n", 1)[1]),
        ("*.jsonl", lambda content: b"[1]\n" + content),
    ],
)
def test_a_damaged_index_is_reported(run_dir, gallery, indexed, tmp_path, file, damage):
    folder = tmp_path / "index"
    shutil.copytree(indexed, folder)
    (file,) = folder.glob(file)
    file.write_bytes(damage(file.read_bytes()))
    for use in (
        lambda: search.main(["query", "a", "--index", str(folder)]),
        lambda: index(run_dir, gallery.folder, folder),
    ):
        with pytest.raises(UserError, match="delete it and index again") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_an_older_versions_index_is_rebuilt(run_dir, gallery, tmp_path):
    (tmp_path / "index.sqlite").touch()
    with pytest.raises(UserError, match=r"no index in .* \(index.sqlite is from an older version\): build one"):
        search.main(["query", "a", "--index", str(tmp_path)])
    index(run_dir, gallery.folder / "camera 0", tmp_path)
    assert not (tmp_path / "index.sqlite").exists()


ABOUT = About(Path("gallery"), Path("run"), Path("run/best.pth"), "fingerprint", {"BGE": 8, "TSE": 8})


@pytest.mark.slow
def test_an_index_without_embedding_names_is_searched(run_dir, gallery, indexed, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(indexed, folder)
    manifest = json.loads((folder / "index.json").read_text())
    widths = manifest["about"].pop("widths")
    assert widths == {"BGE": 32, "TSE": 1024}
    manifest["about"] |= {"width": 1056, "bge_width": 32}
    (folder / "index.json").write_text(json.dumps(manifest))
    assert open_store(folder).about == open_store(indexed).about
    for similarity in ("BGE", "TSE"):
        found = []
        for of in (indexed, folder):
            command = ["query", "a man", "--index", str(of), "--similarity", similarity]
            search.main([*command, "--out", str(tmp_path / "found")])
            found.append(json.loads((tmp_path / "found.json").read_text()))
        new, old = found
        assert old == new
        assert list(old[0]["results"][0]) == ["rank", "score", "bge", "tse", "file"]
    index(run_dir, gallery.folder, folder)
    assert open_store(folder).about.widths == widths


def test_vectors_of_any_embeddings_are_weighed_and_scored():
    """Three embeddings by hand: [a, b, c]/√3, whose inner product is the mean of the cosines."""
    encoder = object.__new__(Encoder)
    encoder.widths, encoder.similarities = {"A": 2, "B": 3, "C": 4}, ["A", "B", "C", "A+B+C"]
    rng = np.random.default_rng(0)
    parts = [[unit(rng.standard_normal((1, width))) for width in encoder.widths.values()] for _ in range(2)]
    query, image = (np.concatenate(of, axis=1) / 3**0.5 for of in parts)
    cosines = [float((q @ i.T)[0, 0]) for q, i in zip(*parts, strict=True)]
    for name, cosine in zip(encoder.similarities, [*cosines, sum(cosines) / 3], strict=True):
        assert encoder.weigh(query, name) @ image[0] == pytest.approx(cosine)
    assert encoder.similarity(None) == "A+B+C"
    with pytest.raises(UserError, match=r"--similarity TSE: choose from A, B, C, A\+B\+C"):
        encoder.similarity("TSE")
    hit = Hit(1, 0.5, dict(zip("ABC", cosines, strict=True)), Path("a.jpg"))
    assert list(hit.asdict()) == ["rank", "score", "a", "b", "c", "file"]
    assert " A " in table("a man", [hit]).splitlines()[2]
    about = ABOUT._replace(widths=encoder.widths)
    assert (about.width, about.layout) == (9, "[a, b, c] / sqrt(3)")
    assert About.from_json(about.to_json()) == about


def test_batches_are_merged_and_the_latest_entry_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FULL", 10)
    monkeypatch.setattr(files, "_MAX_SMALL", 3)
    store, rng, expected = open_or_create_store(tmp_path, None, ABOUT), np.random.default_rng(0), {}
    for number in range(40):
        rows = [
            Row(Path(f"{name}"), Stamp(number, int(name)), rng.standard_normal(16, np.float32), None)
            for name in rng.choice(60, 3, replace=False)
        ]
        store.put([*rows, Row(Path("broken"), Stamp(number, 0), None, "why")])
        expected |= {row.path: row for row in rows}
        gone = rng.choice(list(expected))
        store.drop([gone])
        del expected[gone]
        if number % 7 == 0:
            store.tidy()
            store = open_store(tmp_path)
        paths, vectors = store.everything()
        assert dict(zip(paths, vectors.tolist())) == {path: row.vector.tolist() for path, row in expected.items()}
        assert store.broken() == [(Path("broken"), "why")]
        assert store.stamps() == {p: r.stamp for p, r in expected.items()} | {Path("broken"): Stamp(number, 0)}
    store.tidy()
    assert len(list(tmp_path.glob("*.npy"))) <= len(store) // 10 + 2


@pytest.mark.slow
def test_milvus_gives_what_plain_files_give(run_dir, gallery, tmp_path, capsys):
    """With Milvus Lite; with names that aren't UTF-8, a broken file and a second run."""
    pytest.importorskip("milvus_lite")
    pictures, uri = tmp_path / "pictures", str(tmp_path / "lite.db")
    shutil.copytree(gallery.folder, pictures)
    (pictures / "cut.jpg").write_bytes(b"none")
    where = ["--index", str(tmp_path / "index"), "--store", uri]
    with pytest.raises(UserError, match=r"no index in .*lite.db: build one"):
        search.main(["query", "a man", *where])
    index(run_dir, pictures, tmp_path / "index", "--store", uri)
    (pictures / "camera 1/01.jpg").rename(Path(os.fsdecode(os.fsencode(pictures) + b"/not utf-8 \xff.jpg")))
    capsys.readouterr()
    index(run_dir, pictures, tmp_path / "index", "--store", uri)
    told = capsys.readouterr().out
    assert "24 images of" in told
    assert "1 of them new or changed, 1 removed" in told
    assert "cut.jpg: " in told
    index(run_dir, pictures, tmp_path / "plain")
    for similarity in ("BGE", "BGE+TSE"):
        query = ["query", "a man in a red coat", "a woman", "--similarity", similarity]
        search.main([*query, *where, "--out", str(tmp_path / "milvus")])
        search.main([*query, "--index", str(tmp_path / "plain"), "--out", str(tmp_path / "files")])
        found, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("milvus", "files"))
        for ours, theirs in zip(found, expected, strict=True):
            assert len(ours["results"]) == 10
            for hit, other in zip(ours["results"], theirs["results"], strict=True):
                assert hit == pytest.approx(other, abs=1e-6)
    search.main(["export", *where, "--out", str(tmp_path / "out")])
    assert len(np.load(tmp_path / "out/vectors.npy")) == 24


@pytest.mark.slow
def test_a_query_of_5000_words_is_truncated_with_a_warning(indexed, tmp_path, capsys):
    text = "a woman in a red coat " * 834
    search.main(["query", text, "--index", str(indexed), "--out", str(tmp_path / "long")])
    told = capsys.readouterr()
    assert "the model reads only the first 75" in told.err
    assert len(told.out) < 3000, "nor is it printed in full"
    cut = " ".join(text.split()[:75])
    search.main(["query", cut, "--index", str(indexed), "--out", str(tmp_path / "cut")])
    assert capsys.readouterr().err == ""
    long, short = (json.loads((tmp_path / f"{name}.json").read_text())[0]["results"] for name in ("long", "cut"))
    assert long == short


@pytest.mark.slow
@pytest.mark.numeric
def test_captions_are_ranked_for_a_picture(run_dir, gallery, oracle, tmp_path):
    paths, expected = oracle
    (tmp_path / "captions.txt").write_text("\n".join(gallery.captions[path] for path in paths), encoding="utf-8")
    pictures = [str(gallery.folder / paths[n]) for n in (0, 7)]
    command = ["captions", *pictures, "--run", str(run_dir), "--from", str(tmp_path / "captions.txt"), "--top", "3"]
    search.main([*command, "--out", str(tmp_path / "found"), "--similarity", "BGE"])
    found = json.loads((tmp_path / "found.json").read_text())
    for result, position in zip(found, (0, 7), strict=True):
        column = expected["BGE"][:, position]
        order = np.argsort(-column, kind="stable")[:3]
        assert [line["caption"] for line in result["results"]] == [gallery.captions[paths[n]] for n in order]
        assert [line["score"] for line in result["results"]] == pytest.approx(column[order], abs=1e-5)
    with pytest.raises(UserError, match=r"image /nowhere.jpg can't be read"):
        search.main(["captions", "/nowhere.jpg", *command[3:]])


@pytest.mark.numeric
def test_vectors_are_exported_for_other_engines(run_dir, gallery, indexed, oracle, tmp_path):
    search.main(["export", "--index", str(indexed), "--out", str(tmp_path / "out")])
    vectors = np.load(tmp_path / "out/vectors.npy")
    stored = load_file(tmp_path / "out/vectors.safetensors")
    assert np.array_equal(stored["vectors"], vectors)
    lines = [json.loads(line) for line in (tmp_path / "out/vectors.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(24))
    assert [line["id"] for line in lines] == stored["ids"].tolist()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(24), abs=1e-5)
    paths, expected = oracle
    model = load_run(run_dir, torch.device("cpu")).model
    with torch.no_grad():
        text = model.encode_text(torch.from_numpy(Tokenizer()([gallery.captions[paths[5]]])).long())
    query = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in text.values()], dim=1)[0].numpy() / 2**0.5
    for line, score in zip(lines, vectors @ query, strict=True):
        position = paths.index(Path(line["file"]).relative_to(gallery.folder).as_posix())
        assert score == pytest.approx(expected["BGE+TSE"][5, position], abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0.0, 0.5, 1.0, -1.0])), st.integers(1, 50))
def test_best_first_sorts_stably(scores, count):
    assert best_first(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


def test_exact_search_forms_every_inner_product():
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((300, 16), np.float32), rng.standard_normal((130, 16), np.float32)
    for query, found in zip(queries, Exact(vectors).top(queries, 7), strict=True):
        assert found.tolist() == sorted(range(300), key=lambda n: -float(vectors[n] @ query))[:7]


@pytest.mark.slow
def test_faiss_finds_what_exact_search_finds(run_dir, gallery, tmp_path):
    pytest.importorskip("faiss")
    folder = tmp_path / "index"
    index(run_dir, gallery.folder, folder, "--faiss")
    for more, name in ([], "exact"), (["--faiss"], "faiss"):
        search.main(["query", "a man in a red coat", "--index", str(folder), "--out", str(tmp_path / name), *more])
    found = [json.loads((tmp_path / f"{name}.json").read_text())[0]["results"] for name in ("exact", "faiss")]
    for ours, theirs in zip(*found, strict=True):  # matrix products of different heights round differently
        assert ours == pytest.approx(theirs, abs=1e-6)
    Image.new("RGB", (9, 9)).save(gallery.folder / "more.png")
    try:
        index(run_dir, gallery.folder, folder)
    finally:
        (gallery.folder / "more.png").unlink()
    with pytest.raises(UserError, match="index again with --faiss"):
        search.main(["query", "a", "--index", str(folder), "--faiss"])
    index(run_dir, gallery.folder, folder, "--faiss")
    (file,) = folder.glob("*.faiss")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="index again with --faiss"):
        search.main(["query", "a", "--index", str(folder), "--faiss"])
    index(run_dir, gallery.folder, folder, "--faiss")
    search.main(["query", "a", "--index", str(folder), "--faiss"])
    (folder / "index.json").unlink()
    index(run_dir, gallery.folder, folder)
    assert not list(folder.glob("*.faiss")), "left over from a deleted index"


@pytest.fixture(scope="module")
def clustered() -> tuple[np.ndarray, Faiss, dict[str, np.ndarray]]:
    """Many vectors in a cone, ten per person; their FAISS index; image and sentence queries.

    Sentences lie in another cone, each closer to its person than to others.
    """
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    cone, other = 2 * rng.standard_normal((2, 256), np.float32)
    persons = rng.standard_normal((1500, 256), np.float32)
    vectors = unit(cone + persons.repeat(10, axis=0) + 0.7 * rng.standard_normal((15_000, 256), np.float32))
    asked = persons[::15]
    queries = {
        "pictures": unit(cone + asked + 0.7 * rng.standard_normal(asked.shape, np.float32)),
        "sentences": unit(other + asked + 0.7 * rng.standard_normal(asked.shape, np.float32)),
    }
    return vectors, Faiss.build(vectors), queries


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["pictures", "sentences"])
def test_faiss_candidates_include_the_nearest_neighbours(clustered, kind):
    vectors, engine, queries = clustered
    recall = []
    for query, rows in zip(queries[kind], engine.top(queries[kind], 10), strict=True):
        assert len(rows) <= len(vectors) / 15, "so many are ranked by the exact vectors"
        ranked = rows[best_first(vectors[rows] @ query, 10)]
        recall.append(len(set(ranked) & set(best_first(vectors @ query, 10))) / 10)
    assert np.mean(recall) > 0.97


def test_faiss_finds_as_many_as_are_asked_for(clustered):
    vectors, engine, queries = clustered
    for count in (12_000, 10**9):
        for rows in engine.top(queries["sentences"][:3], count):
            assert len(set(rows.tolist())) >= min(count, len(vectors))
            assert rows.min() >= 0


@pytest.mark.slow
def test_recall_is_measured_on_random_vectors_and_on_an_index(gallery, indexed, tmp_path, capsys):
    pytest.importorskip("faiss")
    (tmp_path / "captions.txt").write_text("\n".join(gallery.captions.values()), encoding="utf-8")
    measure.main(["--sizes", "1000"])
    measure.main(["--index", str(indexed), "--from", str(tmp_path / "captions.txt")])
    told = capsys.readouterr().out
    assert "100.0% of others" in told
    assert told.count("100.0% of pictures, 100.0% of sentences") == 2
    assert told.count("100.0% of sentences") == 4, "so few are all ranked by the exact vectors"


def test_faiss_takes_few_vectors_too():
    pytest.importorskip("faiss")
    vectors = unit(np.random.default_rng(0).standard_normal((3, 64), np.float32))
    assert sorted(Faiss.build(vectors).top(vectors[:1], 2)[0]) == [0, 1, 2]
