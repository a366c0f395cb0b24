"""The control socket: a server in the NIC's event loop, a client in another thread."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nicmodel.client.control import MAX_LINE, Control, ControlError
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4, UDPv6
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.observe import control_server
from nicmodel.observe import snapshot as snapshots
from nicmodel.observe.snapshot import snapshot
from nicmodel.vfio_user.listener import AddressInUse
from nicmodel.vfio_user.regions import REGION, RegionMap

from .conftest import ENTRIES
from .frames import NIC_MAC, pattern, tcp, toeplitz, udp


class Desk:
    """A NIC with a control socket, and a client whose calls are answered while they wait."""

    def __init__(self, lab: Loopback, path: Path) -> None:
        self.lab = lab
        self.path = path
        self.server = lab.host.open_control(str(path))
        self.control = Control(path)
        self.pool = ThreadPoolExecutor(1)

    def wait(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        future = self.pool.submit(call, *arguments, **options)
        deadline = time.monotonic() + 60
        while not future.done():
            assert time.monotonic() < deadline
            self.lab.advance(0)
        return future.result()

    def raw(self, line: bytes) -> dict[str, Any]:
        """The answer to a line, however wrong."""

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(str(self.path))
                connection.sendall(line + b"\n")
                return connection.makefile("rb").readline()

        answer: dict[str, Any] = json.loads(self.wait(ask))
        return answer

    def close(self) -> None:
        self.control.close()
        self.server.close()
        self.pool.shutdown()


@pytest.fixture
def desk(lab: Loopback, tmp_path: Path) -> Iterator[Desk]:
    """A desk at a NIC with two open queues and header split."""
    lab.driver.probe()
    lab.driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES, header_split=True)
    made = Desk(lab, tmp_path / "control.sock")
    yield made
    made.close()


def test_only_its_user_may_open_it(desk: Desk) -> None:
    assert stat.S_IMODE(os.stat(desk.path).st_mode) == 0o600


def test_a_turn_of_the_loop_makes_one_snapshot(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets do not wait for those of all NICs. *Verify*: what was asked behind it comes behind it, once."""
    turns: list[int] = []
    poller = desk.lab.host.poller

    def noted(*arguments: Any) -> dict[str, Any]:
        turns.append(poller.turn)
        return snapshot(*arguments)

    monkeypatch.setattr(snapshots, "snapshot", noted)
    [own] = desk.server.nics.values()
    desk.server.nics = {f"nic{number}": own for number in range(5)}

    def ask() -> list[Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(desk.path))
            connection.sendall(b'{"request": "stat", "id": 1}\n{"request": "format"}\n{"request": "stat", "id": 2}\n')
            lines = connection.makefile("rb")
            return [json.loads(lines.readline()) for _ in range(3)]

    first, other, second = desk.wait(ask)
    assert (first["id"], second["id"]) == (1, 2) and len(first["reply"]) == len(second["reply"]) == 5
    assert "there is no request" in other["error"]
    assert len(turns) == len(set(turns)) == 10


