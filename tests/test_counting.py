"""Operations, waits and bytes of a training step and a scoring batch are bounded, independent of batch size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import plain
from benchmarks.counting import counting, marginal_cost, passes
from benchmarks.synthetic import TINY, optimizer_arguments, random_batch, random_model

CPU = torch.device("cpu")
MOST = {"training step": 640, "scoring batch": 275}  # operations, of two towers of four blocks (benchmarks/README.md)


@pytest.mark.parametrize("what", MOST)
def test_operations_are_bounded_and_nothing_synchronises(what):
    model, both = random_model(TINY, CPU), random_batch(TINY, 8, CPU)
    half = replace(both, images=both.images[:4], ids=both.ids[:4], pids=both.pids[:4], pairs=both.pairs[:4])
    optimizer = plain.build_optimizer(*optimizer_arguments(model))
    found = [
        marginal_cost(passes(model, optimizer, len(batch.pids))[what]["ours"], batch, optimizer)
        for batch in (half, both)
    ]
    assert found[0]["operations"] == found[1]["operations"] <= MOST[what]
    assert found[0]["synchronisations"] == found[1]["synchronisations"] == 0
    assert found[0]["allocated, MB"] < found[1]["allocated, MB"] < 2.1 * found[0]["allocated, MB"]
    assert found[1]["GFLOP"] == pytest.approx(2 * found[0]["GFLOP"], rel=1e-3)


@pytest.mark.parametrize(
    ("waits", "count"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x[0] > 0), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.add(1).cpu(), 1),
        (lambda x: (x + 1).relu_(), 0),
    ],
)
def test_synchronisations_are_counted(waits, count):
    tensor = torch.arange(4.0)
    with counting() as counts:
        waits(tensor)
    assert counts.synchronisations == count
    with counting(host=[tensor]) as counts:
        tensor.tolist()
    assert counts.synchronisations == 0


def test_new_bytes_are_counted_once_and_views_not_at_all():
    tensor = torch.zeros(4)
    with counting() as counts:
        tensor.add(1).relu_().view(2, 2).T.sum()
    assert counts.operations == 3
    assert counts.allocated == 16 + 4
