"""Payload that waits on the NIC until the host has read its header, against payload that is placed by queue at once.

Flows for several accelerators, and for none, share a queue. Frames come at a given rate, and the host answers each
header after a given time, both of virtual time. Payload is checked at its place, byte by byte, and counted by whose it
is and by whose memory it is in.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nicmodel.client.results import Claim, Column, Panel, Result, Row, Table
from nicmodel.gvnic.experiments.labels import (
    HEADER_BYTES,
    MAC,
    MAX_OWNERS,
    Labelled,
    contradictions,
    different,
    owner_of,
)
from nicmodel.gvnic.options.deferred.declarations import PlacementStatus
from nicmodel.gvnic.options.deferred.state import MAX_NIC_PAGES, NIC_PAGE
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.testing.guest_memory import PAGE, GuestMemory

BY_QUEUE, BY_HEADER, HEADERS_ONLY = "by queue", "by header", "by header or drop"
#: What a case is about: today's NICs, enough memory, how much memory, a host that is too slow.
TODAY, AMPLE, LITTLE, SLOW = "today", "ample", "little", "slow"
#: The owner of what is for no accelerator: the host itself.
HOST = 0
#: The most accelerators: one label is the host's.
MAX_ACCELERATORS = MAX_OWNERS - 1

#: Virtual time goes on by this, ns; what comes within it comes together.
_STEP = 10_000
_RING, _REQUESTS = 1024, 4096
#: Places for payload in each memory, one page each, that are used in turn; each is checked before it is used again.
_PLACES = 2048
_RAM, _HBM = 64 << 20, 2 * _PLACES * PAGE
#: More than any case needs, bytes.
_AMPLE = 32 << 20
#: How long payload may stay on the NIC, if the case is not about that, µs.
_PATIENCE = 10_000_000


@dataclass(frozen=True)
class Parameters:
    """What is compared.

    Attributes:
        accelerators: how many have flows in the queue, besides the host.
        payload: of each frame, bytes.
        gbps: rate at which frames come, Gbit/s.
        answers: how long the host takes to answer a header, µs; one case each. The budgets are for the longest.
        budgets: of memory on the NIC, as shares of what the longest answer needs; cases of the two ways each.
        timeout: after which payload is dropped, µs, in the case of a host that takes twice as long.
        milliseconds: for which frames come, of virtual time.
    """

    accelerators: int = 3
    payload: int = 1448
    gbps: float = 10.0
    answers: tuple[int, ...] = (20, 100, 500)
    budgets: tuple[float, ...] = (0.25, 0.5, 2.0)
    timeout: int = 1000
    milliseconds: float = 4.0

    @property
    def frames_per_step(self) -> float:
        """How many frames come within a step."""
        return self.gbps * _STEP / 8 / (HEADER_BYTES + self.payload)

    def need(self, answer: int) -> int:
        """Memory on the NIC that holds what comes within an answer of so many µs and the step it falls in, bytes."""
        steps = -(-answer * 1000 // _STEP) + 1
        pages = -(-self.payload // NIC_PAGE)
        return (int(self.frames_per_step * steps) + 1) * pages * NIC_PAGE


@dataclass(frozen=True)
class Case:
    """One way under one set of circumstances.

    Attributes:
        kind: `TODAY`, `AMPLE`, `LITTLE` or `SLOW`.
        way: `BY_QUEUE`, `BY_HEADER` or `HEADERS_ONLY`.
        answer: µs from a header's arrival to the request for its payload.
        budget: memory on the NIC, bytes; 0: there is none.
        timeout: how long payload may stay there, µs.
        about: for the table.
    """

    kind: str
    way: str
    answer: int = 0
    budget: int = 0
    timeout: int = _PATIENCE
    about: str = ""


def cases(parameters: Parameters) -> Iterator[Case]:
    """All of them, in the order of the table."""
    yield Case(TODAY, BY_QUEUE, about="none")
    for answer in parameters.answers:
        yield Case(AMPLE, BY_HEADER, answer, _AMPLE, about="ample")
    longest = max(parameters.answers)
    for way in (BY_HEADER, HEADERS_ONLY):
        for share in parameters.budgets:
            budget = max(int(parameters.need(longest) * share) // NIC_PAGE, 1) * NIC_PAGE
            yield Case(LITTLE, way, longest, min(budget, MAX_NIC_PAGES * NIC_PAGE), about=f"{share:g} of need")
    yield Case(SLOW, BY_HEADER, 2 * parameters.timeout, _AMPLE, parameters.timeout, "ample, timeout")


class _Bench:
    """A NIC with one queue, the memories, and a host that answers late."""

    def __init__(self, parameters: Parameters, case: Case) -> None:
        self.case = case
        self.traffic = Labelled(1 + parameters.accelerators, parameters.payload)
        profile = Profile(mac=MAC, deferred_bytes=case.budget, deferred_usecs=case.timeout)
        self.lab = Loopback(profile, ram=GuestMemory("ram", size=_RAM))
        driver = self.lab.driver
        driver.probe()
        self.memories = [self.lab.ram]
        self.memories += [driver.add_memory(f"hbm{number}", _HBM) for number in range(parameters.accelerators)]
        # As the bind of a dma-buf does it today: the queue's data buffers are all in one accelerator's memory.
        bound = self.memories[1] if case.way == BY_QUEUE else None
        driver.open(
            rx_queues=1, tx_queues=1, ring_entries=_RING, buffer_size=2048, header_split=True, payload_memory=bound
        )
        self.ring = None
        if case.way != BY_QUEUE:
            self.ring = driver.defer_placement(0, entries=_REQUESTS, headers_only=case.way == HEADERS_ONLY)
        self.places = [memory.allocate(_PLACES * PAGE) for memory in self.memories]
        self.used = [0] * len(self.memories)
        self.waiting: deque[tuple[int, RxPacket]] = deque()  # when it came, and what: the host has not answered
        self.asked: deque[tuple[int, RxPacket, int]] = deque()  # and where it goes: the NIC has not
        self.books: Counter[tuple[int, int]] = Counter()  # payload by whose it is, and whose memory it is in
        self.latencies: list[int] = []
        self.statuses: Counter[str] = Counter()
        self.wrong_bytes = self.peak = 0

    def step(self, frames: list[bytes]) -> None:
        """Frames come, and the host does what is due."""
        lab = self.lab
        lab.receive(*frames)
        now = lab.now
        self.peak = max(self.peak, int(lab.nic.state.placement_rings["pages"][0]) * NIC_PAGE)
        for packet in lab.driver.poll(0):
            if packet.deferred is not None:
                self.waiting.append((now, packet))
            else:
                self._at_once(packet)
        while self.waiting and self.waiting[0][0] + self.case.answer * 1000 <= now:
            self._ask(*self.waiting.popleft())
        if self.asked and self.ring is not None:
            self.ring.post()
            while self.asked:
                lab.run()
                self._answers()
        lab.advance(_STEP)

    def _at_once(self, packet: RxPacket) -> None:
        """Payload that is where the queue's buffers are."""
        self._check(packet.header, packet.payload)
        self.latencies.append(0)
        names = [memory.name for memory in self.memories]
        for buffer in packet.buffers:
            self.books[owner_of(packet.header), names.index(buffer.memory)] += buffer.length

    def _ask(self, came: int, packet: RxPacket) -> None:
        """The host knows now whose it is."""
        assert self.ring is not None and packet.deferred is not None
        owner = owner_of(packet.header)
        place = self.places[owner] + self.used[owner] % _PLACES * PAGE
        self.used[owner] += 1
        self.ring.place(packet.deferred.handle, [(place, packet.deferred.length)], ring=False)
        self.asked.append((came, packet, place))

    def _answers(self) -> None:
        """What the NIC has made of requests."""
        assert self.ring is not None
        answers = self.ring.poll()
        assert answers, "a request has no answer"
        for answer in answers:
            came, packet, place = self.asked.popleft()
            assert packet.deferred is not None and answer.handle == packet.deferred.handle
            self.statuses[answer.status.name] += 1
            if answer.status != PlacementStatus.PLACED:
                continue
            owner = owner_of(packet.header)
            self._check(packet.header, self.memories[owner].read(place, packet.deferred.length))
            self.latencies.append(self.lab.now - came)
            self.books[owner, owner] += packet.deferred.length

    def _check(self, header: bytes, found: bytes) -> None:
        self.wrong_bytes += different(self.traffic.payload(header), found)

    def faults(self) -> list[str]:
        """What contradicts the books of the host: the NIC's own, and what is in memory."""
        found = contradictions(self.lab, 0, self.memories, self.books)
        state = self.lab.nic.state
        if (free := int(state.nic_memory["free_pages"][0])) != self.case.budget // NIC_PAGE:
            found.append(f"{free} pages of the NIC are free at the end, of {self.case.budget // NIC_PAGE}")
        return found


