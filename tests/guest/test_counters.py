"""One truth about frames and bytes: tcpdump at the far end, the server's counters, ip -s link and ethtool -S."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from lab import TAP, Lab, echo_back, echo_server, ethtool, ping, wait_until
from scapy.utils import RawPcapReader

from nicmodel.nic.mac import parse_mac
from nicmodel.vm.image import USERLAND
from nicmodel.vm.packages import obtain
from nicmodel.vm.qemu import spawn

pytestmark = pytest.mark.guest

MAC = parse_mac(TAP.mac)
PORT = 5402
FILE_SIZE = 2 << 20
WINDOW = 128 << 10
FLOWS = 50


class Counts(NamedTuple):
    """Frames and bytes from the guest's side: received, sent."""

    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, other, strict=True)))


def tcpdump(capture: Path) -> Counts:
    """The frames of a capture at the far end."""
    counts = [0, 0, 0, 0]
    with RawPcapReader(str(capture)) as reader:
        for frame, about in reader:
            sent = frame[6:12] == MAC
            counts[2 * sent] += 1
            counts[2 * sent + 1] += about.wirelen
    return Counts(*counts)


def wire(lab: Lab) -> Counts:
    """What the server's wire counts."""
    counters = lab.report(TAP)["wire"]
    return Counts(*(counters[name] for name in Counts._fields))


def queues(lab: Lab) -> Counts:
    """What the device counts, queue by queue."""
    report = lab.report(TAP)
    places = (("rx", "frames"), ("rx", "bytes"), ("tx", "packets"), ("tx", "bytes"))
    return Counts(*(sum(queue[counter] for queue in report[f"{way}_queues"]) for way, counter in places))


def ip_link(lab: Lab) -> Counts:
    """What the driver tells the network stack."""
    stats = json.loads(lab.run(f"ip -j -s link show {TAP.interface}").stdout)[0]["stats64"]
    return Counts(*(stats[way][unit] for way in ("rx", "tx") for unit in ("packets", "bytes")))


