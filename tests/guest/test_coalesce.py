"""Hardware GRO: the stock driver receives coalesced segments, and says so when it does not want them."""

from __future__ import annotations

import hashlib
import os
import socket

import pytest
from lab import IN_PEER, LINK0, LINK1, PLAIN_PORT, USER, Lab, Port, send_file

pytestmark = pytest.mark.guest

FILE_SIZE = 4 << 20


@pytest.fixture(params=["unsplit", "split"])
def split(lab: Lab, request: pytest.FixtureRequest) -> bool:
    on = bool(request.param == "split")
    for port in (LINK1, USER):
        lab.split(port, on)
    return on


def received(lab: Lab, port: Port, counter: str) -> int:
    return sum(queue[counter] for queue in lab.report(port)["rx_queues"])


def features(lab: Lab, port: Port, **on: bool) -> None:
    """Set features by ethtool's names, with underscores for hyphens."""
    inside = IN_PEER if port is LINK1 else ""
    words = " ".join(f"{name.replace('_', '-')} {'on' if value else 'off'}" for name, value in on.items())
    lab.run(f"{inside}ethtool -K {port.interface} {words}")
    lab.await_carrier(port)


@pytest.mark.parametrize("v", [4, 6])
def test_segments_become_packets(lab: Lab, split: bool, v: int) -> None:
    """*Steps*: a file from a sender without TSO. *Verify*: it arrives in far fewer packets than segments were sent."""
    before = {name: received(lab, LINK1, name) for name in ("frames", "aggregated", "coalesced")}
    features(lab, LINK0, tso=False)
    try:
        send_file(lab.guest, LINK0.peer if v == 4 else LINK0.peer6, FILE_SIZE)
    finally:
        features(lab, LINK0, tso=True)
    packets, aggregated, coalesced = (received(lab, LINK1, name) - count for name, count in before.items())
    assert aggregated > 0
    segments = packets - aggregated + coalesced
    assert coalesced > segments / 2, f"{segments} segments, {coalesced} of them coalesced to {aggregated} packets"


def test_the_driver_can_do_without(lab: Lab) -> None:
    """With ``rx-gro-hw off`` no queue gets an aggregated packet, not even from a sender with TSO."""
    features(lab, LINK1, rx_gro_hw=False)
    try:
        before = received(lab, LINK1, "aggregated")
        send_file(lab.guest, LINK0.peer, FILE_SIZE)
        assert received(lab, LINK1, "aggregated") == before
    finally:
        features(lab, LINK1, rx_gro_hw=True)
    send_file(lab.guest, LINK0.peer, FILE_SIZE)
    assert received(lab, LINK1, "aggregated") > before


def test_from_the_host(lab: Lab, split: bool) -> None:
    """Through passt, which sends frame by frame."""
    before = received(lab, USER, "coalesced")
    data = os.urandom(1 << 20) * (FILE_SIZE >> 20)
    receiver = lab.guest.start(f"socat -u -b 65536 TCP-LISTEN:{PLAIN_PORT},reuseaddr - | sha256sum")
    lab.run(f"until ss -ltn | grep -q :{PLAIN_PORT}; do sleep 0.05; done")
    with socket.create_connection(("127.0.0.1", PLAIN_PORT), timeout=60) as connection:
        connection.sendall(data)
    assert receiver.wait(60).stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert received(lab, USER, "coalesced") > before