def test_a_client_goes_in_the_midst_of_an_answer(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or a snapshot fails. *Verify*: the next ones are answered."""
    [own] = desk.server.nics.values()
    desk.server.nics = {f"nic{number}": own for number in range(3)}
    made: list[int] = []

    def failing(*arguments: Any) -> dict[str, Any]:
        made.append(len(made))
        if len(made) == 2:
            raise ZeroDivisionError
        return snapshot(*arguments)

    monkeypatch.setattr(snapshots, "snapshot", failing)
    answer = desk.raw(b'{"request": "stat", "id": 7}')
    assert answer == {"version": 1, "id": 7, "error": "the server failed; its log says where"}
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(desk.path))
        connection.sendall(b'{"request": "stat"}\n')
        while len(made) < 3:
            desk.lab.advance(0)
    assert len(desk.wait(desk.control.stat)) == 3


def test_a_second_server_at_the_same_path(desk: Desk) -> None:
    with pytest.raises(AddressInUse):
        desk.lab.host.open_control(str(desk.path))
    desk.server.close()
    assert not desk.path.exists()


def test_stat(desk: Desk) -> None:
    desk.lab.receive(tcp(), b"\0")
    [nic] = desk.wait(desk.control.stat)
    assert nic["mac"] == NIC_MAC and nic["drops"] == {"runt": 1}
    assert sum(queue["frames"] for queue in nic["rx_queues"]) == 1


def test_show(desk: Desk) -> None:
    driver: Driver = desk.lab.driver
    driver.add_flow_rule(TCPv4(dst="192.0.2.0/24", dst_port=5201, tos=(8, 0xFC)), queue=1, location=3)
    driver.add_flow_rule(UDPv6(src="2001:db8::1"), queue=0, location=4)
    desk.lab.receive(tcp(dport=5201))
    found = desk.wait(desk.control.show)
    assert found["registers"]["device_status_flags"] == ["link_up"]
    assert found["registers"]["max_rx_queues"] == 8
    assert set(found["pci_command"]) == {"memory", "bus_master"}
    assert found["options"]["BUFFER_SIZES"]["header_buffer_size"] == 128
    assert found["descriptor"]["mac"] == NIC_MAC.replace(":", "")
    assert found["driver"]["os_version"] == "nicmodel"
    assert list(found["queues"]) == ["rx0", "rx1", "tx0"]
    assert found["queues"]["rx1"]["completion_ring"] == driver.rx[1].completion_ring_address
    assert found["queues"]["rx1"]["header_size"] == 128
    fired = found["blocks"][driver.rx_block(1)]
    assert fired == {
        "vector": driver.rx_block(1), "enabled": False, "pending": False, "interval_ns": 20_000, "fires": 1,
        "eventfd": True,
    }  # fmt: skip
    assert found["rss"]["set_by"] == "driver" and found["rss"]["table"][:4] == [0, 1, 0, 1]
    first, second = found["rules"]
    assert first == {
        "location": 3,
        "flow_type": "TCPV4",
        "match": {"destination": "192.0.2.0/255.255.255.0", "destination_port": 5201, "tos": "0x8/0xfc"},
        "queue": 1,
        "hits": 0,
    }
    assert second["match"] == {"source": "2001:db8::1"}
    [memory] = found["memory"]
    assert memory == {
        "address": desk.lab.ram.base, "size": desk.lab.ram.size, "rights": "rw", "kind": "ram", "mapped": True,
    }  # fmt: skip


def test_injected_frames_tell_where_they_went(desk: Desk) -> None:
    driver = desk.lab.driver
    driver.add_flow_rule(TCPv4(dst_port=5201), queue=1)
    frames = [tcp(1000, dport=5201), udp(30), udp(60)[:13], b"\x02" * 14]
    by_rule, by_hash, runt, foreign = desk.wait(desk.control.inject, frames)
    [packet] = [one for one in driver.poll_all() if one.frame == frames[0]]
    assert packet.queue == 1
    assert by_rule == {
        "verdict": "delivered", "queue": "rx1", "hash": packet.hash, "rule": 1023, "header": 54, "payload": 1000,
        "completions": [{"index": by_rule["completions"][0]["index"], **packet.completions[0]}],
    }  # fmt: skip
    hashed = toeplitz(desk.lab.nic.rss.key, frames[1])
    entry = hashed % 128
    assert (by_hash["hash"], by_hash["table_entry"], by_hash["queue"]) == (hashed, entry, f"rx{entry % 2}")
    assert runt == {"verdict": "runt"} and foreign == {"verdict": "not_ours"}


def test_more_frames_than_one_request_takes(desk: Desk) -> None:
    results = desk.wait(desk.control.inject, [udp(pattern(1400), sport=number) for number in range(1000)])
    assert len(results) == 1000
    assert {result["verdict"] for result in results} == {"delivered", "held", "no_buffers"}


def test_base64(desk: Desk) -> None:
    answer = desk.wait(desk.control.request, "inject", frames=["AAAA"], encoding="base64")
    assert answer == [{"verdict": "runt"}]


def test_frames_sent_as_if_by_the_driver(desk: Desk) -> None:
    frames = [tcp(1000), udp(30)]
    assert desk.wait(desk.control.send, frames) == 2
    assert desk.lab.wire.take() == frames
    desk.lab.wire.room = 1
    assert desk.wait(desk.control.send, frames) == 1
    desk.lab.wire.unblock()
    assert desk.lab.wire.take() == frames[:1], "what the wire did not take is not sent later"
    desk.wait(desk.control.set_link, False)
    assert desk.wait(desk.control.send, frames) == 0


def test_a_wire_that_is_busy_with_the_drivers_frames(desk: Desk) -> None:
    """Nothing comes between the frames of a batch that is on its way."""
    desk.lab.wire.room = 1
    for number in range(3):
        desk.lab.driver.send(0, udp(number))
    desk.lab.run()
    assert desk.wait(desk.control.send, [tcp()]) == 0
    desk.lab.wire.unblock()
    assert desk.lab.wire.take() == [udp(number) for number in range(3)]
    assert desk.wait(desk.control.send, [tcp()]) == 1


def test_a_pulled_cable(desk: Desk) -> None:
    driver = desk.lab.driver
    assert desk.wait(desk.control.set_link, False) is False
    assert driver.fired(driver.management_vector)
    assert desk.wait(desk.control.inject, [udp()]) == [{"verdict": "device_down"}]
    assert desk.wait(desk.control.stat)[0]["drops"] == {"device_down": 1}
    assert desk.wait(desk.control.set_link, True) is True
    assert desk.wait(desk.control.inject, [udp()])[0]["verdict"] == "delivered"


def test_a_reset_asked_for(desk: Desk) -> None:
    driver = desk.lab.driver
    desk.wait(desk.control.request_reset)
    assert driver.fired(driver.management_vector)
    assert "RESET" in str(driver.device_status().name)
    driver.reset()
    driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES)
    assert desk.wait(desk.control.inject, [udp()])[0]["verdict"] == "delivered"
    assert desk.wait(desk.control.show)["registers"]["device_status_flags"] == ["link_up"]


def test_trace(desk: Desk) -> None:
    watcher = Control(desk.path)
    events = desk.wait(watcher.trace, kinds=["rx", "admin"], queues=["rx0", "rx1"])
    desk.wait(desk.control.inject, [udp()])
    desk.lab.driver.close()
    heard = [desk.wait(next, events) for _ in range(3)]
    assert [(event["nic"], event["kind"]) for event in heard] == [("nic", "rx"), ("nic", "admin"), ("nic", "admin")]
    assert heard[1]["command"] == "DESTROY_RX_QUEUE"
    watcher.close()
    desk.lab.advance(0)
    assert not desk.lab.nic.diagnostics.observers


def test_closing_ends_a_wait_for_events(desk: Desk) -> None:
    watcher = Control(desk.path)
    events = desk.wait(watcher.trace, kinds=["rx"])
    waits = desk.pool.submit(list, events)
    time.sleep(0.05)
    watcher.close()
    assert waits.result(10) == []


def test_events_that_are_not_read_are_lost_and_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "_MAX_EVENTS", 10_000)
    watcher = Control(desk.path)
    events = desk.wait(watcher.trace, kinds=["rx"])
    told = 5000
    desk.lab.wire.inject(*[b"\0"] * told)

    def read() -> tuple[int, int]:
        for heard, event in enumerate(events):
            if "lost" in event:
                assert next(events)["verdict"] == "runt"
                return heard, event["lost"]
        raise AssertionError

    future = desk.pool.submit(read)
    while not future.done():  # the loss is told with the next event that finds room
        desk.lab.wire.inject(b"\0")
        told += 1
        desk.lab.advance(0)
    heard, lost = future.result()
    assert heard and lost and 5000 <= heard + lost < told
    watcher.close()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "a request is a JSON object"),
        (b"\xff\xfe\xfd", "decode"),
        (b"\xff\xfe[\0]\0", "decode"),
        (b"9" * 5000, "a request is a line of JSON"),
        (b"NaN", "NaN is no number"),
        (b'{"request": "stat", "id": NaN}', "NaN is no number"),
        (b'{"request": "stat", "id": 1e999}', "an id has at most"),
        (b'{"request": "stat", "id": "' + b"x" * 300 + b'"}', "an id has at most"),
        (b'{"request": "stat", "id": ' + b"[" * 900 + b"]" * 900 + b"}", "an id has at most"),
        (b'{"request": {}}', "there is no request {}"),
        (b'{"request": "' + b"x" * 100_000 + b'"}', "there is no request 'xxx"),
        (b'{"request": "show", "nic": "' + b"x" * 100_000 + b'"}', "there is no NIC 'xxx"),
        (b'{"request": "inject", "frames": ["\\ud800"]}', "frame 0: "),
        (b'{"request": "inject", "frames": [' + b'"00",' * 5000 + b'"00"]}', "5001 frames; a request takes at most"),
        (b'{"request": "link", "up": 1}', "up is true or false"),
        (b'{"request": "capture", "limit": true}', "limit is a number of bytes"),
        (b'{"request": "trace", "kinds": ["\\ud800"]}', "no events are of kind"),
        (b'{"request": "trace", "queues": ["rx' + b"9" * 5000 + b'"]}', "there is no queue"),
        (b'{"request": "trace", "queues": ["rx-1"]}', "there is no queue"),
        (b'{"request": "trace", "queues": ["rx\xd9\xa3"]}', "there is no queue"),
        (b'{"request": "findings"}', "nobody watches"),
        (b'{"request": "fault", "fault": []}', "fault is the name"),
        (b'{"request": "fault", "fault": "wire-drop", "seed": {}}', "seed is a whole number"),
        (b'{"request": "fault", "fault": "wire-drop", "parameters": 7}', "parameters is an object"),
        (b'{"request": "fault", "fault": "wire-drop", "parameters": {"start": 1e999}}', "start is inf; it is 0 to"),
        (b'{"request": "fault", "fault": "wire-drop", "parameters": {"start": NaN}}', "NaN is no number"),
        (b'{"request": "fault", "fault": "rx-starve", "parameters": {"queue": 8}}', "queue is 8; it is 0 to 7"),
        (b'{"request": "fault_end", "injection": []}', "there is no fault []"),
        (b'{"request": "fault_end", "injection": {}}', "there is no fault {}"),
        (b'{"request": "fault_end", "injection": true}', "there is no fault True"),
        (b'{"request": "scenario"}', "text is the scenario's TOML, or table"),
        (b'{"request": "scenario", "text": 1}', "text is the scenario's TOML"),
        (b'{"request": "scenario", "text": "", "table": {}}', "one of them is given"),
        (b'{"request": "scenario", "table": []}', "table, an object"),
        (b'{"request": "scenario", "table": {"frame": [{"bytes": null}]}}', "the bytes of a frame are None"),
        (b'{"request": "scenario", "table": {"fault": [{"name": "rx-error", "start": null}]}}', "start is None"),
        (b'{"request": "scenario", "table": {"weather": [' + b'{"seed": 1},' * 100 + b'{"seed": 1}]}}', "at most"),
        (b'{"request": "scenario", "table": {"fault": [' + b"{}," * 1000 + b"{}]}}", "at most 1000 faults"),
        (b'{"request": "scenario", "text": "\\ud800"}', "Invalid"),
        (b'{"request": "scenario", "text": "a=' + b"[" * 5000 + b'"}', "nested too deeply"),
        (b'{"request": "scenario", "text": "a' + b".a" * 30_000 + b'=1"}', "a key has at most 256 parts"),
        (b'{"request": "scenario", "text": "a={a' + b".a" * 30_000 + b'=1}"}', "a key has at most 256 parts"),
        (b'{"request": "scenario", "text": "seed=' + b"9" * 5000 + b'"}', "a number has too many digits"),
        (b'{"request": "scenario", "text": "' + b"#" * 300_000 + b'"}', "a scenario of 300000 characters"),
        (b"{}", "there is no request None"),
        (b'{"request": "format"}', "there is no request 'format', but stat, show, inject, send"),
        (b'{"request": ["stat"]}', "there is no request"),
        (b'{"request": "show", "nic": "nic7"}', "there is no NIC 'nic7'"),
        (b'{"request": "show", "nic": {}}', "there is no NIC {}"),
        (b'{"request": "inject", "frames": "00"}', "frames is a list of strings"),
        (b'{"request": "inject", "frames": [0]}', "frames is a list of strings"),
        (b'{"request": "inject", "frames": ["00", "xy"]}', "frame 1: not hexadecimal digits in pairs"),
        (b'{"request": "inject", "frames": [""]}', "frame 0: 0 bytes"),
        (b'{"request": "inject", "frames": ["' + b"00" * 70_000 + b'"]}', "frame 0: 70000 bytes"),
        (b'{"request": "inject", "frames": ["="], "encoding": "base64"}', "frame 0: not base64"),
        (b'{"request": "inject", "frames": [], "encoding": "morse"}', "the encoding is hex or base64"),
        (b'{"request": "inject", "frames": [], "encoding": []}', "the encoding is hex or base64"),
        (b'{"request": "send", "frames": ["0"]}', "frame 0: not hexadecimal digits in pairs"),
        (b'{"request": "link"}', "up is true or false"),
        (b'{"request": "link", "up": "no"}', "up is true or false"),
        (b'{"request": "capture", "queues": ["rx99"]}', "there is no queue 'rx99'"),
        (b'{"request": "capture", "limit": 0}', "limit is a number of bytes"),
        (b'{"request": "capture", "limit": "all"}', "limit is a number of bytes"),
        (b'{"request": "trace", "kinds": ["gossip"]}', "no events are of kind 'gossip'"),
        (b'{"request": "trace", "queues": ["rx99"]}', "there is no queue 'rx99'"),
        (b"x" * (MAX_LINE + 1), "a line of more than"),
    ],
)
def test_wrong_requests_get_a_sentence(desk: Desk, line: bytes, sentence: str) -> None:
    answer = desk.raw(line)
    assert sentence in answer["error"] and answer["version"] == 1 and "reply" not in answer
    assert len(answer["error"]) < 1000 and "\n" not in answer["error"]
    assert desk.wait(desk.control.stat)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 50_000])
def test_a_request_that_is_nested_deeply(desk: Desk, line: bytes) -> None:
    """From Python 3.14 on it depends on the stack's size how deep that is: it may be read to its end."""
    answer = desk.raw(line)
    assert any(sentence in answer["error"] for sentence in ("nested so deeply", "Expecting value")), answer
    assert desk.wait(desk.control.stat)


def test_an_id_comes_back(desk: Desk) -> None:
    assert desk.raw(b'{"request": "stat", "id": "a"}')["id"] == "a"
    assert desk.raw(b'{"request": "nonsense", "id": 7}')["id"] == 7


def test_many_requests_at_once_are_answered_one_in_a_turn(desk: Desk) -> None:
    """Between two of them the NIC gets its turn."""
    poller = desk.lab.host.poller
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(desk.path))
        connection.settimeout(10)
        poller.run_once(1)
        connection.sendall(b"".join(b'{"request":"stat","id":%d}\n' % number for number in range(500)) + b'{"req')
        reader = connection.makefile("rb")
        for number in range(500):
            turns = 0
            while not select.select([connection], [], [], 0)[0]:
                poller.run_once(0)
                turns += 1
                assert turns < 10
            assert json.loads(reader.readline())["id"] == number
            assert not select.select([connection], [], [], 0)[0], "two answers in one turn"
        connection.sendall(b'uest":"stat","id":"last"}\n')
        assert json.loads(desk.wait(reader.readline))["id"] == "last"