def measure(parameters: Parameters, case: Case) -> dict[str, Any]:
    """One case."""
    bench = _Bench(parameters, case)
    random = np.random.default_rng(2)
    sent, owed = 0, 0.0
    with bench.lab:
        for _ in range(round(parameters.milliseconds * 1e6 / _STEP)):
            owed += parameters.frames_per_step
            count, owed = int(owed), owed % 1
            owners = random.integers(0, 1 + parameters.accelerators, count).tolist()
            bench.step([bench.traffic.frame(owner, sent + number) for number, owner in enumerate(owners)])
            sent += count
        while bench.waiting:  # no longer than an answer takes
            bench.step([])
        faults = bench.faults()
    books, total = bench.books, sent * parameters.payload
    own = sum(count for (owner, where), count in books.items() if owner == where)
    host = sum(count for (owner, where), count in books.items() if owner != where == HOST)
    other = sum(count for (owner, where), count in books.items() if owner != where != HOST)
    latencies = np.array(bench.latencies or [0]) / 1000
    return {
        "kind": case.kind, "way": case.way, "about": case.about, "answer_us": case.answer, "budget": case.budget,
        "budget_kib": case.budget / 1024 if case.budget else None, "timeout_us": case.timeout, "frames": sent,
        "bytes": total, "own": own, "host_instead": host, "anothers": other, "lost": total - own - host - other,
        "own_percent": 100 * own / total, "host_percent": 100 * host / total, "anothers_percent": 100 * other / total,
        "lost_percent": 100 * (total - own - host - other) / total,
        "own_gbps": own * 8e-6 / parameters.milliseconds, "peak": bench.peak, "peak_kib": bench.peak / 1024,
        "latency_us": float(np.median(latencies)), "latency_us_max": float(latencies.max()),
        "requests": dict(bench.statuses), "wrong_bytes": bench.wrong_bytes, "faults": faults,
    }  # fmt: skip


