"""What each event costs, in QEMU and in the server; and what follows for a host with KVM and processors to spare.

    python benchmarks/events.py --no-guest
    python benchmarks/events.py

Costs are CPU time, which does not depend on whether the guest's CPUs are emulated: each process's own, out of rest and
among many. QEMU's are those of a QEMU without a guest (qtest.py). Then a guest: what the server takes for a request and
for a GiB is its own, too, and with it a host's limits are estimated. Under KVM reality stands beside the estimate;
elsewhere the guest's CPUs are what limits, and the columns say what was measured without making a claim.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
from growth import BUSY_BATCH, frame_cost
from load import TIMEOUT, Sender, connect
from packet_path import Case
from plot import Plot, Row, Series
from qtest import QtestQemu
from report import output_option, write
from small import MESSAGE, floor_latency, interrupt, time_each
from testbed import OURS, Testbed, cpu_seconds, enter_namespace, round_trip

from nicmodel.client.results import Column
from nicmodel.gvnic.registers import DEVICE_STATUS, Bar
from nicmodel.vm.qemu import kind_of
from nicmodel.vm.server import NicServer

PEER = "virtio-net"
#: µs from a guest's access to QEMU and back: an exit from the guest to KVM, and from there to user space. It is not
#: measured here but taken from what is usual on processors since 2015 (1 to 2).
EXIT = 1.5
#: A doorbell that stands for nothing: no queue, no vector (`nicmodel.gvnic.doorbells`).
_NOBODY = 0

PLOT = Plot(
    series=(Series("value", "nicmodel"), Series("reality", "measured", "baseline")),
    label=lambda row: f"{row['what']}, {row['part']}",
    note=lambda row: "estimate" if row["kind"] == "estimate" else "",
    unit=lambda row: str(row["unit"]),
)


class Table:
    """Rows that were measured, and those that follow from them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def measured(self, what: str, part: str, value: float, unit: str, how: str) -> float:
        """Note what was measured; returns it."""
        self._add("measured", what, part, value, unit, None, how)
        return value

    def estimated(self, what: str, value: float, unit: str, reality: float | None, how: str) -> None:
        """Note what follows, and what was measured of it."""
        self._add("estimate", what, "KVM, processors to spare", value, unit, reality, how)

    def _add(self, kind: str, what: str, part: str, value: float, unit: str, reality: float | None, how: str) -> None:
        self.rows.append({"kind": kind, "what": what, "part": part, "value": value, "unit": unit, "reality": reality,
                          "how": how})  # fmt: skip
        click.echo(f"{what}, {part}: {value:.3g} {unit}", err=True)


@click.command()
@click.option("--rounds", default=2000, show_default=True, help="Of each event.")
@click.option("--seconds", default=5, show_default=True, help="Of each kind of traffic.")
@click.option("--guest/--no-guest", "with_guest", default=True, help="Also what takes a guest, and the estimate.")
@output_option
def main(rounds: int, seconds: int, with_guest: bool, output: Path) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    if with_guest:
        enter_namespace([PEER])
    table = Table()
    wake = table.measured("a message there, an eventfd back", "two bare processes",
                          float(np.median(floor_latency(rounds))), "µs", "by the clock, median") / 2  # fmt: skip
    doorbell = of_qemu(table, rounds)
    turn, packet = of_server(table, rounds)
    system_calls(table, rounds)
    table.estimated(
        "doorbell to interrupt, without a wire", EXIT + doorbell + 2 * wake + turn, "µs", None,
        f"exit {EXIT:g} (assumed) + QEMU {doorbell:.1f} + two wakes of {wake:.1f} + server {turn:.1f}",
    )  # fmt: skip
    table.estimated(
        f"packets of 64 bytes sent, {BUSY_BATCH} for each doorbell, at most", 1e3 / (packet + 1e3 * turn / BUSY_BATCH),
        "million/s", None,
        f"1 / (packet {packet:.0f} ns + doorbell and interrupt {turn:.1f} µs / {BUSY_BATCH})",
    )  # fmt: skip
    accel = ""
    if with_guest:
        with Testbed((OURS, PEER)) as bed:
            accel = bed.guest.accel
            requests(table, bed, seconds, doorbell, wake)
            streams(table, bed, seconds)
    columns = (
        Column("kind", "kind"), Column("what", "what"), Column("part", "whose"), Column("value", "value", ".3g"),
        Column("unit", "unit"), Column("reality", f"measured{f' ({accel.upper()})' if accel else ''}", ".3g"),
        Column("how", "how"),
    )  # fmt: skip
    write("events", "What events cost, and what a host with KVM should see", columns, table.rows, PLOT, output)
    if accel and kind_of(accel) != "kvm":
        click.echo("the guest's CPUs are emulated, so what was measured says nothing of the estimate", err=True)


