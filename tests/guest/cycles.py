"""The same thing over and over, on the real thing: stock driver, real QEMU, a server of its own.

    python tests/guest/cycles.py reload --count 1000
    make cycles CYCLES='kill-guest --count 100'

After each cycle traffic flows again; after all of them the guest's kernel has not complained, the driver has kept the
contract, and the server holds what it held before. `test_cycles.py` runs a few of each kind.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import click
from lab import (
    KNOWN_FAULTS,
    LINK0,
    TROUBLE,
    Footprint,
    connect_pair,
    flood,
    footprint,
    frames_received,
    load_driver,
    nics_of,
    ping,
    quiet_log,
    wait_until,
)

from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

MIB = 1 << 20
PORT = 5600
#: Of `Rig.pair`: the last one is bound to dma-bufs.
QUEUE = 3
#: What a server may take on meanwhile: caches that fill late.
SLACK_MEMORY, SLACK_MAPPINGS = 8 * MIB, 32
#: Cycles before the first look at what the server holds: so many until all that is allocated once is there.
WARM = 3
#: Memory of a virtio-mem device.
PLUGGABLE = 512 * MIB


@dataclass
class Tally:
    """What a run has come to.

    Attributes:
        cycles: done so far.
        seconds: since the first one began.
        footprints: of the server at rest, from the third cycle on.
        counts: of what the cycles are about, by plural noun.
    """

    cycles: int = 0
    seconds: float = 0.0
    footprints: list[Footprint] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """The server has kept nothing of all the cycles.

        Raises:
            AssertionError: it has.
        """
        if len(self.footprints) < 2:
            return
        first, last = self.footprints[0], self.footprints[-1]
        assert last.descriptors <= first.descriptors, f"{first} -> {last}"
        assert last.mappings <= first.mappings + SLACK_MAPPINGS, f"{first} -> {last}"
        half = (len(self.footprints) + 1) // 2
        before, after = (max(each.anonymous for each in part) for part in
                         (self.footprints[:half], self.footprints[half:]))  # fmt: skip
        assert after <= before + SLACK_MEMORY, f"memory grows: {before >> 20} MiB, then {after >> 20} MiB"


Report = Callable[[Tally], None]
Once = Callable[[int], None]


@contextmanager
def server() -> Iterator[NicServer]:
    """Two NICs back to back, and all that their drivers do checked. Nothing of it may reach the log as an exception."""
    with NicServer(["--wire", "link", "--check"], sockets=2) as running:
        yield running
        findings = running.findings(without=KNOWN_FAULTS["gvnic"])
        assert not findings, findings
        assert [report["dma_faults"] for report in running.report()] == [0, 0]
        assert "Traceback" not in running.log(), running.log()


@contextmanager
def pair(config: GuestConfig) -> Iterator[tuple[Guest, NicServer]]:
    """Such a guest with two NICs back to back, whose kernel has nothing to complain about and QEMU neither."""
    with server() as running, Guest(replace(config, nics=nics_of(running))) as guest:
        connect_pair(guest)
        with quiet_log(guest):
            yield guest, running
        assert "vfio" not in guest.qemu_log(), guest.qemu_log()


def flow_goes_on(server: NicServer) -> None:
    """Frames still come."""
    before = frames_received(server)
    wait_until(lambda: frames_received(server) > before + 50)


@contextmanager
def reload(tally: Tally) -> Iterator[tuple[Once, NicServer]]:
    """The driver is unloaded under traffic, and loaded again."""
    with pair(GuestConfig()) as (guest, running):

        def once(number: int) -> None:
            flood(guest, running)
            guest.run("set -e; rmmod gve; ip netns del peer; pkill -x ping || true", timeout=120)
            load_driver(guest)

        yield once, running


@contextmanager
def _devmem() -> Iterator[tuple[Guest, NicServer]]:
    """A pair whose first NIC is set up for devmem on its last queue."""
    with pair(GuestConfig()) as (guest, running):
        install_guest_tools(guest)
        guest.run(
            "set -e; ethtool -G eth0 tcp-data-split on; ethtool -K eth0 ntuple on; ethtool -X eth0 equal 3;"
            f"ethtool -N eth0 flow-type tcp4 dst-port {PORT} action {QUEUE}"
        )
        ping(guest, LINK0.peer, count=1, size=100)
        yield guest, running


def _created(running: NicServer) -> int:
    """Receive queues that the first NIC's driver has made."""
    return int(running.report()[0]["admin"].get("CREATE_RX_QUEUE PASSED", 0))


