"""The ledger of DMA as a person and a program see it: direction and path of every byte, sums, and rates."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nicmodel.client.ledger import Entry, Place, entries, since, total
from nicmodel.client.topology import places
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.observe.detail import detail
from nicmodel.observe.metrics import exposition
from nicmodel.observe.snapshot import snapshot
from nicmodel.vm.server import NicServer

from .conftest import ENTRIES
from .frames import NIC_MAC, tcp
from .test_control_commands import run

PAYLOAD = 1000
MEMORY = 1 << 20


def devmem(driver: Driver) -> None:
    """One queue whose data buffers are another device's memory, and a transmit queue."""
    hbm = driver.add_memory("hbm", MEMORY)
    driver.probe()
    driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES, header_split=True, payload_memory=hbm)
    driver.add_flow_rule(TCPv4(dst_port=5201), queue=0)


def test_direction_and_path(lab: Loopback) -> None:
    devmem(lab.driver)
    before = entries(snapshot(lab.nic), {"hbm": Place.PEER})
    lab.inject(tcp(PAYLOAD, dport=5201))
    lab.driver.send(0, tcp(100))
    lab.run()
    ledger = since(before, entries(snapshot(lab.nic), {"hbm": Place.PEER}))
    found = {(one.queue, one.direction, one.purpose, one.memory): one for one in ledger}
    assert {key: one.bytes for key, one in found.items()} == {
        ("rx0", "write", "payload", "hbm"): PAYLOAD,
        ("rx0", "write", "header", "ram"): 54,
        ("rx0", "read", "descriptor", "ram"): 32,
        ("rx0", "write", "completion", "ram"): 32,
        ("tx0", "read", "transmit", "ram"): 154,
        ("tx0", "read", "descriptor", "ram"): 2 * 16,  # the packet's, and the context that Linux always sends
        ("tx0", "write", "completion", "ram"): 8,
    }
    assert total(ledger, path="switch") == total(ledger, memory="hbm") == PAYLOAD
    assert total(ledger, group="rings") == 32 + 32 + 32 + 8
    assert {one.place for one in ledger if one.memory == "ram"} == {Place.RAM}
    assert since(ledger, ledger) == []


def test_the_server_may_be_told(lab: Loopback) -> None:
    devmem(lab.driver)
    lab.inject(tcp(PAYLOAD, dport=5201))
    [payload] = [one for one in entries(snapshot(lab.nic)) if one.purpose == "payload"]
    assert (payload.place, payload.path) == (Place.DEVICE, "unknown")
    lab.nic.below_switch = frozenset(["hbm"])
    [payload] = [one for one in entries(snapshot(lab.nic)) if one.purpose == "payload"]
    assert (payload.place, payload.path) == (Place.PEER, "switch")


