"""Small things: time to start, time to compile, memory, CPU time while nothing happens, doorbell to interrupt.

    python benchmarks/small.py
    python benchmarks/small.py --no-guest

Peers are what no server in Python can do without: an interpreter that has loaded numpy, and two interpreters that do
nothing but pass on a message and an eventfd.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from packet_path import PARTS
from plot import Plot, Series
from report import output_option, write
from testbed import OURS, Testbed, cpu_seconds, enter_namespace

from nicmodel.client.results import Column
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.vfio_user.client import Client
from nicmodel.vm.server import NicServer

FRAME = bytes(64)
#: Between two doorbells: long enough for the server to sleep again.
PAUSE = 0.5e-3
#: A doorbell's message: header, region access, four bytes.
MESSAGE = 36
BARE = (sys.executable, "-c", "import numpy; print('ready', flush=True); input()")


PLOT = Plot(
    series=(Series("value", "nicmodel"), Series("peer", "bare Python", "baseline")),
    label=lambda row: str(row["what"]),
    note=lambda row: "" if row["goal"] is None else f"goal: at most {row['goal']:g}",
    unit=lambda row: str(row["unit"]),
    goal=lambda row: row["goal"],
)


@click.command()
@click.option("--starts", default=7, show_default=True, help="Starts with a warm cache.")
@click.option("--rounds", default=2000, show_default=True, help="Doorbells.")
@click.option("--seconds", default=10.0, show_default=True, help="Idle time; a third of it is traffic.")
@click.option("--compile/--no-compile", "compiling", default=True, help="Also the first start, which compiles.")
@click.option("--guest/--no-guest", "with_guest", default=True, help="Also what takes a guest: idle CPU time.")
@output_option
def main(starts: int, rounds: int, seconds: float, compiling: bool, with_guest: bool, output: Path) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    if with_guest:
        enter_namespace()
    bare_seconds, bare_memory = bare_interpreter(starts)
    with NicServer() as server:  # whatever has to be compiled is, and no guest's memory is in the peak
        memory = status(server.pid)["VmHWM"]
    times = [start() for _ in range(starts)]
    row("start to accepting a client", "s", float(np.median(times)), 0.4, bare_seconds, times)
    if compiling:
        row("first start ever, which compiles", "s", first_start(), 12.0, None)
    floor, latency = floor_latency(rounds), doorbell_latency(rounds)
    for name, percent, goal in (("median", 50, None), ("99th percentile", 99, None)):
        ours, peer = (float(np.percentile(times, percent)) for times in (latency, floor))
        parts = [float(np.percentile(part, percent)) for part in np.array_split(latency, PARTS) if len(part)]
        row(f"doorbell to interrupt, {name}", "µs", ours, goal, peer, parts)
    if with_guest:
        idle, busy_memory = with_a_guest(seconds)
        memory = max(memory, busy_memory)
        row("CPU time with an idle guest", "%", idle, 0.3, None)
    row("peak memory beyond the guest's", "MB", memory, 150.0, bare_memory)
    columns = (
        Column("what", "what"), Column("value", "value", ".2f"), Column("unit", "unit"),
        Column("peer", "bare Python", ".2f"), Column("ratio", "times that", ".2f"), Column("goal", "at most", "g"),
        Column("held", "held"),
    )  # fmt: skip
    write("small", "Small things", columns, ROWS, PLOT, output)


ROWS: list[dict[str, Any]] = []


def row(
    what: str, unit: str, value: float, goal: float | None, peer: float | None, runs: Sequence[float] = ()
) -> None:  # fmt: skip
    """Note one figure; less is better. `runs` show how far it moves by itself."""
    held = None if goal is None else "yes" if value <= goal else "no"
    ratio = None if peer is None else value / peer
    ROWS.append({"what": what, "unit": unit, "value": value, "peer": peer, "ratio": ratio, "goal": goal, "held": held,
                 "runs": list(runs)})  # fmt: skip
    click.echo(f"{what}: {value:.2f} {unit}", err=True)


def start(environment: dict[str, str] | None = None, timeout: float = 300) -> float:
    """Seconds from the command until a client has been greeted."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/nic.sock"
        command = [sys.executable, "-m", "nicmodel.cli", "serve", "--socket", path]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | (environment or {}))
        try:
            while time.perf_counter() - begin < timeout and process.poll() is None:
                try:
                    with Client(path, timeout=timeout):
                        return time.perf_counter() - begin
                except (FileNotFoundError, ConnectionRefusedError):
                    time.sleep(0.001)
        finally:
            process.terminate()
            process.wait()
    raise click.ClickException("the server does not start: try `nicmodel serve --socket /tmp/nic.sock`")


