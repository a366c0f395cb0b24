"""The faults that any NIC may have: what each does, its parameters, and what a stock driver makes of it.

What a fault does is done where it sits: in the other modules of this package, and where rings are written, by the
personality. It may have more of them; what a NIC has is in `Faults.kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from nicmodel.faults.fault import SPAN, Chance, Drawn, Fault, Range, Where

#: Which way frames go, as the NIC sees it.
Direction = Literal["rx", "tx", "both"]

_DIRECTION = "frames that come (rx), that leave (tx), or both"
_QUEUE = "only of this queue; none: of all"

#: What a NIC has of each.
_QUEUES = Range(0, lambda nic: nic.profile.queues - 1)
_VECTORS = Range(0, lambda nic: nic.profile.vectors - 1)
_ADDRESS = Range(0, (1 << 64) - 1)
#: Any value of a field of up to 64 bits.
_VALUE = Range(0, (1 << 64) - 1)
#: Fields of completions, those that tell whose turn it is left out, by the names that gVNIC and idpf have for them.
RX_FIELDS = (
    "rxdid", "loopback", "ipv6_ex_add", "rx_error", "packet_type", "ip_header_error", "udp_length_error",
    "raw_checksum_invalid", "packet_length", "header_length", "rsc", "split_header", "descriptor_done",
    "end_of_packet", "header_buffer_overflow", "l3_l4_processed", "ip_checksum_error", "l4_checksum_error",
    "external_ip_checksum_error", "external_udp_checksum_error", "timestamp_valid", "buffer_id", "rsc_segment_length",
    "hash", "timestamp",
)  # fmt: skip
#: Time from one strike to the next, seconds: no shorter, so that the server has time for other things.
_PERIOD = Range(0.001, 10**9)

# --------------------------------------------------------------------------------------------------------------- wire


@dataclass(frozen=True, kw_only=True)
class WireFault(Chance):
    """A fault of frames on the wire. An aggregate is cut first into the frames that a real wire would carry."""

    where = "wire"

    direction: Annotated[Direction, _DIRECTION] = "both"


@dataclass(frozen=True, kw_only=True)
class WireDrop(WireFault):
    """Frames vanish."""

    name = "wire-drop"
    effect = "TCP sends again (TcpRetransSegs); ping loses echoes; the driver notices nothing."


@dataclass(frozen=True, kw_only=True)
class WireCorrupt(WireFault):
    """One bit of a frame flips behind its Ethernet header, unseen by the frame's check sequence."""

    name = "wire-corrupt"
    effect = (
        "The checksum verdict of the completion is bad, the stack verifies by itself and drops the packet "
        "(TcpInCsumErrors); TCP sends again. No byte of it reaches the application."
    )


@dataclass(frozen=True, kw_only=True)
class WireDuplicate(WireFault):
    """Frames come twice."""

    name = "wire-duplicate"
    effect = "ping says DUP!; TCP discards the copy and reports it by D-SACK (TcpExtTCPDSACKRecv at the sender)."


@dataclass(frozen=True, kw_only=True)
class WireReorder(WireFault):
    """Frames are overtaken by those that come within a time after them."""

    name = "wire-reorder"
    effect = "TCP keeps the early ones aside (TcpExtTCPOFOQueue) and delivers all; throughput falls."

    delay: Annotated[float, "seconds that a frame is held back", SPAN] = 0.002


@dataclass(frozen=True, kw_only=True)
class WireDelay(WireFault):
    """Frames come later, in their order."""

    name = "wire-delay"
    effect = "The round trip grows by the delay of each direction."

    delay: Annotated[float, "seconds", SPAN] = 0.01


@dataclass(frozen=True, kw_only=True)
class WireRate(Fault):
    """The wire has a bit rate: frames beyond it wait in a queue, and are lost when the queue is full."""

    name = "wire-rate"
    where = "wire"
    effect = (
        "Throughput is the rate. What the guest sends too fast waits in its rings and qdisc; "
        "what it is sent too fast is lost in the queue, and TCP slows down."
    )

    direction: Annotated[Direction, _DIRECTION] = "both"
    rate: Annotated[int, "bits per second", Range(1, 10**12)] = 10_000_000
    limit: Annotated[int, "frames that may wait", Range(1, 1 << 16)] = 512


@dataclass(frozen=True, kw_only=True)
class WireFlap(Chance):
    """The cable is pulled and plugged in again, time after time."""

    name = "wire-flap"
    where = "wire"
    effect = "Carrier is lost and comes back (carrier_changes counts both); TCP connections survive."
    source = "gve_main.c, gve_handle_link_status: the link's bit may change at any time, told by the management vector."
    loses = True

    down: Annotated[float, "seconds without a link", SPAN, Drawn(0.05, 1)] = 0.5
    period: Annotated[float, "seconds from one pull to the next", _PERIOD, Drawn(2, 20)] = 2.0


