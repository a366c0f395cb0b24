"""``nicmodel demo``: a stock guest receives TCP payload in a dma-buf, or with headers split off; the NIC's ledger shows
where every byte went.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import click
from rich.table import Table

from nicmodel.cli.progress import console, step
from nicmodel.client.control import Control
from nicmodel.client.ledger import Entry, Place, entries, since, total
from nicmodel.client.report import ledger_table, named, size
from nicmodel.client.topology import places
from nicmodel.installation import in_wheel
from nicmodel.nearest import Choice
from nicmodel.vm.devmem import send_pattern, set_up_devmem
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig, parse_size
from nicmodel.vm.image import build_image
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.layout import Nic
from nicmodel.vm.needs import DEVMEM, GVE, IDPF, Need, require
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
_TROUBLE = re.compile(
    r"AQ command failed|WARNING:|BUG:|Invalid RX buffer_id|Invalid TX completion tag|NETDEV WATCHDOG"
    r"|TxQ not found|Unknown TX completion|Failed to receive marker"
)


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


@dataclass(frozen=True)
class _Seen:
    """What a transfer has left to be judged.

    Attributes:
        guest: the guest, still running.
        received: what the receiver said at its end.
        nbytes: payload that was sent.
        queue: the receive queue of the flow.
        before: the NIC's counters at first.
        after: its counters at the end.
        flow: the DMA for that queue.
    """

    guest: Guest
    received: dict[str, Any]
    nbytes: int
    queue: int
    before: dict[str, Any]
    after: dict[str, Any]
    flow: list[Entry]

    def more(self, counter: str) -> int:
        """By how much a counter of the flow's queue has grown."""
        old, new = (int(report["rx_queues"][self.queue][counter]) for report in (self.before, self.after))
        return new - old


class _Demo(ABC):
    """What is shown with a kind of NIC.

    Attributes:
        driver: the module of the stock driver.
        needs: what of the guest's kernel.
        title: of the table of facts.
        begins: what is done before data is sent.
        way: how data is received.
        next: what a user may try next: arguments of `nicmodel`, and what they are for.
    """

    driver: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]]
    title: ClassVar[str]
    begins: ClassVar[str]
    way: ClassVar[str]
    next: ClassVar[dict[str, str]]

    @abstractmethod
    def serve(self, queues: int) -> list[str]:
        """Arguments of `nicmodel serve`."""

    def settings(self, queues: int) -> str:
        """Shell commands in the guest, before all others."""
        return "true"

    @abstractmethod
    def receiver(self, guest: Guest, queue: int) -> str:
        """Arguments of the receiver."""

    @abstractmethod
    def judge(self, seen: _Seen, outcome: _Outcome) -> None:
        """Hold against each other what can only be seen with this kind of NIC."""


class _Devmem(_Demo):
    """A gVNIC: the payload into a dma-buf."""

    driver = "gve"
    needs = (GVE, *DEVMEM)
    title = "devmem TCP through the emulated NIC"
    begins = f"a dma-buf of {size(_DMABUF_SIZE)} in device memory is bound to queue {{queue}}"
    way = "received with MSG_SOCK_DEVMEM"
    next: ClassVar = {"demo --size 1G --queues 8": "more of this"}

    def serve(self, queues: int) -> list[str]:
        return ["--queues", str(max(queues, 2)), "--default-queues", str(queues)]

    def receiver(self, guest: Guest, queue: int) -> str:
        node = guest.device_memory[_MEMORY_NAME].node
        return f"--interface eth0 --queues {queue} --size {_DMABUF_SIZE} --node {node}"

    def judge(self, seen: _Seen, outcome: _Outcome) -> None:
        payload = total(seen.flow, purpose="payload", memory=_MEMORY_NAME)
        astray = total(seen.flow, purpose="payload", place=Place.RAM)
        linear = seen.received["linear_bytes"]
        outcome.check(linear == 0, f"{linear} bytes came outside the dma-buf")
        outcome.check(payload >= seen.nbytes, f"the NIC wrote only {payload} bytes into the dma-buf")
        outcome.check(astray == 0, f"{astray} payload bytes of the flow went to ordinary memory")
        outcome.fact("payload into the dma-buf", f"{payload:,} bytes by DMA into “{_MEMORY_NAME}”")
        outcome.fact("payload into host memory", f"{astray:,} bytes of that flow")


