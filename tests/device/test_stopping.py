"""How commands and servers end: by signals, at a full disk, and without a reader."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from nicmodel.client.control import Control
from nicmodel.vm.server import NicServer

LIMIT = 60
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module", autouse=True)
def hangup_is_not_ignored() -> Iterator[None]:
    """By what is started here, even if the tests run under nohup(1)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    with NicServer() as server:
        yield server


@contextlib.contextmanager
def running(*arguments: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A command, which is gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nicmodel.cli", *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_commands_that_go_on_until_they_are_stopped(server: NicServer, number: signal.Signals, tmp_path: Path) -> None:
    """Verify: each ends with status 0, without a word too many, and what was captured is there."""
    control = str(server.control)
    file = tmp_path / "x.pcapng"
    terminal, ours = os.openpty()
    with running("capture", "--control", control, "-w", str(file)) as capture, \
         running("trace", "--control", control, "-o", str(tmp_path / "trace")) as trace, \
         running("top", "--control", control, "--interval", "0.1", stdout=ours) as top, \
         running("ledger", "--control", control, "--interval", "86400", stdout=ours) as ledger:  # fmt: skip
        for process, word in ((capture, "capturing\n"), (trace, "tracing\n")):
            assert process.stderr is not None and process.stderr.readline() == word
        with Control(control) as connection:
            connection.send([b"\xff" * 60] * 3)
            until(lambda: file.read_bytes().count(b"\xff" * 60) == 3)
        screen = b""
        while screen.count(b"\x1b[?1049h") < 2:  # both have taken it
            assert select.select([terminal], [], [], LIMIT)[0]
            screen += os.read(terminal, 4096)
        for process in (capture, trace, top, ledger):
            process.send_signal(number)
        for process in (capture, trace, top, ledger):
            assert process.wait(LIMIT) == 0
            assert process.stderr is not None
            said = process.stderr.read()
            assert said == ("3 frames\n" if process is capture else "")
    os.close(terminal)
    os.close(ours)
    with RawPcapNgReader(str(file)) as reader:
        assert [frame for frame, _ in reader] == [b"\xff" * 60] * 3


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("arguments", [["stat"], ["inject", "ff" * 60], ["trace"], ["capture", "-w", "-"]])
def test_a_server_that_says_nothing(tmp_path: Path, arguments: list[str], number: signal.Signals) -> None:
    """A command that waits for it ends at once, with the status that a shell gives to the signal; trace shows what has
    happened until it is stopped, which is nothing.
    """
    path = str(tmp_path / "ctl")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        silent.settimeout(LIMIT)
        with running(arguments[0], "--control", path, *arguments[1:]) as process:
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(LIMIT)
                assert connection.recv(1)  # it has asked
                process.send_signal(number)
                assert process.wait(LIMIT) == (0 if arguments == ["trace"] else 128 + number)
                assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_one_that_is_ignored(server: NicServer) -> None:
    """SIGHUP, under nohup(1); Ctrl-C of a shell's background command is for that as well."""
    with running(
        "trace", "--control", str(server.control), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as process:
        assert process.stderr is not None and process.stderr.readline() == "tracing\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("command", [["capture", "-w", "-"], ["trace", "--json"]])
def test_a_reader_that_does_not_read(server: NicServer, command: list[str]) -> None:
    """The command waits for it in write(2) when it is stopped, and does not wait at its end."""
    read_end, write_end = os.pipe()
    with running(command[0], "--control", str(server.control), *command[1:], stdout=write_end) as process:
        os.close(write_end)
        assert process.stderr is not None and process.stderr.readline() in ("capturing\n", "tracing\n")
        with Control(server.control) as control:
            for _ in range(100):
                control.send([b"\xff" * 1500] * 10)
                control.set_link(False)
                control.set_link(True)
                with open(f"/proc/{process.pid}/wchan") as file:
                    if "pipe" in file.read():
                        break
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    os.close(read_end)


def test_capture_without_room(server: NicServer, tmp_path: Path) -> None:
    """The file ends with the last frame that fits, and the sentence says how many there are."""
    file = tmp_path / "x.pcapng"
    with running(
        "capture", "--control", str(server.control), "-w", str(file),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stderr.readline() == "capturing\n"
        with Control(server.control) as control:
            control.send([b"\xff" * 1000] * 10)
        assert process.wait(LIMIT) == 1
        assert process.stderr.read() == f"Error: {file}: File too large; 4 frames were written before\n"
    with RawPcapNgReader(str(file)) as reader:
        assert [len(frame) for frame, _ in reader] == [1000] * 4


# ---------------------------------------------------------------- the server


@contextlib.contextmanager
def serving(tmp_path: Path, *arguments: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A server that is ready."""
    where = ["--socket", str(tmp_path / "nic"), "--control", str(tmp_path / "ctl")]
    with running("serve", *where, *arguments, **options) as process:
        if process.stdout is not None:
            for line in process.stdout:
                if line == "ready\n":
                    break
        yield process


def failed_reports(tmp_path: Path) -> int:
    with Control(tmp_path / "ctl") as control:
        (nic,) = control.stat()
        return int(nic["events"].get("reports_failed", 0))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_server_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, "--report", str(tmp_path / "report")) as process:
        process.send_signal(signal.SIGUSR1)
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(LIMIT) == 0
        assert os.listdir(tmp_path) == ["report"]
        assert json.loads((tmp_path / "report").read_text())[0]["name"] == "nic0"


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    """Steps: SIGUSR1 many times when the file cannot be as large as the report; then it can.
    Verify: all are counted, one is said, no half report is left, the server goes on, and the next report is whole.
    """
    report = tmp_path / "report"
    with serving(tmp_path, "--report", str(report)) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for number in range(20):
            process.send_signal(signal.SIGUSR1)
            until(lambda number=number: failed_reports(tmp_path) > number)  # type: ignore[misc]
        assert not [name for name in os.listdir(tmp_path) if name.startswith("report")]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for _ in range(300):
            process.send_signal(signal.SIGUSR1)
        until(report.exists)
        assert json.loads(report.read_text())[0]["events"]["reports_failed"] == 20
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        assert process.stderr is not None
        assert process.stderr.read() == f"no report: {report}: File too large\n"


def test_a_last_report_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "soon gone"
    folder.mkdir()
    with serving(tmp_path, "--report", str(folder / "report")) as process:
        folder.rmdir()
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 1
        assert os.listdir(tmp_path) == []


def test_printed_reports_without_a_reader(tmp_path: Path) -> None:
    """One that has gone has enough; one that does not read is waited for once."""
    with serving(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGUSR1)
        until(lambda: failed_reports(tmp_path) == 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        process.stdout = None

    read_end, write_end = os.pipe()
    with serving(tmp_path, stdout=write_end) as process:
        os.close(write_end)
        said = b""
        while b"ready\n" not in said:
            said += os.read(read_end, 1 << 16)
        for _ in range(2000):
            if failed_reports(tmp_path) > 3:
                break
            process.send_signal(signal.SIGUSR1)
        assert failed_reports(tmp_path) > 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 1
        assert not os.path.exists(tmp_path / "nic")
    os.close(read_end)


def test_control_without_descriptors(tmp_path: Path) -> None:
    """Steps: more clients than there are descriptors connect to the control socket; then they leave.
    Verify: the server uses next to no processor time meanwhile, says so once, and answers afterwards.
    """
    with serving(tmp_path) as process:
        used = len(os.listdir(f"/proc/{process.pid}/fd"))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 2, 4096))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(6)]
        for client in clients:
            client.connect(str(tmp_path / "ctl"))

        def switches() -> int:
            with open(f"/proc/{process.pid}/status") as file:
                return int(file.read().split("voluntary_ctxt_switches:")[1].split()[0])

        time.sleep(0.5)
        before = switches()
        time.sleep(1.0)
        assert switches() - before < 50
        for client in clients:
            client.close()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        assert failed_reports(tmp_path) == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        assert process.stderr is not None
        assert process.stderr.read().count("nobody can be accepted") == 1
