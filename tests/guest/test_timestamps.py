"""Hardware receive timestamps under the stock driver: how they are switched, and what they say.

gve 7.2 offers no reading of the NIC's clock itself (gve_ptp_gettimex64: EOPNOTSUPP). But it is the server's monotonic
clock, which is the host's, so that the host can tell whether a timestamp is true.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from lab import LINK0, Lab

pytestmark = pytest.mark.guest

#: Linux, include/uapi/linux/net_tstamp.h.
FILTER_NONE, FILTER_ALL, FILTER_PTP_V2_EVENT = 0, 1, 12
TX_OFF, TX_ON = 0, 1

#: ioctl SIOCSHWTSTAMP, then SIOCGHWTSTAMP, on a struct hwtstamp_config {flags, tx_type, rx_filter}.
CONFIGURE = """
import ctypes, fcntl, json, socket, struct, sys

name, transmit, receive = sys.argv[1].encode(), int(sys.argv[2]), int(sys.argv[3])
config = (ctypes.c_int * 3)(0, transmit, receive)
request = struct.pack("16sP8x", name, ctypes.addressof(config))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    error = 0
    try:
        fcntl.ioctl(any_socket, 0x89B0, request)
    except OSError as failure:
        error = failure.errno
    fcntl.ioctl(any_socket, 0x89B1, request)
print(json.dumps([error, *config[1:]]))
"""

#: Datagrams from the peer, where it is started, to the main namespace, one after the other has arrived. Prints for each
#: when it was sent, its timestamp (0 without), and when it was received; times in ns, those of the guest monotonic.
MEASURE = """
import json, os, socket, struct, sys, time

address, port = sys.argv[1], int(sys.argv[2])
SO_TIMESTAMPING, RX_HARDWARE, RAW_HARDWARE = 37, 4, 64
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.setns(os.open("/proc/1/ns/net", os.O_RDONLY), os.CLONE_NEWNET)
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_HARDWARE | RAW_HARDWARE)
receiver.bind((address, port))
receiver.settimeout(60)
rows = []
for number in range(40):
    time.sleep(0.6 if number == 20 else 0.02)
    sent = time.monotonic_ns()
    sender.sendto(b"%d" % number, (address, port))
    data, messages, _, _ = receiver.recvmsg(100, 1000)
    received = time.monotonic_ns()
    assert data == b"%d" % number
    stamp = 0
    for level, kind, content in messages:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPING):
            seconds, nanoseconds = struct.unpack("qq", content[32:48])  # the third of three: hardware, raw
            stamp = seconds * 10**9 + nanoseconds
    rows.append((sent, stamp, received))
print(json.dumps(rows))
"""


def configure(lab: Lab, transmit: int, receive: int) -> list[int]:
    """Ask for timestamps; the error number, and what is in force afterwards: tx_type and rx_filter."""
    said = lab.run(["python3", "-c", CONFIGURE, LINK0.interface, str(transmit), str(receive)]).stdout
    return list(json.loads(said))


def measure(lab: Lab) -> list[tuple[int, int, int]]:
    """Send datagrams over the cable; for each, when sent, its timestamp, when received."""
    program = ["ip", "netns", "exec", "peer", "python3", "-c", MEASURE, LINK0.address, "5319"]
    return [tuple(row) for row in json.loads(lab.run(program, timeout=120).stdout)]


@pytest.fixture
def stamped(lab: Lab) -> Iterator[Lab]:
    """Timestamps on."""
    assert configure(lab, TX_OFF, FILTER_ALL) == [0, TX_OFF, FILTER_ALL]
    yield lab
    assert configure(lab, TX_OFF, FILTER_NONE) == [0, TX_OFF, FILTER_NONE]


def check(rows: list[tuple[int, int, int]], started: int, ended: int) -> None:
    """Timestamps of the time in which they were taken, by a clock that runs as fast as the guest's."""
    assert len(rows) == 40
    assert started < rows[0][1] and rows[-1][1] < ended
    for (sent, stamp, received), (next_sent, next_stamp, next_received) in pairwise(rows):
        passed = next_stamp - stamp
        assert (next_sent - received) * 0.95 - 1e6 < passed < (next_received - sent) * 1.05 + 1e6, rows


def test_ethtool_shows_the_clock(lab: Lab) -> None:
    said = lab.run(f"ethtool -T {LINK0.interface}").stdout
    for line in ("hardware-receive", "hardware-raw-clock", "none", "all"):
        assert line in [word.strip() for word in said.splitlines()], said
    number = said.partition("provider index: ")[2].split()[0]
    assert lab.run(f"cat /sys/class/ptp/ptp{number}/clock_name").stdout == "gve clock\n"


def test_switched_by_ioctl(lab: Lab) -> None:
    assert configure(lab, TX_OFF, FILTER_ALL) == [0, TX_OFF, FILTER_ALL]
    assert configure(lab, TX_OFF, FILTER_PTP_V2_EVENT) == [0, TX_OFF, FILTER_ALL]
    error, *in_force = configure(lab, TX_ON, FILTER_ALL)
    assert error != 0 and in_force == [TX_OFF, FILTER_ALL], "gve has no transmit timestamps"
    assert configure(lab, TX_OFF, FILTER_NONE) == [0, TX_OFF, FILTER_NONE]


def test_none_unless_asked_for(lab: Lab) -> None:
    assert configure(lab, TX_OFF, FILTER_NONE) == [0, TX_OFF, FILTER_NONE]
    assert {stamp for _, stamp, _ in measure(lab)} == {0}


@pytest.mark.parametrize("split", [False, True])
def test_true_on_every_packet(stamped: Lab, split: bool) -> None:
    """Longer than the interval of 250 ms at which the driver reads the clock to extend 32 bits to 64."""
    stamped.split(LINK0, split)
    started = time.monotonic_ns()
    rows = measure(stamped)
    check(rows, started, time.monotonic_ns())
    stamped.split(LINK0, False)


def test_true_after_a_reset(stamped: Lab) -> None:
    stamped.run(f"ethtool --reset {LINK0.interface} all")
    stamped.await_carrier(LINK0)
    started = time.monotonic_ns()
    rows = measure(stamped)
    check(rows, started, time.monotonic_ns())
