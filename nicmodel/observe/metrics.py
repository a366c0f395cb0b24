"""What Prometheus asks of a server: its counters over HTTP.

The numbers are those of `nicmodel.observe.snapshot`; formats and their choice are prometheus-client's. HTTP is spoken
by threads of their own, so that no client can hold the NICs, however slow or wrong it is. They never look at a NIC:
they ask the event loop for snapshots (`MetricsServer.snapshots`), which it makes between two events.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from operator import methodcaller
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from nicmodel.client.ledger import entries
from nicmodel.client.text import printable
from nicmodel.nic.view import View
from nicmodel.observe.snapshot import one_a_turn
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.vfio_user.server import Server

log = logging.getLogger(__name__)

#: Longest request, bytes; connections at a time; seconds that a client may be silent, or slow to take its answer, and
#: that a connection lasts at most.
_MAX_REQUEST = 8192
_MAX_CLIENTS = 16
_SILENCE = 5.0
_LIFE = 15.0
#: Seconds that are no long time for an answer, and that a new connection waits for another to end.
_LINGER = 2.0
#: Seconds that a scrape waits for the event loop, and ns from one snapshot to the next, whoever asks.
_PATIENCE = 5.0
_PAUSE_NS = 100_000_000

Snapshots = Sequence[Mapping[str, Any]]

#: Metrics by name: kind and help.
_METRICS = {
    "link_up": ("gauge", "Whether frames pass."),
    "rx_frames_total": ("counter", "Packets delivered to a receive queue."),
    "rx_bytes_total": ("counter", "Their bytes."),
    "rx_split_total": ("counter", "Packets whose header went to a buffer of its own."),
    "rx_header_overflow_total": ("counter", "Packets whose header did not fit its buffer."),
    "rx_aggregated_total": ("counter", "Packets that stand for several segments."),
    "rx_coalesced_total": ("counter", "Frames that the NIC has merged into such packets."),
    "rx_bad_checksum_total": ("counter", "Packets with a wrong checksum."),
    "rx_held": ("gauge", "Frames that wait for buffers."),
    "tx_packets_total": ("counter", "Packets taken from a transmit queue."),
    "tx_bytes_total": ("counter", "Bytes of the frames they became."),
    "tx_segments_total": ("counter", "Frames they became."),
    "drops_total": ("counter", "Frames and packets dropped, by reason; without a queue: before one was chosen."),
    "dma_bytes_total": ("counter", "Bytes of DMA since the client connected; see nicmodel ledger."),
    "dma_faults_total": ("counter", "DMA accesses outside of what the guest has mapped."),
    "placement_total": (
        "counter",
        "Deferred placement: what became of payload kept on the NIC, and of requests, by name.",
    ),
    "interrupts_total": ("counter", "Interrupts of each notification block."),
    "ddp_total": ("counter", "What direct data placement counts, by name."),
    "rule_hits_total": ("counter", "Frames that a flow rule has steered."),
    "admin_commands_total": ("counter", "Admin commands by name and status."),
    "events_total": ("counter", "Other events by name."),
    "wire_total": ("counter", "What the wire counts, by name."),
    "vfio_user_total": ("counter", "Messages and errors of the vfio-user server, by name."),
    "peak_memory_bytes": ("gauge", "Peak memory of the server's process."),
}

Sample = tuple[str, dict[str, str], float]


class _Collector(Collector):
    """The metrics of some snapshots, as prometheus-client takes them."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._families = list(_families(snapshots))

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(snapshots: Snapshots) -> Iterator[Metric]:
    families = {
        name: Metric(f"nicmodel_{name.removesuffix('_total')}", text, kind) for name, (kind, text) in _METRICS.items()
    }
    for snap in snapshots:
        for name, labels, value in _samples(snap):
            inside = {key: printable(text) for key, text in {"nic": snap["name"], **labels}.items()}
            families[name].add_sample(f"nicmodel_{name}", inside, value)
    return (family for family in families.values() if family.samples)


def _registry(snapshots: Snapshots) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(_Collector(snapshots))
    return registry


def exposition(snapshots: Snapshots) -> str:
    """Snapshots as text for Prometheus: each metric with its help, its type and its samples."""
    return generate_latest(_registry(snapshots)).decode()


