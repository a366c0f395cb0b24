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
def make_lab(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., Loopback]]:  # fmt: skip
    """Makes labs from the fields of a `Profile`; none may have logged an error in the end.

    With the marker ``contract`` their drivers are watched: they break the rules that the marker ``breaks`` names, all
    of them, and no other.
    """
    watched = request.node.get_closest_marker("contract") is not None
    labs: list[Loopback] = []
    with ExitStack() as stack:

        def make(*, wire: TestWire | None = None, scheme: Any = "base", **profile: Any) -> Loopback:
            ram = GuestMemory("ram", size=RAM_SIZE)
            if watched:  # the short rings of the tests are what the device offers
                profile = {"min_ring": ENTRIES, **profile}
            offered = Profile(mac=parse_mac(NIC_MAC), **profile)
            labs.append(Loopback(offered, wire=wire, scheme=scheme, ram=ram, check=watched))
            return stack.enter_context(labs[-1])

        yield make
        if watched:
            allowed = {rule for marker in request.node.iter_markers("breaks") for rule in marker.args}
            findings = [finding for lab in labs for finding in lab.findings]
            assert {finding.rule.name for finding in findings} == allowed, "\n".join(map(str, findings))
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
