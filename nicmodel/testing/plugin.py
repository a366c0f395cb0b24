"""Fixtures for pytest: a NIC, its driver, a link of two, a guest, and virtual time. Installed with nicmodel.

    def test_devmem_flow_is_split(nic, driver):
        driver.open(rx_queues=4, header_split=True)
        driver.add_flow_rule(TCPv4(dst_port=5201), queue=3)
        d = nic.inject(Ether() / IP() / TCP(dport=5201) / (b"x" * 1000))
        assert d.queue == 3 and d.payload == b"x" * 1000
        assert bytes(d.header) == bytes(d.frame)[:54]

What the NIC offers, a marker says: ``@pytest.mark.nic(queues=2, max_mtu=1500)``, fields of
`nicmodel.gvnic.profile.Profile`. With ``@pytest.mark.nic(device="idpf")`` it is another kind of NIC, with fields of
`nicmodel.idpf.profile.Profile` and the driver `nicmodel.idpf.testing.driver.Driver`. The marker holds for `nic` and for
both ends of `link`, as does ``@pytest.mark.contract``: the drivers are watched (`nicmodel.gvnic.contract`,
`nicmodel.idpf.contract`), and a test whose driver breaks a rule fails; with ``strict=False`` the test looks into
`TestNic.findings` itself.

``@pytest.mark.weather("7:0.3")`` has the NICs of the fixtures do what their contract allows and devices rarely do
(`nicmodel.faults.weather`); pytest's option ``--nic-weather 7:0.3`` does so for all tests that say nothing else.

Nothing is imported before a fixture is used: pytest loads this file in every project where nicmodel is installed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest

if TYPE_CHECKING:
    from nicmodel.faults.weather import Weather
    from nicmodel.gvnic.testing.driver import Driver
    from nicmodel.gvnic.testing.nic import TestNic
    from nicmodel.testing.clock import VirtualClock
    from nicmodel.vm.coverage.recorder import Recorder
    from nicmodel.vm.guest import Guest, GuestConfig


class Station(NamedTuple):
    """One end of a `link`: a NIC, and its driver after `Driver.probe`."""

    nic: TestNic
    driver: Driver


_RECORDER: pytest.StashKey[Recorder] = pytest.StashKey()
_PARTS: pytest.StashKey[list[str]] = pytest.StashKey()
#: What a process of pytest-xdist's hands to the one that started it, which has no recorder of its own.
_OUTPUT = "nicmodel_driver_coverage"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for drivers' coverage, guests' kernels and NICs' weather."""
    group = parser.getgroup("nicmodel", "coverage of drivers in guests (nicmodel)")
    group.addoption("--driver-coverage", nargs="?", const="driver.cov", metavar="FILE",
                    help="Record which code of the NIC's driver each test runs, in all guests that it starts. FILE is "
                         "driver.cov if none is named: 'nicmodel coverage report driver.cov'.")  # fmt: skip
    group.addoption("--driver-coverage-module", action="append", metavar="MODULE",
                    help="Record this module instead: a name, or the file of one of your own. Repeat for "
                         "more.")  # fmt: skip

    parser.getgroup("nicmodel-kernel", "kernel of guests (nicmodel)").addoption(
        "--guest-kernel", metavar="KERNEL",
        help="The kernel of all guests for which a test names none, as 'nicmodel vm --kernel' takes it: 'debug' looks "
             "for mistakes of drivers.")  # fmt: skip

    parser.getgroup("nicmodel-weather", "weather of NICs (nicmodel)").addoption(
        "--nic-weather", metavar="SEED[:STRENGTH[:NAME,...]]",
        help="Have the NICs of nic, link and guest_nic do what their contract allows and devices rarely do: "
             "'nicmodel weather'.")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known; choose the guests' kernel, and begin to record, if that is asked for."""
    if config.getoption("--guest-kernel"):
        from nicmodel.vm.errors import VmError
        from nicmodel.vm.kernel import CHOSEN, kernel_named

        try:
            kernel_named(config.getoption("--guest-kernel")).find()
        except VmError as error:
            raise pytest.UsageError(str(error)) from None
        # In the environment: processes of pytest-xdist have it, and commands that tests start.
        os.environ[CHOSEN] = config.getoption("--guest-kernel")
    if config.getoption("--driver-coverage"):
        from nicmodel.vm.coverage.recorder import Recorder
        from nicmodel.vm.guest import Guest

        config.stash[_RECORDER] = Guest.every_recorder = Recorder(config.getoption("--driver-coverage-module"))
        config.stash[_PARTS] = []
    config.addinivalue_line(
        "markers", "nic(device='gvnic', **profile): what the NIC is and offers, by the fields of Profile"
    )
    config.addinivalue_line("markers", "weather(text): the NIC's weather, as nicmodel serve --weather takes it")
    config.addinivalue_line("markers", "contract(strict=True): watch the driver, and fail when it breaks a rule")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """What guests run during a test, its fixtures included, counts for it."""
    recorder = item.config.stash.get(_RECORDER, None)
    if recorder:
        recorder.context(item.nodeid)
    yield
    if recorder:
        recorder.context("")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Called by pytest-xdist: a process of tests has ended."""
    if _OUTPUT in getattr(node, "workeroutput", {}):
        node.config.stash[_PARTS].append(node.workeroutput[_OUTPUT])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was recorded: all fixtures are gone by now, and their guests."""
    config = session.config
    recorder = config.stash.get(_RECORDER, None)
    if recorder is None:
        return
    from nicmodel.vm.coverage.data import Coverage
    from nicmodel.vm.guest import Guest

    Guest.every_recorder = None
    coverage = recorder.coverage()
    for part in config.stash[_PARTS]:
        coverage.add(Coverage.parse(part, "what a process of tests has recorded"))
    if hasattr(config, "workeroutput"):
        config.workeroutput[_OUTPUT] = coverage.as_json()
    else:
        coverage.save(Path(config.getoption("--driver-coverage")))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say where it is."""
    if config.stash.get(_RECORDER, None):
        file = config.getoption("--driver-coverage")
        terminalreporter.write_line(f"coverage of the driver: nicmodel coverage report {file}")


@pytest.fixture
def clock() -> VirtualClock:
    """The time of `nic` and `link`. Only ``clock.advance(ns)`` moves it, or an `expect` that has to wait."""
    from nicmodel.testing.clock import VirtualClock

    return VirtualClock()


@pytest.fixture
def nic(request: pytest.FixtureRequest, clock: VirtualClock) -> Iterator[TestNic]:
    """A NIC (02:00:00:00:00:01) behind a real socket, in virtual time; its wire is the test: `TestNic`."""
    announce_compiling(request.config)
    with _test_nic(request, 1, clock=clock) as made:
        yield made
        _judge(request, made)


@pytest.fixture
def driver(nic: TestNic) -> Iterator[Driver]:
    """A driver in Python on `nic`, after `Driver.probe`; the test calls `Driver.open`."""
    with nic.connect() as made:
        made.probe()
        yield made


@pytest.fixture
def link(request: pytest.FixtureRequest, clock: VirtualClock) -> Iterator[tuple[Station, Station]]:
    """Two NICs back to back (02:00:00:00:00:01 and :02), each with a driver: two `Station`."""
    from nicmodel.wire.link import link as make_link

    announce_compiling(request.config)
    with ExitStack() as stack:
        nics = [
            stack.enter_context(_test_nic(request, number, wire=end, clock=clock))
            for number, end in enumerate(make_link(), 1)
        ]
        one, other = [Station(end, stack.enter_context(end.connect())) for end in nics]
        for station in (one, other):
            station.driver.probe()
        yield one, other
        for station in (one, other):
            _judge(request, station.nic)


@pytest.fixture(scope="session")
def guest_config() -> GuestConfig:
    """What `guest` is made of: kernel, CPUs, memory. Override it to change that, or to add NICs to `guest_nic`."""
    from nicmodel.vm.guest import GuestConfig

    return GuestConfig()


@pytest.fixture(scope="session")
def guest_nic(pytestconfig: pytest.Config) -> Iterator[TestNic]:
    """The NIC of `guest` (02:00:00:00:00:01, eth0), in real time; its wire is the test."""
    from nicmodel.gvnic.profile import Profile
    from nicmodel.gvnic.testing.nic import TestNic

    announce_compiling(pytestconfig)
    with TestNic(Profile(mac=_mac(1)), weather=_parsed(pytestconfig.getoption("--nic-weather"))) as made:
        yield made


@pytest.fixture(scope="session")
def guest(guest_nic: TestNic, guest_config: GuestConfig) -> Iterator[Guest]:
    """A booted guest with a stock kernel, one for the session: ``guest.run("ip link set eth0 up")``."""
    from nicmodel.vm.guest import Guest
    from nicmodel.vm.layout import Nic

    nics = (Nic(guest_nic.path), *guest_config.nics)
    with Guest(dataclasses.replace(guest_config, nics=nics)) as made:
        yield made


_ANNOUNCED = pytest.StashKey[bool]()


def announce_compiling(config: pytest.Config) -> None:
    """Say so, past pytest's capturing, while the packet path is compiled: a test of the first run is late for it."""
    from nicmodel.observe.compiling import announce

    capture = config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", file=sys.stderr, flush=True)

    if capture and not config.stash.get(_ANNOUNCED, False):
        config.stash[_ANNOUNCED] = True
        announce(say, terminal=False)


