"""Hardware timestamps under the stock drivers: how they are switched, and what they say.

gve offers no reading of the NIC's clock itself (gve_ptp_gettimex64: EOPNOTSUPP). But it is the server's monotonic one,
which is the host's, so that the host can tell whether a timestamp is true. idpf's clock can be read, and set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from lab import CABLES, IDPF, LINK0, Cable, Lab, Port, ethtool, on_each_device

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


#: A datagram, and the timestamp that the kernel has of its sending: what it was, in ns, or 0 if none came.
SEND = """
import select, socket, struct, sys

address, port = sys.argv[1], int(sys.argv[2])
SO_TIMESTAMPING, TX_HARDWARE, RAW_HARDWARE, ONLY = 37, 1, 64, 1 << 11
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_HARDWARE | RAW_HARDWARE | ONLY)
    sender.sendto(b"x", (address, port))
    poller = select.poll()
    poller.register(sender, 0)
    stamp = 0
    if poller.poll(20000):
        _, messages, _, _ = sender.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
        for level, kind, content in messages:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPING):
                seconds, nanoseconds = struct.unpack("qq", content[32:48])
                stamp = seconds * 10**9 + nanoseconds
print(stamp)
"""

#: Show a PTP clock, or set it and show it then; ns (Linux, include/linux/posix-timers.h, FD_TO_CLOCKID).
CLOCK = """
import os, sys, time

clock = ~os.open(sys.argv[1], os.O_RDWR) << 3 | 3
if len(sys.argv) > 2:
    time.clock_settime_ns(clock, int(sys.argv[2]))
print(time.clock_gettime_ns(clock))
"""

#: By kind of NIC: what ethtool shows besides what it shows of both, and the name of the clock.
SHOWN = {"gvnic": ("gve clock", set()), "idpf": ("idpf-0000:", {"hardware-transmit", "on"})}


def ptp_clock(lab: Lab, port: Port) -> str:
    """The number of an interface's clock."""
    return ethtool(lab, port, "-T").partition("provider index: ")[2].split()[0]


def show_clock(lab: Lab, *time_to_set: int) -> int:
    """What the clock of an idpf shows, ns; gve cannot read its NIC's (gve_ptp_gettimex64: EOPNOTSUPP)."""
    words = [f"/dev/ptp{ptp_clock(lab, IDPF)}", *map(str, time_to_set)]
    return int(lab.run(["python3", "-c", CLOCK, *words]).stdout)


def clock_now(lab: Lab, port: Port) -> int:
    """What the clock that stamps frames shows now, ns."""
    return time.monotonic_ns() if port.device == "gvnic" else show_clock(lab)


def configure(lab: Lab, port: Port, transmit: int, receive: int) -> list[int]:
    """Ask for timestamps; the error number, and what is in force afterwards: tx_type and rx_filter."""
    said = lab.run(["python3", "-c", CONFIGURE, port.interface, str(transmit), str(receive)]).stdout
    return list(json.loads(said))


def measure(lab: Lab, port: Port) -> list[tuple[int, int, int]]:
    """Send datagrams over the cable; for each, when sent, its timestamp, when received."""
    program = ["ip", "netns", "exec", "peer", "python3", "-c", MEASURE, port.address, "5319"]
    return [tuple(row) for row in json.loads(lab.run(program, timeout=120).stdout)]


@pytest.fixture
def stamped(lab: Lab, cable: Cable) -> Iterator[Lab]:
    """Timestamps on."""
    assert configure(lab, cable.here, TX_OFF, FILTER_ALL) == [0, TX_OFF, FILTER_ALL]
    yield lab
    assert configure(lab, cable.here, TX_OFF, FILTER_NONE) == [0, TX_OFF, FILTER_NONE]