# ------------------------------------------------------------------------------------------------------------ receive


@dataclass(frozen=True, kw_only=True)
class RxFault(Chance):
    """A fault of packets on their way into receive queues."""

    where: ClassVar[Where] = "receive"

    queue: Annotated[int | None, _QUEUE, _QUEUES] = None


@dataclass(frozen=True, kw_only=True)
class RxUnsplit(RxFault):
    """The header is not split off: the whole packet goes to data buffers, and the completion says so."""

    name = "rx-unsplit"
    effect = (
        "On an ordinary queue nothing is lost. On a queue bound to a dma-buf the driver cannot read the header "
        "there and drops the packet (rx_skb_alloc_fail of the queue); TCP sends it again."
    )
    source = "gve_rx_dqo.c, gve_rx_dqo: a completion without split_header has the whole packet in data buffers."


@dataclass(frozen=True, kw_only=True)
class RxSplitBeyond(RxFault):
    """The header is split off too late: the payload's first bytes lie behind it in the header buffer."""

    name = "rx-split-beyond"
    effect = (
        "The stack gets these bytes in the packet's linear part. recvmsg hands them out as SCM_DEVMEM_LINEAR, copied "
        "to the caller's buffer, and the rest as SCM_DEVMEM_DMABUF. No byte is lost."
    )
    source = (
        "gve_rx_dqo.c, gve_rx_dqo: header_len is taken as it is; Documentation/networking/devmem.rst, "
        "SCM_DEVMEM_LINEAR: payload may land in the linear buffer."
    )

    extra: Annotated[int, "bytes of payload behind the header", Range(1, 1 << 16)] = 16


@dataclass(frozen=True, kw_only=True)
class RxHeaderOverflow(RxFault):
    """The header does not fit its buffer: the completion says overflow, all of the packet is in data buffers."""

    name = "rx-header-overflow"
    effect = "As rx-unsplit: nothing is lost on an ordinary queue, a queue bound to a dma-buf drops the packet."
    source = "gve_desc_dqo.h, header_buffer_overflow; counted by gve_rx_dqo as rx_hsplit_unsplit_pkt."


@dataclass(frozen=True, kw_only=True)
class RxChecksum(RxFault):
    """The completion's checksum verdict is wrong (DQO formats; packets that are not coalesced)."""

    name = "rx-checksum"
    effect = (
        "Called bad though it is good: the stack verifies by itself and takes the packet, at the price of CPU time. "
        "Called good though it is bad: nobody looks again, and the wrong bytes reach the application."
    )

    verdict: Annotated[Literal["bad", "good"], "bad: good packets are called bad; good: the reverse"] = "bad"


@dataclass(frozen=True, kw_only=True)
class RxStarve(RxFault):
    """The device finds no receive buffers, although the driver has posted some."""

    name = "rx-starve"
    effect = (
        "Packets wait in the device, 200 ms at most and as many as its memory holds, then they are lost "
        "(ethtool -S: rx_no_buffers_posted). When it ends, those that wait are delivered."
    )


@dataclass(frozen=True, kw_only=True)
class RxLate(RxFault):
    """A packet's completions are written later, its bytes at once."""

    name = "rx-late"
    effect = "The round trip grows by the delay. Later packets of the queue wait too: a completion ring has an order."
    source = "Nothing says when a completion comes; gve_rx_poll_dqo looks at what is there."

    delay: Annotated[float, "seconds", SPAN, Drawn(0.0001, 0.01)] = 0.01


@dataclass(frozen=True, kw_only=True)
class RxError(RxFault):
    """The last completion of a packet says that receiving it has failed."""

    name = "rx-error"
    effect = "The driver drops the packet (rx_desc_err_dropped_pkt of the queue); TCP sends it again."


@dataclass(frozen=True, kw_only=True)
class RxBufferId(RxFault):
    """A completion names a buffer that it cannot be about (DQO formats)."""

    name = "rx-buffer-id"
    effect = (
        'The log says "Invalid RX buffer_id" or "RX buffer_id is not allocated", and the packet is dropped. The buffer '
        "that was meant never comes back, so that the queue has one less until its rings are made anew. An id that is "
        "in use brings other bytes to the stack."
    )

    which: Annotated[
        Literal["beyond", "again"], "beyond: an id that the driver never gave; again: that of the completion before"
    ] = "beyond"


@dataclass(frozen=True, kw_only=True)
class RxTooLong(RxFault):
    """A completion says that there are more bytes in a buffer than it holds (of a gVNIC: GQI formats)."""

    name = "rx-too-long"
    effect = 'The log says "Unexpected frag size", the packet is dropped, and the driver resets the device.'