def _test_nic(request: pytest.FixtureRequest, number: int, **how: Any) -> TestNic:
    """A NIC as the nearest marker asks for it, with an address by its number; `how` it is in the hands of the test."""
    marker = request.node.get_closest_marker("nic")
    fields: dict[str, Any] = {"mac": _mac(number), **({} if marker is None else marker.kwargs)}
    device = fields.pop("device", "gvnic")
    if device == "gvnic":
        from nicmodel.gvnic.profile import Profile
        from nicmodel.gvnic.testing.nic import TestNic

        return TestNic(Profile(**fields), check=_checked(request), weather=_weather(request), **how)
    if device == "idpf":
        from nicmodel.idpf.profile import Profile as IdpfProfile
        from nicmodel.idpf.testing.nic import TestNic as IdpfTestNic

        made = IdpfTestNic(IdpfProfile(**fields), check=_checked(request), weather=_weather(request), **how)
        return cast("TestNic", made)  # what tests use of both is the same
    return pytest.fail(f"there is no kind of NIC {device!r}, but 'gvnic' and 'idpf'")


def _mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def _checked(request: pytest.FixtureRequest) -> bool:
    """Whether the nearest marker has the driver watched."""
    return request.node.get_closest_marker("contract") is not None


def _weather(request: pytest.FixtureRequest) -> Weather | None:
    """What the nearest marker asks for, or else pytest's option."""
    marker = request.node.get_closest_marker("weather")
    return _parsed(request.config.getoption("--nic-weather") if marker is None else str(marker.args[0]))


def _parsed(text: str | None) -> Weather | None:
    from nicmodel.faults.fault import FaultError
    from nicmodel.faults.weather import Weather

    try:
        return None if text is None else Weather.parse(text)
    except FaultError as error:
        raise pytest.UsageError(str(error)) from None


def _judge(request: pytest.FixtureRequest, nic: TestNic) -> None:
    """Fail the test if the driver has broken a rule, and the marker asks for it."""
    marker = request.node.get_closest_marker("contract")
    if marker is not None and marker.kwargs.get("strict", True) and nic.findings:
        pytest.fail("\n".join(["the driver breaks the contract:", *map(str, nic.findings)]), pytrace=False)
