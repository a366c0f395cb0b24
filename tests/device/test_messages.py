"""Buffers in memory without a descriptor: the device reaches them by messages to the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user.dma import BY_MESSAGE

from .frames import NIC_MAC, pattern, tcp

T = TypeVar("T")
HEADER = 54


class Bench:
    """A NIC whose loop runs in a thread of its own, a driver, and memory that only messages reach."""

    def __init__(self, nic: TestNic, driver: Driver, memory: GuestMemory) -> None:
        self.nic = nic
        self.driver = driver
        self.memory = memory
        self.served = 0

    def serving(self, call: Callable[[], T]) -> T:
        """Make a call that the device may answer only after the client has answered it."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(call)
            while not future.done():
                self.served += self.driver.serve_dma(0.005)
            return future.result()

    def receive(self, *frames: bytes) -> list[RxPacket]:
        self.serving(lambda: self.nic.inject(list(frames)))
        return self.driver.poll_all()

    def sent(self) -> list[bytes]:
        """What came out at the wire, when nothing more is asked for."""
        while self.driver.serve_dma(0.1):
            self.served += 1
        return [bytes(frame) for frame in self.nic.take()]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with TestNic(Profile(mac=parse_mac(NIC_MAC))) as nic, nic.connect() as driver:
        driver.probe()
        yield Bench(nic, driver, driver.add_memory("far", by_message=True))


def booked(bench: Bench, purpose: str) -> dict[str, int]:
    ledger = bench.nic.device.state.ledger
    sums = ledger[:, Purpose[purpose]].sum(axis=0)
    return {kind: int(sums[number]) for number, kind in enumerate(bench.nic.device.dma.kinds) if sums[number]}


@pytest.mark.parametrize("split", [False, True])
def test_payload_is_written_by_message(bench: Bench, split: bool) -> None:
    bench.driver.open(rx_queues=1, tx_queues=1, header_split=split, payload_memory=bench.memory)
    frames = [tcp(payload=pattern(length)) for length in (1000, 1, 1446, 8842)]
    packets = bench.receive(*frames)
    assert [packet.frame for packet in packets] == frames
    payload = sum(len(frame) - HEADER * split for frame in frames)
    assert booked(bench, "PAYLOAD") == {BY_MESSAGE: payload}
    assert bench.served >= len(frames)
    assert bench.nic.device.state.device["faults"][0] == 0


def test_completions_come_after_the_bytes(bench: Bench) -> None:
    """Whenever the client looks, a completion that it sees is of a packet that is there."""
    bench.driver.open(rx_queues=1, tx_queues=1, header_split=True, payload_memory=bench.memory)
    frames = [tcp(payload=pattern(3000)) for _ in range(20)]
    seen: list[RxPacket] = []
    access = bench.driver._access

    def look(address: int, count: int, data: bytes | None) -> bytes | None:
        seen.extend(bench.driver.poll_all())
        return access(address, count, data)

    bench.driver.client.serve_dma(look)
    bench.serving(lambda: bench.nic.inject(frames))
    early = len(seen)
    seen += bench.driver.poll_all()
    assert [packet.frame for packet in seen] == frames
    assert 0 < early < len(frames)


def test_a_client_that_refuses_gets_packets_with_errors(bench: Bench) -> None:
    bench.driver.open(rx_queues=1, tx_queues=1, header_split=True, payload_memory=bench.memory)
    bench.driver.client.serve_dma(None)
    assert bench.receive(tcp(payload=b"x" * 100), tcp(payload=b"y" * 100)) == []
    assert bench.driver.rx[0].errors == 2
    assert bench.nic.device.state.device["faults"][0] == 1
    bench.driver.client.serve_dma(bench.driver._access)
    [packet] = bench.receive(tcp(payload=b"z" * 100))
    assert packet.frame == tcp(payload=b"z" * 100)


@pytest.mark.parametrize("fragments", [[60, 946], [60, 500, 446], [1, 1, 1004]])
def test_transmit_buffers_are_read_by_message(bench: Bench, fragments: list[int]) -> None:
    bench.driver.open(rx_queues=1, tx_queues=1)
    frame = tcp(payload=pattern(1006 - HEADER))
    for _ in range(3):
        bench.driver.send(0, frame, fragments=fragments, memory=bench.memory)
    assert bench.sent() == [frame] * 3
    near = 3 * fragments[0]  # a packet's first buffer is in ordinary memory, as the headers of a stack are
    assert booked(bench, "TRANSMIT") == {"ram": near, BY_MESSAGE: 3 * len(frame) - near}
    assert len(bench.driver.poll_tx(0)) == 3


def test_a_segmented_packet_is_read_once(bench: Bench) -> None:
    bench.driver.open(rx_queues=1, tx_queues=1)
    payload = pattern(10_000)
    pieces = [HEADER, 4096, 4096, len(payload) - 8192]
    bench.driver.send(0, tcp(payload=payload), fragments=pieces, tso=(1000, HEADER), memory=bench.memory)
    frames = bench.sent()
    assert b"".join(frame[HEADER:] for frame in frames) == payload
    assert len(frames) == 10
    assert bench.nic.server.stats["dma_read"] == 1 + 3  # one finds out how the client has its messages
    assert booked(bench, "TRANSMIT") == {"ram": 2 * HEADER, BY_MESSAGE: len(payload)}


def test_transmit_goes_on_after_a_client_has_refused(bench: Bench) -> None:
    bench.driver.open(rx_queues=1, tx_queues=1)
    frame = tcp(payload=pattern(500))
    bench.driver.client.serve_dma(None)
    bench.driver.send(0, frame, fragments=[60, len(frame) - 60], memory=bench.memory)
    assert bench.sent() == []
    assert bench.nic.device.state.drops[:, Drop.DMA_FAULT].sum() == 1
    bench.driver.client.serve_dma(bench.driver._access)
    bench.driver.send(0, frame, fragments=[60, len(frame) - 60], memory=bench.memory)
    bench.driver.send(0, frame)
    assert bench.sent() == [frame, frame]


def test_what_was_fetched_ends_with_its_queue(bench: Bench) -> None:
    """A packet's bytes have come, and it waits for the wire; the next life of the queue may use the same address."""
    bench.driver.open(rx_queues=1, tx_queues=1)
    device = bench.nic.device.state.device
    device["wanted"], device["wanted_bytes"] = 1, 400  # as between the reading and the next try
    bench.driver.close()
    assert (device["wanted"][0], device["wanted_bytes"][0]) == (0, 0)


def test_a_ring_has_to_have_a_descriptor(bench: Bench) -> None:
    bench.driver.open(rx_queues=1, tx_queues=1)
    bench.nic.call(lambda: np.put(bench.nic.device.state.rx["completion_ring"], 0, bench.memory.base))
    bench.receive(tcp(payload=b"x" * 100))
    assert bench.nic.device.state.device["faults"][0] == 1
    assert not np.any(bench.memory.bytes)
