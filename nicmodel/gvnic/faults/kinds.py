"""Faults that only a gVNIC has, and what only its contract allows.

`KINDS` is what the command line, scenarios, the documentation's table and the tests go by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from nicmodel.faults.fault import SPAN, Chance, Drawn, Fault, Range, Where
from nicmodel.faults.kinds import KINDS as ANY_NIC
from nicmodel.faults.kinds import RxFault, TxFault, TxOrder
from nicmodel.gvnic.commands import Opcode, Status

#: Statuses that are none: what is left as the driver wrote it, and a number that the contract does not know.
NO_STATUS = {"UNSET": 0, "UNDEFINED": 0xFFFFFFEF}

#: Most buffers of a packet: for so many gve keeps its queues filled (gve_rx_dqo.c, gve_rx_post_buffers_dqo).
MOST_BUFFERS = 19

# ------------------------------------------------------------------------------------------------------------ receive


@dataclass(frozen=True, kw_only=True)
class RxSpread(RxFault):
    """A packet that needs several buffers comes in more of them, none of which is full (DQO formats).

    One that fits a buffer is never spread: gve relies on that with XDP, which it runs on one buffer.
    """

    name = "rx-spread"
    effect = "Its pieces become fragments of one packet; beyond 17 the driver chains packets. Nothing is lost."
    source = (
        "gve_rx_dqo.c, gve_rx_append_frags: packet_len of each completion is taken as it is; "
        f"gve_rx_post_buffers_dqo: up to {MOST_BUFFERS} buffers a packet."
    )

    most: Annotated[int, "the most buffers of a packet", Range(2, 255)] = MOST_BUFFERS


@dataclass(frozen=True, kw_only=True)
class RxScatter(RxFault):
    """Buffers are used in another order than that in which they were posted (DQO formats)."""

    name = "rx-scatter"
    effect = "The driver finds each buffer by its id. Nothing is lost."
    source = (
        "gve_rx_dqo.c, gve_rx_dqo: buffers are found by buf_id, in any order. Buffers of aggregates that grow side by "
        "side are completed so."
    )


@dataclass(frozen=True, kw_only=True)
class RxCut(RxFault):
    """An aggregate ends before this frame; one that came whole is taken apart."""

    name = "rx-cut"
    effect = "The stack gets more and smaller packets, and merges them itself. Nothing is lost."
    source = "Nothing says how much is merged: a device that never sets rsc keeps the contract."


@dataclass(frozen=True, kw_only=True)
class RxUnverified(RxFault):
    """The device has not looked at a packet's checksums (DQO formats; packets that are not aggregated)."""

    name = "rx-unverified"
    effect = (
        "The stack verifies by itself. On a queue bound to a dma-buf it cannot: the packet is lost, TCP sends again."
    )
    source = "gve_rx_dqo.c, gve_rx_skb_csum: without l3_l4_processed the packet is CHECKSUM_NONE."


@dataclass(frozen=True, kw_only=True)
class RxNoTimestamp(RxFault):
    """A packet has no valid timestamp (DQO formats)."""

    name = "rx-no-timestamp"
    effect = "The socket gets no hardware timestamp for it."
    source = "gve_rx_dqo.c, gve_rx_skb_hwtstamp: GVE_DQO_RX_HWTSTAMP_VALID is looked at in each packet."


@dataclass(frozen=True, kw_only=True)
class RxHold(RxFault):
    """Completions wait until they fill a line of 128 bytes, which are four, or for a time (DQO formats)."""

    name = "rx-hold"
    effect = "Packets come in small batches, and a poll may find a packet without its end. Nothing is lost."
    source = "As rx-late. Devices write completions by lines; drivers that poll have waited for the rest of one."

    delay: Annotated[float, "seconds that a line waits at most", SPAN, Drawn(0.0001, 0.005)] = 0.001


@dataclass(frozen=True, kw_only=True)
class RxExAdd(RxFault):
    """A packet is said to have IPv6 extension headers with addresses in them (DQO formats)."""

    name = "rx-ex-add"
    effect = "Of an IPv6 packet the stack verifies the checksum by itself; of another it is not looked at."


@dataclass(frozen=True, kw_only=True)
class RxUnfinished(RxFault):
    """The last descriptor of a packet says that more of it follows, which never comes (GQI formats)."""

    name = "rx-unfinished"
    effect = (
        'The log says "Unexpected seq number … with incomplete packet", the packet is dropped, and the driver resets '
        "the device."
    )


