"""devmem TCP receive beside ordinary TCP receive: throughput, and what each byte costs the guest's CPUs.

    python benchmarks/devmem.py
    python benchmarks/devmem.py --queues 1 --payload "64 KiB of 1448" --seconds 5

One guest has all the NICs. Ordinary receive reads into a program's memory; devmem receive leaves the payload in the
dma-buf, which nobody reads, and returns the tokens in batches. Sender and TCP are the same. With devmem each flow has a
receive queue of its own; with ordinary receive RSS spreads the flows.

What limits either is the guest's CPU time, so devmem receive should be as many times as fast as it takes less of that
for each byte: this is what is "allowed". The NIC's part is to stay out of the way.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from plot import Plot, Series
from report import counted, output_option, write
from rich.console import Console
from rich.progress import track
from testbed import OURS, PEER_PORT, Port, Testbed, cpu_seconds, enter_namespace, tcp_peer

from nicmodel.client.results import Column
from nicmodel.vm.tools import build_guest_tools

DEVMEM = "devmem"
PEERS = ("virtio-net", "vmxnet3")
#: Queues for devmem are those from here on; RSS uses those before.
FIRST_QUEUE = 4
#: Bytes of each queue's dma-buf, and how many tokens are returned at a time.
DMABUF, TOKENS = "64M", 256
#: Headers of IPv4 and of TCP with timestamps, which count in the MTU.
HEADERS = 52
#: Of the throughput that the guest's CPU time allows; and of ordinary receive's CPU time in the guest.
GOAL, CPU_GOAL = 0.95, 0.4


@dataclass(frozen=True)
class Payload:
    """What a packet carries that the device gets from the wire: segments of a given size, aggregated or one by one."""

    name: str
    segment: int
    aggregated: bool

    @property
    def mtu(self) -> int:
        """The MTU for such segments."""
        return self.segment + HEADERS


PAYLOADS = {
    payload.name: payload
    for payload in (
        Payload("64 KiB of 1448", 1448, True),
        Payload("64 KiB of 4096", 4096, True),
        Payload("4096", 4096, False),
        Payload("1448", 1448, False),
    )
}


@dataclass(frozen=True)
class Transfer:
    """One run: Gbit/s, and CPU time in ns for each KiB that arrived: the guest's; QEMU's; the NIC server's."""

    gbps: float
    guest: float
    qemu: float
    server: float


PLOT = Plot(
    series=[Series(DEVMEM, "devmem", "devmem"), *(Series(name, f"ordinary, {name}", name) for name in (OURS, *PEERS))],
    label=lambda row: f"{row['payload']} bytes, {counted(row['queues'], 'queue')}",
    note=lambda row: f"{row['ratio']:.2f} × {row['best']}",
    unit=lambda row: "Gbit/s",
    goal=lambda row: GOAL * float(row["allowed"]),
)


@click.command()
@click.option(
    "--payload", "names", type=click.Choice(list(PAYLOADS)), multiple=True, help="Only this; again and again."
)
@click.option(
    "--queues", "counts", type=click.IntRange(1, 4), multiple=True, help="Flows, each with its queue.  [1, 4]"
)
@click.option("--device", "devices", type=click.Choice(PEERS), multiple=True, help="Only beside this one.")
@click.option("--seconds", default=2, show_default=True, help="Of each run.")
@click.option("--rounds", default=2, show_default=True, help="Runs of each row and receiver; the median counts.")
@output_option
def main(
    names: tuple[str, ...],
    counts: tuple[int, ...],
    devices: tuple[str, ...],
    seconds: int,
    rounds: int,
    output: Path,
) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    enter_namespace()
    devices = devices or PEERS
    chosen = [(PAYLOADS[name], count) for name in names or PAYLOADS for count in counts or (1, 4)]
    with Testbed((OURS, *devices), options=["--default-queues", "8"]) as bed:
        set_up(bed)
        rows = []
        for payload, count in track(chosen, "devmem TCP", console=Console(stderr=True), transient=True):
            rows.append(measure(bed, payload, count, seconds, rounds))
            click.echo(f"{payload.name}, {counted(count, 'queue')}: {rows[-1]['ratio']:.2f}", err=True)
    columns = (
        Column("payload", "payload"), Column("queues", "queues", "d"), Column(DEVMEM, DEVMEM, ".2f"),
        *(Column(device, device, ".2f") for device in (OURS, *devices)), Column("best", "best"),
        Column("ratio", "ratio", ".2f"), Column("allowed", "allowed", ".2f"), Column("share", "of it", ".2f"),
        Column("goal_text", "goal"), Column("held", "held"),
        Column("guest_devmem", "guest CPU", ".0f"), Column("guest_best", "best's", ".0f"),
        Column("guest_ratio", "ratio", ".2f"),
        Column("all_devmem", "all CPU", ".0f"), Column("all_best", "best's", ".0f"),
    )  # fmt: skip
    title = f"devmem TCP receive beside ordinary receive, Gbit/s and ns/KiB ({bed.guest.accel.upper()}, 2 CPUs)"
    write("devmem", title, columns, rows, PLOT, output)


def set_up(bed: Testbed) -> None:
    """What devmem needs of our NIC: a rule for each flow, and queues that RSS leaves alone."""
    interface = bed.interface(bed.ports[OURS])
    bed.guest.put(build_guest_tools() / "devmem_receiver", "/usr/local/bin/devmem_receiver")
    bed.guest.run(f"ethtool -K {interface} ntuple on; ethtool -X {interface} equal {FIRST_QUEUE}")


