"""A guest over a tap: our NIC beside the other NICs of the same QEMU, in the same guest, on taps of the same kind.

    python benchmarks/guest_tap.py
    python benchmarks/guest_tap.py --device virtio-net --case "tcp receive 1500 x1" --seconds 5
    python benchmarks/guest_tap.py --device idpf --device virtio-net --hw-gro

All NICs are in one guest, each on a tap of its own in the benchmark's network namespace, and are measured in turns. The
far end is the host's kernel at the tap. Our NIC is a gVNIC; with ``--device idpf`` our other one is measured, too: as
its driver comes or, with ``--hw-gro``, with the NIC's receive coalescing, which gVNIC's driver asks for by itself. A
case is TCP throughput (iperf3) with the CPU time of QEMU and server for each GiB, or datagrams a second (iperf3, 64
bytes of payload, as fast as they go; those that arrive count), or the time of a request of one byte and its answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from plot import Plot, Series
from report import output_option, write
from rich.console import Console
from rich.progress import track
from testbed import IDPF, KINDS, LARGEST_MTU, OURS, PEERS, Port, Testbed, cpu_seconds, enter_namespace, round_trip

from nicmodel.client.results import Column

VIRTIO = "virtio-net"
#: What CPU time each GiB may take, of virtio-net's.
CPU_GOAL = 1.1
#: Units as the plot writes them.
UNITS = {"1000/s": "thousand datagrams a second", "µs": "µs (less is better)"}


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        kind: "tcp", "udp" or "request".
        guest_sends: or else it receives.
        mtu: at both ends.
        streams: at the same time.
        aggregated: the kernels hand over TCP segments of up to 64 KiB; or else frames of the MTU's size.
        busy_poll: how long our server looks for more before it sleeps, µs.
    """

    kind: str
    guest_sends: bool = False
    mtu: int = 1500
    streams: int = 1
    aggregated: bool = True
    busy_poll: int = 0

    @property
    def name(self) -> str:
        """What to call it, also with --case."""
        if self.kind == "request":
            return "tcp request and response" + (", busy poll" if self.busy_poll else "")
        way = "send" if self.guest_sends else "receive"
        if self.kind == "udp":
            return f"udp {way}"
        return f"tcp {way} {self.mtu} x{self.streams}" + ("" if self.aggregated else " plain")

    @property
    def unit(self) -> str:
        """The unit of its figures."""
        return {"tcp": "Gbit/s", "udp": "1000/s", "request": "µs"}[self.kind]

    @property
    def less_is_better(self) -> bool:
        """Whether its figures are times."""
        return self.kind == "request"

    @property
    def goal(self) -> float:
        """What ours is to be of the other's: of virtio-net's, but for TCP, where the best other counts."""
        return {"tcp": 0.95 if self.guest_sends else 1.0, "udp": 0.9, "request": 1.2}[self.kind]


def cases() -> Iterator[Case]:
    """All, those of one MTU together."""
    ways = (False, True)
    for mtu in (1500, LARGEST_MTU):
        for streams in (1, 4):
            yield from (Case("tcp", way, mtu, streams) for way in ways)
        if mtu == 1500:
            yield from (Case("tcp", way, aggregated=False) for way in ways)
            yield from (Case("udp", way) for way in ways)
            yield from (Case("request", busy_poll=usecs) for usecs in (0, 100))


CASES = {case.name: case for case in cases()}


@dataclass(frozen=True)
class Run:
    """A figure in its case's unit; and for TCP the CPU time of QEMU and server, s for each GiB, or else 0."""

    figure: float
    cpu: float


PLOT = Plot(
    series=[Series(device, device, device) for device in (OURS, IDPF, *PEERS)],
    label=lambda row: str(row["case"]),
    note=lambda row: f"{row['ratio']:.2f} of {row['best']}'s",
    unit=lambda row: UNITS.get(str(row["unit"]), str(row["unit"])),
    goal=lambda row: CASES[row["case"]].goal * float(row[row["best"]]),
)


