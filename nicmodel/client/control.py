"""The control socket of a running server: its language, and a client.

``nicmodel serve --control PATH`` listens at a UNIX stream socket that only its user may open. Each line is one JSON
object, at most `MAX_LINE` bytes. A request is ``{"request": NAME, …}``; an ``id`` in it comes back in the answer. The
answer is ``{"version": 1, "reply": …}`` or ``{"version": 1, "error": "a sentence"}``, in the order of the requests.
``nic`` names the NIC (``nic0``); where there is only one it may be left out.

========== ============================================ =========================================================
request    arguments                                    reply
========== ============================================ =========================================================
stat                                                    a list: `nicmodel.observe.snapshot` of every NIC
show       nic                                          `nicmodel.observe.detail`
bringup    nic                                          how far the driver has come: `nicmodel.observe.ladder.Ladder`
inject     nic, frames, encoding ("hex" or "base64")    a list: where each frame went, see `Control.inject`
send       nic, frames, encoding ("hex" or "base64")    {"sent": …}: how many the wire has taken
link       nic, up (true or false)                      {"link_up": …}, which takes the wire's own state in
reset      nic                                          {}; the driver has been asked to reset the device
faults     nic                                          a list: faults at work or waiting (`Injection.describe`)
fault      nic, fault, parameters, seed                 the same of a new one, see `nicmodel.faults`
fault_end  nic, injection (all if it is left out)       {}
scenario   text (TOML, see `nicmodel.faults.scenario`)  {}; its faults and frames have been given to all NICs
           or table (the same as an object),
           end (true: all other faults are over)
findings   nic (all if it is left out), clear (true:    a list: how the driver has broken the contract, see
           they are forgotten then)                     `nicmodel.observe.findings.Finding`
trace      kinds, queues, nic (all if it is left out)   {}; from now on lines ``{"event": …}`` come, see
                                                        `nicmodel.observe.trace`
capture    queues, limit (bytes of a frame), nic (all   {"epoch": …, "wires": …}, see `Control.capture`; from now on
           if it is left out)                           lines ``{"frame": …}`` come, see `nicmodel.observe.capture`
========== ============================================ =========================================================

A client that reads its events too slowly loses some: ``{"lost": N}`` says how many, and where. One that does not read
its answers is dropped. At most 32 clients are connected at a time; a request has at most 1024 frames, an ``id`` 256
bytes, the text of a scenario 256 KiB, and a connection follows one trace and one capture. Requests that come together
are answered one at a time, with the NICs' own work between them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

#: Version of the language; grows when a request or an answer changes its meaning or goes away.
VERSION = 1

#: Longest line that the server takes, bytes.
MAX_LINE = 4 << 20

#: The most bytes of frames that the client puts into one request.
_MAX_FRAMES = 1 << 20


class ControlError(Exception):
    """The server cannot be reached, or refused; the text says why."""


class Control:
    """A connection to the control socket of a server.

    Args:
        path: the socket.
        timeout: seconds to wait for an answer.

    Raises:
        ControlError: nobody listens there.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(self.path)
        except OSError as error:
            self._socket.close()
            reason = (error.strerror or str(error)).lower()
            raise ControlError(f"no server answers at {self.path}: {reason}") from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; whoever waits for events in another thread sees them end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()

    def request(self, name: str, **arguments: Any) -> Any:
        """Ask, and wait for the reply; arguments that are None are left out.

        Raises:
            ControlError: the server refused, has gone or does not answer.
        """
        asked = {"request": name} | {key: value for key, value in arguments.items() if value is not None}
        try:
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
        except TimeoutError:
            raise ControlError(f"the server at {self.path} does not read") from None
        except ConnectionError:
            pass  # it may have said why before it closed
        except OSError as error:
            raise ControlError(f"the server at {self.path} has gone: {error.strerror}") from None
        answer = self._read()
        if "reply" not in answer:
            raise ControlError(str(answer.get("error", f"{self.path} gives neither a reply nor an error")))
        return answer["reply"]

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise ControlError(f"the server at {self.path} does not answer") from None
        except OSError as error:
            raise ControlError(f"the server at {self.path} has gone: {error.strerror}") from None
        if not line.endswith(b"\n"):
            raise ControlError(f"the server at {self.path} has gone")
        answer = self._parse(line)
        if answer.get("version", VERSION) != VERSION:
            raise ControlError(f"the server speaks version {answer['version']!r}, this is version {VERSION}")
        return answer

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ControlError(f"what listens at {self.path} is no control socket of nicmodel serve")
        return answer

    def stat(self) -> list[dict[str, Any]]:
        """State and counters of every NIC (`nicmodel.observe.snapshot`)."""
        found: list[dict[str, Any]] = self.request("stat")
        return found

    def show(self, nic: str | None = None) -> dict[str, Any]:
        """All that a NIC holds (`nicmodel.observe.detail`)."""
        found: dict[str, Any] = self.request("show", nic=nic)
        return found

    def bringup(self, nic: str | None = None) -> dict[str, Any]:
        """How far the driver of a NIC has come, and those before it (`nicmodel.observe.ladder.Ladder.report`)."""
        found: dict[str, Any] = self.request("bringup", nic=nic)
        return found

    def inject(self, frames: Sequence[bytes], nic: str | None = None) -> list[dict[str, Any]]:
        """Have a NIC receive frames, as if they came from its wire.

        Returns:
            For each frame: ``verdict`` (``delivered``, ``held`` for buffers, or why it was dropped). Once it was
            steered: ``queue``, ``hash``, and ``rule`` (location of the flow rule) or ``table_entry`` (of the RSS
            table); ``header`` and ``payload``, the bytes that went to either buffer; ``completions``, decoded, each
            with its ``index``; ``coalesced`` if it shares them with the frame before it.

        Raises:
            ControlError: there is no such NIC, or a frame is too long.
        """
        return [
            one for part in _portions(frames) for one in self.request("inject", nic=nic, frames=part)
        ]  # fmt: skip

    def send(self, frames: Sequence[bytes], nic: str | None = None) -> int:
        """Have a NIC put frames out on its wire, as if its driver had sent them.

        Returns:
            How many the wire has taken: one that is busy takes no more, and through a pulled cable none go.

        Raises:
            ControlError: there is no such NIC, or a frame is too long.
        """
        return sum(self.request("send", nic=nic, frames=part)["sent"] for part in _portions(frames))

    def set_link(self, up: bool, nic: str | None = None) -> bool:
        """Plug a NIC's cable in or pull it; whether the link is up then."""
        return bool(self.request("link", nic=nic, up=up)["link_up"])

    def request_reset(self, nic: str | None = None) -> None:
        """Have a NIC ask its driver for a reset."""
        self.request("reset", nic=nic)

    def faults(self, nic: str | None = None) -> list[dict[str, Any]]:
        """The faults of a NIC that are at work or wait for their time.

        Returns:
            For each its ``id``, the name of the ``fault``, ``state``, ``hits`` and ``parameters``.
        """
        found: list[dict[str, Any]] = self.request("faults", nic=nic)
        return found

    def add_fault(self, fault: str, *, nic: str | None = None, seed: int | None = None, **parameters: Any) -> int:
        """Have a fault begin, at once or after its ``start``.

        Args:
            fault: its name (``nicmodel faults``).
            nic: the NIC that it is for.
            seed: of its random numbers.
            **parameters: its own.

        Returns:
            Its number, for `end_fault`.

        Raises:
            ControlError: there is no such fault, or it takes no such parameter or value.
        """
        return int(self.request("fault", nic=nic, fault=fault, parameters=parameters, seed=seed)["id"])

    def end_fault(self, number: int | None = None, *, nic: str | None = None) -> None:
        """End a fault, or all.

        Raises:
            ControlError: it is over already.
        """
        self.request("fault_end", nic=nic, injection=number)

    def begin_scenario(self, scenario: str | Mapping[str, Any], *, end: bool = False) -> None:
        """Give the NICs the faults and frames of a scenario (`nicmodel.faults.scenario`), whose times count from now.

        Args:
            scenario: its TOML, or what that says as a table (`Scenario.table`), which takes less time to read.
            end: whether all faults that there are are over first.

        Raises:
            ControlError: it is no scenario; the message says where.
        """
        given = {"text": scenario} if isinstance(scenario, str) else {"table": scenario}
        self.request("scenario", **given, end=end or None)

    def findings(self, nic: str | None = None, *, clear: bool = False) -> list[dict[str, Any]]:
        """How the drivers, or that of one NIC, have broken the contract so far (`Finding.as_dict`).

        Args:
            nic: the NIC; None: all.
            clear: have the server forget them, so that the next ones are of what happens from now on.

        Raises:
            ControlError: the server does not watch them.
        """
        found: list[dict[str, Any]] = self.request("findings", nic=nic, clear=clear or None)
        return found

    def trace(
        self, *, kinds: Collection[str] = (), queues: Collection[str] = (), nic: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Events from now on, until the server ends; tracing is on when this returns.

        The connection is of no other use afterwards. ``{"lost": N}`` stands for events that came too fast.

        Args:
            kinds: only these (`nicmodel.observe.trace.KINDS`).
            queues: only of these, such as ``rx3``.
            nic: only of this NIC.

        Raises:
            ControlError: no such kind, queue or NIC.
        """
        self.request("trace", kinds=list(kinds), queues=list(queues), nic=nic)
        self._socket.settimeout(None)
        return self._events()

    def capture(
        self, *, queues: Collection[str] = (), limit: int | None = None, nic: str | None = None
    ) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
        """Frames from now on, received and sent, until the server ends, and what one has to know of them first.

        The connection is of no other use afterwards. ``{"lost": N}`` stands for frames that came too fast.

        Args:
            queues: only of these, such as ``rx3``; all if empty, and what comes to no queue.
            limit: how many bytes of each frame at most; None: all.
            nic: only of this NIC.

        Returns:
            ``epoch``, what to add to a time for nanoseconds since 1970, and ``wires``, their names by NIC; and the
            frames, see `nicmodel.observe.capture`.

        Raises:
            ControlError: no such queue or NIC.
        """
        about: dict[str, Any] = self.request("capture", queues=list(queues), limit=limit, nic=nic)
        self._socket.settimeout(None)
        return about, self._events()

    def mark(self) -> None:
        """Have a line ``{"reply": …}`` come among the events of this connection, behind those that there are now.

        Raises:
            ControlError: the server has gone.
        """
        try:
            self._socket.sendall(b'{"request": "stat"}\n')
        except OSError as error:
            raise ControlError(f"the server at {self.path} has gone: {error.strerror}") from None

    def _events(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                line = self._lines.readline()
            except (OSError, ValueError):  # the server was killed; this end was closed
                return
            if not line.endswith(b"\n"):
                return
            answer = self._parse(line)
            yield answer.get("event") or answer.get("frame") or answer


def _portions(frames: Sequence[bytes]) -> Iterator[list[str]]:
    """The frames in hexadecimal, as many at a time as go into one request."""
    start = 0
    while start < len(frames):
        end, size = start + 1, len(frames[start])
        while end < len(frames) and end - start < 256 and size + len(frames[end]) <= _MAX_FRAMES:
            size += len(frames[end])
            end += 1
        yield [frame.hex() for frame in frames[start:end]]
        start = end
