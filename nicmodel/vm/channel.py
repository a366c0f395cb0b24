"""The host's end of the guest's agent: start processes in the guest and follow them (protocol: `agent.py`)."""

import contextlib
import json
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nicmodel.vm import agent
from nicmodel.vm.errors import VmError


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended.

    Attributes:
        stdout: What it wrote; bytes that are not UTF-8 are replaced.
        stderr: Likewise.
        status: Its exit status, or minus the number of the signal that ended it.
    """

    stdout: str
    stderr: str
    status: int


Sink = Callable[[int, bytes], object]
"""Takes a process's output as it comes: descriptor (1 or 2) and bytes. Called in a thread that serves all processes."""

#: Characters of a command that messages name it by.
_NAMED = 120


def _first_line(command: str) -> str:
    """What a command is called in messages, whose first line has to say what is wrong: scripts are long."""
    first = next((line.strip() for line in command.splitlines() if line.strip()), "")
    name = first[:_NAMED]
    return name if name == command.strip() else f"{name} …"


class Process:
    """A process in the guest. Methods may be called from any thread."""

    def __init__(self, channel: "Channel", number: int, command: str, sink: Sink | None = None) -> None:
        self.command = _first_line(command)
        self._sink = sink
        self._channel = channel
        self._number = number
        self._changed = threading.Condition()
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._status: int | None = None
        self._failure = ""

    def wait(self, timeout: float | None = 60) -> Result:
        """Wait for the end.

        Args:
            timeout: Seconds, None for ever; the process goes on if it has not ended by then. A guest whose kernel is
                slow has several times as much (`nicmodel.vm.kernel.Kernel.patience`).

        Raises:
            VmError: It did not end in time, could not be started, or the guest ended first.
        """
        self._wait_until(lambda: self._status is not None, timeout, "did not end")
        assert self._status is not None
        return Result(self._stdout.decode(errors="replace"), self._stderr.decode(errors="replace"), self._status)

    def expect(self, text: str, timeout: float = 60) -> str:
        """Wait until standard output holds `text`; the output so far.

        Raises:
            VmError: It does not within `timeout` seconds, or the process has ended without it.
        """
        self._wait_until(lambda: text in self.output() or self._status is not None, timeout, f"did not say '{text}'")
        if text not in self.output():
            raise VmError(f"'{self.command}' in the guest ended without '{text}': {self._quoted()}")
        return self.output()

    def output(self) -> str:
        """Standard output so far."""
        return self.output_bytes().decode(errors="replace")

    def output_bytes(self) -> bytes:
        """Standard output so far, as it came."""
        with self._changed:
            return bytes(self._stdout)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet, as far as the host knows."""
        return self._status is None and not self._failure

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the process and its children. Nothing happens if it has ended."""
        self._channel.send(self._number, agent.SIGNAL, json.dumps(int(signum)).encode())

    def write(self, data: bytes) -> None:
        """Give `data` to its standard input."""
        for start in range(0, len(data), 1 << 20):
            self._channel.send(self._number, agent.STDIN, data[start : start + (1 << 20)])

    def close_input(self) -> None:
        """End its standard input."""
        self._channel.send(self._number, agent.STDIN, b"")

    def resize(self, rows: int, columns: int) -> None:
        """Tell the size of the terminal that it runs on."""
        self._channel.send(self._number, agent.RESIZE, json.dumps([rows, columns]).encode())

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None, complaint: str) -> None:
        if timeout is not None:
            timeout *= self._channel.patience
        with self._changed:
            self._changed.wait_for(lambda: condition() or bool(self._failure), timeout)
            if condition():
                return
        if self._failure:
            raise VmError(f"'{self.command}' in the guest: {self._failure}")
        raise GuestTimeoutError(f"'{self.command}' in the guest {complaint} within {timeout:g} s: {self._quoted()}")

    def _quoted(self) -> str:
        return (self._stdout[-1000:] + self._stderr[-1000:]).decode(errors="replace").strip() or "no output"

    def receive(self, kind: int, body: bytes) -> None:
        """Take a frame of the agent's."""
        if self._sink and kind in (agent.STDOUT, agent.STDERR):
            self._sink(1 if kind == agent.STDOUT else 2, body)
            return
        with self._changed:
            if kind == agent.STDOUT:
                self._stdout += body
            elif kind == agent.STDERR:
                self._stderr += body
            elif kind == agent.EXIT:
                self._status = json.loads(body)
            elif kind == agent.FAILED:
                self._failure = body.decode()
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Give up on it."""
        with self._changed:
            if self.running:
                self._failure = reason
            self._changed.notify_all()


class GuestTimeoutError(VmError):
    """Something in the guest took longer than it was given."""


class Channel:
    """The connection to the agent, across resets of the guest.

    Args:
        connection: The socket behind the guest's virtio-serial port.
        patience: By which all limits of time are multiplied: see `nicmodel.vm.kernel.Kernel.patience`.
    """

    def __init__(self, connection: socket.socket, patience: int = 1) -> None:
        self._connection = connection
        self.patience = patience
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._changed = threading.Condition()
        self._received = bytearray()
        self._processes: dict[int, Process] = {}
        self._last_number = 0
        self._greeted = False
        self.greetings = 0
        self.failure = ""

    def start(
        self, command: str | Sequence[str], terminal: tuple[int, int] | None = None, sink: Sink | None = None
    ) -> Process:
        """Start a process.

        Args:
            command: A line for the guest's shell (bash), or a program and its arguments.
            terminal: Run it on a terminal with these rows and columns; None: on pipes.
            sink: Gets the output, which is not kept then.
        """
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        with self._changed:
            self._last_number += 1
            number = self._last_number
            process = Process(self, number, command if isinstance(command, str) else " ".join(argv), sink)
            if self.failure:
                process.fail(self.failure)
                return process
            self._processes[number] = process
        self.send(number, agent.START, json.dumps({"argv": argv, "terminal": terminal}).encode())
        return process

    def send(self, number: int, kind: int, body: bytes) -> None:
        """Send one frame. A guest that is gone swallows it: its processes have been told otherwise."""
        try:
            with self._sending:
                self._connection.sendall(agent.HEADER.pack(len(body), number, kind) + body)
        except OSError:
            return

    def wake(self) -> None:
        """Have the agent of a guest that was restored from a snapshot greet, with the time and a seed of its own."""
        body = {"time": time.time(), "entropy": secrets.token_hex(64)}
        self.send(0, agent.WAKE, json.dumps(body).encode())

    def wait_greeting(self, count: int, timeout: float) -> bool:
        """Wait until the agent has started `count` times in all, or the channel failed; whether it has."""
        with self._changed:
            wanted = self.patience * timeout
            self._changed.wait_for(lambda: self.greetings >= count or bool(self.failure), wanted)
            return self.greetings >= count

    def receive(self, data: bytes) -> None:
        """Take what came from the guest."""
        with self._receiving:
            self._received += data
            while self._take_greeting() if not self._greeted else self._take_frame():
                pass

    def _take_greeting(self) -> bool:
        """Look for the agent's greeting and answer it; whether it was there."""
        _, found, after = self._received.partition(agent.HELLO)
        if not found or len(after) < agent.NONCE:
            return False
        self._received = after[agent.NONCE :]
        with self._sending:
            self._connection.sendall(found + after[: agent.NONCE])
        with self._changed:
            self._greeted = True
            self.greetings += 1
            self._changed.notify_all()
        return True

    def _take_frame(self) -> bool:
        """Hand the next frame to its process; false if it is not complete yet."""
        if len(self._received) < agent.HEADER.size:
            return False
        length, number, kind = agent.HEADER.unpack_from(self._received)
        if kind not in agent.FROM_GUEST:  # no frame, but the greeting of an agent that took another's place
            self._lose_processes("the agent failed and was restarted; the guest's console says why")
            return True
        end = agent.HEADER.size + length
        if len(self._received) < end:
            return False
        body = bytes(self._received[agent.HEADER.size : end])
        del self._received[:end]
        if process := self._processes.get(number):
            process.receive(kind, body)
            if not process.running:
                del self._processes[number]
        return True

    def reset(self, reason: str) -> None:
        """The guest was reset: its processes are gone, and a new agent will greet."""
        with self._receiving:
            self._received.clear()
            self._lose_processes(reason)

    def _lose_processes(self, reason: str) -> None:
        with self._changed:
            self._greeted = False
            lost, self._processes = self._processes, {}
        for process in lost.values():
            process.fail(reason)

    def fail(self, reason: str) -> None:
        """The guest is gone or as good as gone: nothing will be answered any more."""
        with self._changed:
            self.failure = self.failure or reason
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # frees threads that are sending
        self.reset(reason)