def ethtool_totals(lab: Lab) -> Counts:
    """What the driver tells ethtool."""
    said = ethtool_statistics(lab)
    return Counts(*(said[name] for name in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")))


def ethtool_statistics(lab: Lab) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^ +(\S+): (\d+)$", ethtool(lab, TAP, "-S"), re.MULTILINE)}


def bytes_of_queues(lab: Lab) -> dict[str, list[int]]:
    """Bytes of each queue there is: as the device counts them, and as the driver does, at one moment."""

    def of_device() -> dict[str, int]:
        report = lab.report(TAP)
        return {
            f"{way}_bytes[{queue['queue']}]": queue["bytes"]
            for way in ("rx", "tx")
            for queue in report[f"{way}_queues"]
        }

    while True:  # a frame of the stack's own could come in between
        device, said = of_device(), ethtool_statistics(lab)
        if device == of_device():
            break
    names = [name for name in device if name in said]
    return {"device": [device[name] for name in names], "driver": [said[name] for name in names]}


@contextmanager
def capture(lab: Lab, path: Path) -> Iterator[None]:
    """Capture headers at the host's end of the tap."""
    program = obtain(USERLAND).command("usr/bin/tcpdump")
    arguments = ["-i", "tap0", "-s", "64", "-B", "65536", "-U", "-Z", "root", "-w", str(path)]
    command = ["ip", "netns", "exec", lab.namespace, *program, *arguments]
    with spawn(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("listening on" in line for line in process.stderr), "tcpdump did not start"
            yield
        finally:
            process.terminate()


def exchange(lab: Lab) -> None:
    """TCP and UDP both ways, over both versions of IP, and echo requests up to the MTU."""
    for size in (0, 700, 4083, 8868):
        ping(lab.guest, TAP.peer, count=10, size=size)
    # With windows that the rings hold nothing is dropped, and the count of bytes is one, too.
    with echo_server(lab.namespace, PORT, FILE_SIZE) as digests:
        for peer in (TAP.peer, f"[{TAP.peer6}]"):
            echo_back(lab.guest, f"{peer}:{PORT}", window=WINDOW)
            sent, back = next(digests)
            assert sent == back
    program = Path(__file__).with_name("datagrams.py")
    lab.guest.put(program, "/tmp/datagrams.py")
    for own, peer in ((TAP.address, TAP.peer), (TAP.address6, TAP.peer6)):
        answer = ["ip", "netns", "exec", lab.namespace, sys.executable, str(program), "answer", peer, own, str(FLOWS)]
        with spawn(answer, stdout=subprocess.PIPE, text=True) as answerer:
            try:
                assert answerer.stdout is not None and answerer.stdout.readline() == "ready\n"
                lab.run(f"python3 /tmp/datagrams.py ask {own} {peer} {FLOWS}", timeout=120)
            finally:
                answerer.kill()


@contextmanager
def without_segmentation(lab: Lab) -> Iterator[None]:
    """Every frame is a frame: nobody sends longer ones, and nobody merges them."""
    with ExitStack() as undo:
        ethtool(lab, TAP, "-K", "tso off gso off tx-udp-segmentation off rx-gro-hw off")
        undo.callback(ethtool, lab, TAP, "-K", "tso on gso on tx-udp-segmentation on rx-gro-hw on")
        lab.on_host(["ip", "link", "set", "tap0", "gso_max_segs", "1"])
        undo.callback(lab.on_host, ["ip", "link", "set", "tap0", "gso_max_segs", "65535"])
        lab.await_carrier(TAP)
        yield


@pytest.mark.parametrize(
    ("split", "offloads"),
    [
        pytest.param(False, False, id="frames", marks=pytest.mark.long),
        pytest.param(True, False, id="frames split"),
        pytest.param(True, True, id="offloads split"),
    ],
)
def test_all_counters_agree(lab: Lab, split: bool, offloads: bool, tmp_path: Path) -> None:
    """Frame by frame and byte by byte.

    With offloads the guest's TSO packets are frames of the tap as they are. What comes from the tap may become fewer
    packets, by merging: then the driver counts what the device counts, and every frame of the tap was delivered.
    """
    if not lab.has_tap:
        pytest.skip("a tap needs root")
    path = tmp_path / "tap.pcap"
    lab.on_host(["ip", "link", "set", "tap0", "txqueuelen", "10000"])  # of which the kernel drops what overflows
    lab.split(TAP, split)
    with ExitStack() as stack:
        if not offloads:
            stack.enter_context(without_segmentation(lab))
        sources = {"wire": wire, "queues": queues, "ip": ip_link, "ethtool": ethtool_totals}

        def look() -> dict[str, Counts]:
            return {name: source(lab) for name, source in sources.items()}

        # A frame of the stack's own could come between the capture's start and a look at the counters.
        while True:
            before = look()
            capturing = stack.enter_context(ExitStack())
            capturing.enter_context(capture(lab, path))
            if look() == before:
                break
            capturing.close()
        first, first_bytes = lab.report(TAP), bytes_of_queues(lab)
        exchange(lab)

        def moved() -> dict[str, Counts]:
            return {name: now - before[name] for name, now in look().items()} | {"tcpdump": tcpdump(path)}

        def agreed() -> bool:
            counts = moved()
            if not offloads:
                return len(set(counts.values())) == 1
            sent = {count[2:] for count in counts.values()}
            frames, packets = (
                {counts[name][:2] for name in names} for names in (("tcpdump", "wire"), sources.keys() - {"wire"})
            )
            return len(sent) == len(frames) == len(packets) == 1

        wait_until(agreed, timeout=120, what=lambda: f"{moved()}\ndrops: {lab.report(TAP)['drops']}")
        counts, last, last_bytes = moved()["tcpdump"], lab.report(TAP), bytes_of_queues(lab)
    assert min(counts.rx_bytes, counts.tx_bytes) > 2 * FILE_SIZE
    assert last["delivered"] - first["delivered"] == counts.rx_frames
    assert last["drops"] == first["drops"]
    device, driver = (
        [now - then for now, then in zip(last_bytes[who], first_bytes[who], strict=True)]
        for who in ("device", "driver")
    )
    assert device == driver and len(device) == 8