class _Split(_Demo):
    """An idpf: headers apart from the payload, in ordinary memory, as the driver has no devmem TCP."""

    driver = "idpf"
    needs = (IDPF,)
    title = "header split through the emulated NIC"
    begins = "a receiver listens that checks every byte"
    way = "received as usual: the kernel copies it to the receiver"
    next: ClassVar = {
        "demo --device idpf --size 1G --queues 8": "more of this",
        "demo": "the payload into a dma-buf, by a gVNIC",
    }

    def serve(self, queues: int) -> list[str]:
        return ["--device", "idpf", "--queues", str(queues)]

    def settings(self, queues: int) -> str:
        return f"ethtool -L eth0 combined {queues}"

    def receiver(self, guest: Guest, queue: int) -> str:
        return "--plain"

    def judge(self, seen: _Seen, outcome: _Outcome) -> None:
        payload, headers = (total(seen.flow, purpose=purpose, place=Place.RAM) for purpose in ("payload", "header"))
        packets, split, frames = seen.more("frames"), seen.more("split"), seen.more("bytes")
        # What carries no payload is not split.
        outcome.check(0 < split <= packets, f"{split} of {packets} packets came with their headers split off")
        outcome.check(payload >= seen.nbytes, f"the NIC wrote only {payload} bytes of payload")
        outcome.check(payload + headers == frames, f"of {frames} bytes {headers} came as headers, {payload} as payload")
        said = seen.guest.run("ethtool -S eth0").stdout
        counted = int(next(iter(re.findall(r"^ +rx-hsplit: (\d+)$", said, re.MULTILINE)), 0))
        in_all = sum(int(queue["split"]) for queue in seen.after["rx_queues"])
        outcome.check(counted == in_all, f"the driver has counted {counted} split packets, the NIC {in_all}")
        outcome.fact(
            "headers", f"{headers:,} bytes by DMA into header buffers, of {split:,} packets (the driver agrees)"
        )
        outcome.fact("payload", f"{payload:,} bytes by DMA into buffers that begin with it")
        outcome.fact("copied by the CPU", f"{seen.received['bytes']:,} bytes: the driver has no devmem TCP yet")


_DEMOS: dict[str, _Demo] = {"gvnic": _Devmem(), "idpf": _Split()}


@click.command()
@click.option("--device", type=Choice(list(_DEMOS)), default="gvnic", show_default=True, help="What kind of NIC.")
@click.option("--size", "amount", default="256M", show_default=True, metavar="SIZE", help="Payload to send.")
@click.option("--queues", default=4, show_default=True, type=click.IntRange(2, 63),
              help="Receive queues; the last one takes the flow. An idpf has 30 at most.")  # fmt: skip
@kernel_options
@click.option("--keep", is_flag=True, help="Leave guest and server running afterwards, until Enter is pressed.")
def demo(device: str, amount: str, queues: int, kernel: KernelChoice, keep: bool) -> None:
    """Run devmem TCP from end to end, in a guest.

    A stock kernel receives payload in a dma-buf through the emulated NIC.

    Downloads and builds what is needed (once), and starts the NIC and a guest. One TCP flow is steered to the last
    receive queue, whose buffers are a dma-buf in device memory; this host sends a seeded pattern, and the guest checks
    every byte. The exit status is 0 only if all checks held. No privileges are needed: the wire is user-mode
    networking (passt).

    With --device idpf, whose driver has no devmem TCP yet, headers and payload go to buffers of their own in the
    guest's memory, from which the kernel copies the payload to the receiver. What the driver has counted is held
    against what the NIC has.
    """
    show, nbytes = _DEMOS[device], parse_size(amount)
    check_host()
    console.print("[bold]Preparing[/bold] [dim](downloads and builds happen once)[/dim]")
    with step("kernel and guest image"):
        found = kernel.find()
        require(found, show.needs)
        build_image(found)
    with step("QEMU with vfio-user-pci"):
        find_qemu(found.arch)
    with step("the receiver"):
        tools = build_guest_tools(found.arch)
    outcome = _Outcome()
    with ExitStack() as stack:
        console.print("[bold]Running[/bold]")
        port = _free_port()
        with step("user-mode network (passt)"):
            passt = stack.enter_context(Passt({port: _PORT}, mtu=_MTU))
        with step("NIC server"):
            words = ["--wire", f"stream:{passt.socket}", *show.serve(queues)]
            server = stack.enter_context(NicServer(words))
        with step("guest"):
            memory = {_MEMORY_NAME: _MEMORY_SIZE}
            config = GuestConfig(nics=[Nic(server.sockets[0])], device_memory=memory, kernel=kernel)
            guest = stack.enter_context(Guest(config))
        guest.put(tools / "devmem_receiver", "/usr/local/bin/devmem_receiver")
        with step(f"{show.driver} binds; header split, RSS and an n-tuple rule"):
            set_up_devmem(
                guest, passt.address, _PORT, queues - 1, mtu=_MTU, gateway=passt.gateway,
                driver=show.driver, settings=show.settings(queues),
            )  # fmt: skip
        _transfer(show, guest, server, port, nbytes, queues - 1, outcome)
        _print(show, outcome, queues - 1)
        if keep:
            click.prompt(f"NIC at {server.sockets[0]}, server process {server.pid}; Enter ends it", default="")
    if outcome.failures:
        raise VmError("the demo failed: " + "; ".join(outcome.failures))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _transfer(
    show: _Demo, guest: Guest, server: NicServer, port: int, nbytes: int, queue: int, outcome: _Outcome
) -> None:
    """Bind, send, receive, compare; then read what the NIC has booked."""
    seed = secrets.randbits(32)
    with step(show.begins.format(queue=queue)):
        receiver = guest.start(f"devmem_receiver --port {_PORT} --seed {seed} {show.receiver(guest, queue)}")
        receiver.expect("ready")
    before = server.report()[0]
    with step(f"{size(nbytes)} from the host, {show.way}"):
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
    outcome.check(result.status == 0, f"the receiver ended with status {result.status}: {received['first_error']}")
    flow = [one for one in outcome.ledger if one.queue == f"rx{queue}"]
    seen = _Seen(guest, received, nbytes, queue, before, after, flow)
    _judge(show, seen, seconds, outcome, compiled=server.compiled)


