"""Run commands in the guest for the host, over a virtio-serial port. This file runs in the guest, on Python alone.

Both directions carry frames: length of the body (32 bits), number of the process that it is about (32 bits, chosen by
the host), kind (8 bits), all big-endian, then the body. Many processes run at once.

A guest can be reset in the middle of a frame. So the agent greets when it starts, with `HELLO` and a number made up for
the occasion; the host sends the same back; and each side drops what it receives before that.

A guest that is restored from a snapshot does not start its agent again: the host says `WAKE`, and the agent greets.
"""

import contextlib
import fcntl
import functools
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import termios
from time import CLOCK_REALTIME, clock_settime, monotonic, sleep
from typing import IO

PORT_NAME = "nicmodel.agent"
HELLO = b"\0nicmodel agent\n"
NONCE = 8  # bytes that follow
HEADER = struct.Struct(">IIB")

# From the host.
START = 1  # JSON: argv; terminal ([rows, columns]) or null
STDIN = 2  # bytes; none at all: end of file
SIGNAL = 3  # JSON: signal number, sent to the process and its children
RESIZE = 4  # JSON: rows, columns
WAKE = 9  # JSON: the time in seconds since 1970; entropy in hexadecimal digits
# From the guest.
STDOUT = 5  # bytes
STDERR = 6  # bytes
EXIT = 7  # JSON: exit status, or minus the signal's number
FAILED = 8  # text: why the command could not be started
NETWORK = "0x02"  # the class of a PCI device, as sysfs has it, begins so
INTERFACE_SECONDS = 3.0  # that interfaces of devices which have drivers may take to appear
FROM_GUEST = (STDOUT, STDERR, EXIT, FAILED)

# Linux, include/uapi/linux/random.h: _IOW('R', 3, int[2]) and _IO('R', 7).
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207


class Agent:
    """The processes that the host asked for, and the port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.processes: dict[int, Process] = {}
        self.received = bytearray()
        self.greeting = b""
        self.greeted = False

    def serve(self) -> None:
        """Greet, then handle what comes, for ever."""
        self.greet()
        self.selector.register(self.port, selectors.EVENT_READ, self.receive)
        while True:
            for key, _ in self.selector.select():
                # An earlier callback may have closed this file, and its number may be another's by now.
                if self.selector.get_map().get(key.fd) == key:
                    key.data()

    def receive(self) -> None:
        """Take what the host has sent."""
        data = os.read(self.port, 1 << 16)
        if not data:
            sys.exit("the host closed the port")
        self.received += data
        if not self.greeted:
            _, found, after = self.received.partition(self.greeting)
            if not found:
                return
            self.greeted, self.received = True, after
        while len(self.received) >= HEADER.size:
            length, number, kind = HEADER.unpack_from(self.received)
            end = HEADER.size + length
            if len(self.received) < end:
                return
            body = bytes(self.received[HEADER.size : end])
            del self.received[:end]
            if kind == WAKE:
                settle(**json.loads(body))
                self.greet()
                return
            self.handle(number, kind, body)

    def greet(self) -> None:
        """Greet; nothing counts before the host's answer."""
        self.received.clear()
        self.greeted, self.greeting = False, HELLO + os.urandom(NONCE)
        os.write(self.port, self.greeting)

    def handle(self, number: int, kind: int, body: bytes) -> None:
        """Do what one frame asks for."""
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
        """Send one frame."""
        frame = memoryview(HEADER.pack(len(body), number, kind) + body)
        while frame:
            frame = frame[os.write(self.port, frame) :]


def settle(time: float, entropy: str) -> None:
    """Make this guest one of its own: its snapshot's clock stood still, its random numbers are those of other guests,
    and it had no NICs.

    See random(4): the generator is seeded with what was added at once.
    """
    clock_settime(CLOCK_REALTIME, time)
    data = bytes.fromhex(entropy)
    with open("/dev/urandom", "wb", buffering=0) as pool:
        fcntl.ioctl(pool, RNDADDENTROPY, struct.pack("ii", 8 * len(data), len(data)) + data)
        fcntl.ioctl(pool, RNDRESEEDCRNG)
    coldplug()


#: Linux, include/uapi/asm-generic/socket.h; Python has no name for it.
SO_TIMESTAMP = 29


def exercise_network() -> None:
    """Send a little over the loopback interface, so that the kernel patches itself before the snapshot.

    What Linux makes up once, at first use (the secrets of its hash tables, for one: include/linux/once.h), it guards
    by code that it then overwrites, while other processors may be executing it. QEMU's emulated processors get that
    wrong now and then, and the guest ends by "Oops: int3". Here nothing else runs yet, and no later guest repeats it.

    No TCP: guests from one snapshot would have its secret in common, and so their ports.
    """
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        # There are kernels without IPv6, or without the interface.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind((address, 0))
            datagrams.connect(datagrams.getsockname())
            datagrams.send(b"x")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.sendto(struct.pack(">BBHI", 128, 0, 0, 0), ("::1", 0))  # an echo request: the flow label is a hash, too


def keep_timestamps() -> socket.socket:
    """Have the kernel stamp each packet that comes, as long as the socket is open.

    Otherwise each ping and each tcpdump switches that on and off again, which is code that is overwritten while packets
    run through it (netstamp_needed_key in Linux's net/core/dev.c): see `exercise_network`.
    """
    stamped = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.suppress(OSError):
        stamped.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    return stamped