# ----------------------------------------------------------------------------------------------------------- transmit


@dataclass(frozen=True, kw_only=True)
class TxMiss(TxFault):
    """A packet is completed in two steps, as one whose flow the device has to look up: a miss, later a re-injection.

    It is sent once (DQO formats; drivers that announce that they know of misses, as Linux does).
    """

    name = "tx-miss"
    effect = (
        "Byte queue limits take the packet for sent at the miss, its memory is freed at the re-injection. After 1 s "
        'without one the log says "No reinjection completion was received" and the packet counts as dropped '
        '(tx_dropped); if it comes then, "Re-injection completion: … received after timeout". After 60 s more the tag '
        "is used again."
    )
    source = (
        "gve_tx_dqo.c, gve_handle_miss_completion, GVE_COMPL_TYPE_DQO_MISS and _REINJECTION, GVE_ALT_MISS_COMPL_BIT; "
        "gve_dqo.h, GVE_REINJECT_COMPL_TIMEOUT."
    )

    delay: Annotated[
        float | None, "seconds from the miss to the re-injection; none: it never comes", SPAN, Drawn(0.0002, 0.3)
    ] = 0.05
    form: Annotated[
        Literal["type", "bit", "both"], "how a miss is told: by its type, or by a bit of the tag; both: now so, now so"
    ] = "both"


@dataclass(frozen=True, kw_only=True)
class TxReportLate(TxFault):
    """The completion of descriptors comes later; one that comes meanwhile stands for both (DQO formats)."""

    name = "tx-report-late"
    effect = "The driver knows of less room in the ring than there is, and stops its queue the sooner for it."
    source = "gve_tx_dqo.c, gve_clean_tx_done_dqo: hw_tx_head is what the last of them says, whenever it comes."

    delay: Annotated[float, "seconds", SPAN, Drawn(0.0001, 0.02)] = 0.005


@dataclass(frozen=True, kw_only=True)
class TxHold(TxFault):
    """Completions wait until they fill a line of 128 bytes, which are sixteen, or for a time (DQO formats)."""

    name = "tx-hold"
    effect = "Memory of packets is freed in batches; a sender with a small buffer waits for them. Nothing is lost."
    source = "As tx-late. Devices write completions by lines; drivers that poll have waited for the rest of one."

    delay: Annotated[float, "seconds that a line waits at most", SPAN, Drawn(0.0001, 0.005)] = 0.001


# --------------------------------------------------------------------------------------------------------- interrupts


@dataclass(frozen=True, kw_only=True)
class IrqEarly(RxFault):
    """The interrupt of a packet comes before its completions are to be seen, and again when they are (DQO formats)."""

    name = "irq-early"
    where = "interrupts"
    effect = "The driver polls, finds nothing and enables the vector again, which then tells of the packet."
    source = "Interrupts and writes take different ways; gve_main.c, gve_napi_poll_dqo: a poll may find nothing."

    delay: Annotated[float, "seconds that the completions come later", SPAN, Drawn(0.0001, 0.005)] = 0.001


# -------------------------------------------------------------------------------------------------------- admin queue


@dataclass(frozen=True, kw_only=True)
class AdminFault(Chance):
    """A fault of commands."""

    where = "admin queue"

    opcode: Annotated[Literal[tuple(Opcode.__members__)] | None, "only this command; none: any"] = None  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class AdminStatus(AdminFault):
    """A command is not executed but answered with a status."""

    name = "admin-status"
    effect = (
        'The log says "AQ command failed with status", and whoever asked gets the error of that status: '
        "ethtool or ip says so, a queue's creation fails and the interface stays down."
    )

    status: Annotated[
        Literal[(*Status.__members__, *NO_STATUS)],  # type: ignore[valid-type]
        "the status; UNSET: none, as the driver wrote it; UNDEFINED: a number that is no status",
    ] = "INTERNAL_ERROR"


