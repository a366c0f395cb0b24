"""The trace: everything between driver and device, decoded, while somebody listens; nothing while nobody does."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import pytest

from nicmodel.client.text import lines
from nicmodel.gvnic.commands import Opcode
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.tx import Tso
from nicmodel.observe.trace import Event, Tracer

from .conftest import ENTRIES
from .frames import tcp, udp


class Heard(list[Event]):
    """The events of a NIC."""

    def __init__(
        self, lab: Loopback, kinds: Collection[str] = (), queues: Collection[str] = (), tracer: Tracer | None = None
    ) -> None:
        self.tracer = Tracer(lab.nic, lab.server) if tracer is None else tracer
        self.subscription = self.tracer.subscribe(self.append, kinds, queues)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self if event["kind"] == kind]

    def end(self) -> None:
        self.tracer.unsubscribe(self.subscription)


def opened(lab: Loopback, **options: Any) -> None:
    lab.driver.probe()
    lab.driver.open(**({"rx_queues": 2, "tx_queues": 1, "ring_entries": ENTRIES} | options))


def test_buffers_are_told_to_those_who_ask_for_one_queue(lab: Loopback) -> None:
    opened(lab)
    lab.driver.set_rss(table=[1] * 128)
    heard = Heard(lab, kinds=["rx"], queues=["rx1"])
    lab.receive(tcp(100))
    [event] = heard
    [packet] = lab.driver.poll(1)
    assert [buffer["buffer_address"] for buffer in event["buffers"]] == [buffer.address for buffer in packet.buffers]


def test_a_probe_is_told_step_by_step(lab: Loopback) -> None:
    heard = Heard(lab)
    opened(lab)
    commands = [(event["command"], event["status"]) for event in heard.of("admin")]
    assert commands == [
        (name, "PASSED")
        for name in (
            "VERIFY_DRIVER_COMPATIBILITY", "DESCRIBE_DEVICE", "CONFIGURE_DEVICE_RESOURCES", "GET_PTYPE_MAP",
            "REPORT_NIC_TIMESTAMP", "CONFIGURE_RSS", "REPORT_STATS", "CONFIGURE_RSS", "CREATE_TX_QUEUE",
            "CREATE_RX_QUEUE", "CREATE_RX_QUEUE",
        )
    ]  # fmt: skip
    verify, _, configure, *_, create = heard.of("admin")
    assert verify["fields"]["driver"]["os_version"] == "nicmodel"
    assert configure["fields"]["queue_format"] == "DQO_RDA"
    assert create["queue"] == "rx1"
    queue = lab.driver.rx[1]
    assert create["fields"]["completion_ring_address"] == queue.completion_ring_address
    assert create["fields"]["buffer_ring_entries"] == ENTRIES

    registers = heard.of("register")
    version = [event["value"] for event in registers if event["register"] == "driver_version"]
    assert bytes(version) == b"GVE-1.0.0\n"
    assert {"register": "max_rx_queues", "access": "read", "value": 8}.items() <= registers[len(version) + 1].items()
    [run] = [event for event in registers if event["register"] == "driver_status"]
    assert run["access"] == "write" and run["flags"] == ["run"]
    assert registers[-1]["register"] == "device_status" and registers[-1]["flags"] == ["link_up"]

    bells = heard.of("doorbell")
    assert {"queue": "rx1", "tail": 32}.items() <= bells[1].items()
    assert {"queue": "rx1", "block": queue.block, "enable": 1, "interval": 10}.items() <= bells[-1].items()
    assert heard.of("vectors")[0]["type"] == "MSIX"
    assert [event["access"] for event in heard.of("config")[:2]] == ["read", "write"]
    assert json.loads(json.dumps(heard)) == heard
    assert all(isinstance(line, str) for event in heard for line in lines(event, heard[0]["time"]))


def test_memory_that_comes_and_goes(lab: Loopback) -> None:
    heard = Heard(lab, kinds=["map", "unmap", "client"])
    lab.driver.unmap(lab.ram)
    lab.driver.map(lab.ram)
    assert [event["kind"] for event in heard] == ["unmap", "map"]
    assert heard[1]["address"] == lab.ram.base and heard[1]["size"] == lab.ram.size and heard[1]["rights"] == "rw"
    lab.driver.disconnect()
    lab.advance(0)
    assert heard[-1]["kind"] == "client" and heard[-1]["what"] == "detach"


def test_a_received_packet_with_its_descriptors(lab: Loopback) -> None:
    opened(lab, header_split=True)
    lab.driver.add_flow_rule(TCPv4(dst_port=5000), queue=1)
    heard = Heard(lab, kinds=["rx", "interrupt"])
    frame = tcp(6000)
    lab.receive(frame)
    packet, interrupt = heard
    assert (packet["verdict"], packet["queue"], packet["rule"]) == ("delivered", "rx1", 1023)
    assert (packet["length"], packet["header"], packet["protocol"]) == (len(frame), 54, "IPV4/TCP")
    assert interrupt["kind"] == "interrupt" and interrupt["queue"] == "rx1"
    [received] = lab.driver.poll(1)
    assert [{**one, "index": number} for number, one in enumerate(received.completions)] == packet["completions"]
    assert [one["buffer_address"] for one in packet["buffers"]] == [buffer.address for buffer in received.buffers]
    assert [one["buffer_id"] for one in packet["buffers"]] == [buffer.id for buffer in received.buffers]
    text = list(lines(packet, packet["time"]))
    assert len(text) == 5
    assert "rx1 delivered" in text[0] and "rule=1023" in text[0]
    assert f"buffer_address={received.buffers[1].address:#x}" in text[2]


def test_rings_that_wrap(lab: Loopback) -> None:
    """Descriptors and completions stay those of their packet over several laps of both rings."""
    opened(lab, rx_queues=1)
    heard = Heard(lab, kinds=["rx"])
    for _ in range(3 * ENTRIES // 4):
        heard.clear()
        lab.receive(tcp(5000), udp(10))
        packets = lab.driver.poll(0)
        assert len(packets) == len(heard) == 2
        for event, packet in zip(heard, packets, strict=True):
            assert [one["buffer_address"] for one in event["buffers"]] == [one.address for one in packet.buffers]
            for told, completion in zip(event["completions"], packet.completions, strict=True):
                assert {name: told[name] for name in completion} == completion


def test_coalesced_frames_have_one_set_of_descriptors(lab: Loopback) -> None:
    """Segments of two flows, interleaved: each packet is told once, and with its own buffers."""
    opened(lab, rx_queues=1, rsc=True)
    heard = Heard(lab, kinds=["rx"])
    lab.receive(
        *(tcp(1000, sport=sport, seq=1 + 1000 * number, flags="A") for number in range(3) for sport in (1, 2))
    )  # fmt: skip
    packets = lab.driver.poll(0)
    assert [len(packet.payload) for packet in packets] == [54 + 3000] * 2
    leads = [event for event in heard if "coalesced" not in event]
    assert len(leads) == 2 and len(heard) == 6
    leads.sort(key=lambda event: int(event["completions"][0]["index"]))
    for event, packet in zip(leads, packets, strict=True):
        assert [one["buffer_address"] for one in event["buffers"]] == [one.address for one in packet.buffers]
        assert event["completions"][0]["rsc"] == 1


def test_a_frame_that_finds_no_buffers_and_one_that_is_dropped(lab: Loopback) -> None:
    opened(lab, rx_queues=1)
    heard = Heard(lab, kinds=["rx"])
    lab.receive(*[udp(10) for _ in range(ENTRIES)], b"\0")
    held = [event for event in heard if event["verdict"] == "held"]
    assert held and held[0]["queue"] == "rx0" and "completions" not in held[0]
    assert heard[-1]["verdict"] == "runt" and "queue" not in heard[-1]
    heard.clear()
    lab.clock.now += 1000
    assert len(lab.driver.poll(0)) == ENTRIES - len(held)
    lab.run()
    assert [event["verdict"] for event in heard] == ["delivered"] * len(held)
    assert {event["waited"] for event in heard} == {1000}
    assert len(lab.driver.poll(0)) == len(held)


def test_sent_packets_with_their_descriptors(lab: Loopback) -> None:
    opened(lab)
    heard = Heard(lab, kinds=["tx"])
    for _ in range(ENTRIES // 2):
        heard.clear()
        lab.driver.send(0, tcp(100), checksum=True, fragments=[60, 94], report_event=True)
        lab.driver.send(0, tcp(3000), checksum=True, tso=Tso(1000, 54))
        lab.run()
        plain, segmented = heard
        assert [one["type"] for one in plain["descriptors"]] == ["GENERAL_CONTEXT", "PACKET", "PACKET"]
        assert [one["buffer_size"] for one in plain["descriptors"][1:]] == [60, 94]
        assert [one["type"] for one in plain["completions"]] == ["DESCRIPTOR", "PACKET"]
        context = segmented["descriptors"][0]
        assert (context["type"], context["mss"], context["header_length"]) == ("TSO_CONTEXT", 1000, 54)
        assert segmented["completions"][-1]["type"] == "PACKET"
        assert [one.type.name for one in lab.driver.poll_tx(0)] == [
            one["type"] for event in heard for one in event["completions"]
        ]
        assert "TSO_CONTEXT" in "\n".join(lines(segmented, 0))


def test_commands_that_fail_say_why(lab: Loopback) -> None:
    lab.driver.probe()
    heard = Heard(lab, kinds=["admin"])
    with pytest.raises(AdminError):
        lab.driver.admin(Opcode.CREATE_RX_QUEUE, queue_id=99)
    with pytest.raises(AdminError):
        lab.driver.admin_batch([(0x33).to_bytes(4, "big") + bytes(60)])
    lab.driver.add_flow_rule(TCPv4(dst="192.0.2.1", dst_port=80), queue=0, location=7)
    refused, unknown, added = heard
    assert refused["status"] == "INVALID_ARGUMENT" and "99" in refused["reason"]
    assert (unknown["command"], unknown["status"]) == ("0x33", "UNIMPLEMENTED")
    inner = added["fields"]["inner"]
    assert (inner["operation"], inner["location"], inner["rule"]["flow_type"]) == ("ADD", 7, "TCPV4")


def test_link_and_resets(lab: Loopback) -> None:
    opened(lab)
    heard = Heard(lab, kinds=["link", "reset", "interrupt"])
    lab.nic.set_cable(False)
    lab.nic.request_reset()
    assert [event["kind"] for event in heard] == ["link", "interrupt", "reset", "interrupt"]
    assert heard[0]["up"] is False
    assert heard[1]["what"] == "management"
    lab.driver.client.reset()
    assert heard[-1]["what"] == "reset"


def test_stray_accesses(lab: Loopback) -> None:
    heard = Heard(lab)
    client = lab.driver.client
    client.region_write(2, 0, b"\1\0\0\0")
    client.region_write(2, 6, b"\1\0")
    client.region_read(2, 0, 4)
    client.region_read(0, 0x800, 4)
    client.region_read(1, 0x800, 8)
    assert [event["kind"] for event in heard] == ["doorbell", "doorbell", "doorbell", "register", "msix"]
    assert heard[1]["offset"] == 6 and heard[3]["register"] == "0x800"


def test_filters(lab: Loopback) -> None:
    opened(lab)
    first = Heard(lab, queues=["rx1"])
    second = Heard(lab, kinds=["doorbell"], tracer=first.tracer)
    lab.driver.enable(lab.driver.rx_block(1))
    lab.driver.enable(lab.driver.rx_block(0))
    lab.run()
    assert [event["kind"] for event in first] == ["doorbell"]
    assert [event["queue"] for event in second] == ["rx1", "rx0"]
    for queue in ("rx99", "3", "tx", "rx-1"):
        with pytest.raises(ValueError, match="there is no queue"):
            Heard(lab, queues=[queue])
    with pytest.raises(ValueError, match="there are client, config"):
        Heard(lab, kinds=["nonsense"])


def test_nobody_listens(lab: Loopback) -> None:
    heard = Heard(lab)
    assert lab.nic.diagnostics.observers and lab.server.on_trace is not None
    heard.end()
    heard.end()
    assert not lab.nic.diagnostics.observers and lab.server.on_trace is None
    opened(lab)
    lab.receive(tcp())
    assert heard == []


def test_the_ledger_does_not_see_the_trace(make_lab: Callable[..., Loopback]) -> None:
    """Two NICs do the same, one of them watched: the books are equal."""
    ledgers = []
    for watched in (False, True):
        lab = make_lab()
        if watched:
            Heard(lab)
        opened(lab, header_split=True)
        lab.driver.add_flow_rule(TCPv4(dst_port=5000), queue=1)
        lab.receive(tcp(6000), udp(5))
        lab.driver.send(0, udp(100))
        lab.run()
        ledgers.append(lab.nic.state.ledger.copy())
        assert not lab.nic.counters and not lab.server.stats["dma_faults"]
    assert (ledgers[0] == ledgers[1]).all()
