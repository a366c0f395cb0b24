"""A driver that breaks each rule of shared queues once: see `nicmodel.gvnic.testing.misbehave`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nicmodel.gvnic.commands import Inner, Opcode
from nicmodel.gvnic.options.owners.declarations import CONFIGURE_BUFFER_OWNERS, RX_BUFFER_OWNER
from nicmodel.gvnic.testing.adminq import decode_command
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxQueue

_QUEUE = 1


def _configure(nic: Loopback, owners: int = 2) -> None:
    nic.driver.extended(Inner.CONFIGURE_BUFFER_OWNERS, np.array((_QUEUE, owners), CONFIGURE_BUFFER_OWNERS))


def _empty(nic: Loopback) -> RxQueue:
    """A new queue in place of one that there was, without buffers."""
    old = nic.driver.rx[_QUEUE]
    new = nic.driver.make_rx(_QUEUE, old.config)
    nic.driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=_QUEUE)
    nic.driver.admin(Opcode.CREATE_RX_QUEUE, **decode_command(new.create_command()))
    nic.driver.rx[_QUEUE] = new
    return new


def _configure_twice(nic: Loopback) -> None:
    _empty(nic)
    _configure(nic)
    _configure(nic)


def _configure_for_too_many(nic: Loopback) -> None:
    _empty(nic)
    _configure(nic, nic.device.profile.owners + 1)


def _post(nic: Loopback, owner: int, count: int) -> None:
    """Post buffers of an owner."""
    queue = _empty(nic)
    _configure(nic)
    queue.descriptors[:, RX_BUFFER_OWNER.owner.word] |= np.uint64(owner << RX_BUFFER_OWNER.owner.shift)
    queue.post(count)
    queue.ring(count)


BREACHES: dict[str, Callable[[Loopback], object]] = {
    "OWN-001": _configure,
    "OWN-002": _configure_twice,
    "OWN-003": _configure_for_too_many,
    "OWN-004": lambda nic: _post(nic, 2, 8),
    "OWN-005": lambda nic: nic.driver.add_flow_rule(TCPv4(dst_port=1), queue=_QUEUE, owner=nic.device.profile.owners),
    "OWN-006": lambda nic: _post(nic, 1, 255),
}
MORE: dict[str, tuple[Callable[[Loopback], object], ...]] = {}
