"""Every option of the model under all that observes it: commands, metrics, trace, capture, the checker."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from nicmodel.cli import capture, contract, ledger, show, stat, top
from nicmodel.cli.serve import serve
from nicmodel.client.control import Control
from nicmodel.client.text import lines
from nicmodel.gvnic.commands import Inner, Opcode, QueueFormat
from nicmodel.gvnic.options.ddp.declarations import CONFIGURE_DDP, DdpOperation
from nicmodel.gvnic.profile import PROFILES, Profile, named_profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.gqi import GqiQueues
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.observe.metrics import exposition
from nicmodel.observe.snapshot import snapshot

from .frames import tcp, udp

#: What `nicmodel serve` can change of a NIC, each by itself and all of it together.
CHANGES: dict[str, dict[str, Any]] = {
    "queues": {"queues": 16},
    "msix_vectors": {"msix_vectors": 33},
    "default_queues": {"default_queues": 1},
    "mtu": {"max_mtu": 1500},
    "revision": {"revision": 0},
    "promiscuous": {"promiscuous": True},
    "coalesce": {"coalesce": False},
    "coalesce_flows": {"coalesce_flows": 1},
    "coalesce_usecs": {"coalesce_usecs": 50},
    "deferred_bytes": {"deferred_bytes": 1 << 20},
    "deferred_queue_bytes": {"deferred_bytes": 1 << 20, "deferred_queue_bytes": 1 << 16},
    "deferred_usecs": {"deferred_bytes": 1 << 20, "deferred_usecs": 1000},
    "owners": {"owners": 2},
    "owner_lookahead": {"owners": 2, "owner_lookahead": 1},
    "queue_flush": {"queue_flush": True},
    "ddp_flows": {"ddp_flows": 2},
}
ALL = {name: value for change in CHANGES.values() for name, value in change.items()} | {"max_flow_rules": 0}
CASES = [
    *(("default", name, changes) for name, changes in CHANGES.items()),
    *((profile, "profile", {}) for profile in PROFILES),
    *(("default", wanted.name, {"formats": (QueueFormat.DQO_RDA, wanted)}) for wanted in QueueFormat if wanted),
    ("default", "all", ALL),
]
#: Options of `nicmodel serve` that are no property of a NIC, or the profile itself, or its kind.
OTHERS = {
    "devices", "weather", "records", "record_limit",
    "sockets", "wires", "profile_name", "macs", "busy_poll", "report", "check", "strict", "control", "scenario",
    "peers", "metrics", "verbose", "socket_mode", "socket_group", "control_mode", "control_group", "run_as",
}  # fmt: skip


def test_every_option_is_among_the_cases() -> None:
    names = {parameter.name for parameter in serve.params} - OTHERS
    names = {"max_mtu" if name == "mtu" else str(name) for name in names}
    assert names <= set(ALL)
    assert names <= {one.name for one in dataclasses.fields(Profile)}


class Desk:
    """A NIC on real time that is watched, with a control socket."""

    def __init__(self, profile: Profile, folder: Path) -> None:
        self.wanted = QueueFormat.DQO_RDA
        self.nic = TestNic(profile, check=True)
        self.path = str(folder / "control")
        self.server = self.nic.call(lambda: self.nic.host.open_control(self.path))

    def run(self, command: click.Command, *arguments: str) -> str:
        """What a command prints."""
        result = CliRunner().invoke(command, [*arguments, "--control", self.path], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def close(self) -> None:
        self.nic.call(self.server.close)
        self.nic.close()


@pytest.fixture
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    profile, name, changes = request.param
    made = Desk(named_profile(profile, **changes), tmp_path)
    made.wanted = QueueFormat.__members__.get(name, QueueFormat.DQO_RDA)
    yield made
    made.close()


def use(desk: Desk, driver: Driver, wanted: QueueFormat) -> None:
    """Traffic both ways, and the option's own commands; of what the driver in Python cannot use, what it asks first."""
    nic, profile = desk.nic, desk.nic.device.profile
    if QueueFormat.DQO_RDA not in profile.formats:
        with pytest.raises(ContractViolation, match="does not offer the queue format DQO-RDA"):
            driver.probe()
        return
    driver.probe()
    if wanted in (QueueFormat.GQI_RDA, QueueFormat.GQI_QPL):
        queues = GqiQueues(driver, wanted == QueueFormat.GQI_QPL, 256)
        queues.enable()
        for number in range(4):
            nic.inject([tcp(100 + number), udp(100)])
            queues.receive()
            queues.fill(queues.taken + 256 - queues.filled)
            queues.send(tcp(3000), tso=(1000, 54))
        for opcode in (Opcode.DESTROY_TX_QUEUE, Opcode.DESTROY_RX_QUEUE):
            driver.admin(opcode, queue_id=0)
        return
    driver.open(rx_queues=3, tx_queues=2, ring_entries=256, header_split=profile.header_buffer_size > 0)
    if profile.max_flow_rules:
        driver.add_flow_rule(TCPv4(dst_port=5201), queue=1)
    if profile.deferred_bytes:
        ring = driver.defer_placement(0)
    if profile.owners:
        driver.share_rx(2, [driver.add_memory("one", 4 << 20), driver.add_memory("[/two]", 4 << 20)])
    if profile.ddp_flows:
        flow = np.zeros((), CONFIGURE_DDP)
        flow["operation"], flow["source_port"] = DdpOperation.ADD_FLOW4, 7
        driver.extended(Inner.CONFIGURE_DDP, flow)
    for number in range(4):
        nic.inject(
            [tcp(1000 + number, dport=5201), udp(100), *(tcp(100, sport=port) for port in range(20)), b"\0" * 13]
        )
        driver.send(number % 2, tcp(1000))
        driver.send(number % 2, tcp(2500), tso=(1000, 54))
        nic.run()
        if profile.queue_flush:
            driver.flush_rx(1)
        if profile.deferred_bytes:
            driver.doorbells.ring(ring.doorbell_index, 0)
        driver.poll_all()
        for queue in range(2):
            driver.poll_tx(queue)