def _samples(snap: Mapping[str, Any]) -> Iterator[Sample]:
    yield "link_up", {}, int(snap["link_up"])
    for way in ("rx", "tx"):
        for queue in snap[f"{way}_queues"]:
            label = {"queue": f"{way}{queue['queue']}"}
            for name, value in queue.items():
                if (metric := f"{way}_{name}_total") in _METRICS:
                    yield metric, label, value
            if way == "rx":
                yield "rx_held", label, queue["held"]
            for reason, count in queue["drops"].items():
                yield "drops_total", label | {"reason": reason}, count
            for name, count in queue.get("placement", {}).items():
                if name not in ("pages", "budget"):
                    yield "placement_total", label | {"name": name}, count
    for reason, count in snap["device_drops"].items():
        yield "drops_total", {"queue": "", "reason": reason}, count
    for entry in entries(snap):
        label = {"queue": "" if entry.queue == "device" else entry.queue, "direction": entry.direction}
        label |= {"purpose": entry.purpose, "memory": entry.memory, "path": entry.path}
        yield "dma_bytes_total", label, entry.bytes
    yield "dma_faults_total", {}, snap["dma_faults"]
    for block, count in enumerate(snap["interrupts"]):
        yield "interrupts_total", {"block": str(block)}, count
    for rule in snap.get("rules", ()):
        yield "rule_hits_total", {"location": str(rule["location"]), "queue": f"rx{rule['queue']}"}, rule["hits"]
    for name, count in snap.get("admin", {}).items():
        command, status = name.split(" ")
        yield "admin_commands_total", {"command": command, "status": status}, count
    for metric, counts in (
        ("events_total", snap["events"]), ("wire_total", snap["wire"]), ("vfio_user_total", snap["vfio_user"]),
        ("ddp_total", snap.get("ddp", {})),
    ):  # fmt: skip
        for name, count in counts.items():
            if isinstance(count, int):
                yield metric, {"name": name}, count
    yield "peak_memory_bytes", {}, snap["peak_memory"]


