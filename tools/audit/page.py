"""The suspects as one HTML file with thumbnails and captions (paper, figures 7 to 9)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from datasets.images import read_image
from tools.audit.findings import Findings
from tools.audit.pairs import Pairs
from utils.files import write_text

_SIZE = (192, 96)  # height, width of a thumbnail
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem }}
article {{ display: flex; gap: .8rem; border: 1px solid #ccc; border-radius: 6px; padding: .7rem }}
article img {{ width: {width}px; height: {height}px; flex: none }}
article p {{ margin: 0 0 .5rem; overflow-wrap: anywhere }}
small {{ color: #555; display: block }}
.noisy {{ border-left: 5px solid #D55E00 }} .clean {{ border-left: 5px dashed #0072B2 }}
</style></head><body><h1>{title}</h1><p>{about}</p><main>
{cards}
</main></body></html>
"""


def write_page(findings: Findings, pairs: Pairs, suspects: Sequence[int], title: str, about: str, file: Path) -> None:
    """Write the page; it holds its pictures and loads nothing."""
    shown = tqdm(suspects, "thumbnails", leave=False, disable=None)
    cards = "\n".join(_card(findings, pairs, int(pair)) for pair in shown)
    height, width = _SIZE
    text = _PAGE.format(title=html.escape(title), about=html.escape(about), cards=cards, width=width, height=height)
    write_text(file, text)


def _card(findings: Findings, pairs: Pairs, pair: int) -> str:
    last, times = findings.last, findings.times_noisy[:, pair]
    votes = "".join(
        f"<small>{html.escape(name)}: P(clean) {last.clean_probability[n, pair]:.2f}, loss {last.loss[n, pair]:.3f}, "
        f"noisy in {times[n]} of {len(findings.epochs)} epochs</small>"
        for n, name in enumerate(findings.names)
    )
    truth = "" if findings.truth is None else "noisy" if findings.truth[pair] else "clean"
    known = f"<small>in truth <b>{truth}</b></small>" if truth else ""
    return (
        f'<article class="{truth}"><img alt="" src="{_thumbnail(pairs.file(pair))}"><div>'
        f"<p>{html.escape(pairs.caption(pair))}</p>"
        f"<small>pair {pair}, {html.escape(pairs.image(pair))}</small>"
        f"<small>suspicion {findings.suspicion[pair]:.3f}, flagged by {findings.flagged_by(pair)}</small>"
        f"{votes}{known}</div></article>"
    )


def _thumbnail(path: Path) -> str:
    """The image as a data address."""
    stream = io.BytesIO()
    Image.fromarray(read_image(path, _SIZE).transpose(1, 2, 0)).save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
