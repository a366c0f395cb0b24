"""How cost grows: with NICs, queues, flows, rules, memory maps, observers, and with the time that a server has run.

    python benchmarks/growth.py
    python benchmarks/growth.py --only maps --only rules --repetitions 5
    python benchmarks/growth.py --short

Each figure is measured at several sizes, all sizes in turn, several times over. A curve's exponent is the slope of a
line through its points where both axes are logarithmic: 0 is flat, 1 grows with the size, 2 with its square. There is
no guest: the drivers are those in Python. Of a server in a process of its own, CPU time is what counts, so that neither
the drivers nor whatever else runs is in it; only the time that a NIC takes to answer is that of a clock.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
from load import TIMEOUT, Sender, allow_many_files, connect, pump
from packet_path import BATCH_FRAMES, Case, DirectDoorbells, make_batches, open_nic
from plot import Curve, Curves, Panel, Picture, Row
from report import output_option, write
from small import interrupt, status, time_each
from testbed import cpu_seconds

from nicmodel.client.results import Column
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.packet.frames import Batch
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.vfio_user.client import Client
from nicmodel.vfio_user.protocol import DMA_MAP, DMA_UNMAP, Command, DmaFlag
from nicmodel.vm.server import NicServer

#: Exponents that a curve should not exceed, by what it should be.
FLAT, LINEAR = "flat", "linear"
GOALS = {FLAT: 0.0, LINEAR: 1.0}
#: What is granted beyond: caches hold less of what is larger, and a search in a tree takes the logarithm of its size.
TOLERANCE = 0.15

#: Sizes, all of them and few.
SIZES = {
    "nics": ((1, 4, 16, 64), (1, 3)),
    "queues": ((1, 2, 4, 8, 16, 32, 63), (1, 4)),
    "flows": ((1, 10, 100, 1000, 10_000, 100_000), (1, 1000)),
    "rules": ((1, 4, 16, 64, 256, 1024), (1, 16)),
    "maps": ((1, 10, 100, 1000, 10_000, 100_000, 500_000), (1, 1000)),
    "observers": ((1000, 3000, 10_000, 30_000, 100_000), (300, 1000)),
    "lives": ((1, 10, 30, 100), (1, 3)),
}
#: Packets of a doorbell while NICs, or queues, are busy; a kernel's queue is limited to about as many.
BUSY_BATCH = 64
#: What sizes are of.
OVER = {"nics": "NICs", "observers": "packets", "lives": "lives of drivers"}
#: Values by size, one for each repetition.
Samples = dict[int, list[float]]
#: Notes one: figure, size, value.
Note = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Figure:
    """What one curve shows.

    Attributes:
        what: of which the size is there so many times.
        over: what grows, with this benchmark's `measure`.
        unit: of the values.
        goal: what the curve should be at most.
        panel: which part of the picture it is in.
        name: there.
    """

    what: str
    over: str
    unit: str
    goal: str
    panel: str
    name: str


def _figures() -> Iterator[tuple[str, Figure]]:
    nics = ("memory of a server", "start of a server", "a NIC's answer", "a packet sent, all NICs busy", "CPU at rest")
    yield "memory", Figure(nics[0], "nics", "MB", LINEAR, nics[0], "connected, at rest")
    yield "start", Figure(nics[1], "nics", "s of CPU", LINEAR, nics[1], "until clients can connect")
    yield "answer", Figure(f"{nics[2]}, the others idle", "nics", "µs", FLAT, nics[2], "the others idle")
    yield "answer_busy", Figure(f"{nics[2]}, the others busy", "nics", "µs", LINEAR, nics[2], "the others busy")
    yield "answer_scraped", Figure(f"{nics[2]}, the slowest while metrics are scraped", "nics", "µs", FLAT, nics[2],
                                   "the slowest while scraped")  # fmt: skip
    yield "busy", Figure(nics[3], "nics", "ns of CPU", FLAT, nics[3], "CPU of the server")
    yield "busy_wall", Figure(f"{nics[3]}, by the clock", "nics", "ns", FLAT, nics[3], "by the clock, of all together")
    yield "idle", Figure(nics[4], "nics", "%", FLAT, nics[4], "drivers connected")
    yield "scrape", Figure("a scrape of the metrics", "nics", "ms of CPU", LINEAR, "a scrape of the metrics", "server")
    queue, checked = "a frame, by queues", "a frame received, driver checked"
    yield "one", Figure("a frame received by one queue of so many", "queues", "ns of CPU", FLAT, queue,
                        "received by one of them")  # fmt: skip
    yield "spread", Figure("a frame received, spread over all queues", "queues", "ns of CPU", FLAT, queue,
                           "received, spread over all")  # fmt: skip
    yield "sent", Figure("a packet sent, spread over all queues", "queues", "ns of CPU", FLAT, queue,
                         "sent, spread over all")  # fmt: skip
    yield "checked", Figure("a frame received by one queue of so many, driver checked", "queues", "ns of CPU", LINEAR,
                            checked, "received by one of them")  # fmt: skip
    yield "opened", Figure("a queue pair created and destroyed", "queues", "ms of CPU", FLAT,
                           "a queue pair created and destroyed", "server")  # fmt: skip
    yield "opened_checked", Figure("a queue pair created and destroyed, driver checked", "queues", "ms of CPU", LINEAR,
                                   "a queue pair created and destroyed", "driver checked")  # fmt: skip
    yield "flows", Figure("a frame received, of so many flows", "flows", "ns of CPU", FLAT,
                          "a frame received, by flows", "64 bytes, one queue")  # fmt: skip
    rule, added = "a frame received, by rules", "a rule added"
    yield "same", Figure("a frame received, rules of one mask", "rules", "ns of CPU", FLAT, rule, "of one mask")
    yield "different", Figure("a frame received, each rule of another mask", "rules", "ns of CPU", LINEAR, rule,
                              "each of another mask")  # fmt: skip
    yield "added", Figure("a rule added, rules of one mask", "rules", "µs of CPU", LINEAR, added, "of one mask")
    yield "added_different", Figure("a rule added, each rule of another mask", "rules", "µs of CPU", LINEAR, added,
                                    "each of another mask")  # fmt: skip
    maps = "a page mapped, or unmapped"
    yield "map", Figure("DMA_MAP", "maps", "µs of CPU", FLAT, maps, "map")
    yield "unmap", Figure("DMA_UNMAP", "maps", "µs of CPU", FLAT, maps, "unmap")
    yield "end", Figure("the end of a client with so many maps", "maps", "ms of CPU", LINEAR,
                        "the end of a client with so many maps", "server")  # fmt: skip
    yield "mapped", Figure("a packet sent from one of so many maps", "maps", "ns of CPU", FLAT,
                           "a packet sent from one of so many maps", "64 bytes")  # fmt: skip
    yield "held", Figure("memory of so many maps", "maps", "MB", LINEAR, "memory of so many maps", "server")
    for key in OBSERVERS:
        name = {"": "nobody looks", "all": "all of these"}.get(key, key)
        yield f"age_{key}", Figure(f"a packet sent when so many were: {name}", "observers", "ns of CPU", FLAT,
                                   "a packet sent when so many were", name)  # fmt: skip
    yield "aged", Figure("memory when so many packets were sent, all observers", "observers", "MB", FLAT,
                         "memory when so many packets were sent", "all observers")  # fmt: skip
    yield "life", Figure("a driver's life when there were so many", "lives", "ms of CPU", FLAT,
                         "a driver's life when there were so many", "probe, open, remove")  # fmt: skip


#: Who looks on: options of the server, and requests at its control socket; `metrics` are scraped besides.
OBSERVERS: dict[str, tuple[str, ...]] = {
    "": (), "trace": (), "capture": (), "checker": ("--check",), "metrics": ("--metrics", "127.0.0.1:0"),
    "all": ("--check", "--metrics", "127.0.0.1:0"),
}  # fmt: skip
FIGURES = dict(_figures())


# Exponents, and what is said of them.


def exponents(samples: Samples) -> list[float]:
    """The slope of the line through the logarithms, for each repetition."""
    sizes = np.log(sorted(samples))
    values = np.log(np.array([samples[size] for size in sorted(samples)]))
    return [float(np.polyfit(sizes, column, 1)[0]) for column in values.T]


def last_exponent(samples: Samples) -> float:
    """The slope between the last two sizes, by their medians: a line through all hides what begins late."""
    *_, before, last = sorted(samples)
    return float(np.log(np.median(samples[last]) / np.median(samples[before])) / np.log(last / before))


def verdict(exponent: float) -> str:
    """What a curve is: flat, linear at most, or worse."""
    return next((name for name, goal in GOALS.items() if exponent <= goal + TOLERANCE), "worse")


def row_of(key: str, samples: Samples) -> Row:
    """One curve as a row of the table."""
    figure = FIGURES[key]
    found, last = exponents(samples), last_exponent(samples)
    exponent = float(np.median(found))
    first, most = min(samples), max(samples)
    is_now = verdict(max(exponent, last))
    over = OVER.get(figure.over, figure.over)
    return {
        "key": key, "what": figure.what, "unit": figure.unit, "sizes": f"{first:,} to {most:,} {over}",
        "first": float(np.median(samples[first])), "last": float(np.median(samples[most])),
        "exponent": exponent, "spread": (max(found) - min(found)) / 2, "end": last, "repetitions": len(found),
        "verdict": is_now, "goal": figure.goal,
        "held": "yes" if list(GOALS).index(figure.goal) >= [*GOALS, "worse"].index(is_now) else "no",
        "points": [[size, float(np.median(values))] for size, values in sorted(samples.items())],
        "runs": samples[most],
    }  # fmt: skip


# The picture.


_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "v"), ("-", "D"), ("--", "x"))


@dataclass(frozen=True)
class Growth:
    """A panel for each kind of figure: its curves, and how far they may grow, from each first point on."""

    def draw(self, path: Path, title: str, about: str, rows: Sequence[Row]) -> None:
        """Write a PNG; see `Picture`."""
        points = [{"key": row["key"], "x": x, "y": y} for row in rows for x, y in row["points"]]
        panels: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            panels[FIGURES[row["key"]].panel].append(row["key"])
        Curves([self._panel(name, keys) for name, keys in panels.items()], own_legends=True).draw(
            path, title, about, points
        )  # fmt: skip

    def _panel(self, title: str, keys: list[str]) -> Panel:
        figures = [FIGURES[key] for key in keys]
        curves = [
            Curve(figure.name, lambda row, key=key: row["key"] == key, lambda row: row["x"],  # type: ignore[misc]
                  lambda row: row["y"], style=style, marker=marker, goal=GOALS[figure.goal])
            for key, figure, (style, marker) in zip(keys, figures, _STYLES, strict=False)
        ]  # fmt: skip
        over = figures[0].over
        return Panel(title, OVER.get(over, over), figures[0].unit, curves)


PLOT: Picture = Growth()


@click.command()
@click.option(
    "--only", type=click.Choice(list(SIZES)), multiple=True, help="Only what grows with this; again and again."
)
@click.option("--repetitions", default=2, show_default=True, help="Each of them goes through all sizes.")
@click.option("--short", is_flag=True, help="Two small sizes of each: to see that it runs.")
@output_option
@click.option("--pump", "pumped", multiple=True, hidden=True)
def main(only: tuple[str, ...], repetitions: int, short: bool, output: Path, pumped: tuple[str, ...]) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    allow_many_files()
    if pumped:
        pump(pumped, BUSY_BATCH)
        return
    samples: dict[str, Samples] = defaultdict(lambda: defaultdict(list))

    def note(key: str, size: int, value: float) -> None:
        samples[key][size].append(value)

    for repetition in range(repetitions):
        for over, (all_sizes, few) in SIZES.items():
            if not only or over in only:
                began = time.monotonic()
                MEASURES[over](few if short else all_sizes, note)
                click.echo(f"{repetition + 1}/{repetitions} {over}: {time.monotonic() - began:.0f} s", err=True)
    rows = [row_of(key, samples[key]) for key in FIGURES if len(samples[key]) > 1]
    columns = (
        Column("what", "cost of"), Column("sizes", "from … to"), Column("first", "at first", ".4g"),
        Column("last", "at last", ".4g"), Column("unit", "unit"), Column("exponent", "exponent", ".2f"),
        Column("spread", "±", ".2f"), Column("end", "at the end", ".2f"), Column("repetitions", "repetitions", "d"),
        Column("verdict", "is"), Column("goal", "goal"), Column("held", "held"),
    )  # fmt: skip
    write("growth", "How cost grows", columns, rows, PLOT, output)


# NICs of one server.

_ANSWERS, _BUSY_SECONDS, _IDLE_SECONDS, _SCRAPES = 200, 1.0, 2.0, 5
#: CPU time at rest below this, in percent, is none.
_NO_TIME = 0.05


def measure_nics(sizes: Sequence[int], note: Note) -> None:
    """A server of so many NICs, and one more that is asked while the others are idle, and busy."""
    for size in sizes:
        wires = ["--wire", "none"] * (size + 1)
        with NicServer([*wires, "--metrics", "127.0.0.1:0"], sockets=size + 1) as server:
            note("start", size, cpu_seconds(server.pid))
            probed, *others = server.sockets
            with Probe(connect(probed)) as probe:
                with ExitStack() as stack:
                    for path in others:
                        stack.enter_context(connect(path))
                    note("memory", size, status(server.pid)["RssAnon"])
                    before = cpu_seconds(server.pid)
                    time.sleep(_IDLE_SECONDS)
                    idle = 100 * (cpu_seconds(server.pid) - before) / _IDLE_SECONDS
                    note("idle", size, max(idle, _NO_TIME))
                    note("answer", size, float(np.median(probe.ask(_ANSWERS))))
                    _scrape_beside(server, size, probe, note)
                _keep_busy(server, size, others, probe, note)


def _scrape_beside(server: NicServer, size: int, probe: Probe, note: Note) -> None:
    """Scrape the metrics, again and again, while a NIC is asked."""
    address = metrics_address(server)
    before = cpu_seconds(server.pid)
    scrape(address)
    note("scrape", size, 1e3 * (cpu_seconds(server.pid) - before))
    slowest = []
    for _ in range(_SCRAPES):
        scraper = threading.Thread(target=scrape, args=(address,))
        scraper.start()
        answers = probe.ask(20)
        while scraper.is_alive():
            answers += probe.ask(20)
        scraper.join()
        slowest.append(max(answers))
    note("answer_scraped", size, float(np.median(slowest)))


def _keep_busy(server: NicServer, size: int, others: Sequence[Path], probe: Probe, note: Note) -> None:
    words = [word for path in others for word in ("--pump", str(path))]
    command = [sys.executable, __file__, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as busy:
        assert busy.stdin is not None and busy.stdout is not None

        def answer() -> str:
            assert busy.stdout is not None
            if not (said := busy.stdout.readline()):
                raise click.ClickException("the drivers that keep NICs busy have failed")
            return said

        def posted() -> int:
            print("how many?", file=busy.stdin, flush=True)
            return int(answer())

        answer()  # they are ready
        print("go", file=busy.stdin, flush=True)
        packets, before = posted(), cpu_seconds(server.pid)
        time.sleep(_BUSY_SECONDS)
        packets, cpu = posted() - packets, cpu_seconds(server.pid) - before
        note("answer_busy", size, float(np.median(probe.ask(_ANSWERS // 4))))
        busy.stdin.close()
    note("busy", size, 1e9 * cpu / packets)
    note("busy_wall", size, 1e9 * _BUSY_SECONDS / packets)


class Probe:
    """A driver that asks its NIC for something small: a packet sent, an interrupt back."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._sender = Sender(driver)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.disconnect()

    def ask(self, times: int) -> list[float]:
        """µs from doorbell to interrupt, that often, each out of rest."""
        driver, sender = self._driver, self._sender

        def ready() -> None:
            driver.fired(sender.vector)
            driver.enable(sender.vector, interval_us=0)
            driver.device_status()  # the device has seen all before

        with interrupt(driver.eventfds[sender.vector]) as wait:
            return time_each(times, ready, lambda: sender.post(1), wait)


