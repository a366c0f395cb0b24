"""Guests shared by tests."""

from collections.abc import Iterator

import pytest

from nicmodel.vm.guest import Guest


@pytest.fixture(scope="session")
def vm_guest() -> Iterator[Guest]:
    """A guest without a NIC, for tests that leave it as they found it."""
    with Guest() as guest:
        yield guest
