from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.testing.guest_memory import GuestMemory

#: Guest memory: little, so that looking at all of it is quick.
RAM_SIZE = 32 << 20


@pytest.fixture(autouse=True)
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """None may have been logged in the end."""
    yield
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@pytest.fixture
def driver(nic: TestNic) -> Iterator[Driver]:
    """The NIC's driver after probe, no queues open; `nic` is nicmodel's own fixture."""
    with GuestMemory("ram", size=RAM_SIZE) as ram, nic.connect(ram=ram) as made:
        made.probe()
        yield made
