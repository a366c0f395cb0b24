"""Who may connect to a server's socket, and sockets that somebody else has opened."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nicmodel.vfio_user import AddressError, Client, Device, Listener, Poller, Server


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


@pytest.fixture
def umask() -> Iterator[None]:
    """Back to what it was."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def permissions(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_a_mode_is_what_was_said_whatever_the_umask(path: str, mode: int, mask: int) -> None:
    os.umask(mask)
    listener = Listener(path, mode=mode)
    assert permissions(path) == mode
    listener.close()


@pytest.mark.usefixtures("umask")
def test_without_a_mode_the_umask_decides(path: str) -> None:
    os.umask(0o027)
    listener = Listener(path)
    assert permissions(path) == 0o750
    listener.close()


def other_group() -> int:
    """A group that this process may give a file to, and that is not its own."""
    if os.geteuid() == 0:
        return os.getegid() + 4711
    for group in os.getgroups():
        if group != os.getegid():
            return group
    pytest.skip("only root, or a member of a second group, can give a file to another group")


def test_a_group_may_connect_unless_a_mode_says_otherwise(path: str) -> None:
    group = other_group()
    for mode, expected in ((None, 0o660), (0o620, 0o620)):
        listener = Listener(path, mode=mode, group=group)
        assert (permissions(path), os.stat(path).st_gid) == (expected, group)
        listener.close()


def test_it_is_open_to_nobody_else_at_any_moment(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps: look at the file and at the socket after each system call that touches them.
    Verify: until the file has its group and mode, only its owner may connect, and nobody can before that: it does not
    listen yet, and is not at its path.
    """
    seen: list[tuple[str, int, int]] = []

    def watched(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            for file in os.listdir(os.path.dirname(path)):
                status = os.stat(os.path.join(os.path.dirname(path), file))
                seen.append((name, stat.S_IMODE(status.st_mode), status.st_gid))
            return result

        monkeypatch.setattr(module, name, call)

    class Watched(socket.socket):
        def bind(self, address: Any, /) -> None:
            super().bind(address)
            status = os.stat(address)
            seen.append(("bind", stat.S_IMODE(status.st_mode), status.st_gid))

        def listen(self, backlog: int = 0, /) -> None:
            assert not os.path.exists(path)
            super().listen(backlog)
            seen.append(("listen", -1, -1))

    group = other_group()
    monkeypatch.setattr(socket, "socket", Watched)
    for name in ("chown", "chmod"):
        watched(os, name)
    before = os.umask(0)
    try:
        Listener(path, mode=0o666, group=group).close()
    finally:
        os.umask(before)
    own = os.getegid()
    assert seen[0] == ("bind", 0o600, own)
    assert [entry for entry in seen if entry[2] == own] == [("bind", 0o600, own)]
    assert seen[1:3] == [("chown", 0o600, group), ("chmod", 0o666, group)]
    assert seen.index(("listen", -1, -1)) > 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give a file to any group")
def test_a_group_that_is_not_ones_own(path: str) -> None:
    with pytest.raises(AddressError, match="takes root, or to be a member"):
        Listener(path, group=max(os.getgroups(), default=0) + 4711)
    assert os.listdir(os.path.dirname(path)) == []


def test_a_group_that_is_refused_leaves_nothing_behind(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(AddressError) as refused:
        Listener(path, group=4711)
    assert "to give it to group 4711 takes root, or to be a member of that group" in str(refused.value.strerror)
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("abstract", [False, True])
def test_a_socket_that_another_has_opened_is_served_and_stays(path: str, abstract: bool) -> None:
    address = f"\0nicmodel-test-{os.getpid()}" if abstract else path
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(address)
    made.listen()
    listener = Listener.adopt(made.detach())
    assert listener.path == ("@" + address[1:] if abstract else path)
    assert not os.get_inheritable(listener.fileno()) and not os.get_blocking(listener.fileno())
    poller = Poller()
    with Server(listener, Device(), poller=poller) as server:
        assert server.path == listener.path
        loop = threading.Thread(target=poller.serve_forever)
        loop.start()
        try:
            if not abstract:
                with Client(path) as client:
                    assert client.device_info().num_regions == 9
        finally:
            poller.stop()
            loop.join()
    assert listener.fileno() == -1
    assert abstract or os.path.exists(path)
    poller.close()


def test_what_cannot_be_adopted(path: str) -> None:
    """It is refused by a sentence, and not closed: it may be somebody's."""
    unbound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    internet = socket.create_server(("127.0.0.1", 0))
    file = os.open(os.path.dirname(path), os.O_RDONLY)
    for fd in (unbound.fileno(), datagram.fileno(), internet.fileno(), file):
        with pytest.raises(AddressError) as refused:
            Listener.adopt(fd)
        assert f"Descriptor {fd} is" in str(refused.value.strerror)
        os.fstat(fd)
    for one in (unbound, datagram, internet):
        one.close()
    os.close(file)
    with pytest.raises(AddressError, match="is no socket"):
        Listener.adopt(file)
