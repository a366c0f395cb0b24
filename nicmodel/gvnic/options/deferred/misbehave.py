"""A driver that breaks each rule of deferred placement once: see `nicmodel.gvnic.testing.misbehave`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.options.deferred.declarations import PLACEMENT_COMPLETION, PLACEMENT_REQUEST
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.placement import PlacementRing
from nicmodel.nic.state import MAX_SEGMENTS
from nicmodel.testing.guest_memory import PAGE

_ENTRIES, _QUEUE, _PORT, _SIZE = 256, 1, 5201, 400
#: Where no memory is.
_NOWHERE = 0xDEAD_0000_0000


def _configure(nic: Loopback, number: int = _QUEUE, **fields: Any) -> PlacementRing:
    """Give a queue a placement ring by a command that is correct but for some fields."""
    queue = nic.driver.rx[number]
    ring = PlacementRing(number, queue.block, _ENTRIES, nic.driver.ram, nic.driver.doorbells.ring)
    command = ring.configure_command()
    for name, value in fields.items():
        command[name] = value
    nic.driver.extended(Inner.CONFIGURE_DEFERRED_PLACEMENT, command)
    return ring


def _frame(number: int, *, back: bool = False) -> bytes:
    """A segment of one flow; `back`: what acknowledges those before it."""
    ports = {"sport": _PORT, "dport": 1234} if back else {"sport": 1234, "dport": _PORT}
    at = {"ack": 1 + number * _SIZE} if back else {"seq": 1 + number * _SIZE}
    ends = ("192.0.2.2", "192.0.2.1") if back else ("192.0.2.1", "192.0.2.2")
    frame = Ether(dst="02:00:00:00:00:01") / IP(src=ends[0], dst=ends[1]) / TCP(flags="A", **ports, **at)
    return bytes(frame / (b"" if back else b"x" * _SIZE))


def _waiting(nic: Loopback, count: int = 1) -> tuple[PlacementRing, list[int]]:
    """The placement ring of a queue, and the handles of `count` payloads that wait for it."""
    nic.driver.add_flow_rule(TCPv4(dst_port=_PORT), queue=_QUEUE)
    ring = nic.driver.defer_placement(_QUEUE, entries=1024)
    nic.receive(*map(_frame, range(count)))
    packets = nic.driver.poll(_QUEUE)
    return ring, [packet.deferred.handle for packet in packets if packet.deferred is not None]


def _place(nic: Loopback, *pieces: tuple[int, int]) -> None:
    """Ask for one payload in pieces: address and length."""
    ring, (handle,) = _waiting(nic)
    ring.place(handle, pieces)


def _somewhere(nic: Loopback) -> int:
    return nic.driver.ram.allocate_zeroed(PAGE)


def _configure_without_split(nic: Loopback) -> None:
    nic.driver.close()
    nic.driver.open(rx_queues=2, ring_entries=_ENTRIES)
    _configure(nic)


def _configure_twice(nic: Loopback) -> None:
    _configure(nic)
    _configure(nic)


def _configure_with_old_completions(nic: Loopback) -> None:
    place = _somewhere(nic)
    nic.driver.ram.write(place + 5 * PLACEMENT_COMPLETION.size, PLACEMENT_COMPLETION.encode(generation=1))
    _configure(nic, completion_ring_address=place)


def _ring_after_the_end(nic: Loopback) -> None:
    ring = nic.driver.defer_placement(_QUEUE)
    nic.driver.restart_rx(_QUEUE)
    nic.driver.doorbells.ring(ring.doorbell_index, 1)


def _ring_too_far(nic: Loopback) -> None:
    ring, handles = _waiting(nic, 2)
    for handle in handles:
        ring.drop(handle)
    nic.driver.doorbells.ring(ring.doorbell_index, 1)


def _ring_backwards_from_the_end(nic: Loopback) -> None:
    """The entries beyond the tail have never been posted."""
    ring, (handle,) = _waiting(nic)
    ring.drop(handle)
    nic.run()
    ring.post({"handle": handle}, {"handle": handle})  # without an end, so that they wait
    ring.requests[5] = 0xFF
    nic.driver.doorbells.ring(ring.doorbell_index, 2)


def _change_request(nic: Loopback) -> None:
    ring, (handle,) = _waiting(nic)
    places = [_somewhere(nic), _somewhere(nic)]
    ring.post({"handle": handle, "address": places[0], "length": _SIZE // 2})  # waits for the other half
    nic.run()
    ring.requests[0, PLACEMENT_REQUEST.address.bit // 8] += 8
    ring.post({"handle": handle, "address": places[1], "length": _SIZE // 2, "end_of_request": 1})


def _set_reserved_bits(nic: Loopback) -> None:
    ring, (handle,) = _waiting(nic)
    ring.drop(handle, ring=False)
    ring.requests[0, PLACEMENT_REQUEST.drop.bit // 8] |= 1 << 3
    nic.driver.doorbells.ring(ring.doorbell_index, 1)


def _mix_handles(nic: Loopback) -> None:
    ring, (first, second) = _waiting(nic, 2)
    half = {"address": _somewhere(nic), "length": _SIZE // 2}
    ring.post({"handle": first, **half}, {"handle": second, **half, "end_of_request": 1})


def _place_in_too_many_pieces(nic: Loopback) -> None:
    ring, (handle,) = _waiting(nic)
    ring.place(handle, [(_somewhere(nic), 1)] * (MAX_SEGMENTS + 1))


def _ask_twice(nic: Loopback) -> None:
    ring, (handle,) = _waiting(nic)
    ring.place(handle, [(_somewhere(nic), _SIZE)])
    nic.run()
    ring.place(handle, [(_somewhere(nic), _SIZE)])


def _place_into_posted_buffer(nic: Loopback) -> None:
    queue = nic.driver.rx[0]
    _place(nic, (int(queue.buffer_ring[int(queue.state.head), 1]), _SIZE))


def _place_upon_itself(nic: Loopback) -> None:
    place = _somewhere(nic)
    _place(nic, (place, _SIZE // 2), (place + 8, _SIZE // 2))


def _acknowledge_too_early(nic: Loopback) -> None:
    ring, (first, _) = _waiting(nic, 2)
    ring.place(first, [(_somewhere(nic), _SIZE)])
    nic.run()
    nic.driver.send(0, _frame(1, back=True))  # the first is placed
    nic.run()
    nic.driver.send(0, _frame(2, back=True))


BREACHES: dict[str, Callable[[Loopback], object]] = {
    "DEF-001": _configure_without_split,
    "DEF-002": _configure_twice,
    "DEF-003": lambda nic: _configure(nic, entries=100),
    "DEF-004": lambda nic: _configure(nic, request_ring_address=_NOWHERE),
    "DEF-005": _configure_with_old_completions,
    "DEF-006": lambda nic: _configure(nic, flags=1 << 5),
    "DEF-007": _ring_after_the_end,
    "DEF-008": lambda nic: nic.driver.doorbells.ring(_configure(nic).doorbell_index, _ENTRIES),
    "DEF-009": _ring_too_far,
    "DEF-010": _change_request,
    "DEF-011": _set_reserved_bits,
    "DEF-012": _mix_handles,
    "DEF-013": _ask_twice,
    "DEF-014": lambda nic: _place(nic, (_somewhere(nic), _SIZE - 1)),
    "DEF-015": lambda nic: _place(nic, (_NOWHERE, _SIZE)),
    "DEF-016": _place_into_posted_buffer,
    "DEF-017": _acknowledge_too_early,
}
#: Other ways to break some of them.
MORE: dict[str, tuple[Callable[[Loopback], object], ...]] = {
    "DEF-003": (lambda nic: _configure(nic, request_ring_address=_somewhere(nic) + 8),),
    "DEF-004": (lambda nic: _configure(nic, request_ring_address=nic.driver.rx[0].buffer_ring_address),),
    "DEF-009": (_ring_backwards_from_the_end,),
    "DEF-012": (_place_in_too_many_pieces,),
    "DEF-016": (_place_upon_itself,),
}
