"""The commands that look into a running server: `nicmodel serve` as a process, a driver in Python, no guest."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from nicmodel.cli.act import parse_frames
from nicmodel.client.control import Control
from nicmodel.client.report import rate
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.testing.frames import read_capture
from nicmodel.vm.server import NicServer

from .frames import ETHERNET, NIC_MAC, PEER_MAC, tcp, udp

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "observe.md").read_text() + (DOCS / "devmem.md").read_text()
PAGE_COMMANDS = re.findall(r"^ +nicmodel ((?!fault ).* --control .*)$", PAGES, re.MULTILINE)

TO_PORT = 'Ether()/IP(dst="192.0.2.1")/TCP(dport=5201)/("x"*1000)'


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nicmodel.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, status: int = 0) -> str:
    """What a command prints; on stderr if it fails, as it should with another `status`."""
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    assert "Traceback" not in err
    return err if status else out


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    with NicServer(["--mac", NIC_MAC]) as server:
        yield server


@pytest.fixture
def control(server: NicServer) -> str:
    return str(server.control)


@pytest.fixture
def driver(server: NicServer) -> Iterator[Driver]:
    """A driver with four queues, header split and a rule for TCP port 5201 to queue 3."""
    with Driver(str(server.sockets[0])) as driver:
        driver.probe()
        driver.open(rx_queues=4, ring_entries=256, header_split=True)
        driver.add_flow_rule(TCPv4(dst_port=5201), queue=3)
        yield driver


def test_stat(driver: Driver, control: str) -> None:
    run("inject", "--control", control, TO_PORT)
    assert re.search(r"^rx3 +1 +", run("stat", "--control", control), re.MULTILINE)
    [nic] = json.loads(run("stat", "--json", "--control", control))
    assert nic["rx_queues"][3]["frames"] == nic["rules"][0]["hits"] == 1
    assert 1 << 20 < nic["own_memory"] <= nic["peak_memory"]


def test_show(driver: Driver, control: str) -> None:
    text = run("show", "--control", control)
    assert "device status flags  link_up" in text
    rx3 = rf"^rx3 +{driver.rx_block(3)} +{driver.rx[3].completion_ring_address:#x} "
    assert re.search(rx3, text, re.MULTILINE)
    assert "\n     0: 0 1 2 3 0" in text
    assert re.search(r"1023 +TCPV4 +destination_port=5201 +3 +0", text)
    assert json.loads(run("show", "--json", "--control", control))["queues"]["rx3"]["buffer_entries"] == 256


def test_top_once(driver: Driver, control: str) -> None:
    text = run("top", "--once", "--interval", "0.1", "--control", control)
    assert NIC_MAC in text and "link up" in text
    assert re.search(r"^rx3 +0 +0 +0 +2\d\d/256 +0 +0", text, re.MULTILINE)


def test_inject(driver: Driver, control: str, tmp_path: Path) -> None:
    capture = tmp_path / "x.pcap"
    wrpcap(str(capture), [ETHERNET / IP(dst="192.0.2.1") / ICMP(), Ether(tcp(dport=5201))])
    lines = run("inject", "--control", control, TO_PORT, str(capture), udp().hex()).splitlines()
    assert len(lines) == 4
    assert re.fullmatch(
        r"1054 bytes: delivered, rx3 by rule 1023, hash 0x[0-9a-f]{8}; header 54 \+ payload 1000 bytes; completion 0",
        lines[0],
    )
    assert "by table entry" in lines[1]
    assert "rx3 by rule 1023" in lines[2] and lines[2].endswith("completion 1")
    [packet, _] = driver.poll(3)
    assert packet.payload == b"x" * 1000
    assert Ether(packet.frame).dst == NIC_MAC
    result = json.loads(run("inject", "--json", "--control", control, TO_PORT))
    assert result["completions"][0]["packet_length"] == 1000
    run("inject", "--control", control, "00", status=1)


def test_send(tmp_path: Path) -> None:
    """Frames leave by the wire, here a capture; what an expression leaves out is the NIC's address, and broadcast."""
    out = tmp_path / "sent.pcap"
    with NicServer(["--mac", NIC_MAC, "--wire", f"pcap:write={out}"]) as server:
        control = str(server.control)
        said = run("send", "--control", control, 'Ether()/IP(dst="192.0.2.9")/UDP()', udp().hex())
        assert said == "2 of 2 frames sent\n"
        run("link", "down", "--control", control)
        run("send", "--control", control, "00" * 60, status=1)
    first, second = read_capture(str(out))
    assert (
        Ether(first).src == NIC_MAC and Ether(first).dst == "ff:ff:ff:ff:ff:ff" and Ether(first)[IP].dst == "192.0.2.9"
    )
    assert second == udp()


def test_link_and_reset(driver: Driver, control: str) -> None:
    driver.fired(driver.management_vector)
    assert run("link", "down", "--control", control) == "link is down\n"
    assert driver.fired(driver.management_vector) == 1
    assert "link down" in run("top", "--once", "--interval", "0.1", "--control", control)
    assert run("link", "up", "--control", control) == "link is up\n"
    run("reset", "--control", control)
    assert driver.fired(driver.management_vector) == 2
    driver.reset()


