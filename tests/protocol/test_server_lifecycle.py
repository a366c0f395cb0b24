"""The socket, the coming and going of clients, and what is left behind: nothing."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nicmodel.vfio_user import AddressError, AddressInUse, Client, Command, Device, DmaFault, PciIrq, Poller, Server
from nicmodel.vfio_user.protocol import HEADER

from .conftest import PAGE, Lab, Memory, Recorder, mappings_of, open_descriptors


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


@pytest.fixture
def poller() -> Iterator[Poller]:
    created = Poller()
    yield created
    created.close()


def fail(*arguments: object) -> None:
    raise ZeroDivisionError("a bug in the device")


def test_socket_appears_and_disappears(path: str, poller: Poller) -> None:
    before = open_descriptors()
    server = Server(path, Device(), poller=poller)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    server.close()
    server.close()
    assert not os.path.exists(path)
    assert open_descriptors() == before


def test_a_client_with_unread_messages_sees_an_orderly_end(path: str, poller: Poller) -> None:
    """Not a reset connection, at which QEMU 11.1 aborts."""
    server = Server(path, Device(), poller=poller)
    loop = threading.Thread(target=poller.serve_forever)
    loop.start()
    client = Client(path)
    poller.stop()
    loop.join()
    client.send(Command.DEVICE_GET_INFO, bytes(16))
    server.close()
    with socket.socket(fileno=os.dup(client.fileno())) as end:
        assert end.recv(1) == b""
    client.close()


def test_socket_of_a_dead_server_is_replaced(path: str, poller: Poller) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    Path(path + "~").touch()  # and what one leaves that dies while it starts
    with Server(path, Device(), poller=poller), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)


def test_living_server_is_left_alone(lab: Lab, client: Client) -> None:
    before = open_descriptors()
    with pytest.raises(AddressInUse) as refused:
        Server(lab.path, Device(), poller=lab.poller)
    assert refused.value.strerror == f"Another server is listening at {lab.path}."
    assert open_descriptors() == before
    assert client.device_info().num_regions == 9


def test_what_a_client_needed_is_freed_as_it_goes(lab: Lab) -> None:
    """Not when the garbage collector comes by: a client's buffer is larger than all else that the server has of it."""

    def buffers() -> int:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return sum("/dev/zero" in line for line in maps)  # anonymous memory of mmap(2)'s MAP_SHARED

    gc.disable()
    try:
        before = buffers()
        for _ in range(10):
            with Client(lab.path) as one:
                one.device_info()
                assert buffers() > before
        lab.idle()
        assert buffers() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("length", [107, 200])
def test_path_too_long(tmp_path: Path, poller: Poller, length: int) -> None:
    path = str(tmp_path / "x").ljust(length, "x")
    with pytest.raises(AddressError) as refused:
        Server(path, Device(), poller=poller)
    assert refused.value.errno == errno.ENAMETOOLONG
    assert "The path of the socket may have 106 bytes" in str(refused.value)


def test_longest_path(tmp_path: Path, poller: Poller) -> None:
    with (
        Server(str(tmp_path / "x").ljust(106, "x"), Device(), poller=poller) as server,
        socket.socket(socket.AF_UNIX) as probe,
    ):
        probe.connect(server.path)


def test_path_that_cannot_be(tmp_path: Path, poller: Poller) -> None:
    (tmp_path / "file").write_text("precious")
    for path, code in ((tmp_path / "file", errno.EEXIST), (tmp_path / "nowhere" / "s", errno.ENOENT)):
        with pytest.raises(AddressError) as refused:
            Server(str(path), Device(), poller=poller)
        assert refused.value.errno == code
        assert str(path) in str(refused.value)
    assert (tmp_path / "file").read_text() == "precious"


def test_socket_of_a_successor_is_not_removed(path: str, poller: Poller) -> None:
    first = Server(path, Device(), poller=poller)
    os.rename(path, path + ".old")
    second = Server(path, Device(), poller=poller)
    first.close()
    assert os.path.exists(path)
    second.close()
    assert not os.path.exists(path)


def test_everything_of_a_client_goes_with_it(lab: Lab) -> None:
    memory = Memory(PAGE, "goes-with-it")
    eventfd = os.eventfd(0)
    before, mapped = open_descriptors(), mappings_of("goes-with-it")
    for round_ in range(1, 4):
        with lab.client() as client:
            client.dma_map(0, PAGE, memory.fd)
            client.set_irqs(PciIrq.MSIX, 0, [eventfd] * 8)
            table, irqs = lab.link.dma, lab.link.irqs[PciIrq.MSIX]
        lab.settle()
        assert len(lab.calls("detach")) == round_
        assert open_descriptors() == before
        assert mappings_of("goes-with-it") == mapped
        assert len(table.regions) == 0
        assert not irqs.configured(0)
    assert lab.server.stats["clients"] == 3
    os.close(eventfd)
    memory.close()


def test_memory_is_still_there_while_the_device_detaches(lab: Lab, memory: Memory) -> None:
    seen: list[bytes] = []
    detach = lab.device.detach

    def last_look() -> None:
        seen.append(lab.link.dma.read(0, 4))
        detach()

    lab.device.detach = last_look  # type: ignore[method-assign]
    memory.bytes[:4] = b"last"
    with lab.client() as client:
        client.dma_map(0, PAGE, memory.fd)
    lab.until(lambda: bool(seen))
    assert seen == [b"last"]


