"""Run commands in the guest for the host, over a virtio-serial port. This file runs in the guest, on Python alone.

Both directions carry frames: length of the body (32 bits), number of the process that it is about (32 bits, chosen by
the host), kind (8 bits), all big-endian, then the body. Many processes run at once.

A guest can be reset in the middle of a frame. So the agent greets with `HELLO` when it starts, the host answers with
`HELLO`, and each side drops what it receives before that.
"""

import contextlib
import fcntl
import json
import os
import selectors
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from typing import IO

PORT_NAME = "nicmodel.agent"
HELLO = b"\0nicmodel agent\n"
HEADER = struct.Struct(">IIB")

# From the host.
START = 1  # JSON: argv; terminal ([rows, columns]) or null
STDIN = 2  # bytes; none at all: end of file
SIGNAL = 3  # JSON: signal number, sent to the process and its children
RESIZE = 4  # JSON: rows, columns
# From the guest.
STDOUT = 5  # bytes
STDERR = 6  # bytes
EXIT = 7  # JSON: exit status, or minus the signal's number
FAILED = 8  # text: why the command could not be started


class Agent:
    """The processes that the host asked for, and the port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.processes: dict[int, Process] = {}
        self.received = bytearray()
        self.greeted = bytearray()  # the host's HELLO, once it is there

    def serve(self) -> None:
        os.write(self.port, HELLO)
        self.selector.register(self.port, selectors.EVENT_READ, self.receive)
        while True:
            for key, _ in self.selector.select():
                key.data()

    def receive(self) -> None:
        data = os.read(self.port, 1 << 16)
        if not data:
            sys.exit("the host closed the port")
        self.received += data
        if not self.greeted:
            _, self.greeted, self.received = self.received.partition(HELLO)
        while self.greeted and len(self.received) >= HEADER.size:
            length, number, kind = HEADER.unpack_from(self.received)
            end = HEADER.size + length
            if len(self.received) < end:
                return
            body = bytes(self.received[HEADER.size : end])
            del self.received[:end]
            self.handle(number, kind, body)

    def handle(self, number: int, kind: int, body: bytes) -> None:
        if kind == START:
            try:
                self.processes[number] = Process(self, number, **json.loads(body))
            except OSError as error:
                self.send(number, FAILED, str(error).encode())
        elif process := self.processes.get(number):  # else it has ended just now
            if kind == STDIN:
                process.feed(body)
            elif kind == SIGNAL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.child.pid, json.loads(body))
            elif kind == RESIZE:
                process.resize(*json.loads(body))

    def send(self, number: int, kind: int, body: bytes) -> None:
        frame = memoryview(HEADER.pack(len(body), number, kind) + body)
        while frame:
            frame = frame[os.write(self.port, frame) :]


class Process:
    """One command, its pipes or its terminal."""

    def __init__(self, agent: Agent, number: int, argv: list[str], terminal: list[int] | None) -> None:
        self.agent = agent
        self.number = number
        self.pending = bytearray()
        self.end_of_input = False
        self.terminal: int | None = None
        self.outputs: dict[int, int] = {}  # descriptor -> kind of frame
        self.files: list[IO[bytes]] = []
        if terminal:
            self.terminal, slave = os.openpty()
            self.resize(*terminal)
            self.child = subprocess.Popen(argv, cwd="/root", preexec_fn=lambda: os.login_tty(slave))
            os.close(slave)
            self.input = self.terminal
            self.outputs[self.terminal] = STDOUT
        else:
            pipe = subprocess.PIPE
            self.child = subprocess.Popen(
                argv, cwd="/root", bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
            assert self.child.stdin and self.child.stdout and self.child.stderr
            self.files = [self.child.stdin, self.child.stdout, self.child.stderr]
            self.input = self.child.stdin.fileno()
            self.outputs = {self.child.stdout.fileno(): STDOUT, self.child.stderr.fileno(): STDERR}
        for descriptor in {self.input, *self.outputs}:
            os.set_blocking(descriptor, False)
        for descriptor in self.outputs:
            self.watch(descriptor, selectors.EVENT_READ, lambda fd=descriptor: self.forward(fd))
        self.pidfd = os.pidfd_open(self.child.pid)
        self.watch(self.pidfd, selectors.EVENT_READ, self.exited)

    def watch(self, descriptor: int, events: int, callback: Callable[[], object]) -> None:
        self.agent.selector.register(descriptor, events, callback)

    def forget(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):
            self.agent.selector.unregister(descriptor)

    def forward(self, descriptor: int) -> bool:
        """Send what the process has written; false if there is nothing (any more)."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody holds the terminal any more
            data = b""
        if data:
            self.agent.send(self.number, self.outputs[descriptor], data)
        else:
            self.forget(descriptor)
        return bool(data)

    def feed(self, data: bytes) -> None:
        self.pending += data
        self.end_of_input |= not data
        self.flush()

    def flush(self) -> None:
        """Write to the process what it takes; come back when it takes more."""
        if self.terminal is not None:
            # One descriptor for both directions, watched for reading: typing is short enough to be written at once.
            os.set_blocking(self.terminal, True)
            os.write(self.terminal, self.pending)
            os.set_blocking(self.terminal, False)
            self.pending.clear()
            return
        self.forget(self.input)
        if self.files[0].closed:
            return
        try:
            while self.pending:
                del self.pending[: os.write(self.input, self.pending)]
        except BlockingIOError:
            self.watch(self.input, selectors.EVENT_WRITE, self.flush)
            return
        except BrokenPipeError:
            self.pending.clear()
        if self.end_of_input:
            self.files[0].close()

    def resize(self, rows: int, columns: int) -> None:
        if self.terminal is not None:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def exited(self) -> None:
        """Send the rest of the output and the status. Children that live on do not keep the command from ending."""
        status = self.child.wait()
        for descriptor in self.outputs:
            while self.forward(descriptor):
                pass
        self.agent.send(self.number, EXIT, json.dumps(status).encode())
        for descriptor in {self.pidfd, self.input, *self.outputs}:
            self.forget(descriptor)
        os.close(self.pidfd)
        if self.terminal is not None:
            os.close(self.terminal)
        for file in self.files:
            file.close()
        del self.agent.processes[self.number]


if __name__ == "__main__":
    Agent(os.open(sys.argv[1], os.O_RDWR)).serve()
