"""Guests shared by tests."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleet import Fleet
from lab import CABLES, Cable, Lab
from streams import Traffic, streams

from nicmodel.vm.guest import Guest
from nicmodel.vm.kernel import default_kernel
from nicmodel.vm.tools import driver_source

HERE = Path(__file__).parent
#: Seconds that a test with a guest may take, its fixtures included: on a busy machine with emulated CPUs.
LIMIT = 900


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with guests get more time than others, with a slow kernel still more, and a soak what it takes besides."""
    soak = 60 * config.getoption("--soak", default=0)
    patience = default_kernel().find().patience if config.getoption("--guest-kernel") else 1
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(patience * LIMIT + soak))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", metavar="MINUTES", type=float, default=0, help="how long test_soak.py soaks at least")
    parser.addoption("--soak-log", metavar="FILE", help="where it writes memory and rates, as CSV")


#: Guests that live as long as the session, by the fixture that they belong to.
_kept: dict[str, list[Guest]] = {}
_standing: set[str] = set()


def _stand(name: str, still: bool) -> None:
    """Have the guests of a fixture stand still or run."""
    if name in _kept and still != (name in _standing):
        for guest in _kept[name]:
            guest.qmp.execute("stop" if still else "cont")
        (_standing.add if still else _standing.discard)(name)


@contextmanager
def keep(name: str, guests: Iterable[Guest]) -> Iterator[None]:
    """While no test uses this fixture, its guests stand still: idle, each takes a twentieth of an emulating core."""
    _kept[name] = list(guests)
    try:
        yield
    finally:
        _stand(name, False)  # a guest that stands still does not power off
        del _kept[name]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Wake the guests that a test uses, before fixtures of it do."""
    for name in _kept:
        if name in getattr(item, "fixturenames", ()):
            _stand(name, False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """And let those stand still that the next one does not use."""
    yield
    for name in list(_kept):
        if name not in getattr(nextitem, "fixturenames", ()):
            _stand(name, True)


@pytest.fixture(scope="session")
def gve_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests, so that only what a test changes is compiled."""
    return tmp_path_factory.mktemp("drivers") / "gve"


@pytest.fixture
def gve(gve_folder: Path) -> Iterator[Path]:
    """The stock driver's source, to be changed (`lab.change_source`); nothing may be built there."""
    shutil.rmtree(gve_folder, ignore_errors=True)
    shutil.copytree(driver_source("drivers/net/ethernet/google/gve"), gve_folder)
    before = {path.name for path in gve_folder.iterdir()}
    yield gve_folder
    assert {path.name for path in gve_folder.iterdir()} == before


@pytest.fixture(scope="session")
def vm_guest() -> Iterator[Guest]:
    """A guest without a NIC, for tests that leave it as they found it."""
    with Guest() as guest, keep("vm_guest", [guest]):
        yield guest


@pytest.fixture(scope="session")
def bench() -> Iterator[Lab]:
    """The bench, started once."""
    with Lab.running() as lab, keep("bench", [lab.guest]):
        yield lab


@pytest.fixture
def lab(bench: Lab) -> Iterator[Lab]:
    """The bench, with the guest's kernel log watched for trouble during the test, and its drivers for faults."""
    with bench.quiet_log(), bench.contract_kept():
        yield bench


@pytest.fixture(scope="session")
def booted_fleet() -> Iterator[Fleet]:
    """The fleet, started once; for tests whose guests have reason to complain."""
    with Fleet.running() as fleet, keep("booted_fleet", fleet.guests.values()):
        yield fleet


@pytest.fixture
def fleet(booted_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with its guests' kernel logs watched for trouble during the test."""
    with booted_fleet.quiet_logs():
        yield booted_fleet


@pytest.fixture
def cable() -> Cable:
    """That of gVNICs, unless a test is marked by `on_each_device`."""
    return CABLES["gvnic"]


@pytest.fixture
def traffic(lab: Lab, cable: Cable) -> Iterator[Traffic]:
    """Streams over the cable that run during the test."""
    with streams(lab, cable) as running:
        yield running