@dataclass(frozen=True, kw_only=True)
class RxField(RxFault):
    """A field of a packet's completions has another value (of a gVNIC: DQO formats)."""

    name = "rx-field"
    effect = (
        "That of rx-buffer-id, rx-error or rx-checksum where the field is one of theirs. Lengths and types are "
        "believed: the stack is given a packet that has bytes of what lies behind its buffer. The guest may crash."
    )

    field: Annotated[Literal[RX_FIELDS], "the field, as the datasheet has it"] = "packet_length"  # type: ignore[valid-type]
    value: Annotated[int, "its value, of which the field takes the bits that it has", _VALUE] = (1 << 64) - 1
    which: Annotated[Literal["all", "first", "last"], "of a packet's completions: all, the first, or the last"] = "all"


# ----------------------------------------------------------------------------------------------------------- transmit


@dataclass(frozen=True, kw_only=True)
class TxFault(Chance):
    """A fault of packets that the driver sends."""

    where = "transmit"

    queue: Annotated[int | None, _QUEUE, _QUEUES] = None


@dataclass(frozen=True, kw_only=True)
class TxLate(TxFault):
    """The packet is sent, its completion comes later; others may overtake it."""

    name = "tx-late"
    effect = "The socket's memory stays charged meanwhile, so a sender with a small buffer slows down; nothing is lost."
    source = "Nothing says when a packet is completed; packets may overtake each other (gve_tx_dqo.c: completion tags)."

    delay: Annotated[float, "seconds", SPAN, Drawn(0.0001, 0.02)] = 0.01


@dataclass(frozen=True, kw_only=True)
class TxNever(TxFault):
    """The packet is sent, its completion never comes. In the GQI formats a later completion makes up for it."""

    name = "tx-never"
    effect = (
        "Byte queue limits, or the lack of completion tags, stop the queue. After 5 s the watchdog says "
        '"Timeout on tx queue", and the driver kicks the queue; at the next time-out it resets the device, '
        "which heals everything once the fault is over."
    )


@dataclass(frozen=True, kw_only=True)
class TxTag(TxFault):
    """A completion has a tag that it cannot have (DQO formats)."""

    name = "tx-tag"
    effect = (
        'The log says "Invalid TX completion tag" or "No pending data completion". The packet that was meant is never '
        "completed: see tx-never. Completed again, nothing is lost."
    )

    which: Annotated[
        Literal["beyond", "again"],
        "beyond: one that the driver never gave; again: that of a packet just completed, and then the right one",
    ] = "beyond"


@dataclass(frozen=True, kw_only=True)
class TxField(TxFault):
    """A field of a completion, of packets or of descriptors, has another value (of a gVNIC: DQO formats)."""

    name = "tx-field"
    effect = (
        "That of tx-tag or tx-miss for the value or the type of a packet's. A wrong head of the ring has the driver "
        "count room in the ring that there is not, or stop its queue, until the next one."
    )

    field: Annotated[Literal["queue_id", "type", "value"], "the field; value: a packet's tag, or the ring's head"] = (
        "value"
    )
    value: Annotated[int, "its value, of which the field takes the bits that it has", _VALUE] = 0


@dataclass(frozen=True, kw_only=True)
class TxOrder(TxFault):
    """The completions of a batch are written in another order, those of descriptors among those of packets (DQO)."""

    name = "tx-order"
    effect = "The driver finds each packet by its tag. Nothing is lost."
    source = "gve_tx_dqo.c: packets are found by completion_tag, in any order; AF_XDP's are put in order by the driver."


@dataclass(frozen=True, kw_only=True)
class TxHalt(TxFault):
    """A malformed packet stops its queue until it is created anew, as it does on hardware."""

    name = "tx-halt"
    effect = (
        "A right driver never meets it. What meets it finds that nothing is completed any more, and is reset by the "
        "watchdog after some seconds."
    )


# --------------------------------------------------------------------------------------------------------- interrupts


@dataclass(frozen=True, kw_only=True)
class IrqFault(Chance):
    """A fault of interrupts."""

    where = "interrupts"

    vector: Annotated[int | None, "only this MSI-X vector; none: those of all queues", _VECTORS] = None


@dataclass(frozen=True, kw_only=True)
class IrqLost(IrqFault):
    """An interrupt is not raised. Its vector has masked itself all the same and waits for the driver to look."""

    name = "irq-lost"
    effect = (
        "The queue stands still. A transmit queue is kicked by the watchdog; nothing looks after a receive queue, "
        "which stays dead until the interface goes down and up, or the device asks for a reset."
    )


