"""A program for the host: send random bytes to whoever connects, receive, and print the digests of both.

python3 echo.py PORT BYTES
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys

#: Receive buffer: a window that the rings of a NIC hold, so that nothing has to be dropped.
WINDOW = 128 << 10


def main(port: int, size: int) -> None:
    """Serve one connection after the other, over IPv4 and IPv6."""
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                data = os.urandom(size)
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                back = hashlib.sha256()
                while piece := connection.recv(1 << 16):
                    back.update(piece)
                print(hashlib.sha256(data).hexdigest(), back.hexdigest(), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