@contextlib.contextmanager
def spent(pid: int, times: float) -> Iterator[list[float]]:
    """µs of CPU that a process takes meanwhile, for each of so many events: in the list afterwards."""
    found: list[float] = []
    before = cpu_seconds(pid)
    yield found
    found.append(1e6 * (cpu_seconds(pid) - before) / times)


def of_qemu(table: Table, rounds: int) -> float:
    """What QEMU and the server take for an access, without a guest; QEMU's part of a doorbell out of rest, µs."""
    with NicServer(["--wire", "none"]) as server, QtestQemu(server.sockets[0]) as qemu:

        def measure(what: str, access: Callable[[], float]) -> float:
            with spent(server.pid, rounds) as ours:
                theirs = 1e6 * access()
            table.measured(what, "QEMU", theirs, "µs of CPU", "beyond an access to memory, by qtest")
            table.measured(what, "server", ours[0], "µs of CPU", "decoded, and no queue's")
            return theirs

        measure("a doorbell among many", lambda: qemu.write(Bar.DOORBELLS, 4 * _NOBODY, rounds))
        measure("a register read", lambda: qemu.read(Bar.REGISTERS, DEVICE_STATUS.offset, rounds))
        return measure("a doorbell out of rest", lambda: qemu.write(Bar.DOORBELLS, 4 * _NOBODY, rounds, alone=True))


def of_server(table: Table, rounds: int) -> tuple[float, float]:
    """What the server takes for packets and interrupts: of a doorbell with its packet and its interrupt, µs; and of a
    packet among many, ns.
    """
    with NicServer(["--wire", "none"]) as server, connect(server.sockets[0]) as driver:
        sender = Sender(driver)
        sender.send(64)

        def enable() -> None:
            driver.fired(sender.vector)
            driver.enable(sender.vector, interval_us=0)
            driver.device_status()

        with interrupt(driver.eventfds[sender.vector]) as wait:
            with spent(server.pid, rounds) as readied:
                for _ in range(rounds):
                    enable()
            with spent(server.pid, rounds) as all_of_it:
                times = time_each(rounds, enable, lambda: sender.post(1), wait)
        turn = all_of_it[0] - readied[0]
        table.measured("a packet sent out of rest, with its interrupt", "server", turn, "µs of CPU",
                       "without the driver's enabling of the vector")  # fmt: skip
        table.measured("the same", "server and driver", float(np.median(times)), "µs", "by the clock, median")
        driver.device_status()
        with spent(server.pid, rounds) as masked:
            for _ in range(rounds):
                sender.post(1)
                sender.wait()
        table.measured("an interrupt", "server", max(turn - masked[0], 0.0), "µs of CPU", "beyond a packet without")
        many = 100 * rounds
        with spent(server.pid, many) as each:
            sender.send(many)
        packet = table.measured("a packet sent among many, 64 bytes", "server", 1e3 * each[0], "ns of CPU",
                                f"{sender.largest // 2} for each doorbell")  # fmt: skip
    for length in (64, 1514):
        table.measured(f"a packet received among many, {length} bytes", "server", frame_cost(Case(length)),
                       "ns of CPU", "the packet path alone")  # fmt: skip
    return turn, packet