def first_start() -> float:
    """The same with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        return start({"XDG_CACHE_HOME": folder})


def bare_interpreter(starts: int) -> tuple[float, float]:
    """An interpreter that loads numpy: seconds that it takes, and its peak memory in MB."""
    times = []
    for _ in range(starts):
        begin = time.perf_counter()
        with subprocess.Popen(BARE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            times.append(time.perf_counter() - begin)
            memory = status(process.pid)["VmHWM"]
            process.kill()
    return float(np.median(times)), memory


def status(pid: int) -> dict[str, float]:
    """Memory of a process in MB, by the names of proc_pid_status(5)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for words in lines if words[-1] == "kB"}


def doorbell_latency(rounds: int) -> list[float]:
    """µs from a transmit doorbell to the completion's interrupt, server and driver being two processes."""
    with NicServer() as server, Driver(server.sockets[0]) as driver:
        driver.probe()
        driver.open(rx_queues=1, tx_queues=1)
        queue, vector = driver.tx[0], driver.tx_block(0)
        with interrupt(driver.eventfds[vector]) as wait:

            def ready() -> None:
                driver.poll_tx(0)
                driver.fired(vector)
                driver.enable(vector, interval_us=0)
                driver.device_status()  # the device has seen all before
                queue.send(FRAME, kick=False)

            return time_each(rounds, ready, queue.kick, wait)


def floor_latency(rounds: int) -> list[float]:
    """The same between two bare processes: a message of a doorbell's size is received, an eventfd signalled."""
    ours, theirs = socket.socketpair()
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)

    def answer() -> None:
        ours.close()
        while theirs.recv(4096):
            os.eventfd_write(eventfd, 1)

    process = multiprocessing.get_context("fork").Process(target=answer, daemon=True)
    process.start()
    theirs.close()

    def ready() -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(eventfd)

    with ours, interrupt(eventfd) as wait:
        times = time_each(rounds, ready, lambda: ours.sendall(bytes(MESSAGE)), wait)
    process.join()
    os.close(eventfd)
    return times


@contextlib.contextmanager
def interrupt(eventfd: int) -> Iterator[Callable[[], None]]:
    """A function that waits until an eventfd is signalled."""
    poller = select.poll()
    poller.register(eventfd, select.POLLIN)

    def wait() -> None:
        if not poller.poll(5000):
            raise click.ClickException("no interrupt has come within 5 s")

    yield wait


def time_each(rounds: int, ready: Callable[[], None], act: Callable[[], None], wait: Callable[[], None]) -> list[float]:
    """µs from `act` to the end of `wait`, again and again, each time out of rest."""
    times = []
    for _ in range(rounds):
        ready()
        time.sleep(PAUSE)
        begin = time.perf_counter()
        act()
        wait()
        times.append((time.perf_counter() - begin) * 1e6)
    return times


def with_a_guest(seconds: float) -> tuple[float, float]:
    """A guest at rest, then busy: the server's CPU time at rest in %, its peak memory beyond the guest's in MB."""
    with Testbed() as bed, own_memory(bed.server.pid) as peak:
        time.sleep(3)
        before = cpu_seconds(bed.server.pid)
        time.sleep(seconds)
        idle = 100 * (cpu_seconds(bed.server.pid) - before) / seconds
        for guest_sends in (False, True):
            bed.iperf(bed.ports[OURS], max(1, round(seconds / 6)), guest_sends=guest_sends, streams=4)
    return idle, peak[0]


@contextlib.contextmanager
def own_memory(pid: int) -> Iterator[list[float]]:
    """The peak meanwhile, in MB, of a process's memory without what is shared, as a guest's is (RssShmem).

    The peak that the kernel keeps (VmHWM) has no such parts.
    """
    peak = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            now = status(pid)
            peak[0] = max(peak[0], now["RssAnon"] + now["RssFile"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