@dataclass(frozen=True, kw_only=True)
class AdminSlow(AdminFault):
    """A command is executed later; those behind it wait."""

    name = "admin-slow"
    effect = "The caller sleeps as long; beyond 2 s see admin-silent."
    source = "gve_adminq.c, gve_adminq_kick_and_wait: the event counter is polled for 2 s (FreeBSD: 0.2 s)."

    delay: Annotated[float, "seconds", SPAN, Drawn(0.001, 0.1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class AdminSilent(AdminFault):
    """A command is not executed as long as the fault lasts; those behind it wait."""

    name = "admin-silent"
    lasting = True
    effect = 'After 2 s the log says "AQ commands timed out, need to reset AQ", and the caller gets ENOTRECOVERABLE.'


@dataclass(frozen=True, kw_only=True)
class AdminAnswer(AdminFault):
    """Bytes that a command has the device write are others: of its answer, of where doorbells are."""

    name = "admin-answer"
    effect = "It depends on the bytes; most numbers that a device gives are believed. The guest may crash."

    at: Annotated[int, "where in what is written they are", Range(0, 4095)] = 0
    size: Annotated[int, "how many", Range(1, 8)] = 4
    value: Annotated[int, "what they are, as a number, big-endian", Range(0, (1 << 64) - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class AdminOptions(Chance):
    """The answer to DESCRIBE_DEVICE is malformed, or that of a device such as there were."""

    name = "admin-options"
    where = "admin queue"
    effect = (
        'short and required: the log says "… option error", and the option is not used; without any queue format the '
        "driver takes the oldest, and the probe fails. long: the rest is not looked at, with a warning. beyond: the "
        "probe fails, as options exceed the descriptor. unknown: it is skipped. oldest: a NIC that can do GQI-RDA runs "
        "with it. minimums: the driver takes 512 and 256. mtu: the probe fails."
    )

    what: Annotated[
        Literal["short", "long", "beyond", "required", "unknown", "oldest", "minimums", "mtu"],
        "short, long: each option's length is 2 less, 2 more than its fields; beyond: the last goes beyond the end; "
        "required: each asks for features that do not exist; unknown: one of an unknown id comes first; oldest: the "
        "only queue format is GQI-RDA, by the option that the first devices had; minimums: ring sizes have none; mtu: "
        "the MTU is smaller than any may be",
    ] = "short"


# ------------------------------------------------------------------------------------------------------------- device


@dataclass(frozen=True, kw_only=True)
class ClockJump(Chance):
    """The NIC's clock jumps, time after time; in the end it goes back to where it would be."""

    name = "clock-jump"
    where = "device"
    effect = (
        "Hardware timestamps jump, too. Those of packets that come before the driver has asked for the time again, "
        "within 250 ms, are of neither time if the jump is more than 2 s."
    )
    source = (
        "gve_rx_dqo.c, gve_rx_get_hwtstamp: a timestamp is the difference to the device's last answer, which gve_ptp.c "
        "asks for again and again. Nothing says that it is steady."
    )

    step: Annotated[float, "seconds of each jump", SPAN, Drawn(0.001, 10)] = 1.0
    period: Annotated[float, "seconds from one jump to the next", Range(0.001, 10**9), Drawn(0.3, 5)] = 2.0


@dataclass(frozen=True, kw_only=True)
class StatsLate(Chance):
    """The statistics in the driver's memory are not brought up to date this time."""

    name = "stats-late"
    where = "device"
    effect = "ethtool -S shows older counts of what the device has dropped."
    source = "gve_ethtool.c, gve_get_ethtool_stats reads what is there; the interval is the device's to keep."


@dataclass(frozen=True, kw_only=True)
class StatsMalformed(Chance):
    """The statistics in the driver's memory are of queues, or of counters, that do not exist."""

    name = "stats-malformed"
    where = "device"
    effect = (
        'queue: the log says "Invalid rxq id in NIC stats" when ethtool -S is asked. name: the driver takes it for '
        "statistics that were not written yet. In either case the device's counts are shown as 0."
    )

    what: Annotated[
        Literal["queue", "name"], "queue: entries are of queues that do not exist; name: entries have no name"
    ] = "queue"


_OWN: tuple[type[Fault], ...] = (
    RxSpread, RxScatter, RxCut, RxUnverified, RxNoTimestamp, RxHold, RxExAdd, RxUnfinished,
    TxMiss, TxOrder, TxReportLate, TxHold,
    IrqEarly,
    AdminStatus, AdminSlow, AdminSilent, AdminAnswer, AdminOptions,
    ClockJump, StatsLate, StatsMalformed,
)  # fmt: skip
#: All faults of a gVNIC by name, in the order of a frame's way and of a person's interest.
KINDS: dict[str, type[Fault]] = {
    kind.name: kind for kind in sorted((*ANY_NIC.values(), *_OWN), key=lambda kind: get_args(Where).index(kind.where))
}
