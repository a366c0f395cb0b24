"""Guests shared by tests."""

from collections.abc import Iterator

import pytest
from lab import Lab
from streams import Traffic, streams

from nicmodel.vm.guest import Guest


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
    """The bench, with the guest's kernel log watched for trouble during the test."""
    with bench.quiet_log():
        yield bench


@pytest.fixture
def traffic(lab: Lab) -> Iterator[Traffic]:
    """Streams over the cable that run during the test."""
    with streams(lab) as running:
        yield running
