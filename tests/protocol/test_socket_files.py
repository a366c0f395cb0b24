"""Socket files: what is there already, who starts at the same time, and what is missing to accept anybody."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nicmodel.vfio_user import AddressError, AddressInUse
from nicmodel.vfio_user.listener import ACCEPT_PAUSE, Acceptor, Listener
from nicmodel.vfio_user.poll import Poller

from .conftest import Lab, open_descriptors


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


def leave_dead(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()


def reachable(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    fillers = [os.dup(0) for _ in range(highest - open_descriptors() + 3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


def test_what_lies_beside_it_stays(path: str, tmp_path: Path) -> None:
    """Whatever the name that the socket has while it is set up: it deletes nothing."""
    beside = [f"{path}{ending}" for ending in "~#%+"]
    Path(beside[0]).write_text("precious")
    os.mkdir(beside[1])
    os.symlink("/nonexistent", beside[2])
    leave_dead(beside[3])
    listener = Listener(path)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.sock", *map(os.path.basename, beside)])
    assert Path(beside[0]).read_text() == "precious"
    assert reachable(path)
    listener.close()
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, beside))


def test_what_is_no_socket_stays(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    makers: list[Callable[[], object]] = [
        lambda: os.symlink(victim, path), lambda: os.mkdir(path), lambda: os.mkfifo(path), lambda: Path(path).touch(),
    ]  # fmt: skip
    for make in makers:
        make()
        kind = os.lstat(path).st_mode, os.lstat(path).st_ino
        with pytest.raises(AddressError, match="not a socket"):
            Listener(path)
        assert (os.lstat(path).st_mode, os.lstat(path).st_ino) == kind
        assert len(os.listdir(tmp_path)) == 2
        os.rename(path, f"{tmp_path}/../{os.path.basename(path)}.{stat.S_IFMT(kind[0])}")
    assert victim.read_text() == "precious"


def test_a_socket_of_another_kind_is_not_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(AddressError, match="in the way"):
            Listener(path)
        assert os.path.exists(path)


@pytest.mark.parametrize("target", ["nothing", "dead"])
def test_a_link_to_nothing_is_replaced(path: str, tmp_path: Path, target: str) -> None:
    if target == "dead":
        leave_dead(str(tmp_path / "target"))
    os.symlink(tmp_path / "target", path)
    listener = Listener(path)
    assert not os.path.islink(path) and reachable(path)
    assert os.path.lexists(tmp_path / "target") == (target == "dead")
    listener.close()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_permissions(path: str, umask: int) -> None:
    """What is asked for is had whatever the umask; else the umask decides."""
    before = os.umask(umask)
    try:
        private, public = Listener(path, mode=0o600), Listener(path + "2")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path + "2").st_mode) == 0o777 & ~umask
    private.close()
    public.close()


@pytest.mark.parametrize("dead", [False, True])
def test_of_those_that_start_at_once_one_wins(tmp_path: Path, dead: bool) -> None:
    """Steps: four threads create a listener at one path at the same time, 100 times, over nothing or a dead socket.
    Verify: each time one has it, and can be reached; the others are told; nothing else is left.
    """
    found: Counter[str] = Counter()
    for round_ in range(100):
        path = str(tmp_path / f"{round_}")
        if dead:
            leave_dead(path)
        start = threading.Barrier(4)
        made: list[Listener] = []

        def create(path: str = path, start: threading.Barrier = start, made: list[Listener] = made) -> None:
            start.wait(10)
            try:
                made.append(Listener(path))
            except AddressInUse:
                found["in use"] += 1

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(made) == 1
        assert reachable(path)
        made[0].close()
    assert found == {"in use": 300}
    assert not os.listdir(tmp_path)


def test_errors_are_sentences(tmp_path: Path) -> None:
    for path, code in (
        ("", errno.EINVAL), ("a\0b", errno.EINVAL), (f"{tmp_path}/nowhere/s", errno.ENOENT), ("/proc/s", errno.ENOENT),
    ):  # fmt: skip
        with pytest.raises(AddressError) as refused:
            Listener(path)
        assert refused.value.errno == code
        assert "socket" in str(refused.value)


def test_closing_when_the_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    listener = Listener(str(tmp_path / "folder" / "s"))
    os.unlink(listener.path)
    os.rmdir(tmp_path / "folder")
    listener.close()


def test_accepting_pauses_without_descriptors(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Steps: two connect while nothing can be opened; time goes on; then it can.
    Verify: one attempt and one line of complaint for each pause and spell, no spinning, and both are accepted at last.
    """
    now = 0
    poller = Poller(clock=lambda: now)
    listener = Listener(path)
    accepted: list[socket.socket] = []
    failures: list[int] = []
    acceptor = Acceptor(poller, listener, "it", accepted.append, lambda: failures.append(1))
    acceptor.start()
    acceptor.start()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for client in clients:
        client.connect(path)
    with no_descriptors():
        for pause in range(1, 4):
            turns = 0
            while poller.run_once(0):
                turns += 1
            assert turns <= 2
            assert len(failures) == pause
            now += ACCEPT_PAUSE
    assert len(caplog.records) == 1 and "Too many open files" in caplog.text
    for _ in range(4):
        poller.run_once(0)
    assert len(accepted) == 2
    acceptor.stop()
    acceptor.stop()
    listener.close()
    poller.close()
    for end in (*accepted, *clients):
        end.close()


def test_a_server_without_descriptors_serves_afterwards(lab: Lab) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor, no_descriptors():
        visitor.connect(lab.path)
        lab.until(lambda: lab.server.stats["not_accepted"] > 0)
    assert lab.client().device_info().num_regions == 9
    assert lab.server.stats["not_accepted"] < 50
