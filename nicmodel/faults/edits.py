"""What faults change in completions, and in the buffers that those of received packets are about.

The completions are still in the shadow (`nicmodel.faults.detour`), the packets' bytes in the guest's buffers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

from nicmodel.faults.detour import Words, get, host_address, put
from nicmodel.faults.fault import Injection
from nicmodel.faults.kinds import RxBufferId, RxField, TxField
from nicmodel.nic.layout import Bits, Layout
from nicmodel.vfio_user.regions import RegionMap

#: How far from its place in the ring a buffer may be used.
_APART = 3


def other_fields(faults: Sequence[Injection], queue: int) -> Iterator[TxField]:
    """The faults that strike a completion of a transmit queue by giving one of its fields another value."""
    for injection in faults:
        fault = injection.fault
        if isinstance(fault, TxField) and injection.hit(queue=f"tx{queue}", field=fault.field):
            yield fault


class Buffers:
    """The buffers behind the completions that one batch has brought to a queue.

    Args:
        memory: the guest's.
        form: what a descriptor of a buffer is like.
        ring: guest address of the buffer ring.
        entries: of it.
        head: where in it the first of these buffers is.
    """

    def __init__(self, memory: RegionMap, form: Layout, ring: int, entries: int, head: int) -> None:
        self._memory, self._form, self._ring, self._entries, self._head = memory, form, ring, entries, head

    def of(self, number: int, header: int, payload: int) -> tuple[int, int] | None:
        """Where in this process header and data buffer of completion `number` of the batch are.

        Returns:
            None if so many bytes of them are not in memory that is mapped here; a header buffer of 0 bytes is at 0.
        """
        place = self._ring + (self._head + number) % self._entries * self._form.size
        descriptor = host_address(self._memory, place, self._form.size)
        if not descriptor:
            return None
        raw = ctypes.string_at(descriptor, self._form.size)
        data = host_address(self._memory, self._form.buffer_address.get(raw), payload)
        found = host_address(self._memory, self._form.header_address.get(raw), header) if header else 0
        return (found, data) if data and (found or not header) else None


class Edits:
    """Changes of completions of one form.

    Args:
        form: what a completion is like. The fields that a change is about have the names that gVNIC and idpf have for
            them.
    """

    def __init__(self, form: Layout) -> None:
        self._form = form

    def verdict(self, injection: Injection, queue: int, packet: Sequence[Words], wanted: str) -> None:
        """Turn a checksum's verdict round; wanted: ``bad`` or ``good``."""
        form = self._form
        errors = (form.ip_checksum_error, form.l4_checksum_error)
        # What is merged has been verified before: it is never bad, and its header holds no whole checksum any more.
        looked = get(packet[0], form.l3_l4_processed) and not get(packet[0], form.rsc)
        is_bad = any(get(packet[0], bit) for bit in errors)
        if looked and is_bad == (wanted == "good") and injection.hit(queue=f"rx{queue}"):
            for completion in packet:
                put(completion, errors[0], 0)
                put(completion, errors[1], int(not is_bad))

    def flag(self, injection: Injection, queue: int, packet: Sequence[Words], field: Bits, value: int) -> None:
        """Set a flag of a whole packet, if it is another."""
        if get(packet[-1], field) != value and injection.hit(queue=f"rx{queue}"):
            for completion in packet:
                put(completion, field, value)

    def fail(self, injection: Injection, queue: int, packet: Sequence[Words]) -> None:
        """Have a packet's last completion tell of an error."""
        if injection.hit(queue=f"rx{queue}"):
            put(packet[-1], self._form.rx_error, 1)

    def rename(
        self, injection: Injection, queue: int, packet: Sequence[Words], before: Words | None, how: RxBufferId
    ) -> None:
        """Have a packet's first completion name another buffer; `before`: the completion before it."""
        other = self._form.buffer_id.mask if how.which == "beyond" else None
        if other is None and before is not None:
            other = get(before, self._form.buffer_id)
        if other is not None and injection.hit(queue=f"rx{queue}", buffer_id=other):
            put(packet[0], self._form.buffer_id, other)

    def set_field(self, injection: Injection, queue: int, packet: Sequence[Words], how: RxField) -> None:
        """Have a field of a packet's completions say something else."""
        field: Bits = getattr(self._form, how.field)
        chosen = {"all": packet, "first": packet[:1], "last": packet[-1:]}[how.which]
        if injection.hit(queue=f"rx{queue}", field=how.field, value=how.value & field.mask):
            for completion in chosen:
                put(completion, field, how.value & field.mask)

    def shift_time(self, packet: Sequence[Words], ns: int) -> None:
        """Have a packet's timestamp be later."""
        field = self._form.timestamp
        for completion in packet:
            put(completion, field, get(completion, field) + ns & field.mask)

    def split_beyond(
        self, injection: Injection, queue: int, completion: Words, buffers: Buffers, number: int, room: int, extra: int
    ) -> None:  # fmt: skip
        """Move a payload's first bytes, `extra` at most, from the data buffer behind the header, where `room` bytes
        are.
        """
        form = self._form
        header, payload = get(completion, form.header_length), get(completion, form.packet_length)
        extra = min(extra, payload, room - header)
        if not get(completion, form.split_header) or extra <= 0 or not injection.chance():
            return
        found = buffers.of(number, header + extra, payload)
        if found is not None:
            target, data = found
            ctypes.memmove(target + header, data, extra)
            ctypes.memmove(data, data + extra, payload - extra)
            put(completion, form.header_length, header + extra)
            put(completion, form.packet_length, payload - extra)
            injection.strike(queue=f"rx{queue}", extra=extra)

    def scatter(self, injection: Injection, queue: int, completions: Sequence[Words], buffers: Buffers) -> None:
        """Have packets use each other's buffers: what is in two of them is exchanged, and so are their ids.

        All of them are the driver's again when the batch is over, as without this.
        """
        form = self._form
        places = list(range(len(completions)))  # of each completion's buffer, among those of the batch
        for number in range(len(completions) - 1):
            if not injection.chance():
                continue
            other = number + injection.random.randint(1, min(_APART, len(completions) - 1 - number))
            pair = completions[number], completions[other]
            if any(get(one, form.rx_error) for one in pair):
                continue  # of a buffer out of reach
            split = [get(one, form.header_length) * get(one, form.split_header) for one in pair]
            lengths = [get(one, form.packet_length) for one in pair]
            one, two = (buffers.of(places[place], max(split), max(*lengths, 1)) for place in (number, other))
            if one is None or two is None:
                continue
            for here, there, count in zip(one, two, (max(split), max(lengths)), strict=True):
                content = ctypes.string_at(here, count)
                ctypes.memmove(here, there, count)
                ctypes.memmove(there, content, count)
            names = [get(one, form.buffer_id) for one in pair]
            for completion, name in zip(pair, reversed(names), strict=True):
                put(completion, form.buffer_id, name)
            places[number], places[other] = places[other], places[number]
            injection.strike(queue=f"rx{queue}", buffers=f"{names[0]}, {names[1]}")
