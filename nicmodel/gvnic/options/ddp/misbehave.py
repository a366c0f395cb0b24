"""A driver that breaks each rule of direct data placement once: see `nicmodel.gvnic.testing.misbehave`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

import numpy as np

from nicmodel.gvnic.commands import Inner, Opcode
from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.options.ddp.declarations import CONFIGURE_DDP, DDP_PIECE, MAX_DDP_BUFFERS, DdpOperation
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.nvme_tcp import data_pdu
from nicmodel.testing.guest_memory import PAGE
from nicmodel.testing.tcp_stream import TcpStream

#: Where no memory is.
_NOWHERE = 0xDEAD_0000_0000
_SOURCE, _DESTINATION, _SOURCE_PORT, _DESTINATION_PORT = "192.0.2.1", "192.0.2.2", 4420, 40000
#: The stream's first sequence number.
_START = 5000


def _configure(nic: Loopback, operation: int, flow: int = 0, **fields: Any) -> None:
    command = np.zeros((), CONFIGURE_DDP)
    command["operation"], command["flow"] = operation, flow
    for name, value in fields.items():
        command[name] = value
    nic.driver.extended(Inner.CONFIGURE_DDP, command)


def _add(nic: Loopback, flow: int = 0, **fields: Any) -> None:
    """Add the flow of `_stream`."""
    ends = {
        name: np.frombuffer(ip_address(end).packed.ljust(16, b"\0"), np.uint8)
        for name, end in (("source", _SOURCE), ("destination", _DESTINATION))
    }
    ports = {"source_port": _SOURCE_PORT, "destination_port": _DESTINATION_PORT}
    _configure(nic, DdpOperation.ADD_FLOW4, flow, **ends, **ports, **{"sequence": _START} | fields)


def _set_up(nic: Loopback, pieces: Iterable[tuple[int, int]], command: int = 1) -> None:
    entries = np.array(list(pieces), DDP_PIECE)
    place = nic.driver.ram.allocate_zeroed(max(entries.nbytes, 1))
    nic.driver.ram.write(place, entries.tobytes())
    _configure(nic, DdpOperation.SET_UP, command=command, count=len(entries), address=place)


def _somewhere(nic: Loopback, size: int = PAGE) -> int:
    return nic.driver.ram.allocate_zeroed(size)


def _add_and_set_up(nic: Loopback, *pieces: tuple[int, int]) -> None:
    _add(nic)
    _set_up(nic, pieces)


def _set_up_twice(nic: Loopback) -> None:
    _add_and_set_up(nic, (_somewhere(nic), PAGE))
    _set_up(nic, [(_somewhere(nic), PAGE)])


def _stream() -> TcpStream:
    mac = "02:00:00:00:00:01"
    return TcpStream(_SOURCE, _DESTINATION, _SOURCE_PORT, _DESTINATION_PORT, mac, _START)


def _unmap(nic: Loopback) -> None:
    memory = nic.driver.add_memory("hbm", 1 << 20)
    _add_and_set_up(nic, (memory.base, 1000))
    nic.driver.unmap(memory)
    stream = _stream()
    stream.data = data_pdu(1, bytes(1000))
    nic.receive(*stream.segments(1448))


def _set_up_in_posted_buffer(nic: Loopback) -> None:
    address = RX_BUFFER.buffer_address.get(nic.driver.rx[0].buffer_ring[0].tobytes())
    _add_and_set_up(nic, (address, PAGE))


def _post_upon_buffer(nic: Loopback) -> None:
    queue = nic.driver.rx[0]
    address = RX_BUFFER.buffer_address.get(queue.buffer_ring[int(queue.state.doorbell)].tobytes())
    _add_and_set_up(nic, (address, queue.config.buffer_size))
    queue.ring(int(queue.state.doorbell) + 8)  # what the driver has filled already


def _set_up_upon_another(nic: Loopback) -> None:
    place = _somewhere(nic)
    _add_and_set_up(nic, (place, PAGE))
    _set_up(nic, [(place + PAGE - 1, 1)], command=2)


def _set_up_upon_itself(nic: Loopback) -> None:
    place = _somewhere(nic)
    _add_and_set_up(nic, (place, 100), (place + 99, 100))


def _set_up_too_many(nic: Loopback) -> None:
    _add(nic)
    place = _somewhere(nic, MAX_DDP_BUFFERS + 1)
    pieces = np.array((place, 1), DDP_PIECE)
    where = _somewhere(nic)
    for command in range(MAX_DDP_BUFFERS + 1):
        pieces["address"] = place + command
        nic.driver.ram.write(where, pieces.tobytes())
        _configure(nic, DdpOperation.SET_UP, command=command, count=1, address=where)


def _asked(nic: Loopback) -> int:
    """Have the device ask for resynchronisation: the sequence number."""
    _add(nic)
    stream = _stream()
    stream.data = b"".join(data_pdu(1, bytes(1000)) for _ in range(4))
    first, *rest = stream.segments(512)
    nic.receive(first, *rest[3:])
    return int(nic.device.state.ddp_trackers["candidate"][0])


def _answer_too_early(nic: Loopback) -> None:
    sequence = _asked(nic)
    _configure(nic, DdpOperation.RESYNC, sequence=sequence - 1)


def _answer_twice(nic: Loopback) -> None:
    sequence = _asked(nic)
    for _ in range(2):
        _configure(nic, DdpOperation.RESYNC, sequence=sequence)


def _bring_to_deferred_queue(nic: Loopback) -> None:
    _add(nic)
    for queue in nic.driver.rx:
        nic.driver.defer_placement(queue)
    stream = _stream()
    stream.data = data_pdu(1, bytes(1000))
    nic.receive(*stream.segments(1448))


def _deconfigure_with_flows(nic: Loopback) -> None:
    _add(nic)
    nic.driver.close()
    nic.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)


def _add_twice(nic: Loopback) -> None:
    _add(nic)
    _add(nic, 1)


def _tear_down_unknown(nic: Loopback) -> None:
    _add(nic)
    _configure(nic, DdpOperation.TEAR_DOWN, command=7)


def _answer_unasked(nic: Loopback) -> None:
    _add(nic)
    _configure(nic, DdpOperation.RESYNC, sequence=_START)


BREACHES: dict[str, Callable[[Loopback], object]] = {
    "DDP-001": lambda nic: _configure(nic, 9),
    "DDP-002": lambda nic: _add(nic, nic.device.ddp.capacity),
    "DDP-003": _add_twice,
    "DDP-004": lambda nic: _add(nic, digests=4),
    "DDP-005": lambda nic: _set_up(nic, [(_somewhere(nic), PAGE)]),
    "DDP-006": _set_up_twice,
    "DDP-007": lambda nic: _add_and_set_up(nic, (_somewhere(nic), PAGE), (_somewhere(nic), 0)),
    "DDP-008": lambda nic: _add_and_set_up(nic, (_somewhere(nic), PAGE), (_NOWHERE, PAGE)),
    "DDP-009": _set_up_in_posted_buffer,
    "DDP-010": _tear_down_unknown,
    "DDP-011": _set_up_too_many,
    "DDP-012": _answer_unasked,
    "DDP-013": _answer_too_early,
    "DDP-014": _bring_to_deferred_queue,
    "DDP-015": _deconfigure_with_flows,
}
#: Other ways to break some of them.
MORE: dict[str, tuple[Callable[[Loopback], object], ...]] = {
    "DDP-007": (lambda nic: _add_and_set_up(nic),),
    "DDP-008": (_unmap,),
    "DDP-009": (_post_upon_buffer, _set_up_upon_another, _set_up_upon_itself),
    "DDP-012": (_answer_twice,),
}
