"""Faults on demand, each against the driver in Python, on a clock that only the test moves."""

from __future__ import annotations

import pytest

from nicmodel.faults import FaultError
from nicmodel.gvnic.descriptors import TxCompletionType
from nicmodel.testing.driver import Driver
from nicmodel.testing.loopback import Loopback

from .conftest import ENTRIES
from .frames import tcp

MS = 1_000_000


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    """Two queues each way with header split; hashes go to queue 0; no moderation, all vectors enabled."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES, header_split=True)
    driver.set_rss(table=[0] * 128)
    for vector in range(driver.blocks):
        driver.enable(vector, interval_us=0)
    lab.run()
    for vector in range(driver.blocks + 1):
        driver.fired(vector)
    return driver


def hits(lab: Loopback) -> dict[str, int]:
    """Strikes by the fault's name."""
    counts = lab.nic.counters
    return {name.removeprefix("fault "): count for name, count in counts.items() if name.startswith("fault ")}


def send(lab: Loopback, queue: int = 0, count: int = 1) -> list[int]:
    """Send packets; their tags."""
    tags = [lab.driver.send(queue, tcp()) for _ in range(count)]
    lab.run()
    return tags


def completed(lab: Loopback, queue: int = 0) -> list[int]:
    """Tags of the packets that are completed since the last call."""
    done = lab.driver.poll_tx(queue)
    return [completion.tag_or_head for completion in done if completion.type == TxCompletionType.PACKET]


def test_a_fault_that_does_not_exist_is_refused_with_those_that_do(lab: Loopback) -> None:
    with pytest.raises(FaultError, match=r"no fault 'tx-newer', but .*tx-never"):
        lab.faults.add("tx-newer")
    with pytest.raises(FaultError, match="no parameter 'probabilty', but queue, probability"):
        lab.faults.add("tx-never", probabilty=1)
    with pytest.raises(FaultError, match="probability is 'often'; it takes a number"):
        lab.faults.add("tx-never", probability="often")
    with pytest.raises(FaultError, match="it is 0 to 1"):
        lab.faults.add("tx-never", probability=2)
    with pytest.raises(FaultError, match="cannot be negative"):
        lab.faults.add("tx-never", duration=-1)
    assert lab.faults.injections == {}


# Transmit.


def test_completions_that_never_come(lab: Loopback, driver: Driver) -> None:
    """The packets leave, later ones are completed, and the interrupt comes for those only."""
    lab.faults.add("tx-never", count=3)
    tags = send(lab, count=3)
    assert len(lab.wire.take()) == 3
    assert completed(lab) == []
    assert driver.fired(driver.tx_block(0)) == 0
    later = send(lab, count=2)
    assert completed(lab) == later
    assert driver.fired(driver.tx_block(0)) == 1
    assert set(driver.tx[0].pending) == set(tags)
    assert hits(lab) == {"tx-never": 3}
    assert lab.faults.injections == {}  # it is over


def test_a_queue_without_completions_is_whole_again_after_a_reset(lab: Loopback, driver: Driver) -> None:
    fault = lab.faults.add("tx-never", queue=1)
    send(lab, queue=1, count=5)
    assert completed(lab, queue=1) == []
    assert send(lab) == completed(lab)
    lab.faults.remove(fault)
    driver.reset()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    for _ in range(12):  # three laps of the ring
        tags = send(lab, queue=1, count=ENTRIES // 8)
        assert completed(lab, queue=1) == tags


def test_late_completions(lab: Loopback, driver: Driver) -> None:
    """A late completion is overtaken by one that is not, and raises an interrupt of its own."""
    lab.faults.add("tx-late", delay=0.02, count=1)
    [late] = send(lab)
    [prompt] = send(lab)
    assert completed(lab) == [prompt]
    driver.enable(driver.tx_block(0))
    driver.fired(driver.tx_block(0))
    lab.run()
    lab.advance(19 * MS)
    assert completed(lab) == []
    assert driver.fired(driver.tx_block(0)) == 0
    lab.advance(1 * MS)
    assert completed(lab) == [late]
    assert driver.fired(driver.tx_block(0)) == 1
    assert hits(lab) == {"tx-late": 1}


def test_a_completion_later_than_its_queue_is_not_written(lab: Loopback, driver: Driver) -> None:
    """The memory of a ring may be something else by then."""
    lab.faults.add("tx-late", delay=0.02)
    send(lab)
    ring, size = driver.tx[0].completion_ring_address, driver.tx[0].completion_ring.nbytes
    driver.reset()
    lab.ram.write(ring, b"\xaa" * size)
    lab.advance(30 * MS)
    assert lab.ram.read(ring, size) == b"\xaa" * size


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_faults(make_lab: object, seed: int) -> None:
    assert callable(make_lab)
    runs = []
    for _ in range(2):
        lab = make_lab()
        lab.faults.seed = seed
        lab.driver.probe()
        lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=256)
        lab.faults.add("tx-never", probability=0.5)
        tags = send(lab, count=60)
        done = set(completed(lab))
        runs.append([tag in done for tag in tags])
    assert runs[0] == runs[1]
    assert 10 < sum(runs[0]) < 50