def test_second_client_waits_for_the_first_to_leave(lab: Lab, client: Client) -> None:
    second = lab.client(negotiate=False)
    answered: list[Any] = []
    thread = threading.Thread(target=lambda: answered.append(second.negotiate()))
    thread.start()
    client.device_info()
    time.sleep(0.02)
    assert not answered
    client.close()
    thread.join()
    assert answered == [(0, 1)]
    assert [call[0] for call in lab.device.calls if call[0] in ("attach", "detach")] == ["attach", "detach", "attach"]


def test_client_without_a_word(lab: Lab) -> None:
    for data in (b"", HEADER.pack(1, 1, 100, 0, 0)):
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(lab.path)
            visitor.sendall(data)
    assert lab.client().device_info().num_regions == 9
    assert lab.server.stats["clients"] == 1
    assert lab.calls("attach") == [("attach",)]


def test_killed_client(lab: Lab) -> None:
    code = (
        "import sys, time; from nicmodel.vfio_user import Client\n"
        "client = Client(sys.argv[1]); client.device_info(); print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, lab.path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        assert f"[{process.pid}]" in lab.link.name
        process.send_signal(signal.SIGKILL)
    lab.until(lambda: len(lab.calls("detach")) == 1)
    assert lab.client().device_info().num_regions == 9


def test_device_that_fails_to_attach(lab: Lab) -> None:
    attach = lab.device.attach
    lab.device.attach = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(OSError) as refused:
        lab.client()
    assert refused.value.errno == errno.EIO
    lab.device.attach = attach  # type: ignore[method-assign]
    assert lab.client().device_info().num_regions == 9
    assert not lab.calls("detach")


def test_device_that_fails_to_detach_or_to_work(lab: Lab) -> None:
    lab.device.messages_read = fail  # type: ignore[method-assign]
    lab.device.detach = fail  # type: ignore[method-assign]
    before = open_descriptors()
    for _ in range(2):
        with lab.client() as client:
            assert client.device_info().num_regions == 9
        lab.settle()
    assert open_descriptors() == before


def test_device_that_fails_to_let_memory_go(lab: Lab, client: Client) -> None:
    memory = Memory(PAGE, "held-on-to")
    mapped = mappings_of("held-on-to")
    client.dma_map(0, PAGE, memory.fd)
    lab.device.before_unmap = fail  # type: ignore[assignment, method-assign]
    lab.device.dma_changed = fail  # type: ignore[method-assign]
    client.dma_unmap(0, PAGE)
    assert mappings_of("held-on-to") == mapped
    memory.close()


def test_closing_the_server_drops_its_client(path: str, poller: Poller) -> None:
    device = Recorder()
    server = Server(path, device, poller=poller)
    thread = threading.Thread(target=poller.serve_forever)
    thread.start()
    with Client(path) as client:
        poller.stop()
        thread.join()
        server.close()
        assert client.closed_by_server()
    assert ("detach",) in device.calls


def test_device_may_close_its_server(lab: Lab, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    lab.device.on_write = lambda link: lab.server.close()
    with pytest.raises(ConnectionError):
        client.region_write(0, 0, b"bye")
    lab.settle()
    assert lab.calls("detach") == [("detach",)]
    assert not caplog.records


def test_trace_tells_what_happens(lab: Lab, client: Client, memory: Memory) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    lab.server.on_trace = lambda event, **fields: events.append((event, fields))
    client.dma_map(0x1000, PAGE, memory.fd)
    client.region_write(0, 8, b"ab", posted=True)
    client.region_read(0, 8, 2)
    client.disable_irqs(2)
    client.reset()
    with pytest.raises(OSError):
        client.region_read(1, 0, 1)
    client.dma_unmap(0x1000, PAGE)
    with pytest.raises(DmaFault):
        lab.run(client, lambda link: link.dma.read(0, 1))
    client.close()
    lab.until(lambda: events[-1][0] == "detach")
    assert [event for event, _ in events] == [
        "dma_map",
        "region_write",
        "region_read",
        "set_irqs",
        "reset",
        "error",
        "dma_unmap",
        "region_write",
        "dma_fault",
        "detach",
    ]
    assert events[0][1] == {"address": 0x1000, "size": PAGE, "offset": 0, "flags": 3, "descriptor": True}
    assert events[1][1] == events[2][1] == {"region": 0, "offset": 8, "data": b"ab"}
    assert events[5][1]["errno"] == errno.EINVAL
    assert events[8][1] == {"address": 0, "count": 1, "reason": "outside of the client's memory"}


def test_many_servers_on_one_loop(tmp_path: Path, poller: Poller) -> None:
    before = open_descriptors()
    servers = [Server(str(tmp_path / str(index)), Recorder(), poller=poller) for index in range(100)]
    thread = threading.Thread(target=poller.serve_forever)
    thread.start()
    clients = [Client(server.path) for server in servers]
    for index, client in enumerate(clients):
        client.region_write(0, 0, bytes([index]))
    assert [client.region_read(0, 0, 1)[0] for client in clients] == list(range(100))
    for client in clients:
        client.close()
    poller.stop()
    thread.join()
    for server in servers:
        server.close()
    assert open_descriptors() == before


def test_client_and_server_in_one_thread(path: str, poller: Poller) -> None:
    device = Recorder()

    def run_server() -> None:
        for _ in range(2):  # one round accepts the connection, the next reads from it
            poller.run_once(0)

    with Server(path, device, poller=poller), Client(path, timeout=1, idle=run_server) as client:
        client.region_write(0, 0, b"one", posted=True)
        assert not device.calls.count(("write", 0, 0, b"one"))
        assert client.region_read(0, 0, 3) == b"one"
        assert device.calls[-1] == ("messages_read",)