def measure(bed: Testbed, payload: Payload, count: int, seconds: int, rounds: int) -> dict[str, Any]:
    """All receivers in turns."""
    bed.set_mtu(payload.mtu)
    runs: dict[str, list[Transfer]] = {receiver: [] for receiver in (DEVMEM, *bed.ports)}
    for _ in range(rounds):
        for receiver, transfers in runs.items():
            port = bed.ports[OURS if receiver == DEVMEM else receiver]
            with ExitStack() as stack:
                stack.enter_context(nullcontext() if payload.aggregated else bed.without_aggregation(port))
                if receiver == DEVMEM:
                    stack.enter_context(header_split_and_rules(bed, port, count))
                transfers.append(transfer(bed, port, count, seconds, devmem=receiver == DEVMEM))
    gbps = {receiver: float(np.median([run.gbps for run in transfers])) for receiver, transfers in runs.items()}
    best = max(bed.ports, key=gbps.__getitem__)

    def cost(receiver: str, *who: str) -> float:
        return float(np.median([sum(getattr(run, name) for name in who) for run in runs[receiver]]))

    guest_ratio = cost(DEVMEM, "guest") / cost(best, "guest")
    allowed = gbps[best] / guest_ratio
    return {
        "payload": payload.name,
        "queues": count,
        **gbps,
        "best": best,
        "ratio": gbps[DEVMEM] / gbps[best],
        "allowed": allowed,
        "share": gbps[DEVMEM] / allowed,
        "goal_text": f"≥ {GOAL:g}",
        "held": "yes" if gbps[DEVMEM] >= GOAL * allowed else "no",
        "guest_ratio": guest_ratio,
        "guest_devmem": cost(DEVMEM, "guest"),
        "guest_best": cost(best, "guest"),
        # QEMU runs the guest's CPUs: its time has the guest's in it.
        "all_devmem": cost(DEVMEM, "qemu", "server"),
        "all_best": cost(best, "qemu", "server"),
        "runs": {receiver: [asdict(run) for run in transfers] for receiver, transfers in runs.items()},
    }


@contextmanager
def header_split_and_rules(bed: Testbed, port: Port, count: int) -> Iterator[None]:
    """Header split on, and a rule for each flow; ordinary receive is measured without."""
    interface = bed.interface(port)
    rules = [
        f"ethtool -N {interface} flow-type tcp4 dst-port {PEER_PORT + flow} action {FIRST_QUEUE + flow} loc {flow}"
        for flow in range(count)
    ]
    bed.guest.run(" && ".join([f"ethtool -G {interface} tcp-data-split on", *rules]))
    bed.await_path(port)
    try:
        yield
    finally:
        rules = [f"ethtool -N {interface} delete {flow}" for flow in range(count)]
        bed.guest.run(" && ".join([*rules, f"ethtool -G {interface} tcp-data-split off"]))
        bed.await_path(port)


def transfer(bed: Testbed, port: Port, count: int, seconds: int, *, devmem: bool) -> Transfer:
    """Send over `count` flows at once."""
    tcp_ports = [PEER_PORT + flow for flow in range(count)]
    commands = [f"tcp_peer sink {number}" for number in tcp_ports]
    if devmem:
        commands = [
            f"devmem_receiver --interface {bed.interface(port)} --port {number} --queues {FIRST_QUEUE + flow}"
            f" --size {DMABUF} --batch {TOKENS} --no-verify"
            for flow, number in enumerate(tcp_ports)
        ]
    receivers = [bed.guest.start(command) for command in commands]
    for receiver in receivers:
        receiver.expect("ready")
    before = cpu_times(bed)
    send(port.address, tcp_ports, seconds)
    used = cpu_times(bed) - before
    results = []
    for receiver in receivers:
        results.append(json.loads(receiver.expect("}").splitlines()[-1]))
        if not devmem:
            receiver.kill()
        receiver.wait()
    wrong = [result["first_error"] for result in results if result.get("errors")]
    if wrong:
        raise click.ClickException(f"devmem_receiver: {wrong[0]}")
    nbytes = sum(result["bytes"] for result in results)
    if devmem and (linear := sum(result["linear_bytes"] for result in results)):
        raise click.ClickException(f"{linear:,} of {nbytes:,} bytes did not go to the dma-buf: that was no devmem TCP")
    gbps = nbytes * 8e-9 / max(result["seconds"] for result in results)
    return Transfer(gbps, *(used * 1e9 / (nbytes / 1024)))


def send(address: str, tcp_ports: Sequence[int], seconds: int) -> None:
    """Send to all ports at once for some time, and until all has arrived."""
    senders = [
        subprocess.Popen([tcp_peer(), "send", address, str(number), str(seconds)], stdout=subprocess.DEVNULL)
        for number in tcp_ports
    ]
    deadline = time.monotonic() + seconds + 60
    for sender in senders:
        if sender.wait(deadline - time.monotonic()):
            raise click.ClickException(f"sending to {address} failed")


def cpu_times(bed: Testbed) -> Any:
    """CPU time in s so far of the guest's CPUs (proc_stat(5)), of QEMU and of the NIC server, shape (3,)."""
    fields = bed.guest.run("head -n 1 /proc/stat; getconf CLK_TCK 2>/dev/null || echo 100").stdout.split()
    ticks = [int(field) for field in fields[1:9]]  # user nice system idle iowait irq softirq steal
    busy = (sum(ticks) - ticks[3] - ticks[4]) / int(fields[-1])
    return np.array([busy, cpu_seconds(bed.guest.pid), cpu_seconds(bed.server.pid)])


if __name__ == "__main__":
    main()