@pytest.mark.parametrize("desk", CASES, indirect=True, ids=[f"{profile}-{name}" for profile, name, _ in CASES])
def test_an_option_under_all_that_observes(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(2) as pool, Control(desk.path) as tracing, Control(desk.path) as capturing:
        events = tracing.trace()
        about, frames = capturing.capture()
        heard: list[str] = []

        def listen() -> None:
            for event in events:
                heard.extend(lines(event, 0))

        file = io.BytesIO()
        waiting: list[Future[Any]] = [pool.submit(listen), pool.submit(capture._write, file, about, frames, 0, None)]
        with desk.nic.connect() as driver:
            use(desk, driver, desk.wanted)
            for command in (show.show, stat.stat, contract.findings):
                assert desk.run(command)
                json.loads(desk.run(command, "--json"))
            shown = json.loads(desk.run(show.show, "--json"))
            assert "raw" not in str(shown["options"])
            assert desk.run(top.top, "--once", "--interval", "0.05")
            assert desk.run(ledger.ledger, "--once")
            json.loads(desk.run(ledger.ledger, "--json"))
            assert exposition([snapshot(desk.nic.device, desk.nic.server.stats)])
        desk.nic.run()
        tracing.close()
        capturing.close()
        for one in waiting:
            one.result(60)
    assert desk.nic.checker is not None and not desk.nic.checker.failed
    assert [str(finding) for finding in desk.nic.findings] == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    kinds = {line.split()[2] for line in heard if not line.startswith(" " * 14)}
    assert {"client", "register", "admin"} <= kinds and "error" not in kinds
    if QueueFormat.DQO_RDA in desk.nic.device.profile.formats:
        assert {"rx", "tx", "doorbell"} <= kinds
        assert file.tell() > 1000
