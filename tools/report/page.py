"""A run's report as one HTML file: images are embedded, and it has no script or external resource."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any

import torch

from datasets.exclusion import as_text
from processor.records import seconds_of
from tools.audit.page import thumbnail
from tools.visualize.runs import Run, read_run
from utils.errors import DataError, UserError
from utils.files import write_text
from utils.log import status
from utils.run_folder import RunFolder

_TEMPLATE = Path(__file__).with_name("page.html")
_REVISION = 7  # characters


@dataclass(frozen=True)
class Subject:
    """A run to report on, the device for its model, and flags that override the run's, such as root_dir."""

    run: Run
    device: torch.device
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, device: torch.device, root_dir: str | None = None) -> Subject:
        """Read a run, with its data in `root_dir` (default: the run's).

        Raises:
            OptionError, DataError: see `read_run`.
        """
        return cls(read_run(folder), device, {"root_dir": root_dir} if root_dir else {})


def escaped(text: str) -> str:
    """Escape any text, such as a caption or file name, for HTML."""
    return html.escape(as_text(text))


def wide(content: str) -> str:
    """Wrap content that may be wider than the screen in an element that scrolls, also by keyboard."""
    return f'<div class="wide" tabindex="0">{content}</div>'


def figure(draw: Callable[[Path], None], caption: str) -> str:
    """A figure element with the PNG that `draw` writes, and a caption."""
    with tempfile.TemporaryDirectory(prefix="rde_report_") as folder:
        file = Path(folder) / "figure.png"
        draw(file)
        content = base64.b64encode(file.read_bytes()).decode()
    image = wide(f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{content}">')
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def picture(path: Path, what: str) -> str:
    """A thumbnail with alt text `what`; a placeholder if the image can't be read."""
    try:
        return f'<img class="picture" alt="{html.escape(what)}" src="{thumbnail(path)}">'
    except DataError:
        return '<span class="picture">can’t be read</span>'


Sections = Mapping[str, Callable[[Subject], str]]


def write_report(subject: Subject, sections: Sections, file: Path) -> None:
    """Write the page; sections that raise a UserError are replaced by its message."""
    title = f"Report of {escaped(subject.run.folder.resolve().name)}"
    body = "\n".join(_section(subject, name, section) for name, section in sections.items())
    about = " · ".join(map(escaped, _about(subject)))
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(title=title, about=about, sections=body)
    write_text(file, page)


def _section(subject: Subject, name: str, section: Callable[[Subject], str]) -> str:
    status(f"report: {name.lower()}")
    try:
        body = section(subject)
    except UserError as error:
        stop = "" if error.line.endswith((".", "?", "…")) else "."
        body = f'<p class="missing">Skipped: {escaped(error.line)}{stop}</p>'
    return f"<section><h2>{html.escape(name)}</h2>\n{body}\n</section>"


def _about(subject: Subject) -> Iterator[str]:
    """Lines of the header: data, noise, progress and training time."""
    run, folder = subject.run, RunFolder(subject.run.folder)
    yield Path(run.data).name
    rate = float(run.flags["noisy_rate"])
    yield f"{rate:.0%} of the training captions mismatched" if rate else "no captions mismatched"
    state = "tested" if folder.is_finished() else "not finished"
    yield f"{run.records[-1]['epoch']} of {run.flags['num_epoch']} epochs, {state}"
    yield f"{timedelta(seconds=round(seconds_of(run.records)))} of training and division"
    if isinstance(revision := folder.facts().get("git_revision"), str):
        yield f"code {revision[:_REVISION]}"