def test_a_line_in_many_pieces(desk: Desk) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(desk.path))
        connection.settimeout(10)
        for byte in b'{"request":"stat","id":1}\n{"request":"no':
            connection.sendall(bytes([byte]))
            desk.lab.advance(0)
        assert json.loads(connection.makefile("rb").readline())["id"] == 1
    desk.lab.advance(0)  # it leaves in the middle of a line
    assert desk.wait(desk.control.stat)


def test_requests_are_answered_whose_sender_says_no_more(desk: Desk) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(desk.path))
        connection.settimeout(10)
        connection.sendall(b'{"request":"stat"}\n' * 3)
        connection.shutdown(socket.SHUT_WR)
        assert len(desk.wait(connection.makefile("rb").readlines)) == 3


def test_a_connection_follows_once(desk: Desk) -> None:
    watcher = Control(desk.path)
    for request in ("trace", "capture"):
        desk.wait(watcher.request, request)
        with pytest.raises(ControlError, match=f"this connection has a {request}"):
            desk.wait(watcher.request, request)
    assert len(desk.lab.nic.diagnostics.observers) == 2
    watcher.close()


def test_so_many_clients_and_no_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "_MAX_CLIENTS", 3)
    others = [Control(desk.path) for _ in range(2)]
    desk.lab.advance(0)
    late = Control(desk.path)
    with pytest.raises(ControlError, match="3 clients are connected"):
        desk.wait(late.request, "stat")
    assert desk.wait(others[0].stat)
    for one in (*others, late):
        one.close()
    desk.lab.advance(0)
    late = Control(desk.path)
    assert desk.wait(late.stat)
    late.close()


