"""Hardware GRO: the stock drivers receive coalesced segments, and say so when they do not want them."""

from __future__ import annotations

import hashlib
import os
import socket

import pytest
from lab import CABLES, IN_PEER, PLAIN_PORT, USER, Cable, Lab, Port, on_each_device, send_file

pytestmark = pytest.mark.guest

FILE_SIZE = 4 << 20


#: Which idpf begins without, and gve with.
AT_FIRST = {"gvnic": True, "idpf": False}


@pytest.fixture(params=["unsplit", "split"])
def split(lab: Lab, cable: Cable, request: pytest.FixtureRequest) -> bool:
    on = bool(request.param == "split")
    for port in (cable.here, USER):
        lab.split(port, on)
    return on


def received(lab: Lab, port: Port, counter: str) -> int:
    return sum(queue[counter] for queue in lab.report(port)["rx_queues"])


def features(lab: Lab, port: Port, **on: bool) -> None:
    """Set features by ethtool's names, with underscores for hyphens."""
    words = " ".join(f"{name.replace('_', '-')} {'on' if value else 'off'}" for name, value in on.items())
    lab.run(f"{port.inside}ethtool -K {port.interface} {words}")
    lab.await_carrier(port)


@pytest.mark.parametrize(
    ("cable", "split", "v"),
    [
        # Without header split idpf could not tell how many segments there were (idpf_txrx.c, idpf_rx_rsc).
        *((CABLES[device], split, v) for device, split in (("gvnic", "unsplit"), ("gvnic", "split")) for v in (4, 6)),
        (CABLES["idpf"], "split", 4),
        pytest.param(CABLES["idpf"], "split", 6, marks=pytest.mark.long),
    ],
    indirect=["split"],
    ids=lambda value: value.device if isinstance(value, Cable) else str(value),
)
def test_segments_become_packets(lab: Lab, cable: Cable, split: bool, v: int) -> None:
    """*Steps*: a file from a sender without TSO. *Verify*: it arrives in far fewer packets than segments were sent."""
    here, there = cable.here, cable.there
    features(lab, here, rx_gro_hw=True)
    features(lab, there, tso=False)
    before = {name: received(lab, here, name) for name in ("frames", "aggregated", "coalesced")}
    try:
        send_file(lab.guest, here.address if v == 4 else here.address6, FILE_SIZE, here=IN_PEER, there="")
    finally:
        features(lab, there, tso=True)
        features(lab, here, rx_gro_hw=AT_FIRST[here.device])
    packets, aggregated, coalesced = (received(lab, here, name) - count for name, count in before.items())
    assert aggregated > 0
    segments = packets - aggregated + coalesced
    assert coalesced > segments / 2, f"{segments} segments, {coalesced} of them coalesced to {aggregated} packets"


@on_each_device
def test_the_driver_can_do_without(lab: Lab, cable: Cable) -> None:
    """With ``rx-gro-hw off`` no queue gets an aggregated packet, not even from a sender with TSO."""
    here = cable.here
    lab.split(here, True)

    def aggregated() -> int:
        """So many packets of a file."""
        before = received(lab, here, "aggregated")
        send_file(lab.guest, here.address, FILE_SIZE, here=IN_PEER, there="")
        return received(lab, here, "aggregated") - before

    try:
        features(lab, here, rx_gro_hw=False)
        assert aggregated() == 0
        features(lab, here, rx_gro_hw=True)
        assert aggregated() > 0
    finally:
        features(lab, here, rx_gro_hw=AT_FIRST[here.device])


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
