"""Requests at the control socket and at the metrics endpoint."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from nicmodel.gvnic.faults.kinds import KINDS
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.nic.mac import parse_mac
from nicmodel.observe.metrics import MetricsServer
from nicmodel.packet.frames import Offload

from ..frames import NIC_MAC, tcp, udp
from .bench import Sink, make_ram, works
from .campaign import ROWS, Block, Example, Run

_NAMES = ["stat", "show", "inject", "send", "link", "reset", "faults", "fault", "fault_end", "scenario", "findings",
          "trace", "capture", "nothing", "", "\x1b[31m", 7, None]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**64, 1.5, 1e308, "", "x", "\x1b[2J", "\ud800", "é" * 300, [], [1], ["rx0"], ["tx0"],
    ["rx"] * 1000, {}, {"a": {}}, ["00" * 60], [tcp(100).hex(), udp(9).hex()], ["zz"], ["0"], ["ff" * 70000], [None],
    "hex", "base64", "nic", "test", [[[[[]]]]], {"probability": 0.5}, {"probability": 2}, {"queue": 99}, {"period": 0},
]  # fmt: skip
_FIELDS = ["nic", "id", "frames", "encoding", "up", "fault", "parameters", "seed", "injection", "text", "table",
           "kinds", "queues", "limit", "x"]  # fmt: skip
_SCENARIOS = ["", "x", "[[fault]]", '[[fault]]\nname = "wire-drop"\n', "seed = 1e999", "a = [" * 200, "\0",
              '[[at]]\nseconds = -1\nfault = "wire-drop"\n']  # fmt: skip
_HTTP = [
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"HEAD /metrics HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n",
    b"POST /metrics HTTP/1.0\r\nContent-Length: 99999999\r\n\r\n", b"GET /metrics?name[]=%ff%00 HTTP/1.0\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n", b"\xff\xfe\r\n\r\n", b"\r\n\r\n", b"GET " + b"a" * 70000 + b" HTTP/1.0\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\n" + b"a: b\r\n" * 300 + b"\r\n",
    b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=9\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET http://\xff/metrics HTTP/1.0\r\nAccept: \xff\r\n\r\n", b"GET /metrics\r\n\r\n",
]  # fmt: skip


_OPEN: dict[str, Any] = {"ring_entries": 64, "header_split": True}


class Desk:
    """A NIC with both endpoints."""

    def __init__(self, setup: int, run: Run) -> None:
        self.run_ = run
        profile = Profile(mac=parse_mac(NIC_MAC), queues=2, default_queues=2)
        ram = make_ram()
        self.lab = Loopback(profile, wire=Sink(Offload.NONE), ram=ram, check=bool(setup & 1))
        self.lab.driver.probe()
        self.lab.driver.open(**_OPEN)
        self._broken = False
        self._folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self._folder.name, "control"))
        self.lab.host.open_control(self.path)
        self.metrics: MetricsServer | None = None

    def ask(self, block: Block) -> None:
        """Requests of one connection: each has one answer, beside which there are events."""
        lines = self._lines(block)
        connection = socket.socket(socket.AF_UNIX)
        with connection:
            connection.connect(self.path)
            connection.setblocking(False)
            reader = _Lines(connection)
            for first in range(0, len(lines), 32):
                group = lines[first : first + 32]
                rest = memoryview(b"".join(line + b"\n" for line in group))
                while rest:
                    try:
                        rest = rest[connection.send(rest) :]
                    except BlockingIOError:
                        self.lab.clock.turn()
                        reader.read()
                self.lab.run()
                self._poll()
                for _ in range(4 * len(group)):
                    self.lab.clock.turn()
                    reader.read()
                answers = [line for line in reader.take() if "version" in line]
                self.run_.counts["unanswered"] += max(0, len(group) - len(answers))
                assert len(answers) == len(group), f"{len(answers)} answers to {len(group)} requests"
                for answer in answers:
                    assert ("reply" in answer) != ("error" in answer)
                    self.run_.reached.add(str(answer.get("error", "reply"))[:16])
        self.lab.faults.clear()
        self.lab.advance(10**9)
        self._poll()
        if self._broken:
            self._broken = False
            self.lab.driver.close()
            self.lab.driver.open(**_OPEN)
        self.run_.counts["requests"] += len(lines)

    def _poll(self) -> None:
        """Take what has come. Among the faults that are asked for are such as a driver cannot live with."""
        if self._broken:
            return
        try:
            self.lab.driver.poll_all()
        except ContractViolation:
            self._broken = True
            assert any(name.startswith("fault ") for name in self.lab.nic.counters), "the device is wrong by itself"

    def _lines(self, block: Block) -> list[bytes]:
        rng = block.rng
        names = rng.integers(0, len(_NAMES), ROWS)[block.rows].tolist()
        fields = rng.integers(0, len(_FIELDS), (ROWS, 3))[block.rows].tolist()
        values = rng.integers(0, len(_VALUES), (ROWS, 3))[block.rows].tolist()
        chance = rng.random(ROWS)[block.rows].tolist()
        noise = [rng.bytes(40).replace(b"\n", b" ") for _ in range(ROWS)][block.rows]
        kinds = sorted(KINDS)
        lines = []
        for number, name in enumerate(names):
            request: dict[str, Any] = {"request": _NAMES[name]}
            for field, value in zip(fields[number], values[number], strict=True):
                request[_FIELDS[field]] = _VALUES[value]
            if _NAMES[name] == "fault" and chance[number] < 0.9:
                request["fault"] = kinds[values[number][0] % len(kinds)]
            if _NAMES[name] == "scenario":
                request["text"] = _SCENARIOS[values[number][1] % len(_SCENARIOS)]
            if _NAMES[name] in ("inject", "send") and chance[number] < 0.8:
                request["frames"] = [tcp(100).hex()]
            line = json.dumps(request).encode()
            if chance[number] < 0.03:
                line = noise[number]
            elif chance[number] < 0.06:
                line = line[: int(1000 * chance[number]) % len(line)]
            elif chance[number] < 0.07:
                line = b"[" * 5000
            lines.append(line)
        return lines

    def scrape(self, block: Block) -> None:
        """Requests at the metrics endpoint; whatever came, a plain one is answered. Threads work here, in real time."""
        if self.metrics is None:
            self.metrics = self.lab.host.open_metrics(("127.0.0.1", 0))
        rng = block.rng
        for number in rng.integers(0, len(_HTTP), ROWS)[block.rows].tolist()[:8]:
            octets = bytearray(_HTTP[number])
            for place in rng.integers(0, len(octets), int(rng.integers(0, 3))).tolist():
                octets[place] = int(rng.integers(0, 256))
            self._http(bytes(octets))
            self.run_.counts["scrapes"] += 1
        answer = self._http(_HTTP[0])
        self.run_.counts["unanswered"] += not answer
        assert answer.startswith(b"HTTP/1.") and b" 200 " in answer[:20], f"a plain scrape is answered {answer[:60]!r}"

    def _http(self, octets: bytes) -> bytes:
        assert self.metrics is not None
        answer = bytearray()
        with socket.create_connection(self.metrics.address) as connection:
            connection.setblocking(False)
            try:
                connection.sendall(octets)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has heard enough
            end = time.monotonic() + 60
            while True:
                self.lab.advance(10**7)
                try:
                    got = connection.recv(1 << 16)
                except BlockingIOError:
                    assert time.monotonic() < end, "no answer, and no end of the connection"
                    time.sleep(0.0005)
                    continue
                except OSError:
                    return bytes(answer)
                if not got:
                    return bytes(answer)
                answer += got

    def finish(self) -> None:
        """The next driver can work."""
        self.lab.nic.set_cable(True)
        works(self.lab)

    def close(self) -> None:
        self.lab.close()
        self._folder.cleanup()


class _Lines:
    """What comes from a socket, by lines."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._octets = bytearray()

    def read(self) -> None:
        """Take what is there."""
        while True:
            try:
                got = self._socket.recv(1 << 20)
            except BlockingIOError:
                return
            assert got, "the server has closed the connection"
            self._octets += got

    def take(self) -> list[dict[str, Any]]:
        """The lines that are whole."""
        *lines, rest = self._octets.split(b"\n")
        self._octets = bytearray(rest)
        return [json.loads(line) for line in lines]


class ControlTarget:
    """Control and metrics."""

    name = "control"
    operations = "requests"
    setups = 2
    kinds = ("control", "control", "control", "metrics")
    blocks = 6

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        desk = Desk(example.setup, run)
        example.play(desk, {"control": desk.ask, "metrics": desk.scrape})
