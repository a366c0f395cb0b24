"""What the event loop's turns of one request and its answer take the server, without a guest.

    python benchmarks/turns.py
    python benchmarks/turns.py --device idpf

Server and driver are in one thread, with a tap between the server and the host. A request is a frame that comes, whose
interrupt the driver then enables again; its answer is a packet that the driver posts, and again the interrupt. Only
what the server does is measured, system calls included: the least time of many rounds, which hardly depends on what
else the machine does, and the calls of functions in it, which do not at all.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click
from plot import Plot, Series
from report import output_option, write
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from testbed import IDPF, OURS

from nicmodel.client.results import Column
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.idpf.testing.nic import TestNic as IdpfNic
from nicmodel.testing.clock import VirtualClock
from nicmodel.vm.namespace import Namespace, namespace_for_taps
from nicmodel.wire.tap import TapWire

TAP = "turns0"
#: The far end.
PEER = "02:00:00:00:99:01"
#: Between the steps, ns of virtual time: longer than any moderation interval that the driver sets.
PAUSE = 1_000_000
#: Rounds before anything is measured.
WARM = 300
STEPS = ("a frame comes", "its interrupt is enabled", "a packet is sent", "its interrupt is enabled again")

PLOT = Plot(
    series=(Series("least", "nicmodel"),),
    label=lambda row: f"{row['device']}: {row['step']}",
    note=lambda row: f"{row['calls']:.0f} calls",
    unit=lambda row: "µs",
)


@click.command()
@click.option("--device", "devices", type=click.Choice([OURS, IDPF]), multiple=True, help="Only this one.")
@click.option("--rounds", default=3000, show_default=True, help="Requests.")
@output_option
def main(devices: tuple[str, ...], rounds: int, output: Path) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    namespace = namespace_for_taps()
    if namespace is None:
        raise click.ClickException("no tap in a network namespace: try as root, or by `unshare -rn`")
    with namespace:
        rows = [row for device in devices or (OURS, IDPF) for row in measure(device, rounds, namespace)]
    columns = (
        Column("device", "device"), Column("step", "what"), Column("least", "µs, the least", ".1f"),
        Column("calls", "calls of functions", ".0f"),
    )  # fmt: skip
    write("turns", "The server's turns for a request and its answer", columns, rows, PLOT, output)


def measure(device: str, rounds: int, namespace: Namespace) -> list[dict[str, Any]]:
    """A row for each step of a request, and one for all of them."""
    clock = VirtualClock()
    wire = namespace.run(TapWire, TAP)
    with ExitStack() as stack:
        nic: Any = stack.enter_context((TestNic if device == OURS else IdpfNic)(wire=wire, clock=clock))
        namespace.ip("link", "set", TAP, "addrgenmode", "none", "multicast", "off", "up")
        peer = stack.enter_context(closing(namespace.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)))
        peer.bind((TAP, 0))
        driver = nic.connect()
        stack.callback(driver.disconnect)
        driver.probe()
        if device == OURS:
            driver.open(rx_queues=1, tx_queues=1)
            enable, vectors = driver.enable, (driver.rx_block(0), driver.tx_block(0))
            enabled = nic.device.state.vectors["enabled"]
        else:
            driver.open(queues=1)
            enable, vectors = driver.rearm, (0, 0)
            enabled = nic.device.state.vectors["enabled"][1:]  # without the mailbox's
        ask = bytes(Ether(dst=nic.mac, src=PEER) / IP(src="192.0.2.2", dst="192.0.2.1") / TCP() / b"?")
        answer = bytes(Ether(dst=PEER, src=nic.mac) / IP(src="192.0.2.1", dst="192.0.2.2") / TCP() / b"!")

        def request(turn: Callable[[], None]) -> None:
            """The steps, `turn` being called for each."""
            for vector in vectors:
                while not enabled[vector]:  # it has fired for a frame of the kernel's own
                    enable(vector)
                    clock.advance(PAUSE)
            peer.send(ask)
            turn()
            driver.poll(0)
            enable(vectors[0])
            turn()
            driver.send(0, answer)
            turn()
            driver.poll_tx(0)
            enable(vectors[1])
            turn()

        times: list[int] = []

        def timed() -> None:
            clock.now += PAUSE
            began = time.perf_counter_ns()
            clock.turn()
            times.append(time.perf_counter_ns() - began)

        for _ in range(WARM):
            request(timed)
        times.clear()
        gc.disable()
        for _ in range(rounds):
            request(timed)
        gc.enable()
        profiles = [cProfile.Profile() for _ in STEPS]

        def counted() -> None:
            clock.now += PAUSE
            profile = profiles[0]
            profiles.append(profiles.pop(0))
            profile.enable()
            clock.turn()
            profile.disable()

        for _ in range(WARM):
            request(counted)
        calls = [pstats.Stats(profile).total_calls / WARM for profile in profiles]  # type: ignore[attr-defined]
    least = [min(times[step :: len(STEPS)]) / 1e3 for step in range(len(STEPS))]
    rows = [
        {"device": device, "step": step, "least": microseconds, "calls": count}
        for step, microseconds, count in zip(STEPS, least, calls, strict=True)
    ]
    return [*rows, {"device": device, "step": "all of it", "least": sum(least), "calls": sum(calls)}]


if __name__ == "__main__":
    main()