class MetricsServer:
    """Answers scrapes, beside the event loop of the NICs.

    Args:
        address: where to listen, host and port; port 0: any that is free.
        nics: each NIC with its vfio-user server.
        poller: the event loop.

    Attributes:
        address: where it listens, port included.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, address: tuple[str, int], nics: Sequence[tuple[View, Server]], poller: EventLoop) -> None:
        self.nics = nics
        self._poller = poller
        self._asked: deque[Future[Snapshots]] = deque()
        self._answered: list[Future[Snapshots]] = []  # those for whom snapshots are being made
        self._closed = False
        self._lock = threading.Lock()  # of what is asked, and whether anybody answers
        self._turn = threading.Lock()  # of the scrapes: their work, too, takes time from the event loop's thread
        self._made = -_PAUSE_NS
        self._http = _HttpServer(address, self._serve)
        self.address: tuple[str, int] = self._http.socket.getsockname()[:2]
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        poller.add(self._wake, self._woken)
        self._thread = threading.Thread(target=self._http.serve_forever, name="metrics", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the event loop's
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Part with all clients and listen no more."""
        with self._lock:
            self._closed = True
        while self._asked:
            self._asked.popleft().set_exception(TimeoutError())
        for future in self._answered:
            future.set_exception(TimeoutError())
        self._answered = []
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._poller.remove(self._wake)
        os.close(self._wake)

    # In the threads of the connections.

    def snapshots(self) -> Snapshots:
        """Snapshots of all NICs, made by the event loop after this was called; for other threads.

        Raises:
            TimeoutError: it was busy for too long.
        """
        future: Future[Snapshots] = Future()
        with self._lock:
            if self._closed:
                raise TimeoutError
            self._asked.append(future)
            os.eventfd_write(self._wake, 1)
        try:
            return future.result(_PATIENCE)
        except TimeoutError:
            future.cancel()
            raise

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request (WSGI)."""

        def refuse(status: str, sentence: str, *headers: tuple[str, str]) -> Iterable[bytes]:
            start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
            return [f"{sentence}\n".encode()]

        method = environ["REQUEST_METHOD"]
        if environ["PATH_INFO"] != "/metrics":
            return refuse("404 Not Found", "there is only /metrics")
        if method not in ("GET", "HEAD"):
            return refuse("405 Method Not Allowed", "only GET", ("Allow", "GET, HEAD"))
        busy = "503 Service Unavailable", "the NICs are too busy to be asked"
        if not self._turn.acquire(timeout=_PATIENCE):
            return refuse(*busy)
        try:
            registry = _registry(self.snapshots())
            try:
                body: Iterable[bytes] = make_wsgi_app(registry)(environ | {"REQUEST_METHOD": "GET"}, start_response)
            except Exception as error:  # prometheus-client's, of a version or an encoding that is none
                log.debug("metrics: %r", error)
                return refuse("400 Bad Request", "these headers cannot be understood")
        except TimeoutError:
            return refuse(*busy)
        finally:
            self._turn.release()
        return body if method == "GET" else [b""]

    # In the event loop.

    def _woken(self) -> None:
        os.eventfd_read(self._wake)
        self._answer_soon()

    def _answer_soon(self) -> None:
        pause = self._made + _PAUSE_NS - self._poller.clock()
        if pause > 0:
            self._poller.call_at(self._poller.clock() + pause, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        """Snapshots for all who have asked so far."""
        if self._answered:  # who has asked meanwhile has newer ones afterwards
            return
        asked = [self._asked.popleft() for _ in range(len(self._asked))]
        self._answered = [future for future in asked if future.set_running_or_notify_cancel()]
        if self._answered:
            self._made = self._poller.clock()
            one_a_turn(self.nics, self._poller, lambda: bool(self._answered), self._succeed, self._fail)

    def _succeed(self, found: Snapshots) -> None:
        self._finish(methodcaller("set_result", found))

    def _fail(self, error: Exception) -> None:
        self._finish(methodcaller("set_exception", error))
        raise error

    def _finish(self, answer: Callable[[Future[Snapshots]], None]) -> None:
        answered, self._answered = self._answered, []
        for future in answered:
            answer(future)
        if self._asked:
            self._answer_soon()


class _HttpServer(ThreadingMixIn, WSGIServer):
    """A thread for each connection, of which there are few, and none for long.

    When there are too many, the one that has been there longest without a request has to go, or else one that does not
    come to an end: connections that say nothing keep nobody out. Further ones wait until the kernel hands them over.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_port = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], app: Callable[..., Iterable[bytes]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._alive = 0  # threads
        self._since: dict[socket.socket, float] = {}
        self._asking: set[socket.socket] = set()
        super().__init__(address, _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Listen; unlike HTTPServer's own without asking the DNS for this host's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection; out of descriptors, or whatever it is, it waits a moment."""
        try:
            connection, address = super().get_request()
        except OSError:
            time.sleep(0.1)
            raise
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection; if there are too many, end another."""
        with self._lock:
            if self._alive >= _MAX_CLIENTS and (other := self._dispensable()) is not None:
                self._end(other)
            if not self._room.wait_for(lambda: self._alive < _MAX_CLIENTS, _LINGER):
                super().shutdown_request(request)
                return
            self._alive += 1
            self._since[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had
            self._over(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its thread."""
        super().process_request_thread(request, client_address)
        self._over(request)

    def _over(self, request: socket.socket) -> None:
        with self._lock:
            self._since.pop(request, None)
            self._asking.discard(request)
            self._alive -= 1
            self._room.notify()

    def _dispensable(self) -> socket.socket | None:
        """Who has to go for a new connection, if anybody has to."""
        long_ago = time.monotonic() - _LINGER
        silent = (one for one in self._since if one not in self._asking)
        slow = (one for one, since in self._since.items() if since < long_ago)
        return next(silent, None) or next(slow, None)

    def asks(self, request: socket.socket) -> None:
        """A connection has made its request."""
        with self._lock:
            self._asking.add(request)

    def service_actions(self) -> None:
        """Now and then: end what takes too long."""
        with self._lock:
            old = [one for one, since in self._since.items() if time.monotonic() - since > _LIFE]
            for one in old:
                self._end(one)

    def server_close(self) -> None:
        """Listen no more, and end all connections."""
        super().server_close()
        with self._lock:
            for one in list(self._since):
                self._end(one)

    def _end(self, connection: socket.socket) -> None:
        """Have the thread of a connection find that it is over."""
        self._since.pop(connection, None)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What goes wrong with one connection is no matter but its own."""
        log.debug("metrics: a connection failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    """One connection: a request, its answer, the end."""

    timeout = _SILENCE
    default_request_version = "HTTP/1.0"  # an answer has a status, even to what is no HTTP
    server: _HttpServer

    def setup(self) -> None:
        """Limit what is read."""
        super().setup()
        self.rfile = _Limited(self.rfile, _MAX_REQUEST)  # type: ignore[assignment]

    def parse_request(self) -> bool:
        """Read the headers."""
        is_whole = super().parse_request()
        self.server.asks(self.connection)
        return is_whole

    def handle(self) -> None:
        """Answer; one who says too much, too little or nothing gets an error, or nothing."""
        self.requestline, self.command, self.request_version = "", "", self.default_request_version
        try:
            super().handle()
        except http.client.LineTooLong:
            self.send_error(431)

    def log_message(self, format: str, *args: Any) -> None:
        """As the server's other events."""
        log.debug("metrics: " + format, *args)


class _Limited:
    """A file of which only so many bytes are read."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file = file
        self._left = limit

    def readline(self, size: int) -> bytes:
        """The next line, as that of a file.

        Raises:
            LineTooLong: the limit is passed.
        """
        line: bytes = self._file.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("request")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()
