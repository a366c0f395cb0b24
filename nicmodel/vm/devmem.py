"""devmem TCP in a guest: what has to be set up there, and the host's end, which sends and checks the pattern that the
guest's tools check and send.

The pattern is defined in `guest/devmem.h`: words of splitmix64, repeated after a prime number of them.
"""

import socket
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nicmodel.vm import link
from nicmodel.vm.guest import Guest

PATTERN_WORDS = 1048573
PATTERN_BYTES = 8 * PATTERN_WORDS
CHUNK = 1 << 20

#: The largest ring: a TCP window of buffers is in flight between the NIC and a CPU that may be emulated.
RING = 4096


def set_up_devmem(
    guest: Guest, address: str, port: int, queue: int, *, mtu: int, gateway: str | None = None, driver: str = "gve",
    settings: str = "true",
) -> None:  # fmt: skip
    """What a user of devmem TCP does before binding: eth0 is up, header split on, and one flow has a queue to itself.

    Args:
        guest: Where.
        address: IPv4 address of eth0, whose network is a /24.
        port: TCP port of the flow.
        queue: The queue, which is also the number of those that other traffic is spread over.
        mtu: Bytes.
        gateway: Default route; none if None.
        driver: The NIC's.
        settings: Shell commands before all others, when there is an eth0.
    """
    guest.run(f"modprobe {driver} && until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; {settings}")
    guest.run(f"ip link set eth0 mtu {mtu} && ip addr add {address}/24 dev eth0 && ip link set eth0 up")
    if gateway:
        guest.run(f"ip route add default via {gateway}")
    guest.run(f"ethtool -G eth0 tcp-data-split on rx {RING}")
    guest.run("ethtool -K eth0 ntuple on")
    guest.run(f"ethtool -X eth0 equal {queue}")
    guest.run(f"ethtool -N eth0 flow-type tcp4 dst-ip {address} dst-port {port} action {queue}")
    guest.run(f"until {link.is_up('eth0')}; do sleep 0.1; done")


@lru_cache(maxsize=2)
def pattern(seed: int = 1) -> NDArray[np.uint8]:
    """One period of the pattern, shape (PATTERN_BYTES,)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, PATTERN_WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z.astype("<u8").view(np.uint8)


def mismatch(data: bytes | memoryview, offset: int, seed: int = 1) -> int | None:
    """Position in the stream of the first byte of `data` that is not the pattern's, or None.

    Args:
        data: A part of the stream.
        offset: Its position in the stream.
        seed: The pattern's seed.
    """
    found = np.frombuffer(data, np.uint8)
    expected = np.take(pattern(seed), np.arange(offset, offset + len(found)), mode="wrap")
    different = np.flatnonzero(found != expected)
    return offset + int(different[0]) if len(different) else None


def send_pattern(address: str, port: int, nbytes: int, seed: int = 1, timeout: float = 60) -> float:
    """Connect, send `nbytes` bytes of the pattern, and wait until the other end has closed.

    Args:
        address: The receiver's.
        port: The receiver's.
        nbytes: How many bytes.
        seed: The pattern's seed.
        timeout: Seconds without progress that are too many.

    Returns:
        Seconds from the first byte until the other end closed.

    Raises:
        OSError: The connection failed.
    """
    content = pattern(seed).data
    with socket.create_connection((address, port), timeout) as connection:
        started = time.monotonic()
        sent = 0
        while sent < nbytes:
            start = sent % PATTERN_BYTES
            sent += connection.send(content[start : start + min(CHUNK, nbytes - sent)])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return time.monotonic() - started


@dataclass(frozen=True)
class Received:
    """A stream that has been received.

    Attributes:
        nbytes: Its length.
        seconds: From the first byte to the last.
        mismatch: Position of the first byte that is not the pattern's, or None.
    """

    nbytes: int
    seconds: float
    mismatch: int | None


def receive_pattern(listener: socket.socket, seed: int = 1, timeout: float = 60) -> Received:
    """Accept one connection and check what comes until its end.

    Args:
        listener: A listening TCP socket.
        seed: The pattern's seed.
        timeout: Seconds without progress that are too many.

    Raises:
        OSError: The connection failed, or nothing came in time.
    """
    listener.settimeout(timeout)
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(timeout)
        nbytes = 0
        wrong = None
        started = time.monotonic()
        while data := connection.recv(CHUNK):
            if wrong is None:
                wrong = mismatch(data, nbytes, seed)
            nbytes += len(data)
        return Received(nbytes, time.monotonic() - started, wrong)
