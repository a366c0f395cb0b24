"""A driver that breaks each rule of flushes once: see `nicmodel.gvnic.testing.misbehave`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, FLUSH_RX_QUEUE
from nicmodel.gvnic.testing.loopback import Loopback

_QUEUE = 1


def _flush(nic: Loopback, owner: int = ALL_OWNERS) -> None:
    nic.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((_QUEUE, owner), FLUSH_RX_QUEUE))


def _unmap_before(nic: Loopback) -> None:
    memory = nic.driver.add_memory("hbm", 4 << 20)
    nic.driver.restart_rx(_QUEUE, payload_memory=memory)
    nic.driver.unmap(memory)
    _flush(nic)


def _unmap_before_flush_of_one_owner(nic: Loopback) -> None:
    memories = [nic.driver.add_memory(name, 4 << 20) for name in ("one", "two")]
    nic.driver.share_rx(_QUEUE, memories)
    nic.driver.unmap(memories[1])
    _flush(nic, 1)


BREACHES: dict[str, Callable[[Loopback], object]] = {
    "FLU-001": lambda nic: _flush(nic, 2),
    "FLU-002": _unmap_before,
}
#: Other ways to break some of them.
MORE: dict[str, tuple[Callable[[Loopback], object], ...]] = {"FLU-002": (_unmap_before_flush_of_one_owner,)}
