"""The report's sections as HTML. A section without data raises a UserError with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from processor.history import PairHistory
from processor.records import best_record, selected_on
from tools.audit.findings import Findings
from tools.audit.pairs import Pairs, read_pairs
from tools.differing import differing_flags, display_values
from tools.report.page import Sections, Subject, escaped, figure, picture, wide
from tools.report.retrievals import retrievals
from tools.visualize.curves import training_curves
from tools.visualize.densities import losses_over_epochs
from tools.visualize.runs import NothingToDraw
from utils.options import defaults
from utils.run_folder import Metrics, RunFolder

_METRICS = ("R1", "R5", "R10", "mAP", "mINP", "rSum")
_SUSPECTS = 12


def results(subject: Subject) -> str:
    """Metrics before training, at the best epoch, and of the tested checkpoints."""
    tables = dict(_tables(subject))
    if not tables:
        raise NothingToDraw("no epoch was validated and nothing tested")
    columns = "".join(f"<th>{name}</th>" for name in _METRICS)
    rows = "".join(
        f'<tbody><tr><th colspan="{len(_METRICS) + 1}">{escaped(title)}</th></tr>'
        f"{''.join(_row(name, values) for name, values in rows.items())}</tbody>"
        for title, rows in tables.items()
    )
    missing = "" if RunFolder(subject.run.folder).test_metrics() else '<p class="missing">Not tested yet.</p>'
    return wide(f"<table><thead><tr><th>%</th>{columns}</tr></thead>{rows}</table>") + missing


def _tables(subject: Subject) -> Iterator[tuple[str, Metrics]]:
    run, folder = subject.run, RunFolder(subject.run.folder)
    selected = selected_on(folder.facts())
    start = {selected if split == "val" else split: metrics for split, metrics in folder.start_metrics().items()}
    for split, metrics in start.items():
        yield f"starting weights, {split}", metrics
    if best := best_record(run.records, str(run.flags["trained"])):
        yield f"epoch {best['epoch']}, the best, {selected}", best["val"]
    for checkpoint, metrics in folder.test_metrics().items():
        yield f"{checkpoint}, test", metrics


def _row(similarity: str, values: Mapping[str, float]) -> str:
    cells = "".join(f"<td>{values[name]:.1f}</td>" if name in values else "<td>–</td>" for name in _METRICS)
    return f"<tr><td>{escaped(similarity)}</td>{cells}</tr>"


def flags(subject: Subject) -> str:
    """The flags that affect results and differ from their defaults."""
    both = [defaults(), subject.run.flags]
    if not (names := differing_flags(both)):
        raise NothingToDraw("all flags have their defaults")
    values = display_values(both, names)[1]
    rows = "".join(
        f'<tr><td>{escaped(name)}</td><td class="text">{escaped(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="flags"><tbody>{rows}</tbody></table>'


def curves(subject: Subject) -> str:
    """Losses, learning rate, CCD's counts, precision and recall, and validation metrics per epoch."""
    caption = "Training loss, learning rate, division of the pairs and validation over the epochs."
    if len(subject.run.records) == 1:
        caption += " After one epoch, each curve is a point."
    return figure(partial(training_curves, subject.run), caption)


def losses(subject: Subject) -> str:
    """Per-pair losses with the fitted mixtures."""
    last = _divisions(subject)[-1]
    caption = "Per-pair losses over the epochs, and the two components fitted to them."
    if last.truly_clean.all():
        caption += " The wrong captions are not known, so all pairs have one colour."
    return figure(partial(losses_over_epochs, subject.run), caption)


def suspects(subject: Subject) -> str:
    """The most suspicious pairs, with the ground truth if the run injected noise."""
    epochs = _divisions(subject)
    findings = Findings(epochs)
    pairs = read_pairs(subject.run.folder, subject.overrides.get("root_dir"), epochs[-1].loss.shape[1])
    first = findings.suspects()[:_SUSPECTS].tolist()
    truth = "" if findings.truth is not None else " The wrong captions are not known."
    audit = f"<p>{findings.summary()}{truth} The full list: <code>python -m tools.audit RUN_DIR</code></p>"
    return f'{audit}<div class="cards">{"".join(_suspect(findings, pairs, pair) for pair in first)}</div>'


def _suspect(findings: Findings, pairs: Pairs, pair: int) -> str:
    truth = "" if findings.truth is None else "wrong" if findings.truth[pair] else "right"
    truth_line = f"<small>ground truth: <b>{truth}</b></small>" if truth else ""
    return (
        f'<article class="pair {truth}"><div>{picture(pairs.file(pair), f"image of pair {pair}")}</div>'
        f'<div><p dir="auto">{escaped(pairs.caption(pair))}</p><small>pair {pair}, {escaped(pairs.image(pair))}</small>'
        f"<small>suspicion {findings.suspicion[pair]:.3f}, flagged by {escaped(findings.flagged_by(pair))}</small>"
        f"{truth_line}</div></article>"
    )


def _divisions(subject: Subject) -> list[PairHistory]:
    """The recorded divisions of the pairs by epoch.

    Raises:
        NothingToDraw: none is recorded.
    """
    epochs = [epoch.pairs for epoch in subject.run.history if epoch.pairs is not None]
    if not epochs:
        raise NothingToDraw(f"no division of the pairs is recorded (--division {subject.run.flags['division']})")
    return epochs


SECTIONS: Sections = {
    "Results": results,
    "Training": curves,
    "Per-pair losses": losses,
    "Best and worst retrievals": retrievals,
    "Most suspicious pairs": suspects,
    "Non-default flags": flags,
}
