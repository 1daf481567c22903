"""The suspects as one HTML file with thumbnails and captions (paper, figures 7 to 9), where pairs can be marked."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from datasets.exclusion import as_cell, as_text
from datasets.images import read_image
from tools.audit.findings import Findings
from tools.audit.pairs import Pairs
from utils.files import write_text

_EXPLAINED = (
    "P(clean) is a vote's probability in the last epoch that the pair matches: with CCD, the probability that its "
    "loss belongs to the lower of the two components fitted to an embedding's losses; with DECL, its expected "
    "probability within its batch; with CRCL, its label. Suspicion is 1 − P(clean), averaged over votes and epochs: "
    "near 1, the pair was doubted throughout; near 0.5, the votes disagreed or changed, so decide yourself."
)
_KEYS = (
    "Mark wrong pairs: j and k move to the next and previous pair, x marks, / filters, s saves; then "
    "train.py … --exclude marks.csv. Marks are lost unless you save them; nothing is sent anywhere."
)
_SCRIPT = Path(__file__).with_name("page.js")
_SIZE = (192, 96)  # height, width of a thumbnail
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
script-src 'sha256-{digest}'">
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  overflow-wrap: anywhere }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem }}
article {{ display: flex; gap: .8rem; border: 1px solid #ccc; border-radius: 6px; padding: .7rem }}
article img {{ width: {width}px; height: {height}px; flex: none }}
article {{ scroll-margin-top: 6rem }}
article p {{ margin: 0 0 .5rem }}
small {{ color: #555; display: block }}
header {{ position: sticky; top: 0; background: #fff; padding: .6rem 0; z-index: 1 }}
header input[type=search] {{ width: 16rem; max-width: 100% }}
header * {{ font: inherit }}
[hidden] {{ display: none !important }}
.marked {{ background: #fdeee3 }} .current {{ outline: 3px solid #1a1a1a }}
.noisy {{ border-left: 5px solid #D55E00 }} .clean {{ border-left: 5px dashed #0072B2 }}
</style></head><body><h1>{title}</h1><p>{about}</p><p>{explained}</p><p>{keys}</p>
<header><input id="words" type="search" placeholder="filter: words of caption, path, votes" aria-label="filter">
<select id="which" aria-label="which pairs"><option value="all">all</option><option value="marked">marked</option>
<option value="unmarked">not marked</option></select>
<button id="save">save marks (marks.csv)</button> <span id="count"></span></header><main>
{cards}
</main><script>{script}</script></body></html>
"""


@dataclass(frozen=True)
class Heading:
    """Texts above the suspects."""

    title: str
    about: str


def write_page(
    findings: Findings, pairs: Pairs, suspects: Sequence[int], marked: Container[int], heading: Heading, file: Path
) -> None:
    """Write the page, with embedded images and no external resources; `marked` pairs start out marked."""
    script = _SCRIPT.read_text(encoding="utf-8")
    progress = tqdm(suspects, "thumbnails", leave=False, disable=None)
    cards = "\n".join(_card(findings, pairs, int(pair), marked=pair in marked) for pair in progress)
    height, width = _SIZE
    texts = {"title": heading.title, "about": heading.about, "explained": _EXPLAINED, "keys": _KEYS}
    texts = {name: html.escape(text) for name, text in texts.items()}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # allows only this script
    write_text(file, _PAGE.format(**texts, cards=cards, width=width, height=height, script=script, digest=digest))


def _card(findings: Findings, pairs: Pairs, pair: int, *, marked: bool) -> str:
    last, times = findings.last, findings.times_noisy[:, pair]
    votes = "".join(
        f"<small>{html.escape(name)}: P(clean) {last.clean_probability[n, pair]:.2f}, loss {last.loss[n, pair]:.3f}, "
        f"noisy in {times[n]} of {len(findings.epochs)} epochs</small>"
        for n, name in enumerate(findings.names)
    )
    truth = "" if findings.truth is None else "noisy" if findings.truth[pair] else "clean"
    truth_line = f"<small>ground truth: <b>{truth}</b></small>" if truth else ""
    original = as_text(pairs.original(pair))  # which `--exclude` compares
    data = {"pair": str(pair), "image": as_cell(pairs.image(pair)), "caption": as_cell(original)}
    attributes = " ".join(f'data-{name}="{html.escape(value)}"' for name, value in data.items())
    return (
        f'<article class="{truth}" {attributes}><img alt="" src="{thumbnail(pairs.file(pair))}"><div>'
        f'<label><input type="checkbox"{" checked" if marked else ""}> exclude</label>'
        f"<p>{html.escape(pairs.caption(pair))}</p>"
        f"<small>pair {pair}, {html.escape(pairs.image(pair))}</small>"
        f"<small>suspicion {findings.suspicion[pair]:.3f}, flagged by {findings.flagged_by(pair)}</small>"
        f"{votes}{truth_line}</div></article>"
    )


def thumbnail(path: Path) -> str:
    """The image as a data URL.

    Raises:
        DataError: as `read_image`.
    """
    stream = io.BytesIO()
    Image.fromarray(read_image(path, _SIZE).transpose(1, 2, 0)).save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
