"""The server's side of the control socket; the language is that of `nicmodel.client.control`."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from nicmodel.client.control import MAX_LINE, VERSION
from nicmodel.faults.fault import shortened
from nicmodel.faults.faults import Faults, named_fault
from nicmodel.faults.scenario import Scenario
from nicmodel.nic.plain import followers, where
from nicmodel.nic.view import View
from nicmodel.observe.capture import Capture
from nicmodel.observe.detail import detail
from nicmodel.observe.snapshot import one_a_turn
from nicmodel.observe.trace import Event, Tracer, check_queues
from nicmodel.packet.frames import MAX_FRAME, Batch
from nicmodel.vfio_user.listener import Acceptor, Listener
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.vfio_user.server import Server

if TYPE_CHECKING:
    from nicmodel.observe.findings import Checker
    from nicmodel.observe.ladder import Ladder

log = logging.getLogger(__name__)

#: Broken rules that are told with how far a driver has come; `findings` has all.
_MAX_BROKEN = 8
#: Clients at a time.
_MAX_CLIENTS = 32
#: Bytes that may wait for a client: beyond the first, its events are lost; beyond the second, it is dropped.
_MAX_EVENTS = 4 << 20
_MAX_WAITING = 16 << 20
#: Most frames in a request, bytes in an id, and characters in a scenario, for whose reading the NICs have to wait.
_MAX_FRAMES = 1024
_MAX_ID = 256
_MAX_SCENARIO = 1 << 18
_FAILED = "the server failed; its log says where"

#: A reply that takes several turns of the loop: who it is given to, and who is told if there is none.
Later = Callable[[Callable[[Any], object], Callable[[Exception], object]], None]


class _Refused(Exception):
    """A request that cannot be granted; the text is for the client."""


class ControlServer:
    """Answers at a control socket, in the event loop of the NICs.

    Args:
        path: where the socket is created, for its owner only; a dead server's is replaced. Or a listener, which this
            closes.
        nics: each NIC with its vfio-user server.
        poller: the event loop.
        faults: of each NIC, if it is to have faults on demand.
        checkers: by the names of the NICs whose drivers are watched.
        ladders: by the names of the NICs, how far their drivers have come.

    Raises:
        AddressError: the socket cannot be created.
    """

    def __init__(
        self,
        path: str | Listener,
        nics: Sequence[tuple[View, Server]],
        poller: EventLoop,
        faults: Sequence[Faults] = (),
        checkers: Mapping[str, Checker] | None = None,
        ladders: Mapping[str, Ladder[Any]] | None = None,
    ) -> None:
        self.nics = {nic.name: (nic, server) for nic, server in nics}
        self.faults = {one.nic.name: one for one in faults}
        self.checkers = dict(checkers or {})
        self.ladders = dict(ladders or {})
        self.tracers = {nic.name: Tracer(nic, server) for nic, server in nics}
        self._poller = poller
        self._listener = path if isinstance(path, Listener) else Listener(path, mode=0o600)
        self._clients: set[_Client] = set()
        self._acceptor = Acceptor(poller, self._listener, self._listener.path, self._accept)
        self._acceptor.start()

    def close(self) -> None:
        """Part with all clients and remove the socket."""
        for client in tuple(self._clients):
            client.close()
        self._acceptor.stop()
        self._listener.close()

    def _accept(self, connection: socket.socket) -> None:
        if len(self._clients) < _MAX_CLIENTS:
            self._clients.add(_Client(self, connection, self._poller, self._clients.discard))
            return
        error = {"version": VERSION, "error": f"{_MAX_CLIENTS} clients are connected, and no more are served"}
        with connection, contextlib.suppress(OSError):
            connection.send(json.dumps(error).encode() + b"\n")


class _Client:
    """One connection."""

    def __init__(
        self, server: ControlServer, connection: socket.socket, poller: EventLoop, on_close: Callable[[_Client], None]
    ) -> None:
        self._server = server
        self._socket = connection
        self._poller = poller
        self._on_close = on_close
        self._input = bytearray()
        self._output = bytearray()
        self._overlong = False
        self._listening = True
        self._congested = False
        self._lost = 0
        self._unfinished = False  # an answer takes several turns of the loop
        self._follows: set[str] = set()
        self._endings: list[Callable[[], None]] = []
        self._requests: dict[str, Callable[[dict[str, Any]], Any]] = {
            "stat": self._stat,
            "show": self._show,
            "inject": self._inject,
            "send": self._send_frames,
            "link": self._link,
            "reset": self._reset,
            "faults": self._list_faults,
            "fault": self._add_fault,
            "fault_end": self._end_faults,
            "scenario": self._begin_scenario,
            "findings": self._findings,
            "bringup": self._bringup,
            "trace": self._trace,
            "capture": self._capture,
        }
        connection.setblocking(False)
        poller.add(connection.fileno(), self._readable)

    def close(self) -> None:
        """End the connection."""
        if self._socket.fileno() < 0:
            return
        for end in self._endings:
            end()
        self._poller.remove(self._socket.fileno())
        self._socket.close()
        self._on_close(self)

    # Lines in, lines out.

    def _readable(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._input += data
        self._go_on()

    def _go_on(self) -> None:
        """Answer one request. Others that have come with it wait until the NICs have nothing to do."""
        if self._socket.fileno() < 0:
            return
        line, newline, _ = self._input.partition(b"\n")
        too_long = len(line) > MAX_LINE
        if too_long and not self._overlong:
            self._send({"version": VERSION, "error": f"a line of more than {MAX_LINE} bytes"})
        if newline:
            del self._input[: len(line) + 1]
            is_rest, self._overlong = self._overlong or too_long, False
            if not is_rest:
                self._answer(bytes(line))
        elif too_long or self._overlong:  # the rest of the line goes nowhere
            self._overlong = True
            self._input.clear()
        self._go_on_listening()

    def _go_on_listening(self) -> None:
        if self._socket.fileno() < 0:
            return
        waiting = b"\n" in self._input
        self._listen(not waiting and not self._unfinished)
        if waiting and not self._unfinished:
            self._poller.when_idle(self._go_on)

    def _listen(self, on: bool) -> None:
        """Read what the client says, or let it wait."""
        if on and not self._listening:
            self._poller.add(self._socket.fileno(), self._readable)
            self._congested = False
            self._listening = True
            self._flush()
        elif not on and self._listening:
            self._poller.remove(self._socket.fileno())
            self._listening = False

    def _answer(self, line: bytes) -> None:
        answer: dict[str, Any] = {"version": VERSION}
        try:
            request = _parse(line)
            if "id" in request:
                answer["id"] = _identity(request["id"])
            name = request.get("request")
            handler = self._requests.get(name) if isinstance(name, str) else None
            if handler is None:
                raise _Refused(f"there is no request {shortened(name)}, but {', '.join(self._requests)}")
            reply = handler(request)
            if callable(reply):
                self._unfinished = True
                reply(lambda found: self._finish(answer | {"reply": found}), partial(self._fail, answer))
                return
            answer["reply"] = reply
        except (_Refused, ValueError) as error:
            answer["error"] = str(error)
        except Exception:
            log.exception("control: %s failed", line[:200])
            answer["error"] = _FAILED
        self._send(answer)

    def _finish(self, answer: dict[str, Any]) -> None:
        """Send an answer that took several turns of the loop, and go on with what was asked behind it."""
        self._unfinished = False
        self._send(answer)
        self._go_on_listening()

    def _fail(self, answer: dict[str, Any], error: Exception) -> None:
        log.error("control: a reply failed", exc_info=error)
        self._finish(answer | {"error": _FAILED})

    def _send(self, line: dict[str, Any]) -> None:
        if self._socket.fileno() < 0:
            return
        self._output += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if not self._congested or not self._listening:
            self._flush()
        if len(self._output) > _MAX_WAITING:
            log.warning("control: a client that does not read was dropped")
            self.close()

    def _flush(self) -> None:
        try:
            del self._output[: self._socket.send(self._output)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._listening and self._congested != bool(self._output):
            self._congested = bool(self._output)
            self._poller.want_write(self._socket.fileno(), self._flush if self._congested else None)

    def _event(self, kind: str, event: Event) -> None:
        if len(self._output) > _MAX_EVENTS:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._send({"lost": lost})
        self._send({kind: event})

    # Requests.

    def _nic(self, request: dict[str, Any]) -> View:
        nics, name = self._server.nics, request.get("nic")
        if name is None and len(nics) == 1:
            name = next(iter(nics))
        if not isinstance(name, str) or name not in nics:
            among = ", ".join(nics)
            raise _Refused(
                f"which NIC? There are {among}" if name is None else f"there is no NIC {shortened(name)}, but {among}"
            )
        return nics[name][0]

    def _nics(self, request: dict[str, Any]) -> list[View]:
        """The one that is named, or all."""
        return [self._nic(request)] if "nic" in request else [nic for nic, _ in self._server.nics.values()]

    def _stat(self, request: dict[str, Any]) -> Later:
        nics = list(self._server.nics.values())
        return partial(one_a_turn, nics, self._poller, lambda: self._socket.fileno() >= 0)

    def _show(self, request: dict[str, Any]) -> dict[str, Any]:
        nic = self._nic(request)
        faults = self._server.faults.get(nic.name)
        injections = [] if faults is None else faults.injections.values()
        return {**detail(nic), "faults": [injection.describe() for injection in injections]}

    def _bringup(self, request: dict[str, Any]) -> dict[str, Any]:
        name = self._nic(request).name
        ladder, checker = self._server.ladders[name], self._server.checkers.get(name)
        began = ladder.began
        broken = [] if checker is None or began is None else [one for one in checker.findings if one.time >= began]
        told = [f"rule {one.rule.name}, {one.queue or 'device'}: {one.what}" for one in broken[:_MAX_BROKEN]]
        if len(broken) > _MAX_BROKEN:
            told.append(f"and {len(broken) - _MAX_BROKEN:,} rules more: nicmodel findings")
        return ladder.report(told)

    def _inject(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        nic = self._nic(request)
        frames = _frames(request)
        rx = nic.state.rx.copy()
        results = []
        outcomes = nic.ingress.inject(Batch.of(frames))
        merged = followers(outcomes)
        for number, (frame, outcome) in enumerate(zip(frames, outcomes, strict=True)):
            result = where(nic.state, outcome)
            if number in merged:
                result["coalesced"] = True
            count = int(outcome["completions"])
            if count:
                result["payload"] = len(frame) - result["header"]
                queue = rx[outcome["queue"]]
                result["completions"] = nic.completions(queue, int(outcome["completion"]), count)
            results.append(result)
        return results

    def _send_frames(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"sent": self._nic(request).egress.send(_frames(request))}

    def _link(self, request: dict[str, Any]) -> dict[str, Any]:
        nic, up = self._nic(request), request.get("up")
        if not isinstance(up, bool):
            raise _Refused("up is true or false")
        nic.set_cable(up)
        return {"link_up": nic.link_up}

    def _reset(self, request: dict[str, Any]) -> dict[str, Any]:
        self._nic(request).request_reset()
        return {}

    def _faults(self, request: dict[str, Any]) -> Faults:
        name = self._nic(request).name
        if name not in self._server.faults:
            raise _Refused(f"{name} has no faults on demand")
        return self._server.faults[name]

    def _findings(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        checkers = self._server.checkers
        if not checkers:
            raise _Refused("nobody watches the driver: the server needs --check or --strict")
        names = [self._nic(request).name] if "nic" in request else list(checkers)
        clear = request.get("clear", False)
        if not isinstance(clear, bool):
            raise _Refused("clear is true or false")
        found = [finding.as_dict() for name in names for finding in checkers[name].findings]
        for name in names if clear else ():
            checkers[name].clear()
        return found

    def _list_faults(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        return [injection.describe() for injection in self._faults(request).injections.values()]

    def _add_fault(self, request: dict[str, Any]) -> dict[str, Any]:
        name, parameters, seed = request.get("fault"), request.get("parameters", {}), request.get("seed")
        if not isinstance(name, str):
            raise _Refused("fault is the name of one, such as wire-drop")
        if not isinstance(parameters, dict):
            raise _Refused("parameters is an object")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise _Refused("seed is a whole number")
        faults = self._faults(request)
        return faults.add(
            named_fault(name, parameters, faults.kinds), seed=None if seed is None else str(seed)
        ).describe()

    def _end_faults(self, request: dict[str, Any]) -> dict[str, Any]:
        faults, number = self._faults(request), request.get("injection")
        if number is None:
            faults.clear()
        elif isinstance(number, int) and not isinstance(number, bool) and number in faults.injections:
            faults.remove(number)
        else:
            raise _Refused(f"there is no fault {shortened(number)} at work or waiting")
        return {}

    def _begin_scenario(self, request: dict[str, Any]) -> dict[str, Any]:
        text, table, end = request.get("text"), request.get("table"), request.get("end", False)
        if not isinstance(end, bool):
            raise _Refused("end is true or false")
        faults = self._server.faults.values()
        kinds = {name: kind for one in faults for name, kind in one.kinds.items()}
        if isinstance(text, str) and table is None:
            if len(text) > _MAX_SCENARIO:
                raise _Refused(f"a scenario of {len(text)} characters; at most {_MAX_SCENARIO} are read")
            scenario = Scenario.parse(text, kinds)
        elif isinstance(table, dict) and text is None:
            scenario = Scenario.of(table, kinds)
        else:
            raise _Refused("text is the scenario's TOML, or table, an object, says the same; one of them is given")
        for one in faults if end else ():
            one.clear()
        scenario.begin(faults)
        return {}

    def _trace(self, request: dict[str, Any]) -> dict[str, Any]:
        kinds, queues = _strings(request, "kinds"), _strings(request, "queues")
        nics = self._nics(request)
        self._follow("trace", nics, queues)
        for nic in nics:
            tracer = self._server.tracers[nic.name]
            subscription = tracer.subscribe(partial(self._event, "event"), kinds, queues)
            self._endings.append(partial(tracer.unsubscribe, subscription))
        return {}

    def _capture(self, request: dict[str, Any]) -> dict[str, Any]:
        queues, limit = _strings(request, "queues"), request.get("limit")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise _Refused("limit is a number of bytes")
        nics = self._nics(request)
        self._follow("capture", nics, queues)
        for nic in nics:
            self._endings.append(Capture(nic, partial(self._event, "frame"), queues, limit).close)
        epoch = time.time_ns() - nics[0].clock()
        return {"epoch": epoch, "wires": {nic.name: nic.wire.name for nic in nics}}

    def _follow(self, what: str, nics: Sequence[View], queues: Sequence[str]) -> None:
        """See that this connection may follow all these NICs, before it follows the first."""
        for nic in nics:
            check_queues(nic, queues)
        if what in self._follows:
            raise _Refused(f"this connection has a {what}; for another open another connection")
        self._follows.add(what)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line.decode(), parse_constant=_no_number)
    except RecursionError:
        raise _Refused("a request is not nested so deeply") from None
    except ValueError as error:
        raise _Refused(f"a request is a line of JSON: {error}") from None
    if not isinstance(request, dict):
        raise _Refused("a request is a JSON object")
    return request


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _identity(value: Any) -> Any:
    """A request's id, if it is fit to be sent back."""
    with contextlib.suppress(ValueError, RecursionError):
        if len(json.dumps(value, allow_nan=False)) <= _MAX_ID:
            return value
    raise _Refused(f"an id has at most {_MAX_ID} bytes, and numbers that there are")


def _strings(request: dict[str, Any], name: str) -> list[str]:
    value = request.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _Refused(f"{name} is a list of strings")
    return value


def _frames(request: dict[str, Any]) -> list[bytes]:
    encoding = request.get("encoding", "hex")
    if encoding not in ("hex", "base64"):
        raise _Refused("the encoding is hex or base64")
    decode, expected = (bytes.fromhex, "hexadecimal digits in pairs") if encoding == "hex" else (_base64, "base64")
    frames = []
    texts = _strings(request, "frames")
    if len(texts) > _MAX_FRAMES:
        raise _Refused(f"{len(texts)} frames; a request takes at most {_MAX_FRAMES}")
    for text in texts:
        try:
            frames.append(decode(text))
        except ValueError:  # whose wording differs between versions of Python
            raise _Refused(f"frame {len(frames)}: not {expected}") from None
        if not 0 < len(frames[-1]) <= MAX_FRAME:
            raise _Refused(f"frame {len(frames) - 1}: {len(frames[-1])} bytes; 1 to {MAX_FRAME} are possible")
    return frames


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
