"""TCP streams over the bench's cable that must survive whatever a test does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lab import LINK0, LINK1, Lab, wait_until

from nicmodel.vm.channel import Process

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


class Traffic:
    """TCP streams over the cable, both ways at once, each byte compared: a wrong one, or a reset, ends the stream."""

    def __init__(self, lab: Lab, streams: list[Process]) -> None:
        self.lab = lab
        self.streams = streams

    def received(self) -> list[int]:
        """Bytes that each end of the cable has received."""
        return [sum(queue["bytes"] for queue in self.lab.report(port)["rx_queues"]) for port in (LINK0, LINK1)]

    def goes_on(self) -> None:
        """Both ends receive again, and no stream has ended."""
        before = self.received()
        wait_until(
            lambda: all(now - then > ENOUGH for now, then in zip(self.received(), before, strict=True)), timeout=60
        )
        for stream in self.streams:
            assert stream.running, f"a stream ended: {stream.output()}"


@contextmanager
def streams(lab: Lab) -> Iterator[Traffic]:
    """Streams that run inside the block."""
    lab.guest.put(EXCHANGE, "/tmp/exchange")
    lab.run("head -c 1000003 /dev/urandom > /tmp/block")
    address = f"{STREAM_PORT},reuseaddr,fork,{PACING}"
    listener = lab.guest.start(["ip", "netns", "exec", "peer", "socat", f"TCP-LISTEN:{address}", "EXEC:/tmp/exchange"])
    try:
        lab.in_peer(f"until ss -ltn | grep -q :{STREAM_PORT}; do sleep 0.05; done")
        command = f"exec socat TCP:{LINK0.peer}:{STREAM_PORT},{PACING} EXEC:/tmp/exchange"
        traffic = Traffic(lab, [lab.guest.start(command) for _ in range(STREAMS)])
        traffic.goes_on()
        yield traffic
    finally:
        lab.run("pkill socat; pkill exchange; pkill -x cat; rm -f /tmp/exchange /tmp/block; true")
        listener.wait()
