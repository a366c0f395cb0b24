from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.mac import parse_mac
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.wire import TestWire

from .frames import NIC_MAC

#: Guest memory: little, so that looking at all of it is quick.
RAM_SIZE = 16 << 20
#: The smallest ring that Linux's doorbell habits leave any buffers visible in: many laps in little time.
ENTRIES = 64


@pytest.fixture
def make_lab(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Loopback]]:
    """Makes labs from the fields of a `Profile`; none may have logged an error in the end."""
    with ExitStack() as stack:

        def make(*, wire: TestWire | None = None, scheme: Any = "base", **profile: Any) -> Loopback:
            ram = GuestMemory("ram", size=RAM_SIZE)
            return stack.enter_context(
                Loopback(Profile(mac=parse_mac(NIC_MAC), **profile), wire=wire, scheme=scheme, ram=ram)
            )

        yield make
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not errors


@pytest.fixture
def lab(make_lab: Callable[..., Loopback]) -> Loopback:
    """A NIC with a wire and a driver that has not touched it."""
    return make_lab()


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    """The lab's driver after probe, no queues open."""
    lab.driver.probe()
    return lab.driver
