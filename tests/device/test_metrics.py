"""The Prometheus endpoint, read by Prometheus' own parser over a real connection."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.observe import metrics
from nicmodel.observe import snapshot as snapshots
from nicmodel.observe.metrics import MetricsServer, exposition
from nicmodel.observe.snapshot import snapshot
from nicmodel.vm.server import NicServer

from .conftest import ENTRIES
from .frames import tcp

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Values by name and labels; every family has a type and a help."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.type in ("counter", "gauge") and family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    return samples[f"nicmodel_{metric}", frozenset({"nic": "nic", **labels}.items())]


def test_every_counter(lab: Loopback) -> None:
    driver = lab.driver
    hbm = driver.add_memory("hbm", 1 << 20)
    driver.probe()
    driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES, header_split=True, payload_memory=hbm)
    driver.add_flow_rule(TCPv4(dst_port=5201), queue=0, location=7)
    lab.inject([tcp(1000, dport=5201), b"\0" * 13])
    driver.send(0, tcp(2500), tso=(1000, 54))
    lab.run()
    samples = parse(exposition([snapshot(lab.nic, lab.server.stats)]))
    assert value(samples, "link_up") == 1
    assert value(samples, "rx_frames_total", queue="rx0") == value(samples, "rx_split_total", queue="rx0") == 1
    assert value(samples, "rx_bytes_total", queue="rx0") == 1054
    assert value(samples, "tx_packets_total", queue="tx0") == 1
    assert value(samples, "tx_segments_total", queue="tx0") == 3
    assert value(samples, "drops_total", queue="", reason="runt") == 1
    written = {"queue": "rx0", "direction": "write"}
    assert value(samples, "dma_bytes_total", **written, purpose="payload", memory="hbm", path="unknown") == 1000
    assert value(samples, "dma_bytes_total", **written, purpose="header", memory="ram", path="root complex") == 54
    assert value(samples, "rule_hits_total", location="7", queue="rx0") == 1
    assert value(samples, "admin_commands_total", command="DESCRIBE_DEVICE", status="PASSED") == 1
    assert value(samples, "interrupts_total", block=str(driver.rx_block(0))) == 1
    assert value(samples, "vfio_user_total", name="clients") == 1
    assert value(samples, "wire_total", name="tx_frames") == 3
    assert value(samples, "peak_memory_bytes") > 1 << 20


def test_labels_are_escaped(lab: Loopback) -> None:
    """A file's name may be any bytes; they are shown as everywhere, so that each scrape is UTF-8."""
    found = snapshot(lab.nic) | {"name": 'a"b\\c\nd\x1b\udce4'}
    assert ("nicmodel_link_up", frozenset({("nic", r'a"b\c\nd\x1b\udce4')})) in parse(exposition([found]))


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    with NicServer(["--wire", "link", "--metrics", "127.0.0.1:0"], sockets=2) as server:
        yield server


@pytest.fixture
def port(server: NicServer) -> int:
    [found] = re.findall(r"metrics at http://127\.0\.0\.1:(\d+)/metrics", server.log())
    return int(found)


