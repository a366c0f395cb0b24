"""Direct data placement of what a real target sends: Linux' nvmet in a guest, read through passt.

What it has sent is received again by a NIC with a driver in Python, cut anew, with loss and reordering: every byte that
was read has to be where it belongs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from lab import PLAIN_PORT, USER, Lab
from nvme_initiator import BLOCK, Queue

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.gvnic.testing.nvme_tcp import Reader
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.tcp_stream import TcpStream, arrivals

pytestmark = pytest.mark.guest

SUBSYSTEM = "nqn.2014-08.org.example:disk"
DISK = 1 << 20
#: Reads of these many blocks, all under way at the same time: 1 MiB, with as many headers for the network to lose.
READS = [1] * 64 + [2, 8, 16, 32, 4, 61, 69]

#: A target with one namespace, which is a file of random bytes.
TARGET = f"""
set -e
modprobe nvmet_tcp
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
python3 -c 'import random; open("/tmp/disk", "wb").write(random.Random(6).randbytes({DISK}))'
cd /sys/kernel/config/nvmet
mkdir subsystems/{SUBSYSTEM} subsystems/{SUBSYSTEM}/namespaces/1 ports/1
echo 1 > subsystems/{SUBSYSTEM}/attr_allow_any_host
cd subsystems/{SUBSYSTEM}/namespaces/1
echo -n /tmp/disk > device_path
echo 1 > buffered_io
echo 1 > enable
cd /sys/kernel/config/nvmet/ports/1
echo tcp > addr_trtype
echo ipv4 > addr_adrfam
echo {USER.address} > addr_traddr
echo {PLAIN_PORT} > addr_trsvcid
ln -s ../../subsystems/{SUBSYSTEM} subsystems/
"""
NO_TARGET = f"""
cd /sys/kernel/config/nvmet
rm -f ports/1/subsystems/*
rmdir ports/1 subsystems/{SUBSYSTEM}/namespaces/1 subsystems/{SUBSYSTEM}
rm -f /tmp/disk
modprobe -r nvmet_tcp
"""


class Recording(NamedTuple):
    """What a target has sent on a connection with these digests, and what was read, by command identifier."""

    stream: bytes
    digests: int
    reads: dict[int, bytes]


def record(digests: int, flow_control: bool) -> Recording:
    """Read from the target."""
    disk = random.Random(6).randbytes(DISK)
    address = ("127.0.0.1", PLAIN_PORT)
    reads = {}
    with Queue(address, digests) as admin, Queue(address, digests) as queue:
        controller = admin.connect(SUBSYSTEM)
        admin.enable()
        queue.connect(SUBSYSTEM, queue=1, controller=controller, flow_control=flow_control)
        block = 0
        for command, blocks in enumerate(READS, 100):
            block = (block + 37) % (DISK // BLOCK - blocks + 1)
            queue.read(command, block, blocks)
            reads[command] = disk[block * BLOCK : (block + blocks) * BLOCK]
        queue.finish(len(READS))
        return Recording(queue.stream, digests, reads)


@pytest.fixture(scope="module")
def recordings(bench: Lab) -> Iterator[dict[str, Recording]]:
    """With both digests and responses; with none, and data that says that it is the last."""
    bench.run(TARGET, timeout=120)
    try:
        yield {"digests": record(3, flow_control=True), "plain": record(0, flow_control=False)}
    finally:
        bench.run(NO_TARGET, timeout=120)


@dataclass
class Replayed:
    """Bytes of data that were placed and copied, and what the device counted."""

    placed: int
    copied: int
    counters: dict[str, int]


def replay(recording: Recording, **network: float) -> Replayed:
    """Receive a recording through a NIC, and check every byte."""
    profile = Profile(mac=bytes.fromhex("020000000001"), ddp_flows=1)
    with TestNic(profile, clock=VirtualClock()) as nic, nic.connect() as driver:
        driver.probe()
        driver.open(rx_queues=1, tx_queues=1, header_split=True)
        stream = TcpStream("192.0.2.1", "192.0.2.2", PLAIN_PORT, 40000, nic.mac, 2**32 - 100_000, recording.stream)
        reader = Reader(
            driver, source=stream.source, destination=stream.destination, source_port=stream.source_port,
            destination_port=stream.destination_port, sequence=stream.sequence, digests=recording.digests,
        )  # fmt: skip
        for command, data in recording.reads.items():
            reader.read(command, len(data))
        for segment in arrivals(len(stream.data), random.Random(1), **network):  # type: ignore[arg-type]
            nic.inject(stream.segment(*segment))
            for packet in driver.poll(0):
                reader.take(packet)
        assert {command: read.data for command, read in reader.done.items()} == recording.reads
        assert not reader.wrong
        return Replayed(reader.placed, reader.copied, nic.device.ddp.counters)


@pytest.mark.parametrize("name", ["digests", "plain"])
def test_in_order(lab: Lab, recordings: dict[str, Recording], name: str) -> None:
    """All but the ends of PDUs in the tails of segments is placed, and every digest that nvmet has sent holds."""
    recording = recordings[name]
    replayed = replay(recording)
    assert replayed.placed > 0.999 * sum(READS) * BLOCK
    assert replayed.counters["placed_pdus"] + replayed.counters["short"] >= len(READS)
    assert replayed.counters["digests"] == (len(READS) if recording.digests else 0)
    assert not any(replayed.counters[name] for name in ("lost", "digest_errors", "bad_headers", "unknown_command"))


@pytest.mark.parametrize("name", ["digests", "plain"])
@pytest.mark.parametrize(
    ("loss", "reorder", "least"), [(0.001, 0, 0.9), (0.01, 0, 0.7), (0, 0.02, 0.7), (0.03, 0.1, 0.1)]
)
def test_loss_and_reordering(
    lab: Lab, recordings: dict[str, Recording], name: str, loss: float, reorder: float, least: float
) -> None:
    """Whatever happens on the way: what was read is what is on the disk, and most of it was placed."""
    replayed = replay(recordings[name], loss=loss, reorder=reorder)
    total = replayed.placed + replayed.copied
    assert total == sum(READS) * BLOCK
    counters = replayed.counters
    print(
        f"{name}, loss {loss:.1%}, reordering {reorder:.0%}: {replayed.placed / total:.1%} placed; sync lost "
        f"{counters['lost']} times, {counters['requests']} requests, {counters['confirmed']} confirmed"
    )
    assert replayed.placed > least * total
    if loss + reorder > 0.1:
        assert counters["confirmed"] > 0
    assert counters["confirmed"] + counters["refused"] <= counters["requests"] and not counters["digest_errors"]
