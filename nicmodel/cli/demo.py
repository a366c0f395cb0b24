"""``nicmodel demo``: a stock guest receives TCP payload in a dma-buf; the NIC's ledger shows where every byte went."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import click
from rich.table import Table

from nicmodel.cli.progress import console, step
from nicmodel.client.control import Control
from nicmodel.client.ledger import Entry, Place, entries, since, total
from nicmodel.client.report import ledger_table, named, size
from nicmodel.client.topology import places
from nicmodel.installation import in_wheel
from nicmodel.vm.devmem import send_pattern, set_up_devmem
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig, parse_size
from nicmodel.vm.image import build_image
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.layout import Nic
from nicmodel.vm.needs import DEVMEM, GVE, require
from nicmodel.vm.options import kernel_options
from nicmodel.vm.passt import Passt
from nicmodel.vm.qemu import find_qemu
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import build_guest_tools, check_host

#: The device memory of the guest that the dma-buf is taken from, and the dma-buf (udmabuf's default limit).
_MEMORY_NAME, _MEMORY_SIZE, _DMABUF_SIZE = "hbm", 128 << 20, 64 << 20
#: TCP segments of two whole pages, so that each fills two buffers of the dma-buf: 8192 bytes of payload, 40 of headers.
_MTU = 8192 + 40
_PORT = 5201
#: A kernel log with one of these is no success.
_TROUBLE = re.compile(r"AQ command failed|WARNING:|BUG:|Invalid RX buffer_id|Invalid TX completion tag|NETDEV WATCHDOG")


@dataclass
class _Outcome:
    """What the transfer has shown: facts for the table, what did not hold, and the DMA that it took."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)

    def fact(self, name: str, value: str) -> None:
        self.facts.append((name, value))

    def check(self, holds: bool, failure: str) -> None:
        if not holds:
            self.failures.append(failure)


@click.command()
@click.option("--size", "amount", default="256M", show_default=True, metavar="SIZE", help="Payload to send.")
@click.option("--queues", default=4, show_default=True, type=click.IntRange(2, 63),
              help="Receive queues; the last one takes the dma-buf.")  # fmt: skip
@kernel_options
@click.option("--keep", is_flag=True, help="Leave guest and server running afterwards, until Enter is pressed.")
def demo(amount: str, queues: int, kernel: KernelChoice, keep: bool) -> None:
    """Run devmem TCP from end to end, in a guest.

    A stock kernel receives payload in a dma-buf through the emulated NIC.

    Downloads and builds what is needed (once), and starts the NIC and a guest. One TCP flow is steered to the last
    receive queue, whose buffers are a dma-buf in device memory; this host sends a seeded pattern, and the guest checks
    every byte. The exit status is 0 only if all checks held. No privileges are needed: the wire is user-mode
    networking (passt).
    """
    nbytes = parse_size(amount)
    check_host()
    console.print("[bold]Preparing[/bold] [dim](downloads and builds happen once)[/dim]")
    with step("kernel and guest image"):
        found = kernel.find()
        require(found, (GVE, *DEVMEM))
        build_image(found)
    with step("QEMU with vfio-user-pci"):
        find_qemu(found.arch)
    with step("devmem receiver"):
        tools = build_guest_tools(found.arch)
    outcome = _Outcome()
    with ExitStack() as stack:
        console.print("[bold]Running[/bold]")
        port = _free_port()
        with step("user-mode network (passt)"):
            passt = stack.enter_context(Passt({port: _PORT}, mtu=_MTU))
        with step("NIC server"):
            server = stack.enter_context(
                NicServer(["--wire", f"stream:{passt.socket}", "--queues", str(max(queues, 2)),
                           "--default-queues", str(queues)])
            )  # fmt: skip
        with step("guest"):
            memory = {_MEMORY_NAME: _MEMORY_SIZE}
            config = GuestConfig(nics=[Nic(server.sockets[0])], device_memory=memory, kernel=kernel)
            guest = stack.enter_context(Guest(config))
        guest.put(tools / "devmem_receiver", "/usr/local/bin/devmem_receiver")
        with step("gve binds; header split, RSS and an n-tuple rule"):
            set_up_devmem(guest, passt.address, _PORT, queues - 1, mtu=_MTU, gateway=passt.gateway)
        _transfer(guest, server, port, nbytes, queues - 1, outcome)
        _print(outcome, queues - 1)
        if keep:
            click.prompt(f"NIC at {server.sockets[0]}, server process {server.pid}; Enter ends it", default="")
    if outcome.failures:
        raise VmError("the demo failed: " + "; ".join(outcome.failures))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _transfer(guest: Guest, server: NicServer, port: int, nbytes: int, queue: int, outcome: _Outcome) -> None:
    """Bind, send, receive, compare; then read what the NIC has booked."""
    seed = secrets.randbits(32)
    with step(f"a dma-buf of {size(_DMABUF_SIZE)} in device memory is bound to queue {queue}"):
        node = guest.device_memory[_MEMORY_NAME].node
        receiver = guest.start(
            f"devmem_receiver --interface eth0 --port {_PORT} --queues {queue}"
            f" --size {_DMABUF_SIZE} --node {node} --seed {seed}"
        )
        receiver.expect("ready")
    before = server.report()[0]
    with step(f"{size(nbytes)} from the host, received with MSG_SOCK_DEVMEM"):
        seconds = send_pattern("127.0.0.1", port, nbytes, seed)
        result = receiver.wait(60)
    after = server.report()[0]
    with Control(server.control) as control:
        where = places(guest.qmp.execute("query-pci"), control.show())
    outcome.ledger = since(entries(before, where), entries(after, where))
    try:
        received = json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise VmError(f"the receiver failed: {result.stderr.strip() or result.stdout.strip()}") from None
    _judge(guest, received, result.status, nbytes, seconds, before, after, queue, outcome, compiled=server.compiled)


