"""A driver that has work for its NIC without end, at next to no cost of its own, for benchmarks without a guest."""

from __future__ import annotations

import os
import resource
import select
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import TX_COMPLETION, TX_PACKET, TxType
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.testing.guest_memory import GuestMemory

#: Bytes of a driver's memory: rings and buffers of the queues that a driver opens unless told otherwise, and room.
MEMORY = 128 << 20
#: Seconds in which whatever is waited for has to come.
TIMEOUT = 30.0
_PAUSE = 1e-4


class Sender:
    """One transmit queue whose ring is full of packets of one descriptor each, which are sent again and again.

    The driver writes no descriptors while it sends, and looks at one completion for each doorbell.

    Args:
        driver: one that has opened its queues.
        queue: the queue.
        length: bytes of a packet.

    Attributes:
        posted: packets so far.
        largest: the most that one doorbell can post.
    """

    def __init__(self, driver: Driver, queue: int = 0, *, length: int = 64) -> None:
        self._driver = driver
        self._queue = tx = driver.tx[queue]
        self._doorbell = tx.doorbell_index
        self.posted = 0
        self.largest = tx.entries - 1
        self.vector = driver.tx_block(queue)
        packet = TX_PACKET.encode(dtype=TxType.PACKET, buffer_size=length, end_of_packet=1)
        tx.ring[:] = np.frombuffer(packet, np.uint8)
        self._addresses: npt.NDArray[np.uint64] = tx.ring.view("<u8")[:, TX_PACKET.buffer_address.word]
        self.take_from(driver.ram.allocate_zeroed(length))
        self._completions = tx.completion_ring.view("<u8")[:, TX_COMPLETION.generation.word]

    def take_from(self, addresses: Any) -> None:
        """Where the packets are from now on: one address for all, or one for each entry of the ring."""
        self._addresses[:] = addresses

    def post(self, count: int) -> None:
        """Have the next `count` packets sent, by one doorbell; those before have to be `done`."""
        self.posted += count
        self._driver.doorbells.ring(self._doorbell, self.posted % self._queue.entries)

    @property
    def done(self) -> bool:
        """Whether all that was posted is completed."""
        if not self.posted:
            return True
        lap, place = divmod(self.posted - 1, self._queue.entries)
        generation = int(self._completions[place]) >> TX_COMPLETION.generation.shift & 1
        return generation == 1 - lap % 2

    def send(self, count: int) -> None:
        """Have `count` packets sent, by as many doorbells as it takes, and wait, asleep, until they are.

        Raises:
            ClickException: the device does not send them.
        """
        while count > 0:
            now = min(count, self.largest // 2)
            self.post(now)
            self.wait()
            count -= now
        # Who listens is told after the completions are written, and before anything else is answered.
        self._driver.device_status()

    def wait(self) -> None:
        """Wait, asleep, until all that was posted is completed.

        Raises:
            ClickException: the device does not send it.
        """
        ends = time.monotonic() + TIMEOUT
        while not self.done:
            if time.monotonic() > ends:
                raise click.ClickException(f"packets were not sent within {TIMEOUT:.0f} s")
            time.sleep(_PAUSE)


def connect(
    path: object, *, rx_queues: int | None = None, tx_queues: int | None = None, ring_entries: int | None = None
) -> Driver:
    """A driver that has its NIC at a socket up; for the queues see `Driver.open`."""
    driver = Driver(str(path), ram=GuestMemory("ram", size=MEMORY))
    driver.probe()
    driver.open(rx_queues=rx_queues, tx_queues=tx_queues, ring_entries=ring_entries)
    return driver


def allow_many_files() -> None:
    """Have this process, and those that it starts, open as many files as the system lets it: each vector is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def pump(sockets: Sequence[str], batch: int) -> None:
    """Keep NICs busy until the standard input ends: each has its next doorbell when its interrupt has come.

    Says ``ready``, begins at the first line, and says at each further one how many packets there were so far.

    Args:
        sockets: where the NICs are.
        batch: packets of a doorbell.
    """
    senders: dict[int, tuple[Driver, Sender]] = {}
    waits = select.epoll()
    for path in sockets:
        driver = connect(path)
        sender = Sender(driver)
        senders[driver.eventfds[sender.vector]] = driver, sender
        waits.register(driver.eventfds[sender.vector], select.EPOLLIN)
    asked = sys.stdin.fileno()
    waits.register(asked, select.EPOLLIN)
    print("ready", flush=True)
    _line(asked)
    for driver, sender in senders.values():
        sender.post(batch)
        driver.enable(sender.vector, interval_us=0)
    while True:
        ready = waits.poll(TIMEOUT)
        if not ready:
            raise click.ClickException(f"no NIC has raised an interrupt for {TIMEOUT:.0f} s")
        for eventfd, _ in ready:
            if eventfd == asked:
                if not _line(asked):
                    return
                print(sum(sender.posted for _, sender in senders.values()), flush=True)
                continue
            driver, sender = senders[eventfd]
            driver.fired(sender.vector)
            if sender.done:
                sender.post(batch)
            driver.enable(sender.vector, interval_us=0)


def _line(fd: int) -> bytes:
    """The next line, and no more, so that whether there is another can be waited for; nothing at the end."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(fd, 1)):
        line += byte
    return line
