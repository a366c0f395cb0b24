"""What a packet-injection test costs: starting a NIC and its driver, and passing frames through the API.

    python benchmarks/inject.py
    python benchmarks/inject.py --json

Each start is what the fixtures `nic` and `driver` do for a test, the opening of four queues, and one frame up to the
first assertion. Frames are built before they are injected. Times are of the wall clock, so have the machine to
yourself; the first start of all, which loads the compiled packet path, is told apart.
"""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.testing.clock import VirtualClock


@click.command()
@click.option("--starts", default=1000, show_default=True, help="NICs and drivers to start.")
@click.option("--frames", default=10_000, show_default=True, help="Frames in a call.")
@click.option("--calls", default=20, show_default=True, help="Calls of each kind.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def main(starts: int, frames: int, calls: int, as_json: bool) -> None:
    """Measure, and print a table."""
    result: dict[str, Any] = {"start": measure_starts(starts), "inject": measure_rates(frames, calls)}
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    console = Console()
    start = result["start"]
    table = Table(title=f"{starts} starts of NIC and driver, ms", title_justify="left")
    for heading in ("first", "median", "99 %", "most"):
        table.add_column(heading, justify="right")
    table.add_row(*(f"{start[name]:.1f}" for name in ("first_ms", "median_ms", "p99_ms", "max_ms")))
    console.print(table)
    table = Table(title=f"{frames:,} frames in a call, median of {calls}", title_justify="left")
    table.add_column("frames")
    for heading in ("ms", "frames/s", "Gbit/s"):
        table.add_column(heading, justify="right")
    for row in result["inject"]:
        table.add_row(row["frames"], f"{row['ms']:.1f}", f"{row['per_second']:,.0f}", f"{row['gbit_per_second']:.2f}")
    console.print(table)


def measure_starts(count: int) -> dict[str, float]:
    """Times in ms from nothing to the first assertion; the first of them apart."""
    frame = bytes(Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP() / TCP(dport=5201) / (b"x" * 1000))
    times = [start_once(frame) for _ in range(count + 1)]
    rest = np.array(times[1:])
    return {
        "first_ms": times[0],
        "median_ms": float(np.median(rest)),
        "p99_ms": float(np.percentile(rest, 99)),
        "max_ms": float(rest.max()),
    }


def start_once(frame: bytes) -> float:
    """One test's start, ms; what comes after the first assertion does not count."""
    begin = time.perf_counter()
    with TestNic(Profile(mac=bytes([2, 0, 0, 0, 0, 1])), clock=VirtualClock()) as nic, nic.connect() as driver:
        driver.probe()
        driver.open(rx_queues=4, header_split=True)
        driver.add_flow_rule(TCPv4(dst_port=5201), queue=3)
        assert nic.inject(frame).queue == 3
        return (time.perf_counter() - begin) * 1e3


def measure_rates(count: int, calls: int) -> list[dict[str, Any]]:
    """Frames per second through `TestNic.inject`, with a driver that posts the buffers again."""
    rows = []
    with TestNic(clock=VirtualClock()) as nic, nic.connect() as driver:
        driver.probe()
        driver.open(rx_queues=4, header_split=True)
        for length, layer in ((64, UDP), (64, TCP), (1514, TCP), (8910, TCP)):
            flows = [Ether() / IP() / layer(sport=port) for port in range(100)]
            hundred = [flow / bytes(length - len(flow)) for flow in flows]
            built = nic.build((nic.build(hundred)[:] * (count // 100 + 1))[:count])
            times = []
            for _ in range(calls):
                gc.collect()
                begin = time.perf_counter()
                deliveries = nic.inject(built, consumer=driver)
                times.append(time.perf_counter() - begin)
                assert deliveries.delivered == count
            seconds = float(np.median(times))
            rows.append(
                {
                    "frames": f"{layer.__name__}, {length} bytes",
                    "ms": seconds * 1e3,
                    "per_second": count / seconds,
                    "gbit_per_second": count * length * 8 / seconds / 1e9,
                }
            )
    return rows


if __name__ == "__main__":
    main()
