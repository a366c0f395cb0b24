"""A server with a recording device in a thread of its own, and clients for it, over a real UNIX socket."""

from __future__ import annotations

import gc
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nicmodel.vfio_user import Client, ClientLink, Device, Poller, RegionInfo, Server
from nicmodel.vfio_user.protocol import CAPABILITY

PAGE = mmap.PAGESIZE
BAR0_SIZE = 0x10000
READ_ONLY_BAR = 2
WRITE_ONLY_BAR = 3
BROKEN_BAR = 4
HUGE_BAR = 5
CAPABILITIES = (CAPABILITY.pack(2, 1, 0) + b"device specific!", CAPABILITY.pack(3, 1, 0) + b"odd")


class Recorder(Device):
    """Keeps what is written to BAR 0 and records every call; ``on_write`` runs in the server's thread."""

    regions = (
        RegionInfo(BAR0_SIZE),
        RegionInfo(0),
        RegionInfo(PAGE, writable=False),
        RegionInfo(PAGE, readable=False),
        RegionInfo(PAGE, capabilities=CAPABILITIES),
        RegionInfo(8 << 20),
        RegionInfo(0),
        RegionInfo(256),
        RegionInfo(0),
    )
    irq_counts = (1, 0, 32, 1, 1)

    def __init__(self) -> None:
        self.link: ClientLink | None = None
        self.memory = bytearray(BAR0_SIZE)
        self.calls: list[tuple[Any, ...]] = []
        self.on_write: Callable[[ClientLink], None] | None = None

    def attach(self, link: ClientLink) -> None:
        self.link = link
        self.calls.append(("attach",))

    def detach(self) -> None:
        self.link = None
        self.calls.append(("detach",))

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        self.calls.append(("read", region, offset, count))
        if region == BROKEN_BAR:
            return b"too short"
        if region == HUGE_BAR:
            return b"\xa5" * count
        return bytes(self.memory[offset : offset + count])

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        self.calls.append(("write", region, offset, bytes(data)))
        if region == BROKEN_BAR:
            raise ZeroDivisionError("a bug in the device")
        self.memory[offset : offset + len(data)] = data
        if self.on_write is not None:
            assert self.link is not None
            self.on_write(self.link)

    def before_unmap(self, start: int, size: int) -> None:
        assert self.link is not None
        self.calls.append(("before_unmap", start, size, len(self.link.dma.regions)))

    def dma_changed(self) -> None:
        assert self.link is not None
        self.calls.append(("dma_changed", len(self.link.dma.regions)))

    def messages_read(self) -> None:
        self.calls.append(("messages_read",))

    def reset(self) -> None:
        self.calls.append(("reset",))


class Lab:
    """A running server, and what to look into it with."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.device = Recorder()
        self.poller = Poller()
        self.server = Server(path, self.device, poller=self.poller)
        self._thread = threading.Thread(target=self.poller.serve_forever)
        self._idle = threading.Event()
        self._probe = os.eventfd(0)
        self.poller.add(self._probe, self._answer)
        self._thread.start()
        self._clients: list[Client] = []

    def client(self, *, negotiate: bool = True, timeout: float = 60) -> Client:
        client = Client(self.path, negotiate=negotiate, timeout=timeout)
        self._clients.append(client)
        return client

    @property
    def link(self) -> ClientLink:
        assert self.device.link is not None
        return self.device.link

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.device.calls if call[0] == name]

    def run(self, client: Client, function: Callable[[ClientLink], Any]) -> Any:
        """Run something in the device, during a register write of this client; return or raise what it does."""
        outcome: list[Any] = []

        def hook(link: ClientLink) -> None:
            try:
                outcome.append((True, function(link)))
            except Exception as error:
                outcome.append((False, error))

        self.device.on_write = hook
        try:
            client.region_write(0, 0, b"run!")
        finally:
            self.device.on_write = None
        returned, value = outcome[0]
        if returned:
            return value
        raise value

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something the server does on its own."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it does not happen"
            time.sleep(0.001)

    def settle(self) -> None:
        """Wait until the server has seen its client leave and has done all there is to do about it."""
        self.until(lambda: self.server.link is None)
        self.idle()

    def idle(self) -> None:
        """Wait until the server has finished what it is doing; a reply comes before ``Device.messages_read``."""
        self._idle.clear()
        os.eventfd_write(self._probe, 1)
        assert self._idle.wait(60)

    def _answer(self) -> None:
        os.eventfd_read(self._probe)
        self._idle.set()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.poller.stop()
        self._thread.join()
        self.server.close()
        self.poller.close()
        os.close(self._probe)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    running = Lab(str(tmp_path / "vfio-user.sock"))
    yield running
    running.close()


@pytest.fixture
def client(lab: Lab) -> Client:
    return lab.client()


class Memory:
    """A memfd, and its contents."""

    def __init__(self, size: int, name: str = "memory-backend-memfd") -> None:
        self.fd = os.memfd_create(name)
        self.size = size
        os.ftruncate(self.fd, size)
        self.bytes = mmap.mmap(self.fd, size)

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


@pytest.fixture
def memory() -> Iterator[Memory]:
    created = Memory(64 * PAGE)
    yield created
    created.close()


@pytest.fixture(scope="module", autouse=True)
def collected() -> None:
    """Free what tests of other rings in this process have left to the garbage collector: descriptors among it, which a
    test that counts them would see go.
    """
    gc.collect()


def open_descriptors() -> int:
    """Of this process."""
    return len(os.listdir("/proc/self/fd"))


def mappings_of(name: str) -> int:
    """How many mappings of the memfd this process holds."""
    with open("/proc/self/maps") as maps:
        return sum(f"/memfd:{name} " in line for line in maps)
