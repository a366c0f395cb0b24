"""`nicmodel bringup` against `nicmodel serve`, a driver in Python, no guest; and the page that tells of it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from nicmodel.client.bringup import show
from nicmodel.gvnic import registers as r
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.vm.server import NicServer

PAGE = (Path(__file__).parents[2] / "docs" / "bringup.md").read_text()


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    with NicServer(["--check", "--wire", "none", "--wire", "none"], sockets=2) as server:
        yield server


@pytest.fixture
def driver(server: NicServer) -> Iterator[Driver]:
    with Driver(str(server.sockets[1])) as driver:
        yield driver


def run(server: NicServer, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "nicmodel.cli", "bringup", "--control", str(server.control), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"COLUMNS": "100", "PATH": "/bin"})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr if status else done.stdout


def test_a_driver_that_is_stuck(server: NicServer, driver: Driver) -> None:
    driver.probe()
    driver.registers.write(r.MAX_RX_QUEUES, 1)  # which nobody may
    driver.device_status()
    words = " ".join(run(server, "--nic", "nic1").split())
    assert "reached device resources configured" in words and "> HERE transmit queue created" in words
    assert "waits for the admin command CREATE_TX_QUEUE (0x5), handed over by a write of adminq_doorbell" in words
    assert re.search(r"nicmodel/gvnic/testing/driver\.py:\d+ See docs/datasheet/admin\.md#create_tx_queue", words)
    assert "rule REG-002, device: max_rx_queues is written" in words
    found = json.loads(run(server, "--nic", "nic1", "--json"))
    assert found["at_work"] and found["lives"][0]["stands"] == "tx_queue"
    untouched = " ".join(run(server, "--nic", "nic0").split())
    assert "no client, driver's life 1: no register written yet" in untouched


def test_after_the_end(server: NicServer, driver: Driver) -> None:
    """The life before is there in a line, and whole if it is asked for by its number."""
    driver.probe()
    driver.open()
    driver.remove()
    first = json.loads(run(server, "--nic", "nic1", "--json"))["lives"][0]
    assert "the driver released the admin queue" in run(server, "--nic", "nic1")
    driver.setup_adminq()
    driver.device_status()
    said = run(server, "--nic", "nic1")
    number = first["number"]
    assert re.search(rf"^Life {number} did \d+ of \d+ steps and stood at: ", said, re.MULTILINE)
    assert f"driver's life {number} " in run(server, "--nic", "nic1", "--life", str(number))
    assert "life 9999 is not remembered" in run(server, "--nic", "nic1", "--life", "9999", status=2)


def test_follow(server: NicServer, driver: Driver) -> None:
    arguments = ["--control", str(server.control), "--nic", "nic1", "--follow", "--interval", "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nicmodel.cli", "bringup", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert "driver's life" in process.stdout.readline()
        driver.probe()
        lines: list[str] = []
        while not lines or "waits for the admin command CREATE_TX_QUEUE" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        assert any("admin queue set up: 64 slots at " in line for line in lines)
    finally:
        process.terminate()
        process.wait(60)


def test_words_that_contradict_each_other(server: NicServer) -> None:
    assert "leave out --life" in run(server, "--follow", "--life", "1", status=2)
    assert "which NIC? There are nic0, nic1" in run(server, status=1)


def test_the_page_shows_what_is_printed(make_lab: Callable[..., Loopback]) -> None:
    """The example: a driver that takes the index of a doorbell for its offset in bytes."""
    lab = make_lab(queues=2)
    driver = lab.driver

    def pass_time(_: object) -> None:
        lab.clock.now += 40_000

    lab.nic.diagnostics.watch_control(pass_time)
    driver.probe()
    lab.advance(1_000_000_000)
    queue = driver.rx[0] = driver.make_rx(0, RxConfig(entries=256))
    driver.tx[0] = driver.make_tx(0, 256)
    driver.admin_batch([driver.tx[0].create_command()])
    driver.admin_batch([queue.create_command()])
    driver.doorbells.ring = lambda index, value: driver.client.region_write(  # type: ignore[method-assign]
        Bar.DOORBELLS, index, value.to_bytes(4, "little"), posted=True
    )
    queue._ring_doorbell = driver.doorbells.ring
    queue.post()
    lab.run()
    lab.advance(2_000_000_000)
    report = lab.call(lab.host.ladders["nic"].report)
    report["client"], report["nic"] = "mydriver[4711]", "nic0"
    file = io.StringIO()
    show(Console(file=file, width=100, highlight=False, markup=False, emoji=False), report)
    printed = "\n".join(line.rstrip() for line in file.getvalue().splitlines())
    example = re.search(r"<!-- printed -->\n\n((?:    .*\n|\n)+)", PAGE)
    assert example is not None
    # Lines of the source move.
    assert _without_lines(textwrap.dedent(example[1]).strip("\n")) == _without_lines(printed), printed


def _without_lines(text: str) -> str:
    return re.sub(r"(\.py):\d+", r"\1:N", text)
