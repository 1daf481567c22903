"""Test captions with the best and worst retrievals of a run's best checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from datasets.gallery import Gallery
from processor.evaluation import Encoded
from processor.metrics import queries_at_a_time
from tools.loading import load_run
from tools.report.page import Subject, escaped, picture
from tools.visualize.pictures import encoded_test, source
from tools.visualize.runs import NothingToDraw

_SHOWN, _TOP = 3, 5  # captions of each kind, images per caption
_EXPLAINED = (
    "Sorted by lead: the highest similarity of a correct image minus that of a wrong one; one caption per person. "
    "✓, solid frame: the caption's person; ✗, dashed frame: someone else."
)


@dataclass(frozen=True)
class Answers:
    """Retrieval quality of C captions by the fused similarity.

    Attributes:
        lead: (C,) similarity of the best positive image minus that of the best negative one, in [-2, 2]; inf without
            negatives.
        rank: (C,) rank of the first positive image, from 1.
    """

    lead: np.ndarray
    rank: np.ndarray

    @classmethod
    def of(cls, encoded: Encoded, gallery: Gallery) -> Answers:
        """Rank captions in chunks."""
        image_pids = torch.from_numpy(gallery.image_pids).to(encoded.device)
        caption_pids = torch.from_numpy(gallery.caption_pids).to(encoded.device)
        leads, ranks, chunk = [], [], queries_at_a_time(len(image_pids))
        for start in range(0, len(caption_pids), chunk):
            rows = slice(start, start + chunk)
            similarity = encoded.similarity(rows)[encoded.fused]  # (c, images)
            positive = caption_pids[rows, None] == image_pids
            best = similarity.masked_fill(~positive, -torch.inf).amax(dim=1)
            leads.append(best - similarity.masked_fill(positive, -torch.inf).amax(dim=1))
            ranks.append((similarity > best[:, None]).sum(dim=1) + 1)
        return cls(torch.cat(leads).cpu().numpy(), torch.cat(ranks).cpu().numpy())


def one_per_person(order: Iterable[int], pids: np.ndarray) -> list[int]:
    """The first few captions in `order` that show distinct persons, by their (captions,) pids."""
    first: dict[int, int] = {}
    for caption in order:
        first.setdefault(int(pids[caption]), caption)
    return [*first.values()][:_SHOWN]


def retrievals(subject: Subject) -> str:
    """The top images for the captions with the largest and smallest lead, as HTML.

    Raises:
        UserError: the checkpoint or the data are missing.
        NothingToDraw: the test split has a single person.
    """
    run = load_run(subject.run.folder, subject.device, **subject.overrides)
    encoded, gallery = encoded_test(run)
    if len(np.unique(gallery.image_pids)) == 1:
        raise NothingToDraw("the test split has a single person")
    answers = Answers.of(encoded, gallery)
    order = np.argsort(answers.lead, kind="stable").tolist()
    correct = int((answers.rank == 1).sum())
    count = f"Rank 1 is correct for {correct:,} of {len(order):,} captions."
    parts = [f"<p>{escaped(source(run))}, by {escaped(encoded.fused)}. {count} {escaped(_EXPLAINED)}</p>"]
    for title, captions in (("Best", order[::-1]), ("Worst", order)):
        cards = (
            _card(encoded, gallery, answers, caption) for caption in one_per_person(captions, gallery.caption_pids)
        )
        parts.append(f'<h3>{title}</h3><div class="cards">{"".join(cards)}</div>')
    return "\n".join(parts)


def _card(encoded: Encoded, gallery: Gallery, answers: Answers, caption: int) -> str:
    similarity = encoded.similarity([caption])[encoded.fused][0].cpu().numpy()
    top = np.argsort(-similarity, kind="stable")[:_TOP]
    correct = gallery.image_pids[top] == gallery.caption_pids[caption]
    images = (
        f'<li class="{"right" if hit else "wrong"}">{picture(gallery.split.images[image], f"result {n}")}'
        f"{'✓' if hit else '✗'} {similarity[image]:.2f}</li>"
        for n, (image, hit) in enumerate(zip(top, correct, strict=True), 1)
    )
    lead = f"lead {answers.lead[caption]:+.3f}, first correct image at rank {answers.rank[caption]:,}"
    text = escaped(gallery.split.captions[caption])
    head = f'<p dir="auto">{text}</p><p><small>{lead}</small></p>'
    return f'<article>{head}<ol class="ranked">{"".join(images)}</ol></article>'