def metrics_address(server: NicServer) -> str:
    """Where a server that was started with `--metrics` is scraped."""
    return next(line.removeprefix("metrics at ").strip() for line in server.log().splitlines() if "metrics at" in line)


def scrape(address: str) -> None:
    """Scrape once."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
        answer.read()


# Queues, flows, rules: the packet path alone.

_BATCHES = 60
_QUEUE_ENTRIES = 4096  # of all queues together, so that there are as many buffers whatever their number
_ONE_QUEUE_ENTRIES = 1024  # of each queue where one takes all frames
_LENGTH = 64


def measure_queues(sizes: Sequence[int], note: Note) -> None:
    """Frames to all of so many queues, and to one of them; and what it takes to have so many."""
    case = Case(_LENGTH)
    for size in sizes:
        note("one", size, frame_cost(case, queues=size, entries=_ONE_QUEUE_ENTRIES))
        note("spread", size, frame_cost(replace(case, flows=BATCH_FRAMES), queues=size))
        checked = frame_cost(case, queues=size, entries=_ONE_QUEUE_ENTRIES, check=True, batches=8)
        note("checked", size, checked)
        for key, options in (("opened", ()), ("opened_checked", ("--check",))):
            with (
                NicServer(["--wire", "none", "--queues", "63", *options]) as server,
                connect(server.sockets[0], rx_queues=1, tx_queues=1) as driver,
            ):
                driver.close()
                before = cpu_seconds(server.pid)
                driver.open(rx_queues=size, tx_queues=size, ring_entries=256)
                if not options:
                    between = cpu_seconds(server.pid)
                    note("sent", size, _cost_of_queues(server, driver))
                    before += cpu_seconds(server.pid) - between
                driver.close()
                note(key, size, 1e3 * (cpu_seconds(server.pid) - before) / size)


def _cost_of_queues(server: NicServer, driver: Driver) -> float:
    """CPU time of a packet, ns, when all queues send in turn."""
    senders, costs = [Sender(driver, number) for number in driver.tx], []
    for _ in range(_ROUNDS + 1):
        before, packets = cpu_seconds(server.pid), 0
        while packets < _PACKETS // _ROUNDS:
            for sender in senders:
                sender.post(BUSY_BATCH)
            for sender in senders:
                sender.wait()
            packets += BUSY_BATCH * len(senders)
        costs.append(1e9 * (cpu_seconds(server.pid) - before) / packets)
    return float(np.median(costs[1:]))


def measure_flows(sizes: Sequence[int], note: Note) -> None:
    """As many frames whatever their number, so that memory is as cold."""
    for size in sizes:
        note("flows", size, frame_cost(Case(_LENGTH, flows=size), frames=max(sizes)))


def measure_rules(sizes: Sequence[int], note: Note) -> None:
    """Rules of one mask, of which a frame matches one; rules that each have another, of which it matches none."""
    for size in sizes:
        note("same", size, frame_cost(Case(_LENGTH, rules=size)))
        for key, spec in (("added", _of_one_mask), ("added_different", _of_another_mask)):
            with open_nic(Case(_LENGTH)) as (bench, doorbells):
                rules = [spec(number).encode(0).tobytes() for number in range(size)]
                # As ethtool does: the next rule before all others.
                install, last = bench.nic.rules.install, bench.nic.rules.capacity - 1
                for number, rule in enumerate(rules[:-1]):
                    install(last - number, rule)
                note(key, size, 1e6 * _fastest(partial(install, last - size + 1, rules[-1])))
                if spec is _of_another_mask:
                    batches = make_batches(Case(_LENGTH))
                    note("different", size, _median_cost(bench, doorbells, batches, _BATCHES))


def _of_one_mask(number: int) -> TCPv4:
    return TCPv4(dst_port=20_000 + number)


def _of_another_mask(number: int) -> TCPv4:
    """Rule `number` of those that no frame matches: it wants other bits of the port than the frames have."""
    mask = number + 1
    port = make_batches(Case(_LENGTH))[0].data[36:38].tobytes()
    return TCPv4(dst_port=(~int.from_bytes(port, "big") & mask, mask))


def _fastest(act: Callable[[], object], times: int = 20) -> float:
    """Seconds of CPU that it takes when nothing comes between."""
    found = []
    for _ in range(times):
        begin = time.thread_time_ns()
        act()
        found.append((time.thread_time_ns() - begin) * 1e-9)
    return min(found)


def frame_cost(
    case: Case, *, queues: int = 1, entries: int = 0, frames: int = 0, check: bool = False, batches: int = _BATCHES
) -> float:
    """CPU time of a frame that is received, ns; by queues of `entries`, or of as many in all whatever their number."""
    entries = entries or _QUEUE_ENTRIES >> (queues - 1).bit_length()
    with open_nic(case, queues=queues, entries=entries, check=check) as (bench, doorbells):
        return _median_cost(bench, doorbells, make_batches(case, frames), batches)


def _median_cost(bench: Loopback, doorbells: DirectDoorbells, batches: Sequence[Batch], least: int) -> float:
    times = []
    for turn in range(max(2 * least, len(batches))):
        begin = time.thread_time_ns()
        bench.nic.ingress.deliver(batches[turn % len(batches)])
        times.append(time.thread_time_ns() - begin)
        written = bench.nic.state.rx["completion_index"]
        for queue in bench.driver.rx.values():
            if written[queue.number] != queue.state.completion:  # looking into all rings would empty the caches
                queue.discard()
        doorbells.pass_on()
        bench.nic.work()
    return float(np.median(times[len(times) // 2 :]) / batches[0].count)


# Maps.

#: DMA addresses of the maps, two pages apart: the gaps are for those that come and go. Their memory is a few pages
#: again and again, so that what is measured is the search.
_MAPS_AT, _STRIDE, _FEW_PAGES = 1 << 40, 2 * PAGE, 64
_TOGETHER, _COMING, _PACKETS, _ROUNDS = 64, 200, 40_000, 5
#: Less memory than this, MB, is what anything takes.
_LITTLE = 0.1


def measure_maps(sizes: Sequence[int], note: Note) -> None:
    """Clients that map so much, at addresses in no order."""
    chance = random.Random(1)
    few = GuestMemory("pages", size=_FEW_PAGES * PAGE)
    for size in sizes:
        places = chance.sample(range(size), size)
        gaps = chance.sample(range(max(size, _COMING)), _COMING)
        coming = [_MAPS_AT + _STRIDE * place + PAGE for place in gaps]
        with NicServer(["--wire", "none"]) as server:
            driver = connect(server.sockets[0], rx_queues=1, tx_queues=1, ring_entries=4096)
            sender, client = Sender(driver), driver.client
            empty = status(server.pid)["RssAnon"]
            addresses = [_MAPS_AT + _STRIDE * place for place in places]
            _map(client, few, addresses)
            note("held", size, max(status(server.pid)["RssAnon"] - empty, _LITTLE))
            spent = np.zeros(2)
            for _ in range(_ROUNDS):
                times = [cpu_seconds(server.pid)]
                _map(client, few, coming)
                times.append(cpu_seconds(server.pid))
                _unmap(client, coming)
                times.append(cpu_seconds(server.pid))
                spent += np.diff(times)
            for key, seconds in zip(("map", "unmap"), spent, strict=True):
                note(key, size, 1e6 * float(seconds) / _ROUNDS / len(coming))
            note("mapped", size, _cost_from(server, sender, addresses))
            before = cpu_seconds(server.pid)
            driver.disconnect()
            while any(nic["client"] for nic in server.report()):
                time.sleep(0.05)
            note("end", size, 1e3 * (cpu_seconds(server.pid) - before))
    few.close()


def _cost_from(server: NicServer, sender: Sender, addresses: Sequence[int]) -> float:
    """CPU time of a packet, ns, each from another address."""
    cost, chance = [], np.random.default_rng(1)
    for _ in range(_ROUNDS):
        sender.take_from(chance.choice(np.array(addresses, np.uint64), sender.largest + 1))
        sender.send(2 * sender.largest)
        before = cpu_seconds(server.pid)
        sender.send(_PACKETS // _ROUNDS)
        cost.append(1e9 * (cpu_seconds(server.pid) - before) / (_PACKETS // _ROUNDS))
    return float(np.median(cost))


def _map(client: Client, memory: GuestMemory, addresses: Sequence[int]) -> None:
    """Map a page at each address; several messages are under way at a time."""
    flags = DmaFlag.READABLE | DmaFlag.WRITABLE
    for start in range(0, len(addresses), _TOGETHER):
        numbers = []
        for address in addresses[start : start + _TOGETHER]:
            offset = address // _STRIDE % _FEW_PAGES * PAGE
            numbers.append(
                client.send(Command.DMA_MAP, DMA_MAP.pack(DMA_MAP.size, flags, offset, address, PAGE), [memory.fd])
            )
        for number in numbers:
            client.reply(number)


def _unmap(client: Client, addresses: Sequence[int]) -> None:
    for start in range(0, len(addresses), _TOGETHER):
        numbers = [
            client.send(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, 0, address, PAGE))
            for address in addresses[start : start + _TOGETHER]
        ]
        for number in numbers:
            client.reply(number)


# Observers, and what a server has behind it.


def measure_observers(sizes: Sequence[int], note: Note) -> None:
    """Packets sent while somebody looks, or nobody, from the server's start on."""
    for who, options in OBSERVERS.items():
        with NicServer(["--wire", "none", *options]) as server, ExitStack() as stack:
            driver = stack.enter_context(connect(server.sockets[0], rx_queues=1, tx_queues=1))
            for request in ("trace", "capture"):
                if who in (request, "all"):
                    stack.enter_context(listening(server.control, request))
            if "--metrics" in options:
                stack.enter_context(scraping(metrics_address(server)))
            sender, done = Sender(driver), 0
            sender.send(BUSY_BATCH)  # the first of all load what the others use
            for size in sizes:
                before = cpu_seconds(server.pid)
                sender.send(size - done)
                note(f"age_{who}", size, 1e9 * (cpu_seconds(server.pid) - before) / (size - done))
                done = size
                if who == "all":
                    note("aged", size, status(server.pid)["RssAnon"])


