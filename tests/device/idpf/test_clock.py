"""The device's clock, which the driver sets, and the stamps of frames."""

from __future__ import annotations

import pytest

from nicmodel.idpf.clock import INCREMENT, MAX_ADJUSTMENT
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.mailbox import Refused
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.idpf.virtchnl import NO_PEER, Ptp

from ..frames import udp

pytestmark = pytest.mark.nic(device="idpf")

SECOND = 1_000_000_000


def advance(nic: TestNic, ns: int) -> None:
    assert nic.clock is not None
    nic.clock.advance(ns)


def test_what_can_be_done_with_it(driver: Driver) -> None:
    caps = driver.clock()
    assert Ptp(int(caps["caps"])) == sum(Ptp)
    assert (caps["base_incval"], caps["max_adj"], caps["peer_mbx_q_id"]) == (INCREMENT, MAX_ADJUSTMENT, NO_PEER)


def test_it_goes_is_set_and_adjusted(driver: Driver, nic: TestNic) -> None:
    start = driver.time()
    advance(nic, SECOND)
    assert driver.time() == start + SECOND
    driver.set_time(1_800_000_000 * SECOND)
    advance(nic, 5)
    assert driver.time() == 1_800_000_000 * SECOND + 5
    driver.adjust_time(-7)
    assert driver.time() == 1_800_000_000 * SECOND - 2
    driver.set_time((1 << 64) - 1)
    advance(nic, 3)
    assert driver.time() == 2


def test_its_rate(driver: Driver, nic: TestNic) -> None:
    """A ppm faster from now on, and not before."""
    driver.set_time(0)
    advance(nic, SECOND)
    driver.set_increment(INCREMENT + INCREMENT // 1_000_000)
    assert driver.time() == SECOND
    advance(nic, SECOND)
    assert abs(driver.time() - 2 * SECOND - 1000) <= 1
    driver.set_increment(INCREMENT)
    for wrong in (0, 2 * INCREMENT):
        with pytest.raises(Refused, match="PTP_ADJ_DEV_CLK_FINE: OUT_OF_RANGE"):
            driver.set_increment(wrong)


def test_a_reset_forgets_how_it_was_set(driver: Driver, nic: TestNic) -> None:
    before = driver.time()
    driver.set_time(0)
    nic.device.request_reset()
    driver.set_up()
    assert driver.time() >= before


@pytest.mark.parametrize("offset", [0, 0xFFFF_FFF0])
def test_what_comes_is_stamped(driver: Driver, nic: TestNic, offset: int) -> None:
    """With the lower 32 bits, which may wrap; each of a packet's completions has the same."""
    driver.open(queues=1)
    driver.set_time(offset)
    for _ in range(3):
        advance(nic, 10)
        nic.inject(udp(5000))
        (packet,) = driver.poll(0)
        stamps = {completion["timestamp"] for completion in packet.completions}
        assert stamps == {packet.timestamp} == {driver.time() & 0xFFFF_FFFF}


def test_what_is_sent_is_stamped_if_asked_for(driver: Driver, nic: TestNic) -> None:
    """*Verify*: a latch has the time of its frame, once; those that were not asked for have nothing."""
    driver.open(queues=1)
    first, second, *_, last = driver.latches()
    driver.set_time(5 * SECOND)
    driver.send(0, udp(100))
    driver.send(0, udp(100), latch=second)
    driver.poll_tx(0)
    advance(nic, 100)
    driver.send(0, udp(2000), fragments=(100, 100), latch=last)
    driver.poll_tx(0)
    assert len(nic.sent) == 3
    advance(nic, SECOND)
    assert driver.timestamps([first, second, last]) == [None, 5 * SECOND, 5 * SECOND + 100]
    assert driver.timestamps([last]) == [None]
    with pytest.raises(Refused, match="PTP_GET_VPORT_TX_TSTAMP: OUT_OF_RANGE"):
        driver.timestamps([255])


def test_a_latch_that_is_not_there(driver: Driver, nic: TestNic) -> None:
    """The packet is a bad one, and completed as such."""
    driver.open(queues=1)
    driver.send(0, udp(100), latch=4711)
    driver.send(0, udp(100))
    assert len(driver.poll_tx(0)) >= 2
    assert len(nic.sent) == 1