def test_trace(server: NicServer, control: str, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    text = start("trace", "--control", control, "--kind", "admin", "-o", str(file), "--count", "7")
    program = start("trace", "--control", control, "--json", "--kind", "register", "--count", "3")
    for process in (text, program):
        assert process.stderr is not None
        assert process.stderr.readline() == "tracing\n"
    with Driver(str(server.sockets[0])) as driver:
        driver.probe()
        assert text.wait(20) == program.wait(20) == 0
    commands = [line.split()[3:5] for line in file.read_text().splitlines()]
    assert commands[1] == ["DESCRIBE_DEVICE", "PASSED"] and len(commands) == 7
    assert program.stdout is not None
    assert [json.loads(line)["value"] for line in program.stdout] == list(b"GVE")


def test_the_pages(driver: Driver, server: NicServer, control: str, tmp_path: Path) -> None:
    """What the pages show works as it stands there, and what they say of one result is true."""
    assert len(PAGE_COMMANDS) == 7
    file = tmp_path / "nic.pcapng"
    places = {"/tmp/nic.ctl": control, "/tmp/nic.pcapng": str(file)}
    words = [[places.get(word, word) for word in shlex.split(line)] for line in PAGE_COMMANDS]
    trace, top, show, inject, capture, link, ledger = words
    watcher = start(*trace, "--count", "1")
    assert watcher.stderr is not None and watcher.stderr.readline() == "tracing\n"
    driver.device_status()
    assert watcher.wait(20) == 0
    run(*top, "--once")
    run(*ledger, "--once")
    run(*show)
    writer = start(*capture, "--count", "1")
    assert writer.stderr is not None and writer.stderr.readline() == "capturing\n"
    [shown] = re.findall(r"^ +(\d+ bytes: delivered, .*)$", PAGES, re.MULTILINE)
    assert run(*inject).strip() == shown
    assert writer.wait(20) == 0 and len(list(read_capture(str(file)))) == 1
    run(*link)
    with Control(control) as connection:
        assert connection.set_link(True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stat"], "Missing option '--control'"),
        (["stat", "--control", "/nonexistent/x"], "no server answers at /nonexistent/x"),
        (["show", "--nic", "nic9"], "there is no NIC 'nic9'"),
        (["inject", "Ether("], "neither hexadecimal, nor a file, nor a scapy expression"),
        (["inject", "[1]"], "not a packet"),
        (["inject", __file__], "is not a capture file"),
        (["inject"], "Missing argument"),
        (["send"], "Missing argument"),
        (["send", "--nic", "nic9", "00"], "there is no NIC 'nic9'"),
        (["link", "sideways"], "'sideways' is not one of"),
        (["trace", "--kind", "gossip"], "no events are of kind 'gossip'"),
        (["trace", "--queue", "rx63"], "there is no queue 'rx63'"),
    ],
)
def test_wrong_words_get_one_sentence(arguments: list[str], sentence: str, control: str) -> None:
    if arguments[0] != "stat":
        arguments = [*arguments, "--control", control]
    status = 1 if "NIC" in sentence or sentence.startswith(("no ", "there")) else 2
    assert sentence in run(*arguments, status=status)


def test_which_of_two_nics() -> None:
    with NicServer(["--wire", "link"], sockets=2) as server:
        control = str(server.control)
        assert "which NIC? There are nic0, nic1" in run("link", "down", "--control", control, status=1)
        assert run("link", "down", "--nic", "nic1", "--control", control) == "link is down\n"
        assert [nic["link_up"] for nic in server.report()] == [True, False]
        assert run("stat", "--control", control).count("wire link:") == 2


def test_a_trace_outlives_the_driver_but_not_the_server() -> None:
    with NicServer() as server:
        trace = start("trace", "--control", str(server.control), "--kind", "client")
        assert trace.stderr is not None and trace.stderr.readline() == "tracing\n"
        for _ in range(2):
            Driver(str(server.sockets[0])).disconnect()
        assert trace.stdout is not None
        lines = [trace.stdout.readline() for _ in range(4)]
    assert trace.wait(60) == 0
    assert [line.split()[3] for line in [*lines, *trace.stdout]] == ["attach", "detach"] * 2


def test_frames_of_an_expression() -> None:
    assert parse_frames("00:11 22", NIC_MAC) == [b"\0\x11\x22"]
    first, second = parse_frames("Ether()/IP(dst=['192.0.2.1', '192.0.2.2'])", NIC_MAC)
    assert Ether(first).dst == NIC_MAC and Ether(second)[IP].dst == "192.0.2.2"
    [own] = parse_frames(f"Ether(src='{PEER_MAC}', dst='ff:ff:ff:ff:ff:ff')/ARP()", NIC_MAC)
    assert own[:12] == b"\xff" * 6 + bytes.fromhex(PEER_MAC.replace(":", ""))
    with pytest.raises(click.BadParameter, match="not a packet"):
        parse_frames("[b'x']", NIC_MAC)


def test_rates() -> None:
    assert [rate(count, 2.0) for count in (0, 3, 1998, 1999.9, 2_500_000, 4e12)] == [
        "0", "1.5", "999", "1k", "1.25M", "2e+03G",
    ]  # fmt: skip
