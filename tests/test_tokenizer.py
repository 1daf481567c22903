"""Caption ids against the published ones, and the captions that break the published tokenizer."""

from __future__ import annotations

import html
import json
import subprocess
import sys

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.tokenizer import EOS, MASK, SOS, Tokenizer, _clean
from tests import published

GOLDEN = json.loads((published.GOLDEN / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["text"][:20] or "empty")
def test_ids_equal_the_published_ones(tokenizer, case):
    assert tokenizer([case["text"]])[0].tolist() == case["ids"]


def test_special_ids_are_the_published_ones():
    assert (GOLDEN["mask"], GOLDEN["sot"], GOLDEN["eot"]) == (MASK, SOS, EOS)


@given(caption=st.text(st.characters(min_codepoint=31, max_codepoint=127), max_size=30))
def test_a_caption_that_needs_no_cleaning_is_left_as_it_is(caption):
    assert _clean(caption) == html.unescape(html.unescape(ftfy.fix_text(caption)))


@pytest.mark.parametrize("caption", ["jekyll", "a <|endoftext|> b", "<|startoftext|>", "<|mask|>", "<end_of_text>"])
def test_what_broke_the_published_tokenizer_is_ordinary_text(tokenizer, caption):
    ids = tokenizer([caption])[0]
    length = int((ids != 0).sum())
    assert (ids[0], ids[length - 1]) == (SOS, EOS)
    assert all(0 < number < MASK for number in ids[1 : length - 1]), "a special id within the caption"


def test_long_captions_are_cut_with_eos_last(tokenizer):
    ids = tokenizer(["man " * 500], text_length=20)[0]
    assert (ids[0], ids[-1]) == (SOS, EOS)
    assert (ids[1:-1] == ids[1]).all()


@pytest.mark.slow
def test_open_clip_is_not_imported():
    program = "import sys, datasets.tokenizer as t; t.Tokenizer()(['a man']); sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
