"""Reads and writes over NVMe/TCP, received in three ways: as usual, by header split alone, and by direct placement.

The host is the driver in Python (`nicmodel.gvnic.testing.nvme_host`), the controller whoever is at the other end of the
NIC's wire: Linux' nvmet in a guest (`nicmodel.gvnic.experiments.ddp_guest`), or a test's own. Buffers of reads are in a
memory of their own, so that the NIC's ledger tells by itself what was placed. They are full of poison before each read.
What a read has to bring, and what is in the target's file after writes, is known here from the file's first content and
the writes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Protocol

from nicmodel.client.ledger import entries, total
from nicmodel.client.results import Claim, Column, Panel, Result, Row, Table
from nicmodel.gvnic.experiments.labels import different
from nicmodel.gvnic.options.ddp.declarations import DdpDigest
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.nvme_host import BLOCK, MAX_DEPTH, Queue
from nicmodel.gvnic.testing.station import Station
from nicmodel.testing.guest_memory import PAGE, GuestMemory

ORDINARY, SPLIT, DDP = WAYS = ("ordinary", "split", "ddp")
#: Name of the memory that reads go to, in the NIC's ledger.
MEMORY = "data"
#: Blocks of reads and writes, in turn: small ones have more headers for the network to lose, large ones more data.
_SIZES = (1, 1, 1, 8, 1, 1, 32)
_LARGEST = max(_SIZES)
_RING, _BUFFER = 1024, 4096
_POISON = 0xA5
#: Fewer requests for resynchronisation say nothing: one or the other is answered too late.
_ENOUGH = 5
_FLOW = 0


@dataclass(frozen=True)
class Network:
    """What happens on the wire, to frames of either direction: probabilities that one is lost, or overtaken."""

    loss: float = 0
    reorder: float = 0

    @property
    def name(self) -> str:
        """For people."""
        shares = {"loss": self.loss, "reorder": self.reorder}
        return ", ".join(f"{what} {100 * share:g} %" for what, share in shares.items() if share) or "undisturbed"


@dataclass(frozen=True)
class Parameters:
    """What is compared.

    Attributes:
        losses: probabilities of losing a frame, one set of cases each.
        reorders: probabilities that others overtake it, likewise.
        depths: how many commands are under way at a time.
        commands: reads of each case and depth. There are a quarter as many writes.
        digests: with digests of headers and data, without, or both.
    """

    losses: tuple[float, ...] = (0, 0.001, 0.01, 0.03)
    reorders: tuple[float, ...] = (0.02,)
    depths: tuple[int, ...] = (1, 32)
    commands: int = 64
    digests: tuple[bool, ...] = (False, True)

    def __post_init__(self) -> None:
        if not all(0 < depth < MAX_DEPTH for depth in self.depths):
            raise ValueError(f"a queue has between 1 and {MAX_DEPTH - 1} commands under way")
        if not all(0 <= share <= 1 for share in (*self.losses, *self.reorders)):  # nor is any of them NaN
            raise ValueError("probabilities are between 0 and 1")

    @property
    def networks(self) -> list[Network]:
        """Those that are tried, in the order of the table, each once."""
        networks = [Network(loss=loss) for loss in self.losses] + [Network(reorder=share) for share in self.reorders]
        return list(dict.fromkeys(networks))


@dataclass(frozen=True)
class Case:
    """One connection: how it is received (`WAYS`), what happens to it, and whether it has digests."""

    way: str
    network: Network
    digests: bool

    def __str__(self) -> str:
        return f"{WAY_NAMES[self.way]}, {self.network.name}, {'digests' if self.digests else 'no digests'}"


WAY_NAMES = {ORDINARY: "ordinary receive", SPLIT: "header split alone", DDP: "direct placement"}


def cases(parameters: Parameters) -> Iterator[Case]:
    """All of them."""
    for network in parameters.networks:
        for digests in parameters.digests:
            for way in WAYS:
                yield Case(way, network, digests)


class Target(Protocol):
    """A controller with one namespace."""

    @property
    def address(self) -> str:
        """Where it listens."""

    @property
    def port(self) -> int:
        """Likewise."""

    @property
    def subsystem(self) -> str:
        """Its qualified name."""

    @property
    def seed(self) -> int:
        """Of the namespace's first content, ``random.Random(seed).randbytes(size)``."""

    @property
    def size(self) -> int:
        """Bytes of the namespace."""

    def digests(self) -> list[str]:
        """SHA-256 of each block as the target itself finds it, hexadecimal."""