def _judge(
    guest: Guest, received: dict[str, Any], status: int, nbytes: int, seconds: float, before: dict[str, Any],
    after: dict[str, Any], queue: int, outcome: _Outcome, *, compiled: bool,
) -> None:  # fmt: skip
    """Hold what the receiver says and what the NIC has booked against each other."""
    flow = [one for one in outcome.ledger if one.queue == f"rx{queue}"]
    payload = total(flow, purpose="payload", memory=_MEMORY_NAME)
    astray = total(flow, purpose="payload", place=Place.RAM)
    rule = next((rule for rule in after["rules"] if rule["queue"] == queue), {"hits": 0})
    old_hits = next((rule["hits"] for rule in before["rules"] if rule["queue"] == queue), 0)
    packets, aggregated, coalesced = (
        after["rx_queues"][queue][name] - before["rx_queues"][queue][name]
        for name in ("frames", "aggregated", "coalesced")
    )
    frames = packets - aggregated + coalesced  # no frame comes aggregated from this wire
    lost = sum(_dropped(before["rx_queues"][queue], after["rx_queues"][queue]).values())
    hits = rule["hits"] - old_hits

    outcome.check(status == 0, f"the receiver ended with status {status}: {received['first_error']}")
    outcome.check(received["errors"] == 0, f"{received['errors']} errors in the data: {received['first_error']}")
    outcome.check(received["bytes"] == nbytes, f"{received['bytes']} bytes arrived of {nbytes}")
    outcome.check(received["linear_bytes"] == 0, f"{received['linear_bytes']} bytes came outside the dma-buf")
    outcome.check(payload >= nbytes, f"the NIC wrote only {payload} bytes into the dma-buf")
    outcome.check(astray == 0, f"{astray} payload bytes of the flow went to ordinary memory")
    outcome.check(hits == frames + lost, f"the rule steered {hits} frames, the queue saw {frames + lost}")
    trouble = [line for line in guest.dmesg().splitlines() if _TROUBLE.search(line)]
    outcome.check(not trouble, "the guest's kernel complains: " + "; ".join(trouble))

    driver = guest.run("modinfo -F version gve; ethtool -i eth0 | sed -n 's/^version: //p'").stdout.split()
    outcome.fact("guest kernel", guest.kernel_version)
    outcome.fact("driver", f"gve {driver[-1] if driver else ''} (Debian's, unmodified), queue format DQO-RDA")
    outcome.fact("acceleration", {"kvm": "KVM", "tcg": "TCG (emulated CPU: KVM does not work here)"}[guest.accel])
    outcome.fact("queue and rule", f"RX queue {queue}; rule {rule.get('location')}: TCP port {_PORT}, {hits:,} frames")
    outcome.fact("payload received", f"{received['bytes']:,} bytes, every byte checked")
    outcome.fact("payload into the dma-buf", f"{payload:,} bytes by DMA into “{_MEMORY_NAME}”")
    outcome.fact("payload into host memory", f"{astray:,} bytes of that flow")
    outcome.fact("frames", f"{frames:,}, handed over as {packets:,} packets")
    outcome.fact("drops", named(_dropped(before, after)))
    if before["drops"]:
        before_it = f"{named(before['drops'])} (device_down: frames that came before the driver was up)"
        outcome.fact("drops before it", before_it)
    outcome.fact("throughput", f"{nbytes * 8 / seconds / 1e9:.2f} Gbit/s over {seconds:.1f} s")
    memory = f"{size(after['own_memory'])}, without the guest's memory, which it maps"
    outcome.fact("server's own memory", memory + ("; more than usual, as it had to compile" if compiled else ""))


def _dropped(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Frames that a queue, or a NIC, has dropped between two reports, by reason."""
    counts = {name: count - before["drops"].get(name, 0) for name, count in after["drops"].items()}
    return {name: count for name, count in counts.items() if count}


def _print(outcome: _Outcome, queue: int) -> None:
    table = Table(title="devmem TCP through the emulated NIC", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in outcome.facts:
        table.add_row(name, value)
    verdict = "[red]FAILED[/red]" if outcome.failures else "[green]all checks held[/green]"
    table.add_row("verdict", verdict)
    console.print()
    console.print(table)
    console.print()
    title = f"DMA of the transfer: what the NIC read and wrote, for queue rx{queue} and in all"
    console.print(ledger_table(outcome.ledger, title=title, queues=[f"rx{queue}"], width=console.width))
    if not outcome.failures:
        command = "nicmodel" if shutil.which("nicmodel") else ".venv/bin/nicmodel"
        next_steps = {
            f"{command} serve --socket /tmp/nic.sock": "a NIC for your own QEMU",
            f"{command} vm --nic /tmp/nic.sock --tools": "a stock guest on it",
            f"{command} demo --size 1G --queues 8": "more of this",
            f"{command} --help": "everything else",
            **({} if in_wheel() else {"make test": "the whole test suite"}),
        }
        column = max(map(len, next_steps)) + 4
        console.print("\nNext:")
        for words, meaning in next_steps.items():
            told = f"  {words}"
            console.print(f"{told:<{column}}{meaning}" if console.width >= 80 else f"{told}\n      {meaning}")