def _say(listener: socket.socket, what: bytes) -> None:
    with listener.accept()[0] as connection:
        connection.sendall(what)


def test_what_is_no_control_socket(tmp_path: Path) -> None:
    for said in (b"HTTP/1.1 400 Bad Request\n", b"[]\n", b"\xff\n", b"[" * 100_000 + b"\n", b"{}\n"):
        with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
            listener.bind(str(tmp_path / "x"))
            listener.listen()
            control = Control(tmp_path / "x")
            pool.submit(_say, listener, said)
            with pytest.raises(ControlError, match=r"no control socket|neither a reply nor an error"):
                control.stat()
            control.close()
        (tmp_path / "x").unlink()


def test_of_many_regions_some_of_each_kind_are_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    many = np.zeros(3000, REGION)
    many["start"], many["size"], many["kind"] = np.arange(3000) * 4096, 4096, np.arange(3000) // 2000
    monkeypatch.setattr(RegionMap, "flat", lambda self: many)
    found = desk.wait(desk.control.show)
    assert found["memory_regions"] == 3000 and len(found["memory"]) == 2 * 512
    assert {found["memory"][0]["address"], found["memory"][512]["address"]} == {0, 2000 * 4096}


def test_a_client_that_does_not_read_is_dropped(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(desk.path))
        connection.settimeout(0.1)
        with pytest.raises(OSError, match=r"(?i)broken pipe|reset"):
            for _ in range(100_000):
                connection.sendall(b'{"request":"show"}\n' * 20)
                desk.lab.advance(0)
    assert "does not read" in caplog.text
    assert desk.wait(desk.control.stat)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no server answers"):
        Control(tmp_path / "nothing")


def test_the_server_goes(desk: Desk) -> None:
    desk.server.close()
    with pytest.raises(ControlError, match="has gone"):
        desk.control.stat()