def get(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    answer = connection.getresponse()
    result = answer.status, answer.headers["Content-Type"], answer.read().decode()
    connection.close()
    return result


def test_a_scrape(server: NicServer, port: int) -> None:
    status, kind, text = get(port)
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    with Driver(str(server.sockets[0])) as driver:
        driver.probe()
        driver.open(rx_queues=1)
        busy = parse(get(port)[2])
    assert busy.keys() > parse(text).keys()
    for name, link in (("nic0", 1), ("nic1", 1)):
        assert busy["nicmodel_link_up", frozenset({("nic", name)})] == link


def test_what_is_not_a_scrape(port: int) -> None:
    assert get(port, "/")[0] == 404
    assert get(port, "/metrics", "POST")[0] == 405
    assert get(port, "/metrics?name=x")[0] == 200
    assert get(port, "/metrics", "HEAD")[2] == ""
    for nonsense in (b"hello\r\n\r\n", b"x" * 20_000):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(nonsense)
            assert connection.recv(100).startswith((b"HTTP/1.0 400", b"HTTP/1.0 431"))


def test_connections_that_say_nothing_do_not_block(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(10)]
    assert get(port)[0] == 200
    for connection in silent:
        connection.close()
    assert get(port)[0] == 200


class Served:
    """A NIC and its metrics, its event loop in a thread of its own."""

    def __init__(self) -> None:
        self.nic = TestNic()
        self.metrics = self.nic.call(
            lambda: MetricsServer(("127.0.0.1", 0), self.nic.host.served, self.nic.host.poller)
        )
        self.port = self.metrics.address[1]

    def connect(self, said: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(said)
        return connection

    def threads(self) -> int:
        return sum("process_request" in thread.name for thread in threading.enumerate())


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.nic.call(made.metrics.close)
    made.nic.close()


def is_over(connection: socket.socket) -> bool:
    """Whether the other end closes, whatever it says before."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def test_connections_that_say_nothing_keep_nobody_out(served: Served) -> None:
    """The one that has been silent longest has to go."""
    silent = [served.connect(b"GET /metr") for _ in range(3 * metrics._MAX_CLIENTS)]
    for _ in range(3):
        assert get(served.port)[0] == 200
    assert served.threads() <= metrics._MAX_CLIENTS
    assert all(is_over(connection) for connection in silent[: metrics._MAX_CLIENTS])
    assert served.nic.device.clock()  # the loop lives
    for connection in silent:
        connection.close()
    assert get(served.port)[0] == 200


def test_slow_readers_and_writers_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.2)
    monkeypatch.setattr(metrics, "_LIFE", 1.0)
    with served.connect(b"GET /metrics HTTP/1.1\r\n") as silent:
        assert is_over(silent)
    with served.connect() as slow:  # always says something, in time
        over = False
        for _ in range(1000):
            try:
                slow.sendall(b"A")
            except ConnectionError:
                over = True
                break
            time.sleep(0.05)
        assert over
    monkeypatch.setattr(metrics._Handler, "timeout", 60)
    monkeypatch.setattr(metrics, "_LIFE", 60.0)
    deaf = [served.connect(b"GET /metrics HTTP/1.1\r\n\r\n") for _ in range(metrics._MAX_CLIENTS - 1)]
    assert get(served.port)[0] == 200
    for connection in deaf:
        connection.close()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nAccept: text/plain;version=" + b"9" * 5000 + b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nAccept: text/plain;version=x.y\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip;q=x\r\n\r\n", b"200"),
        (b"GET /metrics?name[]=nicmodel_link_up HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics?name[]=%ff%00 HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics?" + b"x" * 7000 + b" HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", b"431"),
        (b"A" * 70_000 + b"\r\n\r\n", b"431"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"405"),
        (b"GET\0/metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9999999999.1\r\n\r\n", b"505"),
        (b"GET /%2e%2e/metrics HTTP/1.1\r\n\r\n", b"404"),
        (b"\xff\xfe \x80 HTTP/1.1\r\n\r\n", b"40"),
        (b"\r\n\r\n", b""),
        (b"\n\n", b""),
    ],
)
def test_odd_requests(served: Served, said: bytes, status: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with served.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.0 " + status if status else b"")
    assert get(served.port)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_anything_at_all(served: Served) -> None:
    """No thread and no descriptor is left behind, and a scrape works afterwards."""
    dice = random.Random(7)
    pieces = [
        b"GET",
        b" ",
        b"/metrics",
        b"HTTP/1.1",
        b"\r\n",
        b"\n",
        b"Accept",
        b":",
        b"text/plain",
        b";version=",
        b"\0",
    ]
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(300):
        with served.connect() as connection, contextlib.suppress(OSError):
            for _ in range(dice.randrange(1, 20)):
                connection.sendall(dice.choice([*pieces, dice.randbytes(dice.randrange(1, 2000))]))
            if dice.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1 << 16)
    assert get(served.port)[0] == 200
    for _ in range(600):
        if served.threads() == 0:
            break
        time.sleep(0.05)
    assert served.threads() == 0
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_loop_that_does_not_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scrape is told so, and the next one is answered."""
    monkeypatch.setattr(metrics, "_PATIENCE", 0.2)
    asked, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        asked.set()
        go_on.wait(60)

    stuck = threading.Thread(target=served.nic.call, args=[stand_still])
    stuck.start()
    assert asked.wait(60)
    status, _, text = get(served.port)
    assert (status, text) == (503, "the NICs are too busy to be asked\n")
    go_on.set()
    stuck.join()
    monkeypatch.setattr(metrics, "_PATIENCE", 60.0)
    assert get(served.port)[0] == 200


def test_many_scrapes_at_once_take_few_snapshots(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask, the NICs' loop makes one in a tenth of a second."""
    made: list[int] = []

    def counted(*arguments: Any) -> dict[str, Any]:
        made.append(served.metrics._made)  # when it was begun: this call may come later
        return snapshot(*arguments)

    monkeypatch.setattr(snapshots, "snapshot", counted)
    with ThreadPoolExecutor(8) as pool:
        assert {status for status, _, _ in pool.map(lambda _: get(served.port), range(12))} == {200}
    hasty = [served.connect(b"GET /metrics HTTP/1.1\r\n\r\n") for _ in range(3 * metrics._MAX_CLIENTS)]
    for connection in hasty:
        connection.close()
    assert served.threads() <= metrics._MAX_CLIENTS
    assert get(served.port)[0] == 200
    gaps = [later - earlier for earlier, later in itertools.pairwise(made)]
    assert min(gaps, default=metrics._PAUSE_NS) >= metrics._PAUSE_NS


def test_a_turn_of_the_loop_makes_one_snapshot(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets do not wait for the snapshots of all NICs: there may be many."""
    turns: list[int] = []
    poller = served.nic.host.poller

    def noted(*arguments: Any) -> dict[str, Any]:
        turns.append(poller.turn)
        return snapshot(*arguments)

    monkeypatch.setattr(snapshots, "snapshot", noted)
    served.metrics.nics = [*served.metrics.nics] * 5
    assert len(served.metrics.snapshots()) == 5
    assert len(set(turns)) == 5


def test_it_ends_in_the_midst_of_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def last(*arguments: Any) -> dict[str, Any]:
        served.metrics.close()
        return snapshot(*arguments)

    monkeypatch.setattr(snapshots, "snapshot", last)
    served.metrics.nics = [*served.metrics.nics] * 2
    with pytest.raises(TimeoutError):
        served.metrics.snapshots()
    served.metrics = MetricsServer(("127.0.0.1", 0), [], served.nic.host.poller)


def test_it_ends_while_clients_wait(served: Served) -> None:
    waiting = [served.connect(b"GET /metrics") for _ in range(3)]
    served.nic.call(served.metrics.close)
    assert all(is_over(connection) for connection in waiting)
    with pytest.raises(ConnectionError):
        served.connect()
    with pytest.raises(TimeoutError):
        served.metrics.snapshots()
    served.metrics = MetricsServer(("127.0.0.1", 0), [], served.nic.host.poller)


@pytest.mark.parametrize("address", ["9400", "host", ":9400", "127.0.0.1:", "127.0.0.1:99999"])
def test_a_wrong_address(address: str, tmp_path: Path) -> None:
    assert "is not a host and a port" in refused(tmp_path, address, 2)


def test_an_address_in_use(port: int, tmp_path: Path) -> None:
    said = refused(tmp_path, f"127.0.0.1:{port}", 1)
    assert f"no metrics at 127.0.0.1:{port}: Address already in use" in said


def refused(folder: Path, metrics: str, status: int) -> str:
    """What a server says that does not start."""
    command = [
        sys.executable,
        "-m",
        "nicmodel.cli",
        "serve",
        "--socket",
        str(folder / "nic.sock"),
        "--metrics",
        metrics,
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == status
    return process.stderr