@dataclass
class Bench:
    """A NIC with its driver, and a target at the other end of its wire.

    Attributes:
        driver: after its probe, without queues.
        station: the host on it.
        target: who is asked.
        memory: where reads go, `MEMORY` in the NIC's ledger.
        disturb: have these things happen on the wire meanwhile.
        report: the NIC's `nicmodel.observe.snapshot`.
        about: the circumstances, for the reader.
        disk: what the namespace should hold.
    """

    driver: Driver
    station: Station
    target: Target
    memory: GuestMemory
    disturb: Callable[[Network], AbstractContextManager[object]]
    report: Callable[[], Mapping[str, Any]]
    about: dict[str, str] = field(default_factory=dict)
    disk: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.disk = bytearray(Random(self.target.seed).randbytes(self.target.size))

    @property
    def wrong_blocks(self) -> int:
        """How many blocks of the target are not as they should be, by its own account."""
        found = self.target.digests()
        wanted = [
            hashlib.sha256(self.disk[place : place + BLOCK]).hexdigest() for place in range(0, len(self.disk), BLOCK)
        ]
        return sum(one != other for one, other in zip(found, wanted, strict=True))


class _Slots:
    """Buffers of reads: each as many pages as the largest, in disorder, between two more that nobody may write."""

    def __init__(self, memory: GuestMemory, count: int, random: Random) -> None:
        pages = _LARGEST * BLOCK // PAGE
        self._memory, self._size = memory, (pages + 2) * PAGE
        self._addresses = [memory.allocate(self._size) for _ in range(count)]
        self._pages = [
            [address + PAGE * page for page in random.sample(range(1, pages + 1), k=pages)]
            for address in self._addresses
        ]  # fmt: skip

    def poison(self, slot: int, length: int) -> list[tuple[int, int]]:
        """Have a buffer ready for a read of so many bytes; its pieces."""
        self._memory.view(self._addresses[slot], self._size)[:] = _POISON
        return [(page, PAGE) for page in self._pages[slot][: length // PAGE]]

    def strays(self, slot: int, length: int) -> int:
        """How many bytes around a read's were written."""
        used = set(self._pages[slot][: length // PAGE])
        address = self._addresses[slot]
        pages = range(address, address + self._size, PAGE)
        return sum(int((self._memory.view(page, PAGE) != _POISON).sum()) for page in pages if page not in used)

    def free(self) -> None:
        """Give all of them back."""
        for address in self._addresses:
            self._memory.free(address)


def measure(parameters: Parameters, bench: Bench, case: Case) -> list[dict[str, Any]]:
    """One case: a row for each depth.

    Raises:
        TcpError: the connection has ended.
        TimeoutError: the target does not answer.
        NvmeError: it says what cannot be.
        ContractViolation: the NIC does.
    """
    bench.driver.open(
        rx_queues=1, tx_queues=1, ring_entries=_RING, buffer_size=_BUFFER, header_split=case.way != ORDINARY
    )  # fmt: skip
    try:
        station = bench.station
        target = bench.target
        flow = _FLOW if case.way == DDP else None
        digests = int(DdpDigest.HEADER | DdpDigest.DATA) if case.digests else 0
        with (
            bench.disturb(case.network),
            Queue(station, target.address, target.port, digests=digests) as admin,
            Queue(station, target.address, target.port, digests=digests, flow=flow, memory=bench.memory) as queue,
        ):
            controller = admin.connect(target.subsystem)
            admin.enable()
            # Without digests also without this, so that data itself says that its command is complete.
            queue.connect(
                target.subsystem, queue=1, controller=controller, flow_control=case.digests,
                in_capsule=admin.in_capsule,
            )  # fmt: skip
            return [_measure(parameters, bench, case, queue, depth) for depth in dict.fromkeys(parameters.depths)]
    finally:
        bench.driver.close()


def _measure(parameters: Parameters, bench: Bench, case: Case, queue: Queue, depth: int) -> dict[str, Any]:
    random = Random(f"{case.network.name} {case.digests} {depth}")  # the same commands each way
    before, tcp, report = _books(queue), asdict(queue.counters), bench.report()
    sizes = [_SIZES[number % len(_SIZES)] for number in range(parameters.commands)]
    wrong, strays = _read(bench, queue, sizes, depth, random)
    written = _write(bench, queue, sizes[::4], depth, random)
    after = bench.report()
    counters = {name: after["ddp"][name] - count for name, count in report["ddp"].items()}
    booked = _placed_by_ledger(after) - _placed_by_ledger(report)
    books = {name: count - before[name] for name, count in _books(queue).items()}
    read = sum(sizes) * BLOCK
    return {
        "way": case.way, "network": case.network.name, "loss": case.network.loss, "reorder": case.network.reorder,
        "digests": case.digests, "depth": depth, "reads": len(sizes), "read_bytes": read, **books,
        "placed_percent": 100 * books["placed"] / read, "copied_percent": 100 * books["copied"] / read,
        "digested_percent": 100 * books["digested"] / read if case.digests else None,
        "wrong_bytes": wrong, "stray_bytes": strays,
        "writes": len(sizes[::4]), "written_bytes": written, "wrong_blocks": bench.wrong_blocks,
        "ledger_bytes": booked, "device": counters,
        "tcp": {name: count - tcp[name] for name, count in asdict(queue.counters).items()},
    }  # fmt: skip


_BOOKS = ("placed", "copied", "exchangeable", "vouched", "checked", "digested", "asked", "refused")


def _books(queue: Queue) -> Counter[str]:
    """What the host has counted."""
    return Counter(
        {name: int(getattr(queue, name)) for name in _BOOKS}
        | {"wrong_digests": len(queue.wrong), "failed": len(queue.failed)}
    )


def _placed_by_ledger(report: Mapping[str, Any]) -> int:
    """Bytes that the NIC has written to where reads go."""
    return total(entries(report), memory=MEMORY)


def _read(bench: Bench, queue: Queue, sizes: Sequence[int], depth: int, random: Random) -> tuple[int, int]:
    """Read so many blocks each; bytes that are not what they should be, and bytes written around them."""
    slots = _Slots(bench.memory, depth, random)
    free = list(range(depth))
    wanted: dict[int, bytes] = {}
    wrong = strays = 0

    def collect(most: int) -> None:
        nonlocal wrong, strays
        queue.finish(most)
        for command, read in list(queue.done.items()):
            del queue.done[command]
            wrong += different(wanted.pop(command), read.data)
            strays += slots.strays(command, read.length)
            free.append(command)

    for blocks in sizes:
        collect(depth - 1)
        block = random.randrange(len(bench.disk) // BLOCK - blocks + 1)
        slot = free.pop()
        wanted[slot] = bytes(bench.disk[block * BLOCK : (block + blocks) * BLOCK])
        queue.start_read(slot, block, blocks, slots.poison(slot, blocks * BLOCK))
    collect(0)
    slots.free()
    return wrong, strays


def _write(bench: Bench, queue: Queue, sizes: Sequence[int], depth: int, random: Random) -> int:
    """Write so many blocks each, none that is being written already; bytes that were sent."""
    before = queue.written
    under_way: dict[int, range] = {}
    for command, blocks in enumerate(sizes):
        queue.finish(depth - 1)
        under_way = {number: place for number, place in under_way.items() if number in queue.writes}
        while True:
            block = random.randrange(len(bench.disk) // BLOCK - blocks + 1)
            if all(block + blocks <= place.start or place.stop <= block for place in under_way.values()):
                break
            queue.finish(max(len(under_way) - 1, 0))  # there is room where none is under way
            under_way = {number: place for number, place in under_way.items() if number in queue.writes}
        data = random.randbytes(blocks * BLOCK)
        bench.disk[block * BLOCK : (block + blocks) * BLOCK] = data
        under_way[command] = range(block, block + blocks)
        queue.start_write(command, block, data)
    queue.finish()
    return queue.written - before


_COLUMNS = (
    Column("network", "network"), Column("digest_name", "digests"), Column("depth", "depth", "d"),
    Column("ordinary_copied", "usual", ".1f"), Column("split_copied", "split", ".1f"),
    Column("placed_percent", "placed", ".1f"), Column("digested_percent", "CRC", ".1f"),
    Column("lost", "sync lost", ",d"), Column("asked", "asked", ",d"), Column("confirmed", "found", ",d"),
)  # fmt: skip
_LEGEND = (
    "depth: commands under way at a time. usual, split: data that was copied when received the ordinary way, and by "
    "header split alone; placed: by direct placement, and the rest was copied. CRC: data whose digest the CPU had to "
    "compute all the same; sync lost: how often the NIC did not know where PDUs begin; asked: how often it saw what "
    "may be one, and asked the driver; found: how often that was one, or the driver told the next."
)
_CHECKS = (
    Column("network", "network"), Column("read_kib", "read, KiB", ",d"), Column("wrong_bytes", "wrong", ",d"),
    Column("stray_bytes", "astray", ",d"), Column("written_kib", "written, KiB", ",d"),
    Column("wrong_blocks", "bad", ",d"), Column("again", "resent", ",d"),
    Column("timeouts", "timeouts", ",d"), Column("out_of_order", "disorder", ",d"),
)  # fmt: skip
_CHECKS_LEGEND = (
    "All three ways. wrong: bytes of reads that are not the target's; astray: bytes around the readers' buffers that "
    "were written; bad: blocks of the target's file, by SHA-256 in the guest, after writes. Segments of TCP: those "
    "that the host sent again, and how often by its timer (timeouts); those that came to it out of order (disorder)."
)


def conclude(parameters: Parameters, rows: Sequence[Row], about: Mapping[str, str]) -> Result:
    """What follows from all cases.

    Args:
        parameters: what was compared.
        rows: of all cases.
        about: the target's circumstances.
    """
    by_way = {way: [row for row in rows if row["way"] == way] for way in WAYS}
    copying, placing = by_way[ORDINARY] + by_way[SPLIT], by_way[DDP]
    calm = [row for row in placing if not row["loss"] and not row["reorder"]]
    rough = [row for row in placing if row["loss"] or row["reorder"]]
    result = Result(
        name="ddp",
        title="Data of NVMe/TCP reads, placed by the NIC or copied by a CPU",
        question="Is header split with zero copy not the general form, and NVMe/TCP a special case of it?",
        asked="reviewers of devmem TCP, in the discussion of the series",
        about={
            "host": "the driver in Python with a TCP of its own, MTU 1500, at a switch",
            "each line": f"{parameters.commands} reads and {-(-parameters.commands // 4)} writes of "
            f"{_list(sorted({size * BLOCK >> 10 for size in _SIZES}))} KiB, each way, on a connection of its own",
            "loss, reordering": "probabilities for each frame of either direction; who is overtaken comes 2 ms later",
            **about,
        },
        tables=[
            Table("What became of the data of reads, %", _COLUMNS, _merged(by_way), _LEGEND),
            Table("What was checked, and what TCP had to do", _CHECKS, _checks(parameters, rows), _CHECKS_LEGEND),
        ],
        driver="Tell the NIC of each connection, and of each read's buffer before the read is sent; walk the PDUs as "
        "well; make packets whole again by their placement records; answer requests for resynchronisation; check the "
        "digests that the NIC does not vouch for; tear the buffer down before its memory is used again.",
        page="nvme-tcp.md",
    )

    def sums(rows: Sequence[Row], *names: str) -> int:
        return sum(row[name] for row in rows for name in names)

    def counted(name: str, rows: Sequence[Row] = placing) -> int:
        return sum(row["device"].get(name, 0) for row in rows)

    read, wrong, astray = (sums(rows, name) for name in ("read_bytes", "wrong_bytes", "stray_bytes"))
    written, blocks, failed = (sums(rows, name) for name in ("written_bytes", "wrong_blocks", "failed"))
    result.claims = [
        Claim(
            "Each byte that was read is what the target has, and is in the reader's buffer and nowhere beside it.",
            wrong == astray == failed == 0 < read,
            f"{read:,} bytes read in {len(rows)} lines, {wrong:,} wrong, {astray:,} beside, {failed} commands failed",
        ),
        Claim(
            "What was written is in the target's file, by the guest's own account, and nothing else has changed.",
            blocks == 0 < written,
            f"{written:,} bytes written, {blocks:,} blocks wrong",
        ),
        Claim(
            "Received the ordinary way, or by header split alone, all data is copied: no page of what came can become "
            "a page of the reader's buffer, for data does not begin where packets do.",
            all(row["copied"] == row["read_bytes"] > 0 == row["exchangeable"] for row in copying) and bool(copying),
            f"{sums(copying, 'copied'):,} of {sums(copying, 'read_bytes'):,} bytes copied, "
            f"{sums(copying, 'exchangeable') // PAGE:,} pages could have been exchanged",
        ),
        Claim(
            "Host, NIC and its ledger agree on what was placed; without the option nothing is.",
            all(row["placed"] == row["device"]["placed_bytes"] == row["ledger_bytes"] > 0 for row in placing)
            and not any(row["placed"] or row["ledger_bytes"] for row in copying),
            f"host {sums(placing, 'placed'):,}, NIC {counted('placed_bytes'):,}, ledger "
            f"{sums(placing, 'ledger_bytes'):,}; otherwise {sums(copying, 'placed', 'ledger_bytes'):,}",
        ),
    ]
    if calm:
        result.claims.append(
            Claim(
                "On an undisturbed network the NIC places all but the ends of PDUs that are shorter than a record.",
                all(row["placed_percent"] > 99 for row in calm) and not counted("lost", calm),
                _range(calm, "placed_percent", "% placed"),
            )
        )
    if rough:
        result.claims.append(
            Claim(
                "Under loss and reordering it places the larger part still, and the rest is copied.",
                all(row["placed"] + row["copied"] == row["read_bytes"] for row in rough)
                and all(row["placed_percent"] > 50 for row in rough),
                _range(rough, "placed_percent", "% placed"),
            )
        )
    lost, asked, confirmed, refused = (counted(name) for name in ("lost", "requests", "confirmed", "refused"))
    if asked >= _ENOUGH:
        result.claims.append(
            Claim(
                "The NIC loses its way in the stream when a header is missing, asks, and finds it again.",
                confirmed > 0 and confirmed + refused <= asked and lost > 0,
                f"lost {lost:,} times, {asked:,} questions, {confirmed:,} confirmed, {refused:,} answered too late",
            )
        )
    if any(row["digests"] for row in placing):
        vouched, checked = sums(placing, "vouched"), sums(placing, "checked")
        # Where the target has sent something twice, if only because this machine was busy, there is a disturbance.
        calm_checked = sum(row["checked"] for row in calm if row["digests"] and not row["device"]["old"])
        result.claims.append(
            Claim(
                "No digest is wrong; the NIC vouches for those whose data it has seen in order, which without "
                "disturbance are all of them.",
                sums(rows, "wrong_digests") == calm_checked == counted("digest_errors") == 0
                and (vouched > 0 or not calm),
                f"{vouched:,} vouched for, {checked:,} left to the CPU, {sums(rows, 'wrong_digests'):,} wrong",
            )
        )
    labels = [
        f"{row['network']}\n{'with' if row['digests'] else 'no'} digests, depth {row['depth']}"
        for row in result.tables[0].rows
    ]
    result.panels = [
        Panel("Data of reads, with direct placement", "%", labels, {
            "placed": [row["placed_percent"] for row in result.tables[0].rows],
            "copied": [row["copied_percent"] for row in result.tables[0].rows],
        }, stacked=True),
        Panel("Copied by a CPU, all cases", "% of the data", [network.name for network in parameters.networks], {
            name: [_copied(by_way[way], network) for network in parameters.networks]
            for way, name in WAY_NAMES.items()
        }),
    ]  # fmt: skip
    return result


def _merged(by_way: Mapping[str, Sequence[Row]]) -> list[Row]:
    """A row for network, digests and depth: that of direct placement, with the others beside it."""
    return [
        {
            **placed, "digest_name": "both" if placed["digests"] else "none", "lost": placed["device"]["lost"],
            "confirmed": placed["device"]["confirmed"], "ordinary_copied": ordinary["copied_percent"],
            "split_copied": split["copied_percent"], "ordinary": dict(ordinary), "split": dict(split),
        }
        for ordinary, split, placed in zip(*(by_way[way] for way in WAYS), strict=True)
    ]  # fmt: skip


def _checks(parameters: Parameters, rows: Sequence[Row]) -> list[Row]:
    """A row for each network, of all ways."""
    found: list[Row] = []
    for network in parameters.networks:
        its = [row for row in rows if row["network"] == network.name]
        names = ("read_bytes", "wrong_bytes", "stray_bytes", "written_bytes", "wrong_blocks")
        found.append(
            {"network": network.name}
            | (sums := {name: sum(row[name] for row in its) for name in names})
            | {"read_kib": sums["read_bytes"] >> 10, "written_kib": sums["written_bytes"] >> 10}
            | {name: sum(row["tcp"][name] for row in its) for name in ("again", "timeouts", "out_of_order", "old")}
        )
    return found


def _copied(rows: Sequence[Row], network: Network) -> float | None:
    """Percentage of the data that was copied on a network."""
    its = [row for row in rows if row["network"] == network.name]
    return 100 * sum(row["copied"] for row in its) / sum(row["read_bytes"] for row in its) if its else None


def _range(rows: Sequence[Row], key: str, unit: str) -> str:
    values = [row[key] for row in rows]
    return f"{min(values):.1f} to {max(values):.1f} {unit}"


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
