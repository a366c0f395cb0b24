"""Guests of one, two and four CPUs, up to sixteen queues each way, and what joins several NICs: link and switch."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fleet import (
    CPUS,
    DOUBLE,
    MTU,
    QUAD,
    QUEUES,
    REPLAY,
    REPLAYED,
    SINGLE0,
    SINGLE1,
    SWITCH_A,
    SWITCH_B,
    SWITCH_C,
    UPLINK_HOST,
    VETH,
    VETH_HOST,
    Fleet,
    Station,
)
from lab import echo_back, echo_server, send_file, wait_until
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.utils import rdpcap

pytestmark = pytest.mark.guest

#: Flows for each queue: that a random choice among n queues misses one has a probability of n·e^-20.
FLOWS = 20
FILE_SIZE = 2 << 20
PORT = 5400
LONGEST_FRAME = MTU + 14


def counts(report: dict[str, Any], way: str, counter: str) -> list[int]:
    """A counter of each queue."""
    return [queue[counter] for queue in report[f"{way}_queues"]]


def exchange(fleet: Fleet, asker: Station, answerer: Station, queues: int) -> None:
    """Set a number of queues at both ends, and have datagrams asked and answered over all of them."""
    flows = FLOWS * queues
    for station in (asker, answerer):
        fleet.run(station, f"ethtool -L {station.interface} rx {queues} tx {queues}")
        fleet.await_carrier(station)
    before = {station: fleet.report(station) for station in (asker, answerer)}
    ends = (answerer, "answer"), (asker, "ask")
    answering, asking = (
        f"exec {end.inside}python3 /tmp/datagrams.py {role} {end.address} {peer.address} {flows}"
        for (end, role), peer in zip(ends, (asker, answerer), strict=True)
    )
    process = fleet.guests[answerer.guest].start(answering)
    try:
        process.expect("ready", timeout=120)
        fleet.guests[asker.guest].run(asking, timeout=180)
    finally:
        process.kill()
        process.wait(120)
    for station, old in before.items():
        new = fleet.report(station)
        for way, counter in (("rx", "frames"), ("tx", "packets")):
            moved = [now - then for now, then in zip(counts(new, way, counter), counts(old, way, counter), strict=True)]
            assert min(moved[:queues]) > 0, f"{station}: {way} queues of {queues} that saw nothing: {moved}"
            assert sum(moved[queues:]) == 0
            assert sum(moved) >= flows
        assert new["drops"] == old["drops"]
        assert new["dma_faults"] == 0


@pytest.mark.parametrize(
    ("asker", "answerer", "numbers"),
    [
        pytest.param(SINGLE0, SINGLE1, (1, QUEUES), id="one CPU"),
        pytest.param(DOUBLE, QUAD, (3, 8), id="two CPUs and four"),
    ],
)
def test_every_queue_carries_traffic(fleet: Fleet, asker: Station, answerer: Station, numbers: Any) -> None:
    for station in (asker, answerer):
        guest = fleet.guests[station.guest]
        assert guest.run("nproc").stdout.strip() == str(CPUS[station.guest])
        guest.put(Path(__file__).with_name("datagrams.py"), "/tmp/datagrams.py")
    try:
        for queues in numbers:
            exchange(fleet, asker, answerer, queues)
    finally:
        for station in (asker, answerer):
            fleet.run(station, f"ethtool -L {station.interface} rx 4 tx 4")
            fleet.await_carrier(station)


def transfer(fleet: Fleet, sender: Station, receiver: Station) -> None:
    """A file over TCP arrives as it was."""
    here, there = fleet.guests[sender.guest], fleet.guests[receiver.guest]
    send_file(here, receiver.address, FILE_SIZE, receiver=there, here=sender.inside, there=receiver.inside)


@pytest.mark.parametrize(("sender", "receiver"), [(DOUBLE, QUAD), (QUAD, DOUBLE)], ids=["2 to 4", "4 to 2"])
def test_two_guests_on_one_cable(fleet: Fleet, sender: Station, receiver: Station) -> None:
    """A file, in segments that are cut nowhere: what is handed over is longer than any frame."""
    before = fleet.server.report()
    transfer(fleet, sender, receiver)
    after = fleet.server.report()

    def moved(station: Station, counter: str) -> int:
        return int(after[station.number]["wire"][counter] - before[station.number]["wire"][counter])

    for counter in ("frames", "bytes"):
        assert moved(sender, f"tx_{counter}") == moved(receiver, f"rx_{counter}")
        assert moved(receiver, f"tx_{counter}") == moved(sender, f"rx_{counter}")
    mean = moved(sender, "tx_bytes") / moved(sender, "tx_frames")
    assert mean > LONGEST_FRAME, f"TSO packets were cut: frames of {mean:.0f} bytes in the mean"
    aggregated = [sum(counts(report[receiver.number], "rx", "aggregated")) for report in (before, after)]
    assert aggregated[1] - aggregated[0] > 0


def test_three_nics_and_an_uplink_at_a_switch(fleet: Fleet) -> None:
    """Everybody reaches everybody, by TCP too."""
    transfer(fleet, SWITCH_A, SWITCH_B)
    transfer(fleet, SWITCH_C, SWITCH_A)
    for station in (SWITCH_A, SWITCH_B, SWITCH_C):
        others = {SWITCH_A, SWITCH_B, SWITCH_C} - {station}
        for address in [other.address for other in others] + [UPLINK_HOST] * fleet.has_host:
            fleet.run(station, f"ping -q -c 3 -i 0.01 -w 60 -s 3000 {address}", timeout=90)


#: Frames of a kind: far more than stations send by themselves meanwhile.
MANY = 1000


def send_raw(fleet: Fleet, station: Station, frame: bytes) -> None:
    """Put a frame on the wire of a NIC, as it is, and `MANY` times."""
    program = (
        "import socket\n"
        "with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:\n"
        f"    sender.bind(('{station.interface}', 0))\n"
        f"    for _ in range({MANY}): sender.send(bytes.fromhex('{frame.hex()}'))\n"
    )
    sent = fleet.report(station)["wire"]["tx_frames"]
    fleet.run(station, f'python3 -c "{program}"', timeout=120)
    wait_until(lambda: fleet.report(station)["wire"]["tx_frames"] >= sent + MANY, timeout=120)


def test_a_switch_floods_learns_and_keeps_apart(fleet: Fleet) -> None:
    """*Steps*: A asks for a station that nobody knows; the station speaks, at port C; A asks again.
    *Verify*: the first question is flooded, the second reaches port C alone.
    """
    here, there = "02:00:00:00:03:0a", "02:00:00:00:03:0c"
    question = bytes(Ether(src=here, dst=there) / IP(src="192.0.2.1", dst="192.0.2.3") / UDP() / bytes(100))
    answer = bytes(Ether(src=there, dst=here) / IP(src="192.0.2.3", dst="192.0.2.1") / UDP() / bytes(100))

    def reached(sender: Station, frame: bytes) -> list[str]:
        """Send; the ports that all of it came to."""

        def seen() -> dict[str, int]:
            wires = [fleet.report(station)["wire"] for station in (SWITCH_A, SWITCH_B, SWITCH_C)]
            ports = dict(zip("ABC", (wire["rx_frames"] for wire in wires), strict=True))
            return ports | {"uplink": wires[0]["uplink_tx_frames"]} if fleet.has_host else ports

        before = seen()
        send_raw(fleet, sender, frame)
        moved = {port: count - before[port] for port, count in seen().items()}
        assert all(count >= MANY or count < MANY // 10 for count in moved.values()), moved
        return [port for port, count in moved.items() if count >= MANY]

    assert reached(SWITCH_A, question) == ["B", "C", "uplink"][: 2 + fleet.has_host]
    assert reached(SWITCH_C, answer) == ["A"]
    assert reached(SWITCH_A, question) == ["C"]
    # Neither is a NIC's address, so no guest sees any of them.
    for station in (SWITCH_B, SWITCH_C):
        assert fleet.report(station)["drops"]["not_ours"] >= MANY


@pytest.mark.parametrize(("station", "host"), [(VETH, VETH_HOST), (SWITCH_B, UPLINK_HOST)], ids=["packet", "uplink"])
def test_a_file_from_the_host_and_back(fleet: Fleet, station: Station, host: str) -> None:
    """Through an AF_PACKET socket on a veth pair, and through the switch and its uplink."""
    if not fleet.has_host:
        pytest.skip("a network namespace needs root")
    with echo_server(fleet.namespace, PORT, FILE_SIZE) as digests:
        echo_back(fleet.guests[station.guest], f"{host}:{PORT}")
        sent, back = next(digests)
        assert sent == back
    wire = fleet.report(station)["wire"]
    losses = {name for name in wire if not re.fullmatch(r"name|(uplink_)?[rt]x_(frames|bytes)", name)}
    assert not losses, wire


def test_a_capture_replayed_to_a_guest_and_one_of_what_it_sends(fleet: Fleet) -> None:
    """*Steps*: bring the interface up, listen, and send one frame, which starts the replay.
    *Verify*: the kernel's own counters name every frame of the capture; tcpdump in the guest has the same frames, byte
    by byte; what the guest has sent is in the other capture.
    """
    guest, interface = fleet.guests[REPLAY.guest], REPLAY.interface
    frames = REPLAYED.frames
    ours = [frame for frame in frames if frame[:6] == bytes.fromhex(REPLAY.mac.replace(":", ""))]

    def udp() -> dict[str, int]:
        said = json.loads(guest.run("nstat -asj").stdout)["kernel"]
        return {name: int(said.get(name, 0)) for name in ("UdpInDatagrams", "UdpInCsumErrors", "IpReasmOKs")}

    # Room for all of it: an emulated CPU may pause for longer than the replay takes.
    guest.run("sysctl -q net.core.rmem_max=8388608")
    sink = guest.start(f"exec socat -u UDP-RECV:{REPLAYED.port},rcvbuf=8388608 OPEN:/dev/null")
    guest.run(f"ip link set {interface} up")  # which sends nothing yet; tcpdump wants it up
    fleet.await_carrier(REPLAY)
    dump = guest.start(f"exec tcpdump -n -U -i {interface} -B 16384 -Q in -Z root -w /tmp/seen.pcap 2>&1")
    try:
        dump.expect("listening on")
        before = udp()
        guest.run("ping -c 1 -W 0.1 10.15.0.2", check=False)

        def counted() -> dict[str, int]:
            return {name: count - before[name] for name, count in udp().items()}

        expected = {
            "UdpInDatagrams": REPLAYED.whole + REPLAYED.fragmented,
            "UdpInCsumErrors": REPLAYED.damaged,
            "IpReasmOKs": REPLAYED.fragmented,
        }
        wait_until(lambda: counted() == expected, timeout=120, what=lambda: f"{counted()} of {expected}")
        size = 24 + sum(16 + len(frame) for frame in ours)  # pcap-savefile(5)
        wait_until(lambda: int(guest.run("stat -c %s /tmp/seen.pcap").stdout) >= size, timeout=120, what=dump.output)
    finally:
        for process in (dump, sink):
            process.kill(15)
            process.wait(120)
    report = fleet.report(REPLAY)
    assert report["wire"]["rx_frames"] == len(frames)
    assert (report["delivered"], report["drops"]) == (len(ours), {"not_ours": REPLAYED.strays})
    seen = [bytes(packet) for packet in rdpcap(BytesIO(guest.get("/tmp/seen.pcap")))]
    assert sorted(seen) == sorted(ours)
    first = rdpcap(str(fleet.written))[0]
    assert first.src == REPLAY.mac and first[ARP].pdst == "10.15.0.2"
