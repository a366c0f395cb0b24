"""A program for guests and hosts: datagrams asked and answered over many flows, one at a time, each compared.

    python3 datagrams.py answer ADDRESS PEER FLOWS
    python3 datagrams.py ask ADDRESS PEER FLOWS

A flow is a pair of UDP sockets with random ports, the same for every run: the RSS hash is linear, and ports in a row
may miss whole queues. Linux chooses the transmit queue by a random number of the socket and the CPU that first sends
from it (net/core/dev.c, netdev_pick_tx), so flow n is sent from CPU n modulo their number.
"""

from __future__ import annotations

import os
import random
import select
import socket
import sys

#: Not among those that Linux gives to sockets by itself.
PORTS = range(10000, 32768)
SIZE = 700
#: Seconds without which a datagram that has not come is lost. Emulated CPUs on a busy machine pause for long.
PATIENCE = 60


def make(role: str, address: str, peer: str, flows: int) -> list[socket.socket]:
    """The sockets of one end."""
    ports = random.Random(flows).sample(PORTS, 2 * flows)
    ours, theirs = (ports[:flows], ports[flows:]) if role == "ask" else (ports[flows:], ports[:flows])
    sockets = []
    for own, other in zip(ours, theirs, strict=True):
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, own))
        made.connect((peer, other))
        sockets.append(made)
    return sockets


def on_cpu_of(flow: int, cpus: list[int]) -> None:
    """Run on the flow's CPU from now on."""
    os.sched_setaffinity(0, {cpus[flow % len(cpus)]})


def ask(sockets: list[socket.socket], cpus: list[int]) -> None:
    """Send a datagram over each flow, and expect it back reversed."""
    for flow, asker in enumerate(sockets):
        on_cpu_of(flow, cpus)
        asker.settimeout(PATIENCE)
        content = flow.to_bytes(4, "big") + os.urandom(SIZE - 4)
        asker.send(content)
        try:
            answer = asker.recv(2 * SIZE)
        except TimeoutError:
            sys.exit(f"no answer over flow {flow}")
        if answer != content[::-1]:
            sys.exit(f"another answer over flow {flow}: {answer.hex()} to {content.hex()}")


def answer(sockets: list[socket.socket], cpus: list[int]) -> None:
    """Send back, reversed, what comes, for ever."""
    poll = select.poll()
    flows = {}
    for flow, answerer in enumerate(sockets):
        flows[answerer.fileno()] = flow, answerer
        poll.register(answerer, select.POLLIN)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            flow, answerer = flows[fd]
            on_cpu_of(flow, cpus)
            answerer.send(answerer.recv(2 * SIZE)[::-1])


if __name__ == "__main__":
    role, address, peer, flows = sys.argv[1:]
    {"ask": ask, "answer": answer}[role](make(role, address, peer, int(flows)), sorted(os.sched_getaffinity(0)))