def coldplug(bus: str = "/sys/bus/pci") -> None:
    """What a boot does with PCI devices: the kernel finds them, /init loads their drivers, which bind in their order.

    The scan returns when all have been added, some perhaps by the kernel's hot-plug driver, whose order is another. A
    probe returns when the driver has taken the device or refused it. A driver may register its interface later (idpf),
    and is waited for, since who gives the first command expects it there.
    """
    write(f"{bus}/drivers_autoprobe", "0")
    write(f"{bus}/rescan", "1")
    # A driver that is loaded again later binds devices in the order in which they were added, and the hot-plug driver
    # has its own: what it has added is taken out, and found again by the scan, whose order is that of a boot.
    for name in sorted(os.listdir(f"{bus}/devices")):
        if read(f"{bus}/devices/{name}/class").startswith(NETWORK) and not driven(bus, name):
            write(f"{bus}/devices/{name}/remove", "1")
    write(f"{bus}/rescan", "1")
    devices = [name for name in sorted(os.listdir(f"{bus}/devices")) if not driven(bus, name)]
    aliases = {read(f"{bus}/devices/{name}/modalias").strip() for name in devices}
    subprocess.run(["modprobe", "-qab", *sorted(aliases)])
    for name in devices:
        write(f"{bus}/drivers_probe", name)
    write(f"{bus}/drivers_autoprobe", "1")
    due = monotonic() + INTERFACE_SECONDS
    for name in devices:
        if read(f"{bus}/devices/{name}/class").startswith(NETWORK) and driven(bus, name):
            while not os.path.exists(f"{bus}/devices/{name}/net") and monotonic() < due:
                sleep(0.01)


def driven(bus: str, name: str) -> bool:
    """Whether a device has a driver."""
    return os.path.exists(f"{bus}/devices/{name}/driver")


def read(path: str) -> str:
    """The text of a file of the kernel's."""
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write to a file of the kernel's."""
    with open(path, "w") as file:
        file.write(text)


class Process:
    """One command, with its pipes or its terminal."""

    def __init__(self, agent: Agent, number: int, argv: list[str], terminal: list[int] | None) -> None:
        self.agent = agent
        self.number = number
        self.pending = bytearray()
        self.end_of_input = False
        self.input: IO[bytes]
        self.outputs: dict[IO[bytes], int]  # and the kind of frame for each
        if terminal:
            master, slave = os.openpty()
            self.child = subprocess.Popen(argv, preexec_fn=lambda: os.login_tty(slave))
            os.close(slave)
            self.input = os.fdopen(os.dup(master), "wb", 0)
            self.outputs = {os.fdopen(master, "rb", 0): STDOUT}
            self.resize(*terminal)
        else:
            pipe = subprocess.PIPE
            self.child = subprocess.Popen(argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
            assert self.child.stdin and self.child.stdout and self.child.stderr
            self.input = self.child.stdin
            self.outputs = {self.child.stdout: STDOUT, self.child.stderr: STDERR}
        for file in (self.input, *self.outputs):
            os.set_blocking(file.fileno(), False)
        for file in self.outputs:
            agent.selector.register(file, selectors.EVENT_READ, functools.partial(self.forward, file))
        self.end = os.fdopen(os.pidfd_open(self.child.pid), "rb", 0)
        agent.selector.register(self.end, selectors.EVENT_READ, self.exited)

    def close(self, file: IO[bytes]) -> None:
        """Close `file`, if it is open. No longer watched, so that its number may come again for another file."""
        if not file.closed:
            with contextlib.suppress(KeyError):
                self.agent.selector.unregister(file)
            file.close()

    def forward(self, file: IO[bytes]) -> bool:
        """Send some of what the process has written; false if there is nothing (any more)."""
        try:
            data = b"" if file.closed else file.read(1 << 16)
        except OSError:  # EIO: nobody holds the terminal any more
            data = b""
        if data:
            self.agent.send(self.number, self.outputs[file], data)
        elif data is not None:  # None: nothing now, but the other end is open
            self.close(file)
        return bool(data)

    def feed(self, data: bytes) -> None:
        """Give `data` to its standard input; none at all ends it."""
        self.pending += data
        self.end_of_input |= not data
        self.flush()

    def flush(self) -> None:
        """Write to the process what it takes; come back when it takes more."""
        if self.input.closed:
            return
        with contextlib.suppress(KeyError):
            self.agent.selector.unregister(self.input)
        try:
            while self.pending:
                if (written := self.input.write(self.pending)) is None:
                    self.agent.selector.register(self.input, selectors.EVENT_WRITE, self.flush)
                    return
                del self.pending[:written]
        except OSError:  # it does not read any more
            self.pending.clear()
        if self.end_of_input:
            self.close(self.input)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        fcntl.ioctl(self.input, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def exited(self) -> None:
        """Send the rest of the output and the status. Children that live on do not keep the command from ending."""
        status = self.child.wait()
        for file in self.outputs:
            for _ in range(256):  # more than a pipe or a terminal holds, but not for ever: a child may go on writing
                if not self.forward(file):
                    break
        self.agent.send(self.number, EXIT, json.dumps(status).encode())
        for file in (self.end, self.input, *self.outputs):
            self.close(file)
        del self.agent.processes[self.number]


if __name__ == "__main__":
    stamped = keep_timestamps()
    exercise_network()
    Agent(os.open(sys.argv[1], os.O_RDWR)).serve()
