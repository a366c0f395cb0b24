"""Buffers of several owners, taken in turn, behind one queue: what goes wrong in three kinds of ring.

The flow of owner 0 is steady, and its program gives each buffer back at once. The flows of the others are as steady,
or silent, or as steady but their programs give nothing back. Asked is what owner 0 has of it, whose memory payload is
written to, and how far the NIC has to look ahead. Time is virtual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from nicmodel.client.results import Claim, Column, Panel, Result, Row, Table
from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.experiments.labels import FIRST_PORT, MAC, Labelled, contradictions, different, owner_of
from nicmodel.gvnic.options.owners.state import MAX_OWNERS
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.flows import UDPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import GuestMemory

PLAIN, TAGGED = "plain", "tagged"
STEADY, SILENT, KEEPING = OTHERS = ("steady", "silent", "keep their buffers")
#: Entries of the ring, a power of two.
RING = 512
#: Payload of each frame, bytes; frames that come for each owner in a period, and the period, ns.
_PAYLOAD, _BURST, _PERIOD = 1000, 4, 1_000_000
_QUEUE = 1


@dataclass(frozen=True)
class Parameters:
    """What is compared.

    Attributes:
        owners: how many share the ring; one set of cases each.
        lookaheads: of the tagged rings, buffers.
        milliseconds: for which frames come, of virtual time.
    """

    owners: tuple[int, ...] = (2, 8)
    lookaheads: tuple[int, ...] = (1, 64, RING)
    milliseconds: int = 300

    def __post_init__(self) -> None:
        if not all(2 <= owners <= MAX_OWNERS - 1 for owners in self.owners):
            raise ValueError(f"between 2 and {MAX_OWNERS - 1} owners can be told apart")


@dataclass(frozen=True)
class Case:
    """One ring, and what the other owners do.

    Attributes:
        owners: how many.
        lookahead: how many buffers the NIC sorts by owner ahead of need; 0: the ring knows nothing of owners.
        others: one of `OTHERS`.
    """

    owners: int
    lookahead: int
    others: str


def cases(parameters: Parameters) -> Iterator[Case]:
    """All of them, in the order of the table."""
    for owners in parameters.owners:
        for lookahead in (0, *parameters.lookaheads):
            for others in OTHERS:
                yield Case(owners, lookahead, others)


def measure(parameters: Parameters, case: Case) -> dict[str, Any]:
    """One case."""
    traffic = Labelled(case.owners, _PAYLOAD)
    senders = range(1) if case.others == SILENT else range(case.owners)
    written: Counter[tuple[int, int]] = Counter()  # payload by whose it is, and whose memory it is in
    packets: Counter[int] = Counter()
    waits: list[int] = []  # ns that frames of owner 0 have waited for a buffer
    came: list[int] = []  # when each of them came
    wrong, random = 0, Random(1)
    profile = Profile(mac=MAC, owners=MAX_OWNERS, owner_lookahead=max(case.lookahead, 1))
    with Loopback(profile, ram=GuestMemory("ram", size=64 << 20)) as lab:
        driver, state = lab.driver, lab.nic.state
        driver.probe()
        memories = [driver.add_memory(f"owner{owner}", 4 << 20) for owner in range(case.owners)]
        names = [memory.name for memory in memories]
        driver.open(rx_queues=_QUEUE + 1, tx_queues=1, ring_entries=RING, header_split=True)
        for owner in range(case.owners):
            driver.add_flow_rule(UDPv4(dst_port=FIRST_PORT + owner), queue=_QUEUE, owner=owner)
        queue = driver.share_rx(_QUEUE, memories, tagged=case.lookahead > 0)
        for burst in range(parameters.milliseconds):
            flows = [owner for owner in senders for _ in range(_BURST)]
            random.shuffle(flows)  # those of a network do not take turns
            for number, owner in enumerate(flows):
                if owner == 0:
                    came.append(lab.now)
                lab.receive(traffic.frame(owner, burst + number))
                for packet in queue.poll(repost=False):
                    owner = owner_of(packet.header)
                    wrong += different(traffic.payload(packet.header), packet.payload)
                    if owner == 0:
                        waits.append(lab.now - came[packets[0]])
                    packets[owner] += 1
                    for buffer in packet.buffers:
                        written[owner, names.index(buffer.memory)] += buffer.length
                    if owner == 0 or case.others != KEEPING:
                        queue.give_back(packet)
                queue.post()
                lab.advance(_PERIOD // len(flows))
        descriptors = int(state.ledger[_QUEUE, Purpose.DESCRIPTOR].sum())
        lost = int(state.drops[_QUEUE, Drop.NO_BUFFERS])
        waiting = int(state.rx[_QUEUE]["held"])
        faults = contradictions(lab, _QUEUE, memories, written)
    sent, received = _BURST * parameters.milliseconds, sum(packets.values())
    if len(senders) * sent != received + lost + waiting:
        faults.append(f"{len(senders) * sent} frames: {received} received, {lost} lost, {waiting} waiting")
    return {
        "owners": case.owners, "ring": TAGGED if case.lookahead else PLAIN,
        "kind": f"tagged, {case.lookahead} ahead" if case.lookahead else PLAIN,
        "lookahead": case.lookahead or None,
        "others": case.others, "sent": sent, "received": packets[0], "share": 100 * packets[0] / sent,
        "others_received": received - packets[0],
        "wrong_memory": sum(count for (owner, where), count in written.items() if owner != where),
        "checked": sum(written.values()), "wrong_bytes": wrong, "lost": lost, "waiting": waiting,
        "wait_us": float(np.median(waits)) / 1000 if waits else None,
        "wait_us_max": max(waits) / 1000 if waits else None,
        "list_bytes": case.lookahead * RX_BUFFER.size or None, "descriptor_bytes": descriptors / max(received, 1),
        "faults": faults,
    }  # fmt: skip


COLUMNS = (
    Column("owners", "owners", "d"), Column("kind", "ring"), Column("others", "the others"),
    Column("share", "A gets, %", ".1f"), Column("wait_us_max", "waits, µs", ",.0f"),
    Column("wrong_memory", "wrong memory, bytes", ",d"), Column("list_bytes", "NIC's lists, bytes", ",d"),
    Column("descriptor_bytes", "DMA a packet, bytes", ".1f"),
)  # fmt: skip
_LEGEND = (
    "A gets: share of its frames that owner A has received; waits: the longest that one of them waited for a buffer. "
    "wrong memory: payload in another owner's. DMA a packet: descriptors that the NIC has read, for each packet "
    "received, those that it has read ahead included."
)


def conclude(parameters: Parameters, rows: Sequence[Row]) -> Result:
    """What follows from all cases."""
    result = Result(
        name="owners",
        title="Buffers of several owners behind one queue",
        question="Why is one dma-buf for each queue the limit; what if owners share a queue?",
        asked="reviewers of devmem TCP, in the discussion of the series",
        about={
            "ring": f"{RING} buffers, of the owners in turn",
            "traffic": f"{_BURST} frames of {_PAYLOAD} bytes a millisecond for each owner that sends, "
            f"{parameters.milliseconds} ms of virtual time; a flow rule for each",
            "A": "the owner whose program gives each buffer back at once",
            "device and driver": "the model behind its socket, the driver in Python, shared memory; no guest",
        },
        tables=[
            Table("What owner A has of a shared ring, and whose memory payload is written to", COLUMNS, rows, _LEGEND)
        ],
        driver="Match completions by buffer_id instead of their order; write the owner into each buffer's descriptor "
        "and flow rule; limit the buffers that an owner has in the ring; flush one owner's buffers when it dies.",
        page="owners.md",
    )
    plain = [row for row in rows if row["ring"] == PLAIN]
    tagged = [row for row in rows if row["ring"] == TAGGED]
    in_order = [row for row in tagged if row["lookahead"] == 1]
    sorted_ = [row for row in tagged if row["lookahead"] >= RING]
    faults = [fault for row in rows for fault in row["faults"]]
    wrong, checked = sum(row["wrong_bytes"] for row in rows), sum(row["checked"] for row in rows)
    result.claims.append(
        Claim(
            "Each payload was whole; driver, NIC and memory agree on whose bytes are where.",
            wrong == 0 and not faults and checked > 0,
            "; ".join(faults) or f"{checked:,} bytes checked, {wrong:,} wrong",
        )
    )
    result.claims.append(
        Claim(
            "In a ring that knows nothing of owners payload is in other owners' memory, whatever these do.",
            all(row["wrong_memory"] > 0 for row in plain),
            f"{sum(row['wrong_memory'] for row in plain):,} bytes in {len(plain)} cases",
        )
    )
    result.claims.append(
        Claim(
            "With a tag in each buffer and rule no byte is in another owner's memory, however far the NIC looks.",
            not any(row["wrong_memory"] for row in tagged),
            f"{sum(row['wrong_memory'] for row in tagged):,} bytes in {len(tagged)} cases",
        )
    )
    if silent := [row for row in in_order if row["others"] == SILENT]:
        result.claims.append(
            Claim(
                "A NIC that takes tagged buffers in order stands still at the buffer of a silent owner.",
                all(row["share"] < 5 for row in silent),
                "; ".join(f"A receives {row['share']:.1f} % with {row['owners']} owners" for row in silent),
            )
        )
    if steady := [row for row in in_order if row["others"] == STEADY]:
        result.claims.append(
            Claim(
                "Even with all owners busy, in order a frame waits until the owners before it have had theirs.",
                all(row["wait_us_max"] > 0 for row in steady),
                "; ".join(f"{row['wait_us_max']:,.0f} µs at most with {row['owners']} owners" for row in steady),
            )
        )
    if sorted_:
        result.claims.append(
            Claim(
                "With a list for each owner A receives everything at once, whatever the others do.",
                all(row["received"] == row["sent"] and row["wait_us_max"] == 0 for row in sorted_),
                f"{sum(row['received'] for row in sorted_):,} of {sum(row['sent'] for row in sorted_):,} frames, "
                f"{max(row['wait_us_max'] or 0 for row in sorted_):.0f} µs of waiting at most",
            )
        )
    partly = [row for row in tagged if 1 < row["lookahead"] < RING and row["others"] == SILENT]
    if partly:
        result.claims.append(
            Claim(
                "Looking ahead helps only as far as it reaches: a silent owner with more buffers blocks the ring.",
                all(row["received"] < row["sent"] for row in partly),
                "; ".join(
                    f"A receives {row['share']:.1f} % with {row['owners']} owners, {row['lookahead']} buffers ahead"
                    for row in partly
                ),
            )
        )
    cost = [row for row in sorted_ if row["others"] == STEADY]
    base = {row["owners"]: row for row in plain if row["others"] == STEADY}
    if cost:
        extra = [row["descriptor_bytes"] - base[row["owners"]]["descriptor_bytes"] for row in cost]
        result.claims.append(
            Claim(
                "Looking ahead costs memory on the NIC, and no descriptor is read twice.",
                all(row["list_bytes"] == row["lookahead"] * RX_BUFFER.size for row in cost)
                and all(
                    row["descriptor_bytes"] * (row["received"] + row["others_received"])
                    <= RX_BUFFER.size * (row["received"] + row["others_received"] + RING)
                    for row in cost
                ),
                "; ".join(
                    f"{row['list_bytes']:,} bytes with {row['owners']} owners, {more:+.1f} bytes of DMA a packet"
                    for row, more in zip(cost, extra, strict=True)
                ),
            )
        )
    labels = [f"{row['owners']} owners, {row['kind']}\nothers {row['others']}" for row in rows]
    result.panels = [
        Panel("Frames that A receives", "%", labels, {"received": [row["share"] for row in rows]}),
        Panel("Payload in another owner's memory", "KiB", labels,
              {"bytes": [row["wrong_memory"] / 1024 for row in rows]}),
    ]  # fmt: skip
    return result