def test_metrics_have_direction_and_path(lab: Loopback) -> None:
    devmem(lab.driver)
    lab.nic.below_switch = frozenset(["hbm"])
    lab.inject(tcp(PAYLOAD, dport=5201))
    [family] = [
        family
        for family in text_string_to_metric_families(exposition([snapshot(lab.nic)]))
        if family.name == "nicmodel_dma_bytes"
    ]
    values = {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
    labels = {"nic": "nic", "queue": "rx0", "direction": "write", "purpose": "payload", "memory": "hbm"}
    assert values[tuple(sorted((labels | {"path": "switch"}).items()))] == PAYLOAD
    assert sum(values.values()) == lab.nic.state.ledger.sum()


# The topology.


def pci_device(*bars: tuple[int, int], behind: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A function as QMP's query-pci shows it, as far as it matters, with memory BARs (address, size)."""
    regions = [{"bar": number, "type": "memory", "address": at, "size": size} for number, (at, size) in enumerate(bars)]
    device: dict[str, Any] = {"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "regions": regions}
    return device | ({} if behind is None else {"pci_bridge": {"bus": {}, "devices": behind}})


def switch(*below: dict[str, Any]) -> dict[str, Any]:
    """A root port, an upstream port, and each device below a downstream port of its own."""
    return pci_device(behind=[pci_device(behind=[pci_device(behind=[device]) for device in below])])


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("below the NIC's switch", Place.PEER),
        ("below another switch", Place.BAR),
        ("on the root bus", Place.BAR),
        ("in no BAR", Place.NODE),
    ],
)
def test_places_from_query_pci(lab: Loopback, where: str, place: Place) -> None:
    driver = lab.driver
    devmem(driver)
    lab.run()
    nic_bar = 0xFE84_0000
    lab.nic.config.write(0x10, nic_bar.to_bytes(4, "little"))
    [hbm] = driver._added
    nic = pci_device((nic_bar, 0x1000))
    accelerator = pci_device((0xFE60_0000, 0x100), (hbm.base, hbm.size))
    devices = {
        "below the NIC's switch": [switch(nic, accelerator)],
        "below another switch": [switch(nic), switch(accelerator)],
        "on the root bus": [switch(nic), accelerator],
        "in no BAR": [switch(nic)],
    }[where]
    answer = [{"bus": 0, "devices": [pci_device((0xFFFF_FFFF_FFFF_FFFF, 4096)), *devices]}]
    shown = detail(lab.nic)
    assert shown["bars"][Bar.REGISTERS] == nic_bar
    assert places(answer, shown) == {"ram": Place.RAM, "hbm": place}


# The command.


@contextmanager
def qemu(path: Path, pci: list[dict[str, Any]]) -> Iterator[None]:
    """A monitor that knows one command."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                version = {"qemu": {"major": 11, "minor": 1, "micro": 0}, "package": ""}
                connection.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\n")
                while line := connection.recv(65536):  # the client asks one thing at a time
                    asked = json.loads(line)
                    answer = {"return": pci if asked["execute"] == "query-pci" else {}, "id": asked.get("id")}
                    connection.sendall(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(10)


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    with NicServer(["--mac", NIC_MAC]) as server, Driver(str(server.sockets[0])) as driver:
        devmem(driver)
        run("inject", "--control", str(server.control), tcp(PAYLOAD, dport=5201).hex())
        yield server


def booked(server: NicServer, *options: str) -> list[Entry]:
    [(name, ledger)] = json.loads(run("ledger", "--json", "--control", str(server.control), *options)).items()
    assert name == "nic0"
    return [Entry(**one) for one in ledger]


def test_for_programs(server: NicServer) -> None:
    ledger = booked(server)
    assert total(ledger, purpose="payload") == total(ledger, memory="hbm") == PAYLOAD
    assert {one.path for one in ledger if one.memory == "ram"} == {"root complex"}
    assert {one.path for one in ledger if one.memory == "hbm"} == {"unknown"}
    assert total(booked(server, "--below-switch", "hbm"), path="switch") == PAYLOAD


def test_for_a_person(server: NicServer) -> None:
    text = run("ledger", "--once", "--below-switch", "hbm", "--control", str(server.control))
    assert re.search(r"rx0 +writes +hbm +switch +1000 B +1000 B", text)
    assert re.search(r"rx0 +writes +ram +root complex +54 B +32 B +86 B", text)
    assert re.search(r"all +writes +hbm +switch +1000 B +1000 B", text)
    assert "hbm: BAR, same switch" in text


def test_qemu_is_asked(server: NicServer, tmp_path: Path) -> None:
    """The driver in Python gives the NIC no BARs, so the accelerator is not below its switch."""
    [hbm] = json.loads(run("show", "--json", "--control", str(server.control)))["memory"][1:]
    accelerator = pci_device((hbm["address"], hbm["size"]))
    with qemu(tmp_path / "qmp", [{"bus": 0, "devices": [switch(accelerator)]}]):
        [payload] = [one for one in booked(server, "--qmp", str(tmp_path / "qmp")) if one.purpose == "payload"]
    assert payload.place == "BAR"
    said = run("ledger", "--qmp", str(tmp_path / "nothing"), "--control", str(server.control), status=1)
    assert "no QEMU answers at" in said


def test_the_report_at_the_end(tmp_path: Path) -> None:
    """`serve` knows of the switch as well, and ends with the ledger."""
    with NicServer(["--mac", NIC_MAC, "--below-switch", "hbm"]) as server:
        with Driver(str(server.sockets[0])) as driver:
            devmem(driver)
            run("inject", "--control", str(server.control), tcp(PAYLOAD, dport=5201).hex())
            assert re.search(r"rx0 +writes +hbm +switch", run("stat", "--control", str(server.control)))
        [nic] = server.stop()
    assert total(entries(nic), path="switch") == PAYLOAD
