"""A soak: two guests, all kinds of traffic at once, and everything that can be turned is turned meanwhile.

Each setting is turned once by default; ``pytest tests/guest/test_soak.py --soak 30`` goes on for 30 minutes, and
``--soak-log FILE`` writes there what memory and rates were (`soak_plot.py` draws it); ``make soak`` does all of it.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fleet import DOUBLE, QUAD, SWITCH_A, SWITCH_B, SWITCH_C, Fleet, Station
from lab import account, footprint, frames_dropped, wait_until
from streams import Streams, exchange

from nicmodel.client.control import Control
from nicmodel.vm.tools import install_guest_tools

pytestmark = [pytest.mark.guest, pytest.mark.long]

CABLE = (DOUBLE, QUAD)
SWITCH = (SWITCH_A, SWITCH_B, SWITCH_C)
MIB = 1 << 20
DEVMEM_PORT, UDP_PORT = 5600, 5700
#: Queue of `SWITCH_B` whose payload goes to a dma-buf.
QUEUE = 3
#: Why a frame may have been lost in all this; anything else is a fault. Buffers run short, cables are pulled, and
#: queues are away while they are remade; a switch floods.
EXPECTED_DROPS = {"no_buffers", "device_down", "no_queue", "not_ours"}
#: One NIC of the cable once through all of `changes`.
ALL_CHANGES = 8
#: Memory that the server may take on in the second half, bytes.
SLACK = 4 * MIB


def echoes(fleet: Fleet) -> int:
    """Echo requests of `SWITCH_A` that have not been answered."""
    names, values = fleet.run(SWITCH_A, "grep ^Icmp: /proc/net/snmp").splitlines()
    counts = dict(zip(names.split(), values.split(), strict=True))
    return int(counts["OutEchos"]) - int(counts["InEchoReps"])


def devmem_transfer(fleet: Fleet, seed: int) -> None:
    """From a dma-buf of one guest to a dma-buf of the other: bind, transfer, compare, unbind."""
    size = 8 * MIB
    receiver = fleet.guests[SWITCH_B.guest].start(
        f"devmem_receiver --interface {SWITCH_B.interface} --port {DEVMEM_PORT} --queues {QUEUE} --size {16 * MIB}"
        f" --seed {seed}"
    )
    receiver.expect("ready")
    sent = fleet.run(
        SWITCH_A,
        f"devmem_sender --interface {SWITCH_A.interface} --connect {SWITCH_B.address} --port {DEVMEM_PORT}"
        f" --bytes {size} --seed {seed}",
        timeout=180,
    )
    result = receiver.wait(180)
    assert result.status == 0, result.stdout + result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert (said["bytes"], said["linear_bytes"], said["errors"]) == (size, 0, 0), (said, sent)


def datagrams(fleet: Fleet, chance: random.Random) -> None:
    """For a second, either way. On a busy machine iperf3 may give up on its server: nothing hangs on that."""
    options = f"-l {chance.choice([64, 1400, 8000])} {chance.choice(['', '-R'])}"
    command = f"timeout 50 iperf3 -u -b 5M -t 1 -c {SWITCH_A.address} -p {UDP_PORT} {options}"
    fleet.run(SWITCH_C, command, timeout=120, check=False)


def changes(fleet: Fleet, control: Control, chance: random.Random) -> Iterator[None]:
    """Something else each time: settings of either NIC of the cable, rules, and the cable itself."""

    def ethtool(station: Station, words: str) -> None:
        option, _, rest = words.partition(" ")
        fleet.run(station, f"ethtool {option} {station.interface} {rest}")
        fleet.await_carrier(station)

    for station in itertools.cycle(CABLE if chance.random() < 0.5 else CABLE[::-1]):
        rx, tx = chance.choice([256, 512, 1024, 4096]), chance.choice([256, 512, 1024, 4096])
        ethtool(station, f"-G rx {rx} tx {tx}")
        yield
        ethtool(station, f"-G rx-buf-len {chance.choice([2048, 4096])} tcp-data-split {chance.choice(['on', 'off'])}")
        yield
        queues = chance.randint(1, 16)
        ethtool(station, f"-L rx {queues} tx {chance.randint(1, 16)}")
        yield
        ethtool(station, f"-X equal {chance.randint(1, queues)}")
        yield
        ethtool(station, "-K ntuple on")
        ethtool(station, f"-N flow-type tcp4 src-ip {CABLE[0].address} action {chance.randrange(queues)}")
        yield
        ethtool(station, f"-K rx-gro-hw {chance.choice(['on', 'off'])} ntuple off")
        ethtool(station, "-X default")
        ethtool(station, f"-C rx-usecs {chance.randrange(200)} tx-usecs {chance.randrange(200)}")
        yield
        name = f"nic{station.number}"
        control.set_link(False, name)
        wait_until(lambda at=station: "no" in fleet.run(at, f"ethtool {at.interface} | grep detected"), timeout=120)
        control.set_link(True, name)
        fleet.await_carrier(station)
        yield
        control.request_reset(name)
        yield


def prepare(fleet: Fleet) -> None:
    """Header split, a rule and a queue for devmem at `SWITCH_B`; its programs in both guests."""
    for station in (SWITCH_A, SWITCH_B):
        install_guest_tools(fleet.guests[station.guest])
    interface = SWITCH_B.interface
    fleet.run(SWITCH_B, f"ethtool -G {interface} tcp-data-split on")
    fleet.await_carrier(SWITCH_B)
    fleet.run(SWITCH_B, f"ethtool -K {interface} ntuple on; ethtool -X {interface} equal {QUEUE}")
    fleet.run(SWITCH_B, f"ethtool -N {interface} flow-type tcp4 dst-port {DEVMEM_PORT} action {QUEUE}")


def restore(fleet: Fleet) -> None:
    """As it was before."""
    for station in CABLE:
        fleet.run(station, f"ethtool -L {station.interface} rx 4 tx 4", check=False)
        fleet.run(station, f"ethtool -K {station.interface} rx-gro-hw on ntuple off", check=False)
        settings = "rx 1024 tx 1024 rx-buf-len 4096 tcp-data-split off"
        fleet.run(station, f"ethtool -G {station.interface} {settings}", check=False)
        fleet.run(station, f"ethtool -X {station.interface} default", check=False)
    for words in (f"-K {SWITCH_B.interface} ntuple off", f"-X {SWITCH_B.interface} default"):
        fleet.run(SWITCH_B, f"ethtool {words}", check=False)


class Log:
    """A line for each change that is made, in a file that a person may follow; ends when the soak does.

    Args:
        path: the file; None: no log.
        fleet: whose.
    """

    COLUMNS = ("seconds", "change", "memory_mib", "frames_per_second", "mbit_per_second", "dropped")

    def __init__(self, path: Path | None, fleet: Fleet) -> None:
        self._fleet = fleet
        self._file = path.open("w", newline="") if path else None
        self._begun = self._last = time.monotonic()
        self._before = self._counts()
        self._number = 0
        self._write(self.COLUMNS)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def line(self) -> None:
        """What has happened since the last one."""
        if self._file is None:
            return
        now, counts = time.monotonic(), self._counts()
        frames, octets, dropped = (new - old for new, old in zip(counts, self._before, strict=True))
        seconds = now - self._last
        memory = footprint(self._fleet.server.pid).anonymous / MIB
        self._number += 1
        self._write((
            f"{now - self._begun:.1f}", self._number, f"{memory:.2f}", f"{frames / seconds:.0f}",
            f"{octets * 8e-6 / seconds:.1f}", dropped,
        ))  # fmt: skip
        self._last, self._before = now, counts

    def _counts(self) -> tuple[int, int, int]:
        """Frames and bytes that guests have received, and frames dropped for a reason that matters, of all NICs."""
        reports = self._fleet.server.report()
        queues = [queue for report in reports for queue in report["rx_queues"]]
        dropped = sum(sum(frames_dropped(report).values()) for report in reports)
        return sum(queue["frames"] for queue in queues), sum(queue["bytes"] for queue in queues), dropped

    def _write(self, row: Sequence[object]) -> None:
        if self._file:
            csv.writer(self._file).writerow(row)
            self._file.flush()


@pytest.fixture(scope="module")
def log(request: pytest.FixtureRequest, booted_fleet: Fleet) -> Iterator[Log]:
    path = request.config.getoption("--soak-log", default=None)
    with Log(path and Path(path), booted_fleet) as log:
        yield log


@pytest.fixture(scope="module")
def minutes(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--soak", default=0))


def test_soak(fleet: Fleet, log: Log, minutes: float) -> None:
    """*Steps*: TCP streams both ways over a cable whose NICs are reconfigured, reset and unplugged; through a switch,
    datagrams, echo requests and transfers from one dma-buf to another, each bound and unbound.

    *Verify*: every byte of every stream is as it was sent, each frame is accounted for by a counter with a name, what
    left one end of the cable came to the other, no kernel complains, and the server's memory stays what it is.
    """
    seed = time.time_ns()
    print(f"seed {seed}")
    memory: list[int] = []
    before = {station: fleet.report(station)["drops"] for station in SWITCH}
    unanswered = echoes(fleet)
    with ExitStack() as stack:
        stack.callback(restore, fleet)
        prepare(fleet)
        control = stack.enter_context(Control(fleet.server.control))

        def received() -> list[int]:
            return [sum(queue["bytes"] for queue in fleet.report(station)["rx_queues"]) for station in CABLE]

        processes = stack.enter_context(
            exchange(fleet.guests[QUAD.guest], QUAD.inside, fleet.guests[DOUBLE.guest], QUAD.address)
        )
        streams = Streams(processes, received)
        streams.goes_on()
        background = [
            fleet.guests[SWITCH_A.guest].start(f"exec ping -q -i 0.05 -s 2000 {SWITCH_C.address}"),
            fleet.guests[SWITCH_A.guest].start(f"exec iperf3 -s -p {UDP_PORT}"),
        ]
        chance = random.Random(seed)
        change = changes(fleet, control, chance)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end or len(memory) < ALL_CHANGES:
            if len(memory) % 4 == 0:
                devmem_transfer(fleet, seed=len(memory))
            elif len(memory) % 4 == 2:
                datagrams(fleet, chance)
            next(change)
            streams.goes_on()
            memory.append(footprint(fleet.server.pid).anonymous)
            log.line()
        for process in background:
            assert process.running, process.output()
            process.kill(2)
            process.wait(120)
    print(f"{len(memory)} changes; memory, MiB: {[size >> 20 for size in memory[:: max(1, len(memory) // 20)]]}")

    def frames() -> list[int]:
        return [account(report)["came"] for report in fleet.server.report()]

    def at_rest() -> bool:
        before = frames()
        time.sleep(1)
        return frames() == before

    wait_until(at_rest, timeout=120)
    reports = fleet.server.report()
    for station in (*CABLE, *SWITCH):
        report = reports[station.number]
        assert account(report)["missing"] == 0, f"{station}: {account(report)}, {report['drops']}, {report['wire']}"
        assert report["drops"].keys() <= EXPECTED_DROPS, f"{station}: {report['drops']}"
        assert report["dma_faults"] == 0
    for here, there in (CABLE, CABLE[::-1]):
        sent, arrived = reports[here.number]["wire"], reports[there.number]["wire"]
        assert (sent["tx_frames"], sent["tx_bytes"]) == (arrived["rx_frames"], arrived["rx_bytes"])
    # Of what went through the switch only a named drop can have been lost.
    dropped = sum(
        count - before[station].get(name, 0)
        for station in SWITCH
        for name, count in reports[station.number]["drops"].items()
    )
    assert echoes(fleet) - unanswered <= dropped
    half = len(memory) // 2
    assert max(memory[half:]) <= max(memory[:half]) + SLACK, memory