COLUMNS = (
    Column("way", "placed"), Column("about", "NIC memory"), Column("answer_us", "answer, µs", ",d"),
    Column("own_percent", "own, %", ".1f"), Column("host_percent", "host, %", ".1f"),
    Column("anothers_percent", "other, %", ".1f"), Column("lost_percent", "lost, %", ".1f"),
    Column("peak_kib", "used, KiB", ",.0f"), Column("latency_us", "after, µs", ",.0f"),
)  # fmt: skip
_LEGEND = (
    "own: payload that is in its owner's memory, host: in the host's instead, other: in another accelerator's. "
    "used: memory of the NIC, at most. answer: from a header to the request for its payload; after: median from "
    "arrival until payload was at its place."
)


def conclude(parameters: Parameters, rows: Sequence[Row]) -> Result:
    """What follows from all cases."""

    def of(way: str, kind: str | None = None) -> list[Row]:
        return [row for row in rows if row["way"] == way and kind in (None, row["kind"])]

    result = Result(
        name="placement",
        title="Payload that waits on the NIC until the host has read its header",
        question="Could the NIC keep payload until the host has read the headers, and place it then?",
        asked="reviewers of devmem TCP, in the discussion of the series",
        about={
            "flows": f"{parameters.accelerators} accelerators' and the host's, mixed at random in one queue",
            "frames": f"{parameters.payload} bytes of payload at {parameters.gbps:g} Gbit/s for "
            f"{parameters.milliseconds:g} ms of virtual time",
            "device and driver": "the model behind its socket, the driver in Python, shared memory; no guest",
        },
        tables=[Table("Where payload went, and what the NIC had to hold", COLUMNS, rows, _LEGEND)],
        driver="Keep headers back until their payload is placed; write a placement request for each deferred packet; "
        "take packets for which the NIC had no room as ever.",
        page="placement.md",
    )
    faults = [fault for row in rows for fault in row["faults"]]
    wrong = sum(row["wrong_bytes"] for row in rows)
    checked = sum(row["own"] + row["host_instead"] + row["anothers"] for row in rows)
    (today,) = of(BY_QUEUE)
    ample, slow = of(BY_HEADER, AMPLE), of(BY_HEADER, SLOW)
    short = [row for row in of(BY_HEADER, LITTLE) if row["budget"] < parameters.need(row["answer_us"])]
    dropping = [row for row in of(HEADERS_ONLY, LITTLE) if row["budget"] < parameters.need(row["answer_us"])]
    deferred = of(BY_HEADER) + of(HEADERS_ONLY)
    needs = [(row["peak"], parameters.need(row["answer_us"])) for row in ample]
    placed_late = sum(row["requests"].get("PLACED", 0) for row in slow)
    result.claims = [
        Claim(
            "Each payload was whole at its place; host, NIC and memory agree on whose bytes are where.",
            wrong == 0 and not faults and checked > 0,
            "; ".join(faults) or f"{checked:,} bytes checked, {wrong:,} wrong",
        ),
        Claim(
            "Placed by queue, payload of other flows is in the accelerator's memory.",
            today["anothers"] > 0,
            f"{today['anothers']:,} of {today['bytes']:,} bytes",
        ),
        Claim(
            "Placed by header, no payload is ever in another accelerator's memory.",
            not any(row["anothers"] for row in deferred),
            f"{sum(row['anothers'] for row in deferred):,} bytes in {len(deferred)} cases",
        ),
        Claim(
            "With memory enough on the NIC all payload is at its place, and nothing is lost.",
            all(row["own"] == row["bytes"] for row in ample),
            f"{sum(row['own'] for row in ample):,} of {sum(row['bytes'] for row in ample):,} bytes",
        ),
        Claim(
            "The NIC has to hold what comes while the host thinks: rate times answer.",
            all(0.7 * need <= peak <= need for peak, need in needs),
            "; ".join(f"{peak / 1024:,.0f} KiB where at most {need / 1024:,.0f} were foreseen" for peak, need in needs),
        ),
    ]
    if short:
        result.claims.append(
            Claim(
                "With less, the rest comes to the host's memory as ever, and nothing is lost.",
                all(row["lost"] == 0 and row["host_instead"] > 0 for row in short),
                "; ".join(f"{row['host_percent']:.0f} % with {row['budget_kib']:,.0f} KiB" for row in short),
            )
        )
    if dropping:
        result.claims.append(
            Claim(
                "A queue without data buffers drops the rest, and the host's memory gets nothing that is not its own.",
                all(row["lost"] > 0 and row["host_instead"] == 0 for row in dropping),
                "; ".join(f"{row['lost_percent']:.0f} % with {row['budget_kib']:,.0f} KiB" for row in dropping),
            )
        )
    result.claims.append(
        Claim(
            "A host that is slower than the timeout finds its payload gone, and nothing is written after that.",
            all(row["lost"] == row["bytes"] and set(row["requests"]) == {"NOT_FOUND"} for row in slow),
            f"{placed_late} requests placed, {sum(row['requests'].get('NOT_FOUND', 0) for row in slow):,} not found",
        )
    )
    labels = [f"{row['way']}\n{row['about']}\n{row['answer_us']:,} µs" for row in rows]
    parts = {"at its place": "own", "host's instead": "host", "another's": "anothers", "lost": "lost"}
    result.panels = [
        Panel(
            "Where payload went", "%", labels,
            {name: [row[f"{key}_percent"] for row in rows] for name, key in parts.items()}, stacked=True,
        ),
        Panel("Memory of the NIC in use, at most", "KiB", labels, {"used": [row["peak_kib"] for row in rows]}),
    ]  # fmt: skip
    return result
