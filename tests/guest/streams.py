"""TCP streams that must survive whatever a test does meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import IN_PEER, Cable, Lab, wait_until

from nicmodel.vm.channel import Process
from nicmodel.vm.guest import Guest

STREAMS = 4
STREAM_PORT = 5500
#: Bytes that must arrive at each end before a change counts as survived.
ENOUGH = 400_000
#: Bytes a second of each, each way: slow enough to leave an emulated CPU time for other commands.
RATE = 400_000
PROGRAM = "stream_ends.py"


class Streams:
    """Streams both ways at once, each byte compared: a wrong one, or a reset, ends the stream.

    Args:
        processes: the ends.
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
        for end in self._processes:
            assert end.running, end.wait()


class Traffic(Streams):
    """Streams over a cable of the bench."""

    def __init__(self, lab: Lab, cable: Cable, processes: list[Process]) -> None:
        super().__init__(processes, self.received)
        self.lab = lab
        self.cable = cable

    def received(self) -> list[int]:
        """Bytes that each end of the cable has received."""
        ends = (self.cable.here, self.cable.there)
        return [sum(queue["bytes"] for queue in self.lab.report(port)["rx_queues"]) for port in ends]


@contextmanager
def exchange(server: Guest, inside: str, client: Guest, address: str) -> Iterator[list[Process]]:
    """Streams from a guest to an address of another, or of its own's other namespace, while the block runs.

    Args:
        server: the guest that listens.
        inside: put before commands that have to run where it does.
        client: the guest that connects.
        address: to which.
    """
    for guest in {server, client}:
        guest.put(Path(__file__).with_name(PROGRAM), f"/tmp/{PROGRAM}")
    ends = [server.start(f"exec {inside}python3 -IS /tmp/{PROGRAM} listen {STREAM_PORT} {RATE}")]
    try:
        ends[0].expect("ready", timeout=120)
        ends.append(client.start(f"exec python3 -IS /tmp/{PROGRAM} connect {STREAM_PORT} {RATE} {address} {STREAMS}"))
        yield ends
    finally:
        for end in ends:
            end.kill()
            end.wait(120)


@contextmanager
def streams(lab: Lab, cable: Cable) -> Iterator[Traffic]:
    """Streams over a cable of the bench, which run inside the block."""
    with exchange(lab.guest, IN_PEER, lab.guest, cable.here.peer) as processes:
        traffic = Traffic(lab, cable, processes)
        traffic.goes_on()
        yield traffic
