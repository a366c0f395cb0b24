"""The ends of TCP streams, in a guest: each sends the same block over and over, and compares what comes with it.

    stream_ends.py listen PORT RATE
    stream_ends.py connect PORT RATE ADDRESS COUNT

The listener says "ready"; then neither says anything until a stream has a wrong byte, or ends. One process has all
streams of an end, takes much at a time and is woken seldom: to an emulated CPU, switching processes is dear.
"""

import array
import selectors
import socket
import sys

#: Not a multiple of any power of two, so that each packet begins elsewhere in it.
BLOCK = array.array("L", range(122_508)).tobytes()[:980_063]
CHUNK = 1 << 16
SO_MAX_PACING_RATE = 47


class End:
    """One end of a stream."""

    def __init__(self, connection: socket.socket, rate: int) -> None:
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, CHUNK // 2)
        connection.setblocking(False)
        self.connection = connection
        self.sent = self.received = 0

    def send(self) -> None:
        """What the socket takes."""
        part = BLOCK[self.sent : self.sent + CHUNK]
        self.sent = (self.sent + self.connection.send(part)) % len(BLOCK)

    def receive(self) -> None:
        """What has come."""
        data = self.connection.recv(CHUNK)
        if not data:
            sys.exit("a stream was closed")
        first = data[: len(BLOCK) - self.received]
        if not BLOCK.startswith(first, self.received) or not BLOCK.startswith(data[len(first) :]):
            sys.exit("a stream has a wrong byte")
        self.received = (self.received + len(data)) % len(BLOCK)


def main(role: str, port: str, rate: str, address: str = "", count: str = "0") -> None:
    """Be an end of streams until killed."""
    waiting = selectors.DefaultSelector()

    def join(connection: socket.socket) -> None:
        waiting.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, End(connection, int(rate)))

    if role == "listen":
        listener = socket.create_server(("", int(port)))
        waiting.register(listener, selectors.EVENT_READ, None)
        print("ready", flush=True)
    for _ in range(int(count)):
        join(socket.create_connection((address, int(port))))
    while True:
        for key, events in waiting.select():
            if key.data is None:
                join(listener.accept()[0])
                continue
            if events & selectors.EVENT_READ:
                key.data.receive()
            if events & selectors.EVENT_WRITE:
                key.data.send()


main(*sys.argv[1:])
