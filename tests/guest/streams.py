"""TCP streams that must survive whatever a test does meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab import LINK0, LINK1, Lab, wait_until

from nicmodel.vm.channel import Process
from nicmodel.vm.guest import Guest

STREAMS = 4
STREAM_PORT = 5500
#: Bytes that must arrive at each end before a change counts as survived.
ENOUGH = 400_000
#: What both ends of a stream run: send a file over and over, and compare what comes with the same file.
EXCHANGE = b"""#!/bin/bash
while cat /tmp/block; do :; done &
cmp - <(while cat /tmp/block; do :; done) >&2
kill $!
"""
#: SO_MAX_PACING_RATE: slow enough to leave an emulated CPU time for other commands.
PACING = "setsockopt=1:47:x" + (400_000).to_bytes(4, "little").hex()


class Streams:
    """Streams both ways at once, each byte compared: a wrong one, or a reset, ends the stream.

    Args:
        processes: one per stream.
        received: bytes that each end has received.
    """

    def __init__(self, processes: list[Process], received: Callable[[], list[int]]) -> None:
        self._processes = processes
        self._received = received

    def goes_on(self) -> None:
        """Both ends receive again, and no stream has ended."""
        before = self._received()
        wait_until(
            lambda: all(now - then > ENOUGH for now, then in zip(self._received(), before, strict=True)), timeout=120
        )
        for stream in self._processes:
            assert stream.running, f"a stream ended: {stream.output()}"


class Traffic(Streams):
    """Streams over the bench's cable."""

    def __init__(self, lab: Lab, processes: list[Process]) -> None:
        super().__init__(processes, self.received)
        self.lab = lab

    def received(self) -> list[int]:
        """Bytes that each end of the cable has received."""
        return [sum(queue["bytes"] for queue in self.lab.report(port)["rx_queues"]) for port in (LINK0, LINK1)]


@contextmanager
def exchange(server: Guest, inside: str, client: Guest, address: str) -> Iterator[list[Process]]:
    """Streams from a guest to an address of another, or of its own's other namespace, while the block runs.

    Args:
        server: the guest that listens.
        inside: put before commands that have to run where it does.
        client: the guest that connects.
        address: to which.
    """
    block = b"".join(number.to_bytes(7, "big") for number in range(140_009))
    for guest in {server, client}:
        guest.put(EXCHANGE, "/tmp/exchange")
        guest.put(block, "/tmp/block")
    listener = server.start(f"exec {inside}socat TCP-LISTEN:{STREAM_PORT},reuseaddr,fork,{PACING} EXEC:/tmp/exchange")
    try:
        server.run(f"{inside}sh -c 'until ss -ltn | grep -q :{STREAM_PORT}; do sleep 0.05; done'")
        command = f"exec socat TCP:{address}:{STREAM_PORT},{PACING} EXEC:/tmp/exchange"
        yield [client.start(command) for _ in range(STREAMS)]
    finally:
        for guest in {server, client}:
            guest.run("pkill socat; pkill exchange; pkill -x cat; rm -f /tmp/exchange /tmp/block; true")
        listener.wait()


@contextmanager
def streams(lab: Lab) -> Iterator[Traffic]:
    """Streams over the bench's cable, which run inside the block."""
    with exchange(lab.guest, "ip netns exec peer ", lab.guest, LINK0.peer) as processes:
        traffic = Traffic(lab, processes)
        traffic.goes_on()
        yield traffic
