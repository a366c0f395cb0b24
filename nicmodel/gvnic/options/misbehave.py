"""A driver that breaks what holds for all options once: see `nicmodel.gvnic.testing.misbehave`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nicmodel.gvnic.commands import Inner, Opcode
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, FLUSH_RX_QUEUE
from nicmodel.gvnic.testing.loopback import Loopback


def _flush(nic: Loopback, queue: int) -> None:
    nic.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((queue, ALL_OWNERS), FLUSH_RX_QUEUE))


def _flush_before_all(nic: Loopback) -> None:
    nic.driver.close()
    nic.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    _flush(nic, 0)


BREACHES: dict[str, Callable[[Loopback], object]] = {
    "OPT-001": _flush_before_all,
    "OPT-002": lambda nic: _flush(nic, 3),
}
MORE: dict[str, tuple[Callable[[Loopback], object], ...]] = {}
