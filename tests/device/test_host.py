"""NICs of one process: how they are put together, and taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.model import Gvnic
from nicmodel.host import Host
from nicmodel.observe.control_server import ControlServer
from nicmodel.observe.metrics import MetricsServer
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.poll import Poller
from nicmodel.vfio_user.server import Server


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host(Poller())
    yield made
    made.close()
    made.poller.close()


def add(host: Host, count: int, **options: Any) -> None:
    for number in range(count):
        host.add(Gvnic(), TestWire(), name=f"nic{number}", **options)


def test_closed_in_reverse_order(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks on ends first, since it looks at servers and NICs; NICs end when all servers have."""
    closed: list[str] = []

    def note(kind: type, method: str) -> None:
        original = getattr(kind, method)

        def noted(one: object) -> None:
            closed.append(kind.__name__)
            original(one)

        monkeypatch.setattr(kind, method, noted)

    note(Nic, "stop")
    for kind in (Server, ControlServer, MetricsServer):
        note(kind, "close")
    add(host, 2)
    for nic in host.nics:
        host.serve(nic, str(tmp_path / nic.name))
    host.open_metrics(("127.0.0.1", 0))
    host.open_control(str(tmp_path / "control"))
    host.start()
    host.close()
    assert closed == ["ControlServer", "MetricsServer", "Server", "Server", "Nic", "Nic"]
    host.close()
    assert len(closed) == 6


def test_joined_nics_share_a_strand(host: Host) -> None:
    """One that waits for its client keeps those waiting that its wire leads to, and no other."""
    for number, joined in enumerate(("a", "a", "b", None)):
        host.add(Gvnic(), TestWire(), name=f"nic{number}", joined=joined)
    first, second, third, fourth = (nic.poller for nic in host.nics)
    assert first is second and first is not third
    assert fourth is host.poller


def test_checkers_are_by_name(host: Host) -> None:
    add(host, 2, check=True)
    assert list(host.checkers) == ["nic0", "nic1"]
    assert [faults.nic for faults in host.faults] == host.nics


def test_without_checkers(host: Host) -> None:
    add(host, 1)
    assert not host.checkers and not host.nics[0].diagnostics.observers
