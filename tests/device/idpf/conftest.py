from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from nicmodel.idpf.profile import Profile
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.nic.mac import parse_mac
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory

from ..frames import NIC_MAC

RAM_SIZE = 32 << 20


@pytest.fixture
def make_nic(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., TestNic]]:
    """Makes NICs from the fields of a `Profile`; none may have logged an error in the end."""
    with ExitStack() as stack:

        def make(**profile: Any) -> TestNic:
            return stack.enter_context(TestNic(Profile(mac=parse_mac(NIC_MAC), **profile), clock=VirtualClock()))

        yield make
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not errors


@pytest.fixture
def nic(make_nic: Callable[..., TestNic]) -> TestNic:
    """A NIC whose wire is the test."""
    return make_nic()


@pytest.fixture
def driver(nic: TestNic) -> Iterator[Driver]:
    """Its driver after probe, no queues open."""
    with GuestMemory("ram", size=RAM_SIZE) as ram, nic.connect(ram=ram) as made:
        made.probe()
        yield made
