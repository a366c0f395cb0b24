"""A live NVMe/TCP connection to Linux' nvmet in a guest: ``nicmodel experiment ddp`` in short."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from lab import quiet_log

from nicmodel.gvnic.experiments import ddp
from nicmodel.gvnic.experiments.ddp import DDP, Bench, Case, Network, Parameters
from nicmodel.gvnic.experiments.ddp_guest import set_up
from nicmodel.gvnic.testing.nvme_host import BLOCK
from nicmodel.vm.kernel import DEFAULT_KERNEL
from nicmodel.vm.nvmet import NvmeTarget

pytestmark = pytest.mark.guest

PARAMETERS = Parameters(losses=(0, 0.01), reorders=(0.02,), depths=(1, 32), commands=28, digests=(True,))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield set_up(stack, DEFAULT_KERNEL)


def test_experiment(bench: Bench) -> None:
    """All claims hold: all three ways, with loss and reordering; the guest's kernel has nothing to complain about."""
    assert isinstance(bench.target, NvmeTarget)
    assert bench.wrong_blocks == 0
    with quiet_log(bench.target.guest):
        rows = [row for case in ddp.cases(PARAMETERS) for row in ddp.measure(PARAMETERS, bench, case)]
    result = ddp.conclude(PARAMETERS, rows, bench.about)
    for row in rows:
        print({name: value for name, value in row.items() if name != "device"})
        assert row["placed"] + row["copied"] == row["read_bytes"]
    assert [f"{claim.claim} ({claim.evidence})" for claim in result.claims if not claim.holds] == []


def test_without_digests_data_says_that_it_is_the_last(bench: Bench) -> None:
    """The target completes reads by their data then, and the NIC places it all the same."""
    parameters = Parameters(depths=(8,), commands=20)
    [row] = ddp.measure(parameters, bench, Case(DDP, Network(), digests=False))
    assert row["placed_percent"] > 99 and row["wrong_bytes"] == row["wrong_blocks"] == 0


def test_a_byte_that_changes_in_the_targets_file_is_noticed(bench: Bench) -> None:
    """Behind everybody's back: by the guest's account of its file, and by whoever reads there."""
    assert isinstance(bench.target, NvmeTarget)
    assert bench.wrong_blocks == 0
    places = [block * BLOCK + random.Random(block).randrange(BLOCK) for block in range(64)]
    bench.target.damage(*places)
    assert bench.wrong_blocks == len(places)
    parameters = Parameters(depths=(8,), commands=60)
    [row] = ddp.measure(parameters, bench, Case(DDP, Network(), digests=True))
    assert row["wrong_bytes"] > 0 and row["wrong_digests"] == 0 < row["wrong_blocks"] <= len(places)