def system_calls(table: Table, rounds: int) -> None:
    """Which system calls the server makes for a packet out of rest, counted by strace; and what each takes alone."""
    ours, theirs = socket.socketpair()
    eventfd = os.eventfd(0)
    with ours, theirs:
        message, room = bytes(MESSAGE), bytearray(1 << 16)

        def signal() -> None:
            os.eventfd_write(eventfd, 1)

        def pass_on() -> None:
            ours.send(message)
            theirs.recvmsg_into([room])

        for what, act in (("an eventfd written", signal), ("a message sent and received", pass_on)):
            begin = time.thread_time()
            for _ in range(rounds):
                act()
            table.measured(f"system call: {what}", "any process", 1e6 * (time.thread_time() - begin) / rounds,
                           "µs of CPU", "by the interpreter, nobody waits")  # fmt: skip
    os.close(eventfd)
    if (strace := shutil.which("strace")) is None:
        click.echo("no system calls are counted: there is no strace", err=True)
        return
    counts = [_counted(strace, number) for number in (100, 300)]
    for name in sorted(counts[1], key=lambda name: -counts[1][name]):
        each = (counts[1][name] - counts[0][name]) / 200
        if each > 0.1 and name != "total":
            table.measured(f"system calls for a packet out of rest: {name}", "server", each, "calls",
                           "by strace, the enabling of the vector included")  # fmt: skip


def _counted(strace: str, rounds: int) -> Counter[str]:
    """The system calls of a server's life in which so many packets were sent, by name."""
    with tempfile.NamedTemporaryFile("r") as file:
        # In the background (-D): it is the server that is told to end.
        with (
            NicServer(["--wire", "none"], prefix=(strace, "-D", "-f", "-c", "-o", file.name)) as server,
            connect(server.sockets[0]) as driver,
        ):
            sender = Sender(driver)
            with interrupt(driver.eventfds[sender.vector]) as wait:
                for _ in range(rounds):
                    driver.fired(sender.vector)
                    driver.enable(sender.vector, interval_us=0)
                    time.sleep(1e-3)
                    sender.post(1)
                    wait()
        ends = time.monotonic() + TIMEOUT
        while not (text := Path(file.name).read_text()) and time.monotonic() < ends:
            time.sleep(0.05)
    lines = [re.split(r"\s+", line.strip()) for line in text.splitlines()]
    return Counter({words[-1]: int(words[3]) for words in lines if len(words) >= 5 and words[3].isdigit()})


def requests(table: Table, bed: Testbed, seconds: int, doorbell: float, wake: float) -> None:
    """A request that the guest answers: what it takes, beside virtio-net's, and how much later it should be."""
    messages = bed.server.report()[0]["vfio_user"]
    before = cpu_seconds(bed.server.pid)
    answers = round_trip(bed.guest, bed.ports[OURS].address, seconds)
    each = 1e6 * (cpu_seconds(bed.server.pid) - before) / answers["rounds"]
    sent = bed.server.report()[0]["vfio_user"]
    writes = (sent["REGION_WRITE"] - messages["REGION_WRITE"]) / answers["rounds"]
    times = {OURS: answers["median_us"], PEER: round_trip(bed.guest, bed.ports[PEER].address, seconds)["median_us"]}
    table.measured("a request and its answer", "server", each, "µs of CPU", f"with {writes:.1f} messages of QEMU's")
    for device, value in times.items():
        table.measured("a request and its answer", device, value, "µs", "by the clock, median")
    table.estimated(
        "a request's time beyond virtio-net's, at most", each + writes * doorbell + wake, "µs",
        times[OURS] - times[PEER],
        f"server {each:.0f} + {writes:.1f} messages of {doorbell:.1f} in QEMU + a wake of {wake:.1f}; "
        "what virtio-net takes in QEMU is not taken off",
    )  # fmt: skip


def streams(table: Table, bed: Testbed, seconds: int) -> None:
    """One stream of TCP each way: what the server takes for a GiB, and where its processor would be full."""
    for guest_sends in (False, True):
        way = "sends" if guest_sends else "receives"
        before = cpu_seconds(bed.server.pid)
        rate = bed.iperf(bed.ports[OURS], seconds, guest_sends=guest_sends)
        cpu = cpu_seconds(bed.server.pid) - before
        gib = rate * seconds / 8 * 1e9 / 2**30
        each = table.measured(f"a guest {way} TCP", "server", cpu / gib, "s of CPU for a GiB", "one stream, MTU 1500")
        table.estimated(f"a guest {way} TCP, at most", 8 * 2**30 / 1e9 / each, "Gbit/s", rate,
                        "where the server's processor is full")  # fmt: skip


if __name__ == "__main__":
    main()
