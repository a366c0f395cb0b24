"""The second device by the fixtures of nicmodel, and to whoever looks on: trace, snapshot, detail, ladder."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from nicmodel.cli.show import print_state
from nicmodel.client.bringup import show as show_bringup
from nicmodel.client.report import show as show_report
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.observe.detail import detail
from nicmodel.observe.snapshot import snapshot
from nicmodel.observe.trace import Tracer
from nicmodel.testing.plugin import Station

from ..frames import arp, tcp, udp

pytestmark = [pytest.mark.nic(device="idpf", queues=4), pytest.mark.contract]

#: Here the driver is wrong on purpose.
misbehaves = pytest.mark.contract(strict=False)


def test_the_trace_names_messages_and_descriptors(driver: Driver, nic: TestNic) -> None:
    events: list[dict[str, Any]] = []
    tracer = Tracer(nic.device, nic.server)
    tracer.subscribe(events.append)
    driver.open(queues=2)
    driver.set_rss_table([1])
    nic.inject(tcp(1500))
    driver.send(1, udp(100))
    driver.poll_tx(1)
    said = [event["command"] for event in events if event["kind"] == "admin"]
    assert said == [
        "CONFIG_TX_QUEUES", "CONFIG_RX_QUEUES", "MAP_QUEUE_VECTOR", "ENABLE_QUEUES", "ENABLE_VPORT", "ADD_MAC_ADDR",
        "SET_RSS_LUT", "SET_RSS_LUT",
    ]  # fmt: skip
    (queues,) = [event["fields"]["queues"] for event in events if event.get("command") == "CONFIG_TX_QUEUES"]
    assert queues[1]["type"] == "TX_COMPLETION" and queues[1]["ring_len"] == 512
    (received,) = [event for event in events if event["kind"] == "rx"]
    assert received["queue"] == "rx1" and received["protocol"] == "IPV4/TCP"
    assert received["completions"][0]["header_length"] == 54 and received["completions"][0]["buffer_queue"] == 0
    (sent,) = [event for event in events if event["kind"] == "tx" and "descriptors" in event]
    assert sent["descriptors"][0]["type"] == "FLOW_DATA" and sent["descriptors"][0]["buffer_size"] == len(udp(100))
    (done,) = [event for event in events if event["kind"] == "tx" and "completions" in event]
    assert [one["type"] for one in done["completions"]] == ["DESCRIPTOR", "PACKET"]
    tails = [event for event in events if event["kind"] == "doorbell" and "tail" in event]
    assert {"rx0", "rx1", "tx1"} >= {event["queue"] for event in tails if "queue" in event} >= {"tx1"}


def test_snapshot_and_detail(driver: Driver, nic: TestNic, capsys: pytest.CaptureFixture[str]) -> None:
    driver.open(queues=2, ring_entries=192)
    nic.inject(arp())
    found = snapshot(nic.device)
    assert found["vport"] == {"created": True, "enabled": True} and found["admin"]["GET_CAPS OK"] == 1
    assert sum(queue["frames"] for queue in found["rx_queues"]) == 1
    assert found["rx_queues"][0]["small"]["buffer_size"] == 1024
    assert found["dma"]["completion"]["ram"] == 32
    shown = detail(nic.device)
    assert shown["registers"]["arqlen"] == 1 << 31 | 64 and shown["mailbox"]["to_driver_entries"] == 64
    assert shown["queues"]["rx0"]["completion_entries"] == 192
    assert len(shown["blocks"]) == nic.device.profile.vectors
    printed = StringIO()
    print_state(Console(file=printed, width=100), shown)
    for text in ("nic, queue format split", "to driver entries", "second buffer queues", "completion queues"):
        assert text in printed.getvalue()
    show_report([found])
    assert "rx0" in capsys.readouterr().out


def test_the_ladder_is_climbed(driver: Driver, nic: TestNic) -> None:
    ladder = nic.host.ladders[nic.device.name]
    (life,) = ladder.report()["lives"]
    assert life["stands"] == "config_tx_queues"
    assert all(not step["example"].endswith(":0") for step in life["steps"])
    driver.open()
    driver.send(0, udp(10))
    nic.inject(udp(10))
    (life,) = ladder.report()["lives"]
    assert life["stands"] is None and not life["problems"]
    printed = StringIO()
    show_bringup(Console(file=printed, width=120), ladder.report())
    assert "vport created" in printed.getvalue() and "split" in printed.getvalue()


@misbehaves
def test_a_register_that_is_none_is_counted(driver: Driver, nic: TestNic) -> None:
    for offset, data in ((0x6004, bytes(4)), (0x0, bytes(2)), (0xFFFC, bytes(4)), (0x3C0, bytes(4))):
        driver.client.region_write(0, offset, data)
    assert nic.device.counters["register_unknown"] == 3 and nic.device.counters["doorbell_unknown"] == 1
    assert driver.client.region_read(0, 0x7FFE, 6) == bytes(2) + (1 << 31 | 64).to_bytes(4, "little")


def test_two_back_to_back(link: tuple[Station, Station]) -> None:
    one, other = link
    one.driver.open()
    other.driver.open()
    frame = bytes.fromhex("020000000002") + udp(100)[6:]
    one.driver.send(0, frame)
    other.nic.run()
    assert [packet.frame for queue in range(4) for packet in other.driver.poll(queue)] == [frame]


def test_the_ladder_names_rules(driver: Driver, nic: TestNic) -> None:
    printed = StringIO()
    show_bringup(Console(file=printed, width=200), nic.host.ladders[nic.device.name].report())
    assert "nicmodel rules --device idpf QUE-004" in printed.getvalue()