@dataclass(frozen=True, kw_only=True)
class IrqLate(IrqFault):
    """An interrupt is raised later."""

    name = "irq-late"
    effect = "Packets wait for the next interrupt, so round trips grow by up to the delay, and batches get larger."
    source = "Interrupts are moderated, and travel: nothing says when one comes."

    delay: Annotated[float, "seconds", SPAN, Drawn(0.0001, 0.01)] = 0.01


@dataclass(frozen=True, kw_only=True)
class IrqSpurious(IrqFault):
    """Interrupts are raised though nothing has happened."""

    name = "irq-spurious"
    effect = "The driver polls, finds nothing and enables the vector again; only /proc/interrupts shows it."
    source = "gve_main.c, gve_napi_poll_dqo: a poll that finds nothing enables the vector again."

    interval: Annotated[float, "seconds from one to the next", _PERIOD, Drawn(0.005, 0.1)] = 0.01


@dataclass(frozen=True, kw_only=True)
class IrqMerged(IrqFault):
    """An interrupt waits for those of other vectors, and all are raised together."""

    name = "irq-merged"
    effect = "Several queues are polled at once; packets wait up to the time for it."
    source = "As irq-late: an interrupt may come later, and so at the same moment as others."

    delay: Annotated[float, "seconds that the first of them waits", SPAN, Drawn(0.0001, 0.01)] = 0.002


# ---------------------------------------------------------------------------------------------------------------- DMA


@dataclass(frozen=True, kw_only=True)
class DmaFault(Fault):
    """The device cannot reach a range of guest addresses."""

    name = "dma-fault"
    where = "DMA"
    effect = (
        "A packet for a buffer there is lost and its buffer comes back as an error; a ring there stands still. "
        "Nothing is written beside it. The driver is not told."
    )

    address: Annotated[int, "the first of them", _ADDRESS] = 0
    size: Annotated[int, "bytes", Range(1, 1 << 64)] = 1 << 64


@dataclass(frozen=True, kw_only=True)
class DmaSlow(Fault):
    """Memory is far away: descriptors are fetched later, and completions come later."""

    name = "dma-slow"
    where = "DMA"
    effect = "The round trip grows, and each queue sends at most one ring's worth of packets in that time."

    delay: Annotated[float, "seconds", SPAN] = 0.005


# ------------------------------------------------------------------------------------------------------------- device


@dataclass(frozen=True, kw_only=True)
class DeviceReset(Chance):
    """The device asks its driver for a reset."""

    name = "device-reset"
    where = "device"
    effect = (
        'The log says "Device requested reset."; the driver releases everything and sets up again, within a second. '
        "Connections survive; flow rules of ethtool are gone."
    )
    source = "gve_main.c, gve_handle_status: GVE_DEVICE_STATUS_RESET_MASK may come at any time."
    loses = True

    period: Annotated[float, "seconds from one request to the next", _PERIOD, Drawn(2, 20)] = 10.0


@dataclass(frozen=True, kw_only=True)
class DeviceHang(Fault):
    """The device stands still: it keeps what it is told, and does it when the fault ends."""

    name = "device-hang"
    where = "device"
    effect = (
        "Nothing comes or goes. The watchdog of a busy queue kicks, then resets: the driver waits for the device "
        "to let go, and goes on when it does. A short hang is seen only as a delay."
    )


@dataclass(frozen=True, kw_only=True)
class DeviceGone(Fault):
    """The device is off the bus: reads give ones, writes are lost. In the end it is back as at power-on."""

    name = "device-gone"
    where = "device"
    effect = (
        "No traffic and no word of it until the driver speaks to the device, which then fails. Once the device is "
        "back: echo 1 > remove and rescan in sysfs, and the driver binds anew."
    )


@dataclass(frozen=True, kw_only=True)
class DeviceOnes(Fault):
    """Reads of the device's registers give all ones; all else works."""

    name = "device-ones"
    where = "device"
    effect = (
        "Packets flow. The driver takes the admin queue's counter for wrong and refuses every command at once, so that "
        'ethtool and ip say "Invalid argument"; the worker of the NIC\'s clock says "gve_ptp_do_aux_work read err".'
    )


#: Those of gVNICs and others, by name.
KINDS: dict[str, type[Fault]] = {
    kind.name: kind
    for kind in (
        WireDrop, WireCorrupt, WireDuplicate, WireReorder, WireDelay, WireRate, WireFlap,
        RxUnsplit, RxSplitBeyond, RxHeaderOverflow, RxChecksum, RxStarve, RxLate,
        RxError, RxBufferId, RxTooLong, RxField,
        TxLate, TxNever, TxTag, TxField, TxHalt,
        IrqLost, IrqLate, IrqSpurious, IrqMerged,
        DmaFault, DmaSlow,
        DeviceReset, DeviceHang, DeviceGone, DeviceOnes,
    )
}  # fmt: skip
