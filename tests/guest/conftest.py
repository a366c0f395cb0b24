"""Guests shared by tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet
from lab import Lab
from streams import Traffic, streams

from nicmodel.vm.guest import Guest

HERE = Path(__file__).parent
#: Seconds that a test with a guest may take, its fixtures included: on a busy machine with emulated CPUs.
LIMIT = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with guests get more time than others."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", metavar="MINUTES", type=float, default=0, help="how long test_soak.py soaks at least")


@pytest.fixture(scope="session")
def vm_guest() -> Iterator[Guest]:
    """A guest without a NIC, for tests that leave it as they found it."""
    with Guest() as guest:
        yield guest


@pytest.fixture(scope="session")
def bench() -> Iterator[Lab]:
    """The bench, started once."""
    yield from Lab.running()


@pytest.fixture
def lab(bench: Lab) -> Iterator[Lab]:
    """The bench, with the guest's kernel log watched for trouble during the test, and its drivers for faults."""
    with bench.quiet_log(), bench.contract_kept():
        yield bench


@pytest.fixture(scope="session")
def booted_fleet() -> Iterator[Fleet]:
    """The fleet, started once."""
    yield from Fleet.running()


@pytest.fixture
def awake_fleet(booted_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, awake, for tests whose guests have reason to complain."""
    with booted_fleet.awake():
        yield booted_fleet


@pytest.fixture
def fleet(awake_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, awake, with its guests' kernel logs watched for trouble during the test."""
    with awake_fleet.quiet_logs():
        yield awake_fleet


@pytest.fixture
def traffic(lab: Lab) -> Iterator[Traffic]:
    """Streams over the cable that run during the test."""
    with streams(lab) as running:
        yield running