@contextlib.contextmanager
def listening(control: Path, request: str) -> Iterator[None]:
    """Have the server tell all that it can, and read it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(control))
        connection.sendall(json.dumps({"request": request}).encode() + b"\n")
        connection.recv(1 << 16)

        def read() -> None:
            while connection.recv(1 << 20):
                pass

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        yield
        connection.shutdown(socket.SHUT_RDWR)
        reader.join()


@contextlib.contextmanager
def scraping(address: str) -> Iterator[None]:
    """Have the metrics scraped ten times a second."""
    done = threading.Event()

    def again() -> None:
        while not done.wait(0.1):
            scrape(address)

    scraper = threading.Thread(target=again)
    scraper.start()
    try:
        yield
    finally:
        done.set()
        scraper.join()


def measure_lives(sizes: Sequence[int], note: Note) -> None:
    """One driver after the other, in one server."""
    with NicServer(["--wire", "none", "--check"]) as server:
        for number in range(1, max(sizes) + 1):
            before = cpu_seconds(server.pid)
            driver = connect(server.sockets[0])
            driver.remove()
            driver.disconnect()
            if number in sizes:
                while any(nic["client"] for nic in server.report()):
                    time.sleep(0.01)
                note("life", number, 1e3 * (cpu_seconds(server.pid) - before))


MEASURES: dict[str, Callable[[Sequence[int], Note], None]] = {
    "nics": measure_nics, "queues": measure_queues, "flows": measure_flows, "rules": measure_rules,
    "maps": measure_maps, "observers": measure_observers, "lives": measure_lives,
}  # fmt: skip


if __name__ == "__main__":
    main()
