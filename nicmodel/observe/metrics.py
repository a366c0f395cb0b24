"""What Prometheus asks of a server: its counters over HTTP, in the text exposition format, version 0.0.4.

The numbers are those of `nicmodel.observe.snapshot`. The server speaks as much HTTP/1.1 as a scrape needs, in the event
loop of the NICs: one GET for each connection.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nicmodel.gvnic.device import Nic
from nicmodel.observe.ledger import entries
from nicmodel.observe.snapshot import snapshot
from nicmodel.vfio_user.poll import Poller
from nicmodel.vfio_user.server import Server

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Longest request, bytes, and connections at a time.
_MAX_REQUEST = 8192
_MAX_CLIENTS = 16

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


def exposition(snapshots: Sequence[Mapping[str, Any]]) -> str:
    """Snapshots as text for Prometheus: each metric with its help, its type and its samples."""
    samples: dict[str, list[str]] = {name: [] for name in _METRICS}
    for snap in snapshots:
        for name, labels, value in _samples(snap):
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in {"nic": snap["name"], **labels}.items())
            samples[name].append(f"nicmodel_{name}{{{inside}}} {value}")
    return "".join(
        f"# HELP nicmodel_{name} {text}\n# TYPE nicmodel_{name} {kind}\n" + "\n".join(samples[name]) + "\n"
        for name, (kind, text) in _METRICS.items()
        if samples[name]
    )


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
    for rule in snap["rules"]:
        yield "rule_hits_total", {"location": str(rule["location"]), "queue": f"rx{rule['queue']}"}, rule["hits"]
    for name, count in snap["admin"].items():
        command, status = name.split(" ")
        yield "admin_commands_total", {"command": command, "status": status}, count
    for metric, counts in (
        ("events_total", snap["events"]), ("wire_total", snap["wire"]), ("vfio_user_total", snap["vfio_user"]),
        ("ddp_total", snap["ddp"]),
    ):  # fmt: skip
        for name, count in counts.items():
            if isinstance(count, int):
                yield metric, {"name": name}, count
    yield "peak_memory_bytes", {}, snap["peak_memory"]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class MetricsServer:
    """Answers scrapes, in the event loop of the NICs.

    Args:
        address: where to listen, host and port; port 0: any that is free.
        nics: each NIC with its vfio-user server.
        poller: the event loop.

    Attributes:
        address: where it listens, port included.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, address: tuple[str, int], nics: Sequence[tuple[Nic, Server]], poller: Poller) -> None:
        self.nics = nics
        self._poller = poller
        self._clients: set[_Client] = set()
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.create_server(address, family=family)
        self._socket.setblocking(False)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        poller.add(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Part with all clients and listen no more."""
        for client in tuple(self._clients):
            client.close()
        self._poller.remove(self._socket.fileno())
        self._socket.close()

    def text(self) -> str:
        """What a scrape gets now."""
        return exposition([snapshot(nic, server.stats) for nic, server in self.nics])

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        if len(self._clients) >= _MAX_CLIENTS:
            connection.close()
            return
        self._clients.add(_Client(connection, self.text, self._poller, self._clients.discard))


class _Client:
    """One connection: a request, its answer, the end."""

    def __init__(
        self, connection: socket.socket, text: Callable[[], str], poller: Poller, on_close: Callable[[_Client], None]
    ) -> None:
        self._socket = connection
        self._text = text
        self._poller = poller
        self._on_close = on_close
        self._input = b""
        self._output = b""
        connection.setblocking(False)
        poller.add(connection.fileno(), self._readable)

    def close(self) -> None:
        """End the connection."""
        if self._socket.fileno() >= 0:
            self._poller.remove(self._socket.fileno())
            self._socket.close()
            self._on_close(self)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if self._output:  # answered already
            return
        self._input += data
        if b"\r\n\r\n" in self._input or b"\n\n" in self._input:
            self._answer(self._input.split(b"\n", 1)[0].decode("latin1").split())
        elif len(self._input) > _MAX_REQUEST:
            self._reply("431 Request Header Fields Too Large", "the request is too long\n")

    def _answer(self, words: list[str]) -> None:
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            self._reply("400 Bad Request", "this is no HTTP\n")
        elif words[0] not in ("GET", "HEAD"):
            self._reply("405 Method Not Allowed", "only GET\n", "Allow: GET, HEAD\r\n")
        elif words[1].partition("?")[0] != "/metrics":
            self._reply("404 Not Found", "there is only /metrics\n")
        else:
            self._reply("200 OK", self._text(), body=words[0] == "GET")

    def _reply(self, status: str, text: str, more: str = "", *, body: bool = True) -> None:
        content = text.encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(content)}\r\n"
            f"Connection: close\r\n{more}\r\n"
        )
        self._output = head.encode() + (content if body else b"")
        self._flush()

    def _flush(self) -> None:
        try:
            self._output = self._output[self._socket.send(self._output) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._output:
            self._poller.want_write(self._socket.fileno(), self._flush)
        else:
            self.close()
