"""The Prometheus endpoint, read by Prometheus' own parser over a real connection."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nicmodel.observe.metrics import CONTENT_TYPE, exposition
from nicmodel.observe.snapshot import snapshot
from nicmodel.testing.driver import Driver
from nicmodel.testing.flows import TCPv4
from nicmodel.testing.loopback import Loopback
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
    found = snapshot(lab.nic) | {"name": 'a"b\\c\nd'}
    assert ("nicmodel_link_up", frozenset({("nic", 'a"b\\c\nd')})) in parse(exposition([found]))


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
    assert (status, kind) == (200, CONTENT_TYPE)
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
            assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_connections_that_say_nothing_do_not_block(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(10)]
    assert get(port)[0] == 200
    for connection in silent:
        connection.close()
    assert get(port)[0] == 200


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