def _judge(show: _Demo, seen: _Seen, seconds: float, outcome: _Outcome, *, compiled: bool) -> None:
    """Hold what the receiver says and what the NIC has booked against each other."""
    guest, received, queue, before, after = seen.guest, seen.received, seen.queue, seen.before, seen.after
    rule = next((rule for rule in after["rules"] if rule["queue"] == queue), {"hits": 0})
    old_hits = next((rule["hits"] for rule in before["rules"] if rule["queue"] == queue), 0)
    packets = seen.more("frames")
    frames = packets - seen.more("aggregated") + seen.more("coalesced")  # no frame comes aggregated from this wire
    lost = sum(_dropped(before["rx_queues"][queue], after["rx_queues"][queue]).values())
    hits = rule["hits"] - old_hits

    outcome.check(received["errors"] == 0, f"{received['errors']} errors in the data: {received['first_error']}")
    outcome.check(received["bytes"] == seen.nbytes, f"{received['bytes']} bytes arrived of {seen.nbytes}")
    outcome.check(hits == frames + lost, f"the rule steered {hits} frames, the queue saw {frames + lost}")
    trouble = [line for line in guest.dmesg().splitlines() if _TROUBLE.search(line)]
    outcome.check(not trouble, "the guest's kernel complains: " + "; ".join(trouble))

    version = guest.run(f"modinfo -F version {show.driver}").stdout.strip()
    outcome.fact("guest kernel", guest.kernel_version)
    outcome.fact("driver", f"{' '.join(filter(None, (show.driver, version)))} (Debian's, unmodified)")
    outcome.fact("acceleration", {"kvm": "KVM", "tcg": "TCG (emulated CPU: KVM does not work here)"}[guest.accel])
    outcome.fact("queue and rule", f"RX queue {queue}; rule {rule.get('location')}: TCP port {_PORT}, {hits:,} frames")
    outcome.fact("payload received", f"{received['bytes']:,} bytes, every byte checked")
    show.judge(seen, outcome)
    outcome.fact("frames", f"{frames:,}, handed over as {packets:,} packets")
    outcome.fact("drops", named(_dropped(before, after)))
    if before["drops"]:
        before_it = f"{named(before['drops'])} (device_down: frames that came before the driver was up)"
        outcome.fact("drops before it", before_it)
    outcome.fact("throughput", f"{seen.nbytes * 8 / seconds / 1e9:.2f} Gbit/s over {seconds:.1f} s")
    memory = f"{size(after['own_memory'])}, without the guest's memory, which it maps"
    outcome.fact("server's own memory", memory + ("; more than usual, as it had to compile" if compiled else ""))


def _dropped(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Frames that a queue, or a NIC, has dropped between two reports, by reason."""
    counts = {name: count - before["drops"].get(name, 0) for name, count in after["drops"].items()}
    return {name: count for name, count in counts.items() if count}


def _print(show: _Demo, outcome: _Outcome, queue: int) -> None:
    table = Table(title=show.title, title_justify="left", show_header=False)
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
            **{f"{command} {words}": meaning for words, meaning in show.next.items()},
            f"{command} --help": "everything else",
            **({} if in_wheel() else {"make test": "the whole test suite"}),
        }
        column = max(map(len, next_steps)) + 4
        console.print("\nNext:")
        for words, meaning in next_steps.items():
            told = f"  {words}"
            console.print(f"{told:<{column}}{meaning}" if console.width >= 80 else f"{told}\n      {meaning}")
