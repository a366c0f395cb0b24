"""Hardware GRO: the stock driver receives coalesced segments, and says so when it does not want them."""

from __future__ import annotations

import hashlib
import os
import socket

import pytest
from lab import LINK0, LINK1, PLAIN_PORT, USER, Lab, Port

pytestmark = pytest.mark.guest

FILE_SIZE = 16 << 20


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
    inside = "ip netns exec peer " if port is LINK1 else ""
    words = " ".join(f"{name.replace('_', '-')} {'on' if value else 'off'}" for name, value in on.items())
    lab.run(f"{inside}ethtool -K {port.interface} {words}")
    lab.await_carrier(port)


def send_over_cable(lab: Lab, v: int) -> None:
    """A file from `LINK0` to `LINK1`, which must arrive as it was."""
    receiver = lab.guest.start(
        ["ip", "netns", "exec", "peer", "sh", "-c", f"socat -u -b 65536 TCP{v}-LISTEN:5500,reuseaddr - | sha256sum"]
    )
    lab.in_peer("until ss -ltn | grep -q :5500; do sleep 0.05; done")
    address = LINK0.peer if v == 4 else f"[{LINK0.peer6}]"
    lab.run(
        f"head -c {FILE_SIZE} /dev/urandom > /tmp/file; socat -u -b 65536 FILE:/tmp/file TCP:{address}:5500",
        timeout=120,
    )
    here = lab.run("sha256sum < /tmp/file; rm /tmp/file", timeout=120).stdout
    assert receiver.wait(60).stdout == here


@pytest.mark.parametrize("v", [4, 6])
def test_segments_become_packets(lab: Lab, split: bool, v: int) -> None:
    """*Steps*: a file from a sender without TSO. *Verify*: it arrives in far fewer packets than segments were sent."""
    before = {name: received(lab, LINK1, name) for name in ("frames", "aggregated", "coalesced")}
    features(lab, LINK0, tso=False)
    try:
        send_over_cable(lab, v)
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
        send_over_cable(lab, 4)
        assert received(lab, LINK1, "aggregated") == before
    finally:
        features(lab, LINK1, rx_gro_hw=True)
    send_over_cable(lab, 4)
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
