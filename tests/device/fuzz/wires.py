"""The far end of each kind of wire: any bytes in any pieces, and any metadata beside them."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nicmodel.observe.snapshot import snapshot
from nicmodel.packet.frames import MAX_FRAME, Batch, Offload
from nicmodel.wire.dgram import DgramWire
from nicmodel.wire.fd import FdWire
from nicmodel.wire.stream import StreamWire
from nicmodel.wire.tap import TapWire
from nicmodel.wire.vnet import VNET_HEADER
from nicmodel.wire.wire import Wire

from . import frames
from .bench import works
from .campaign import ROWS, Block, Example, Run
from .labs import KINDS, make_lab


class SocketTap(TapWire):
    """A tap wire that reads a socket of whole packets: what comes from there, no kernel has looked at."""

    def __init__(self, end: socket.socket) -> None:
        self.interface, self.offloads = "fuzz", Offload.ALL
        FdWire.__init__(self, "tap:fuzz", end.detach(), Batch(1 << 20, 512))


class Wires:
    """A NIC of either kind on one wire, and the socket at its far end."""

    def __init__(self, setup: int, run: Run) -> None:
        self.run_ = run
        self._folder = tempfile.TemporaryDirectory()
        here, there = str(Path(self._folder.name, "here")), str(Path(self._folder.name, "there"))
        self.far: socket.socket | None = None
        self.kind = ("stream", "dgram", "tap")[setup % 3]
        self._path = here
        wire: Wire
        if self.kind == "stream":
            wire = StreamWire(listen=here)
        elif self.kind == "dgram":
            self.far = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.far.bind(there)
            wire = DgramWire(local=here, remote=there)
            self.far.connect(here)
        else:
            near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            near.setblocking(False)
            wire = SocketTap(near)
        if self.far is not None:
            self.far.setblocking(False)
        self.wire = wire
        self.lab = make_lab(KINDS[setup // 12], wire)
        self.lab.driver.probe()
        self.lab.driver.open(ring_entries=256, header_split=bool(setup // 3 & 1), rsc=bool(setup // 3 & 2))
        self.lab.run()
        self.sent = self._turns = 0

    def send(self, block: Block) -> None:
        """Frames from the far end; those that have come are taken, and some go the other way."""
        rng = block.rng
        contents, lengths = frames.contents(rng)
        records = frames.records(rng)
        chance = rng.random(ROWS)
        sizes = rng.choice([0, 0x10000000, 0xFFFFFFFF, MAX_FRAME + 1], ROWS)
        cuts = rng.integers(1, 5000, ROWS)[block.rows].tolist()
        content = [
            contents[row, : lengths[row]].tobytes().ljust(int(lengths[row]), b"x") for row in range(ROWS)[block.rows]
        ]
        part = chance[block.rows].tolist()
        getattr(self, f"_send_{self.kind}")(content, records[block.rows], part, sizes[block.rows].tolist(), cuts)
        self.run_.counts["frames"] += len(content)
        self._account()

    def _send_stream(
        self, content: list[bytes], _: npt.NDArray[np.void], chance: list[float], sizes: list[int], cuts: list[int]
    ) -> None:
        stream, good, broken = bytearray(), 0, False
        for frame, part, size in zip(content, chance, sizes, strict=True):
            if part < 0.001 or not frame:
                stream += size.to_bytes(4, "big") + frame  # no such frame can be
                broken = True
                break
            stream += len(frame).to_bytes(4, "big") + frame
            good += 1
        if self.far is None:
            self.far = socket.socket(socket.AF_UNIX)
            self.far.connect(self._path)
            self.far.setblocking(False)
            self.lab.run()
        rest, number = memoryview(stream), 0
        while rest:
            # Large pieces, since small ones are slow; every eighth is a small one.
            size = cuts[number % len(cuts)] if number % 8 == 0 else 1 << 17
            number += 1
            try:
                rest = rest[self.far.send(rest[:size]) :]
            except BlockingIOError:
                self._turn()
            except OSError:
                break
        self._turn()
        self.sent += good
        if broken:
            self.far.close()
            self.far = None
            self.run_.counts["connections ended"] += 1
            self.lab.run()

    def _send_dgram(
        self, content: list[bytes], _: npt.NDArray[np.void], chance: list[float], sizes: list[int], cuts: list[int]
    ) -> None:
        for frame, part, size in zip(content, chance, sizes, strict=True):
            if part < 0.01:
                frame = (frame * 100)[:100_000] if size else b""
            self._packet(frame)
            self.sent += 0 < len(frame) <= MAX_FRAME
        self._turn()

    def _send_tap(
        self, content: list[bytes], records: npt.NDArray[np.void], *_: list[float] | list[int]
    ) -> None:  # fmt: skip
        headers = np.zeros((len(content), 5), "<u2")
        headers[:, 0] = records["flags"].astype(np.uint16) | records["gso"].astype(np.uint16) << 8
        for column, name in enumerate(("header", "segment", "csum_start", "csum_offset"), 1):
            headers[:, column] = records[name]
        raw = headers.tobytes()
        for number, frame in enumerate(content):
            self._packet(raw[VNET_HEADER * number : VNET_HEADER * (number + 1)] + b"\0\0" * self._padded + frame)
        self.sent += len(content)
        self._turn()

    #: A tap's header may be longer than the virtio-net header that is looked at.
    _padded = (TapWire.headroom - VNET_HEADER) // 2

    def _packet(self, octets: bytes) -> None:
        assert self.far is not None
        while True:
            try:
                self.far.send(octets)
                return
            except BlockingIOError:
                self._turn()

    def _turn(self) -> None:
        self.lab.clock.turn()
        self._turns += 1
        if self._turns % 8 == 0:  # else buffers run out, as they may
            for queue in self.lab.driver.rx.values():
                queue.discard()

    def _account(self) -> None:
        for _ in range(ROWS):  # a wire that rests brings some when that is over
            if self.wire.counters["rx_frames"] >= self.sent:
                break
            self.lab.advance(5_000_000)
            self._turn()
        report = snapshot(self.lab.nic)
        held = sum(queue["held"] for queue in report["rx_queues"])
        came = self.wire.counters["rx_frames"]
        assert came == self.sent, f"{came} of {self.sent} frames have come"
        assert came == report["delivered"] + held + sum(report["drops"].values())
        self.run_.reached |= {f"{self.kind} {name}" for name, count in report["drops"].items() if count}
        self.run_.reached |= {f"{self.kind} {name}" for name, count in self.wire.counters.items() if count}

    def finish(self) -> None:
        """The next driver can work, and what it sends comes out of the far end."""
        assert self.lab.nic.counters["internal_error"] == 0
        if self.kind == "stream" and self.far is None:
            self.far = socket.socket(socket.AF_UNIX)
            self.far.connect(self._path)
            self.far.setblocking(False)
            self.lab.run()
        self.lab.advance(10**9)
        assert self.far is not None
        works(self.lab, self._arrive)

    def _arrive(self, frame: bytes) -> None:
        """Send a plain frame from the far end."""
        prefix = {"stream": len(frame).to_bytes(4, "big"), "dgram": b"", "tap": bytes(TapWire.headroom)}[self.kind]
        self._packet(prefix + frame)
        self.lab.run()

    def close(self) -> None:
        self.lab.close()
        self.wire.stop()
        if self.far is not None:
            self.far.close()
        self._folder.cleanup()


class WiresTarget:
    """Wires."""

    name = "wires"
    operations = "frames"
    setups = 24
    kinds = ("frames",)
    blocks = 16

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        wires = Wires(example.setup, run)
        example.play(wires, {"frames": wires.send})