def check(rows: list[tuple[int, int, int]], started: int, ended: int, bits: int = 64) -> None:
    """Timestamps of the time in which they were taken, by a clock that runs as fast as the guest's.

    Only the lower `bits` count: a NIC stamps with 32. The driver extends them by a time of the clock that it reads
    twice a second, and idpf takes a wrong one where that was more than 2 seconds ago, as on a busy machine
    (idpf_ptp_tstamp_extend_32b_to_64b).
    """
    assert len(rows) == 40
    wrap = 1 << bits
    assert 0 < (rows[0][1] - started) % wrap < ended - started
    assert 0 < (ended - rows[-1][1]) % wrap < ended - started
    for (sent, stamp, received), (next_sent, next_stamp, next_received) in pairwise(rows):
        passed = (next_stamp - stamp) % wrap
        assert (next_sent - received) * 0.95 - 1e6 < passed < (next_received - sent) * 1.05 + 1e6, rows


@on_each_device
def test_ethtool_shows_the_clock(lab: Lab, cable: Cable) -> None:
    clock, more = SHOWN[cable.device]
    said = ethtool(lab, cable.here, "-T")
    for line in {"hardware-receive", "hardware-raw-clock", "none", "all"} | more:
        assert line in [word.strip() for word in said.splitlines()], said
    number = ptp_clock(lab, cable.here)
    assert lab.run(f"cat /sys/class/ptp/ptp{number}/clock_name").stdout.startswith(clock)


@on_each_device
def test_switched_by_ioctl(lab: Lab, cable: Cable) -> None:
    here = cable.here
    assert configure(lab, here, TX_OFF, FILTER_ALL) == [0, TX_OFF, FILTER_ALL]
    assert configure(lab, here, TX_OFF, FILTER_PTP_V2_EVENT) == [0, TX_OFF, FILTER_ALL]
    error, *in_force = configure(lab, here, TX_ON, FILTER_ALL)
    if here.device == "gvnic":
        assert error != 0 and in_force == [TX_OFF, FILTER_ALL], "gve has no transmit timestamps"
    else:
        assert error == 0 and in_force == [TX_ON, FILTER_ALL]
    assert configure(lab, here, TX_OFF, FILTER_NONE) == [0, TX_OFF, FILTER_NONE]


@on_each_device
def test_none_unless_asked_for(lab: Lab, cable: Cable) -> None:
    assert configure(lab, cable.here, TX_OFF, FILTER_NONE) == [0, TX_OFF, FILTER_NONE]
    assert {stamp for _, stamp, _ in measure(lab, cable.here)} == {0}


@pytest.mark.parametrize(
    ("cable", "split"),
    [(CABLES["gvnic"], False), (CABLES["gvnic"], True), (CABLES["idpf"], True)],
    ids=["gvnic-unsplit", "gvnic-split", "idpf-split"],
)
def test_true_on_every_packet(stamped: Lab, cable: Cable, split: bool) -> None:
    """Longer than the interval of 250 or 500 ms at which drivers read the clock to extend 32 bits to 64."""
    stamped.split(cable.here, split)
    started = clock_now(stamped, cable.here)
    rows = measure(stamped, cable.here)
    check(rows, started, clock_now(stamped, cable.here), bits=64 if cable.device == "gvnic" else 32)
    if cable.device == "gvnic":
        stamped.split(LINK0, False)


def test_true_after_a_reset(stamped: Lab) -> None:
    stamped.run(f"ethtool --reset {LINK0.interface} all")
    stamped.await_carrier(LINK0)
    started = time.monotonic_ns()
    rows = measure(stamped, LINK0)
    check(rows, started, time.monotonic_ns())


def test_of_what_idpf_sends_by_a_clock_that_is_set(lab: Lab) -> None:
    """*Steps*: the clock is set, which only idpf can; datagrams with timestamps, and one without, are sent.
    *Verify*: the clock goes on from there, and each timestamp is of the time in which it was taken.
    """
    time_to_set = 2_000_000_000 * 10**9
    assert configure(lab, IDPF, TX_ON, FILTER_NONE) == [0, TX_ON, FILTER_NONE]
    before = show_clock(lab, time_to_set)
    assert time_to_set <= before < time_to_set + 60 * 10**9
    send = ["python3", "-c", SEND, IDPF.peer, "5319"]
    for _ in range(3):
        stamp, after = int(lab.run(send).stdout), show_clock(lab)
        assert before < stamp < after
        before = after
    assert configure(lab, IDPF, TX_OFF, FILTER_NONE) == [0, TX_OFF, FILTER_NONE]