@click.command()
@click.option("--case", "names", type=click.Choice(list(CASES)), multiple=True, help="Only this one; again and again.")
@click.option("--device", "devices", type=click.Choice([IDPF, *PEERS]), multiple=True, help="Only beside this one.")
@click.option("--seconds", default=2, show_default=True, help="Of each run.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each device and case; the median counts.")
@click.option("--hw-gro", is_flag=True, help="Have idpf coalesce what it receives, as gVNIC does.")
@click.option("--busy-poll", type=int, metavar="USECS", help="That of our server, in all cases.")
@click.option("--vcpus", default=2, show_default=True, help="Virtual CPUs of the guest.")
@output_option
def main(
    names: tuple[str, ...], devices: tuple[str, ...], seconds: int, rounds: int, hw_gro: bool, busy_poll: int | None,
    vcpus: int, output: Path,
) -> None:  # fmt: skip
    """Measure, print a table and write it to benchmarks/results."""
    devices = devices or tuple(PEERS)
    enter_namespace(devices)
    chosen = [CASES[name] for name in names or CASES]
    if busy_poll is not None:
        chosen = [replace(case, busy_poll=busy_poll) for case in chosen]
    rows = []
    for usecs in sorted({case.busy_poll for case in chosen}):
        some = [case for case in chosen if case.busy_poll == usecs]
        with Testbed((OURS, *devices), options=("--busy-poll", str(usecs)), vcpus=vcpus) as bed:
            if hw_gro and IDPF in bed.ports:
                bed.guest.run(f"ethtool -K {bed.interface(bed.ports[IDPF])} rx-gro-hw on")
            for case in track(some, "guest over a tap", console=Console(stderr=True), transient=True):
                rows.append(measure(bed, case, seconds, rounds))
                click.echo(f"{case.name}: {rows[-1]['ratio']:.2f}", err=True)
            accel = bed.guest.accel
    columns = (
        Column("case", "case"), Column("unit", "unit"),
        *(Column(device, device, ".3g") for device in (OURS, *devices)),
        Column("best", "best other"), Column("ratio", "ratio", ".2f"),
        *([Column("idpf_ratio", "idpf's ratio", ".2f")] if IDPF in devices else []), Column("goal_text", "goal"),
        Column("held", "held"), Column("cpu", "CPU, s/GiB", ".2f"), Column("cpu_peer", "virtio-net's", ".2f"),
        Column("cpu_ratio", "ratio", ".2f"),
    )  # fmt: skip
    title = f"A guest over a tap ({accel.upper()}, {vcpus} CPUs)"
    write("guest_tap_idpf" if IDPF in devices else "guest_tap", title, columns, rows, PLOT, output)


def measure(bed: Testbed, case: Case, seconds: int, rounds: int) -> dict[str, Any]:
    """All devices in turns."""
    bed.set_mtu(case.mtu)
    runs: dict[str, list[Run]] = {device: [] for device in bed.ports}
    for _ in range(rounds):
        for device, port in bed.ports.items():
            with nullcontext() if case.aggregated else bed.without_aggregation(port):
                runs[device].append(measure_once(bed, port, case, seconds))
    medians = {device: float(np.median([run.figure for run in some])) for device, some in runs.items()}
    cpu = {device: float(np.median([run.cpu for run in some])) for device, some in runs.items()}
    return {
        "case": case.name,
        "unit": case.unit,
        **medians,
        "runs": {device: [run.figure for run in some] for device, some in runs.items()},
        **compare(case, medians),
        **(compare_cpu(cpu) if case.kind == "tcp" and VIRTIO in cpu else {}),
    }


def compare(case: Case, medians: dict[str, float]) -> dict[str, Any]:
    """Ours beside the best other's, or virtio-net's if the case's goal is about that."""
    others = {device: value for device, value in medians.items() if device not in KINDS} or {IDPF: medians[IDPF]}
    if case.kind != "tcp" and VIRTIO in others:
        best = VIRTIO
    elif case.less_is_better:
        best = min(others, key=others.__getitem__)
    else:
        if not case.aggregated and {"e1000e", "igb"} & set(others):
            others = {device: value for device, value in others.items() if device in ("e1000e", "igb")}
        best = max(others, key=others.__getitem__)
    ratio = medians[OURS] / others[best]
    held = ratio <= case.goal if case.less_is_better else ratio >= case.goal
    goal = f"{'≤' if case.less_is_better else '≥'} {case.goal:g}"
    found = {"best": best, "ratio": ratio, "goal_text": goal, "held": "yes" if held else "no"}
    return found | ({"idpf_ratio": medians[IDPF] / others[best]} if IDPF in medians else {})


def compare_cpu(cpu: dict[str, float]) -> dict[str, float]:
    """Our CPU time beside virtio-net's."""
    return {"cpu": cpu[OURS], "cpu_peer": cpu[VIRTIO], "cpu_ratio": cpu[OURS] / cpu[VIRTIO]}


def measure_once(bed: Testbed, port: Port, case: Case, seconds: int) -> Run:
    """One run."""
    time.sleep(0.2)  # what the run before has left behind is over
    if case.kind == "request":
        return Run(round_trip(bed.guest, port.address, seconds)["median_us"], 0.0)
    processes = [bed.guest.pid, *([bed.server.pid] if port.device in KINDS else [])]
    before = sum(map(cpu_seconds, processes))
    figure = bed.iperf(
        port, seconds, guest_sends=case.guest_sends, streams=case.streams, datagrams=case.kind == "udp"
    )  # fmt: skip
    used = sum(map(cpu_seconds, processes)) - before
    return Run(figure, used / (figure * 1e9 / 8 * seconds / 2**30) if case.kind == "tcp" else 0.0)


if __name__ == "__main__":
    main()