@contextmanager
def restart(tally: Tally) -> Iterator[tuple[Once, NicServer]]:
    """A receive queue is restarted alone (a dma-buf is bound and unbound in order), a transfer in between."""
    with _devmem() as (guest, running):

        def once(number: int) -> None:
            before = _created(running)
            receiver = guest.start(
                f"devmem_receiver --interface eth0 --port {PORT} --queues {QUEUE} --size {4 * MIB} --seed {number}"
            )
            receiver.expect("ready", timeout=120)
            guest.run(
                f"ip netns exec peer devmem_sender --interface eth1 --connect {LINK0.address} --port {PORT}"
                f" --bytes {MIB} --size {MIB} --seed {number}",
                timeout=120,
            )
            result = receiver.wait(120)
            assert result.status == 0 and f'"bytes": {MIB}, ' in result.stdout, result
            tally.counts["queue restarts"] += _created(running) - before

        yield once, running


@contextmanager
def bind_kill(tally: Tally) -> Iterator[tuple[Once, NicServer]]:
    """The owner of a dma-buf is killed while its stream flows."""
    with _devmem() as (guest, running):

        def payload() -> int:
            return int(running.report()[0]["rx_queues"][QUEUE]["bytes"])

        def once(number: int) -> None:
            receiver = guest.start(
                f"devmem_receiver --interface eth0 --port {PORT} --queues {QUEUE} --size {4 * MIB} --no-verify"
            )
            receiver.expect("ready", timeout=120)
            before = payload()
            stream = guest.start(f"ip netns exec peer socat -u OPEN:/dev/zero TCP:{LINK0.address}:{PORT}")
            wait_until(lambda: payload() > before + MIB, pause=0.02)
            receiver.kill(9)
            receiver.wait(120)
            stream.wait(120)

        yield once, running


@contextmanager
def remap(tally: Tally) -> Iterator[tuple[Once, NicServer]]:
    """Behind an IOMMU each packet that is sent is mapped before and unmapped after; a hundred of them each time."""
    with pair(GuestConfig(layout="iommu")) as (guest, running):

        def unmapped() -> int:
            return int(running.report()[0]["vfio_user"]["dma_unmap"])

        def once(number: int) -> None:
            before = unmapped()
            ping(guest, LINK0.peer, count=100, size=8000, interval=0.001)
            wait_until(lambda: unmapped() > before)
            tally.counts["unmaps"] += unmapped() - before

        yield once, running


@contextmanager
def grow(tally: Tally) -> Iterator[tuple[Once, NicServer]]:
    """The guest's memory grows and shrinks by virtio-mem while traffic flows."""
    words = ["-object", f"memory-backend-memfd,id=more,size={PLUGGABLE},share=on,reserve=off"]
    words += ["-device", "virtio-mem-pci,id=vm0,memdev=more,requested-size=0"]
    # The last of two -m counts.
    with pair(GuestConfig(memory="1G", arguments=["-m", "1G,maxmem=4G", *words])) as (guest, running):
        guest.run("modprobe virtio_mem; echo online_movable > /sys/devices/system/memory/auto_online_blocks")
        flood(guest, running, 1000)

        def size() -> int:
            return int(guest.qmp.execute("qom-get", {"path": "/machine/peripheral/vm0", "property": "size"}))

        def once(number: int) -> None:
            maps = running.report()[0]["vfio_user"]["dma_map"]
            for wanted in (PLUGGABLE, 0):
                guest.qmp.execute(
                    "qom-set", {"path": "/machine/peripheral/vm0", "property": "requested-size", "value": wanted}
                )
                wait_until(lambda wanted=wanted: size() == wanted, what=lambda: f"{size():#x} bytes")
                flow_goes_on(running)
            report = running.report()[0]["vfio_user"]
            assert report["dma_map"] > maps
            tally.counts["maps"] = report["dma_map"]
            tally.counts["unmaps"] = report["dma_unmap"]

        yield once, running


