"""`nicmodel serve` as a service: sockets with the permissions that were asked for, or handed over as systemd does it.

No systemd is needed: the parent here does what sd_listen_fds(3) and sd_notify(3) say.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from nicmodel.cli.serve import serve
from nicmodel.client.control import Control
from nicmodel.vfio_user import Client

_SERVE = [sys.executable, "-m", "nicmodel.cli", "serve"]
_LIMIT = 120


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    made.listen()
    return made


def handed_over(
    sockets: Sequence[socket.socket], words: Sequence[str] = (), *, names: str | None = None, **environment: str
) -> subprocess.Popen[str]:
    """A server that gets `sockets` as descriptors from 3 on, as systemd starts it."""
    # The shell is the process that becomes the server: only it knows the number to put into LISTEN_PID.
    moves = " ".join(f"{number}<&{one.fileno()}" for number, one in enumerate(sockets, 3))
    variables = {"LISTEN_FDS": str(len(sockets)), **({} if names is None else {"LISTEN_FDNAMES": names}), **environment}
    return subprocess.Popen(
        ["bash", "-c", f'LISTEN_PID=${{LISTEN_PID:-$$}} exec "$@" {moves}', "bash", *_SERVE, *words],
        env=os.environ | variables, pass_fds=[one.fileno() for one in sockets],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@contextmanager
def running(server: subprocess.Popen[str]) -> Iterator[str]:
    """What it says until it is ready; it ends well."""
    assert server.stdout is not None
    said = ""
    with server:
        try:
            for line in server.stdout:
                said += line
                if line == "ready\n":
                    break
            assert said.endswith("ready\n"), said
            yield said
        finally:
            server.send_signal(signal.SIGTERM)
            said = server.communicate(timeout=_LIMIT)[0]
    assert server.returncode == 0, said


def refused(server: subprocess.Popen[str]) -> str:
    """What it says when it does not start."""
    said = server.communicate(timeout=_LIMIT)[0]
    assert server.returncode not in (0, None) and "Traceback" not in said, said
    return said


@pytest.mark.parametrize("abstract", [False, True])
def test_sockets_that_systemd_opens(tmp_path: Path, abstract: bool) -> None:
    """Steps: hand over sockets of two NICs and of control, out of order. Verify: clients are served; systemd is told
    that the service is ready and, at its end, that it stops; the files stay, since systemd listens on.
    """
    paths = [tmp_path / name for name in ("one", "control", "two")]
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = f"@nicmodel-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    told.bind(address.replace("@", "\0"))
    told.settimeout(_LIMIT)
    sockets = [listening(path) for path in paths]
    server = handed_over(sockets, ["--wire", "link"], names="nic:control:nic", NOTIFY_SOCKET=address)
    with running(server) as said:
        assert told.recv(4096).decode().splitlines()[0] == "READY=1"
        assert f"nic0: {paths[0]}" not in said and f"at {paths[0]}, wire link" in said
        for path in (paths[0], paths[2]):
            with Client(str(path)) as client:
                assert client.region_read(7, 0, 4) == bytes.fromhex("e01a4200")
        with Control(str(paths[1])) as control:
            assert [nic["name"] for nic in control.stat()] == ["nic0", "nic1"]
    assert told.recv(4096) == b"STOPPING=1"
    assert all(path.exists() for path in paths)
    for one in (*sockets, told):
        one.close()


def test_who_connects_before_the_service_runs_is_served(tmp_path: Path) -> None:
    """As a QEMU does whose connection starts the service."""
    with listening(tmp_path / "nic") as made, socket.socket(socket.AF_UNIX) as early:
        early.connect(str(tmp_path / "nic"))
        early.close()
        with running(handed_over([made])), Client(str(tmp_path / "nic")) as client:
            assert client.device_info().num_regions == 9


def test_what_systemd_may_have_wrong(tmp_path: Path) -> None:
    made = listening(tmp_path / "nic")
    assert "handed over by systemd" in refused(handed_over([made], ["--socket", str(tmp_path / "other")]))
    assert "handed over by systemd" in refused(handed_over([made], ["--socket-mode", "660"]))
    assert "where is QEMU to connect?" in refused(handed_over([made], names="control"))
    for count in ("x", "-1", "99999999999999999999"):
        assert "LISTEN_FDS is" in refused(handed_over([made], LISTEN_FDS=count))
    assert "Descriptor 4 is no" in refused(handed_over([made], LISTEN_FDS="9"))
    # Another process's sockets, in an environment that was inherited.
    assert "where is QEMU to connect?" in refused(handed_over([made], LISTEN_PID="1"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        assert "not a listening UNIX stream socket" in refused(handed_over([datagram]))
    made.close()


def test_a_manager_that_is_gone_is_no_reason_to_end(tmp_path: Path) -> None:
    with listening(tmp_path / "nic") as made, running(handed_over([made], NOTIFY_SOCKET=str(tmp_path / "gone"))):
        pass


def test_sockets_for_a_group(tmp_path: Path) -> None:
    group = os.getegid()
    words = ["--socket", f"{tmp_path}/nic", "--socket-group", str(group), "--control", f"{tmp_path}/control"]
    with running(handed_over([], words)):
        assert stat.S_IMODE((tmp_path / "nic").stat().st_mode) == 0o660
        assert (tmp_path / "nic").stat().st_gid == group
        assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o600
    with running(handed_over([], [*words, "--socket-mode", "606", "--control-mode", "620"])):
        assert stat.S_IMODE((tmp_path / "nic").stat().st_mode) == 0o606
        assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o620


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--socket-mode", "888"], "is no mode of a file"),
        (["--socket-mode", "1777"], "is no mode of a file"),
        (["--socket-mode", "-1"], "is no mode of a file"),
        (["--socket-mode", "444"], "nobody could connect"),
        (["--socket-group", "nosuchgroup"], "no group 'nosuchgroup'"),
        (["--socket-group", "-1"], "no group '-1'"),
        (["--socket-group", "4294967295"], "no group '4294967295'"),
        (["--control-mode", "660"], "want --control"),
    ],
)
def test_permissions_that_make_no_sense(words: list[str], complaint: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(serve, ["--socket", f"{tmp_path}/nic", *words])
    assert result.exit_code == 2 and complaint in " ".join(result.output.split())