@contextmanager
def kill_guest(tally: Tally) -> Iterator[tuple[Once, NicServer]]:
    """QEMU is killed under traffic; the server lets go of its memory, and serves the next one."""
    with server() as running:

        def once(number: int) -> None:
            with Guest(GuestConfig(nics=nics_of(running))) as guest:
                connect_pair(guest)
                flood(guest, running)
                assert not [line for line in guest.dmesg().splitlines() if TROUBLE.search(line)]
                guest.kill()
            wait_until(lambda: [report["client"] for report in running.report()] == [None, None])
            assert not footprint(running.pid).guest_memory

        yield once, running


@contextmanager
def kill_server(tally: Tally) -> Iterator[tuple[Once, None]]:
    """The server is killed under traffic; the guest can unload its driver and lives on, and the next server serves.

    The guest stands still at that moment, having been answered: QEMU 11.1 aborts (an assertion in util/error.c) when it
    reads ECONNRESET, which is what a UNIX socket says whose other end was closed with messages unread.
    """

    def once(number: int) -> None:
        with server() as running, Guest(GuestConfig(nics=nics_of(running))) as guest:
            connect_pair(guest)
            flood(guest, running)
            guest.qmp.execute("stop")
            for _ in range(2):  # when the loop has come round, what had been in the sockets is done
                running.report()
            running.kill()
            guest.qmp.execute("cont")
            guest.run("pkill -x ping; rmmod gve", timeout=120)
            assert "eth0" not in guest.run("ls /sys/class/net").stdout
            running.start()

    yield once, None


KINDS = {
    "reload": reload,
    "restart": restart,
    "bind-kill": bind_kill,
    "remap": remap,
    "grow": grow,
    "kill-guest": kill_guest,
    "kill-server": kill_server,
}


def settled(pid: int, before: Footprint) -> Footprint:
    """What a process holds when it has closed what it was just closing, such as a connection of an onlooker."""
    for _ in range(50):
        now = footprint(pid)
        if now.descriptors <= before.descriptors:
            break
        time.sleep(0.1)
    return now


def repeat(kind: str, count: int, report: Report = lambda tally: None) -> Tally:
    """Do it `count` times, and see what is left.

    Raises:
        AssertionError: something is.
    """
    tally = Tally()
    with KINDS[kind](tally) as (once, running):
        begun = time.monotonic()
        for number in range(count):
            once(number)
            tally.cycles += 1
            tally.seconds = time.monotonic() - begun
            if running is not None and tally.cycles >= WARM:
                tally.footprints.append(footprint(running.pid))
            report(tally)
        if running is not None and tally.footprints:
            tally.footprints.append(settled(running.pid, tally.footprints[0]))
    tally.check()
    return tally


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("kind", type=click.Choice([*KINDS, "all"]))
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many of each kind.")
def main(kind: str, count: int) -> None:
    """Do something to guest, driver or server many times over.

    \b
    reload       unload and load the driver under traffic
    restart      restart a receive queue by binding and unbinding a dma-buf
    bind-kill    kill the owner of a dma-buf while its stream flows
    remap        map and unmap each packet, behind an IOMMU
    grow         grow and shrink the guest's memory by virtio-mem, under traffic
    kill-guest   kill QEMU under traffic
    kill-server  kill the server under traffic
    """
    for name in KINDS if kind == "all" else [kind]:
        shown = 0.0

        def report(tally: Tally, name: str = name) -> None:
            nonlocal shown
            if tally.seconds - shown >= 10 or tally.cycles == count:
                shown = tally.seconds
                memory = f", server {tally.footprints[-1].anonymous >> 20} MiB" if tally.footprints else ""
                more = "".join(f", {value:,} {noun}" for noun, value in tally.counts.items())
                print(f"{name}: {tally.cycles:,} of {count:,} in {tally.seconds:,.0f} s{memory}{more}", flush=True)

        try:
            repeat(name, count, report)
        except AssertionError as error:
            print(f"{name}: FAILED: {error}")
            sys.exit(1)
        print(f"{name}: nothing is left of them")


if __name__ == "__main__":
    main()
