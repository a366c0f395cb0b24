"""Capture files of both formats, changed, cut and made up: what can be replayed is, and the rest is counted."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.mac import parse_mac
from nicmodel.observe.snapshot import snapshot
from nicmodel.wire.pcap import PcapWire
from nicmodel.wire.wire import WireError

from ..frames import NIC_MAC
from . import frames
from .bench import make_ram
from .campaign import ROWS, Block, Example, Run

_MAGICS = [0xA1B2C3D4, 0xA1B23C4D, 0xD4C3B2A1, 0x4D3CB2A1, 0xA1B2CD34, 0x0A0D0D0A, 0, 0xFFFFFFFF]
_LENGTHS = [0, 1, 3, 4, 8, 12, 28, 60, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def pcap(block: Block) -> bytes:
    """A capture in the classic format, of a record for each row."""
    rng = block.rng
    order = "<" if rng.random() < 0.7 else ">"
    magic = _MAGICS[int(rng.integers(0, 2 if rng.random() < 0.9 else len(_MAGICS)))]
    linktype = 1 if rng.random() < 0.9 else int(rng.integers(0, 1 << 32))
    made = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, int(rng.choice(_LENGTHS)), linktype)]
    contents, lengths = frames.contents(rng)
    chance = rng.random(ROWS)
    wrong = rng.choice(_LENGTHS, (ROWS, 2))
    times = np.where(rng.random((ROWS, 2)) < 0.9, rng.integers(0, 1000, (ROWS, 2)), 0xFFFFFFFF)
    for row in range(ROWS)[block.rows]:
        data = contents[row, : lengths[row]].tobytes()
        captured, original = len(data), len(data)
        if chance[row] < 0.003:
            captured = int(wrong[row, 0])
        elif chance[row] < 0.1:
            original = int(wrong[row, 1])
        made.append(struct.pack(order + "IIII", *times[row].tolist(), captured, original) + data)
    return b"".join(made)


def pcapng(block: Block) -> bytes:
    """A capture in the newer format: a section, an interface or more, and a block for each row."""
    rng = block.rng
    order = "<" if rng.random() < 0.7 else ">"
    contents, lengths = frames.contents(rng)
    chance, what = rng.random(ROWS), rng.choice([1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 10, 0x0A0D0D0A, 0x80000001], ROWS)
    wrong = rng.choice(_LENGTHS, (ROWS, 4))
    options = [rng.bytes(24) for _ in range(ROWS)]
    resolution = rng.choice([6, 9, 0, 0x80 | 10, 0x7F, 0xFF, 3], ROWS).tolist()
    made = []

    def add(kind: int, body: bytes, said: int | None = None, after: int | None = None) -> None:
        body += bytes(-len(body) % 4)
        size = len(body) + 12
        made.append(
            struct.pack(order + "II", kind, size if said is None else said)
            + body
            + struct.pack(order + "I", size if after is None else after)
        )

    def interface(row: int) -> bytes:
        linktype = 1 if chance[row] < 0.8 else int(wrong[row, 0]) & 0xFFFF
        option = struct.pack(
            order + "HHB3x", 9, int(wrong[row, 1]) & 0xFFFF if chance[row] > 0.95 else 1, resolution[row]
        )
        return struct.pack(order + "HHI", linktype, 0, 0) + option + bytes(4 if chance[row] < 0.9 else 0)

    add(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    add(1, interface(0))
    for row in range(ROWS)[block.rows]:
        data = contents[row, : lengths[row]].tobytes()
        kind = int(what[row]) if chance[row] < 0.3 else 6
        size, original = len(data), len(data)
        if chance[row] < 0.003:
            size = int(wrong[row, 0])
        elif chance[row] < 0.06:
            original = int(wrong[row, 1])
        if kind == 1:
            body = interface(row)
        elif kind == 6:
            number = 0 if chance[row] > 0.1 else int(wrong[row, 2]) & 3
            body = struct.pack(order + "IIIII", number, 0, row, size, original) + data + bytes(-len(data) % 4)
            body += options[row] if chance[row] > 0.9 else b""
        elif kind == 3:
            body = struct.pack(order + "I", original) + data
        else:
            body = options[row]
        broken = 0.1 < chance[row] < 0.101
        add(
            kind,
            body,
            int(wrong[row, 3]) if broken else None,
            int(wrong[row, 2]) if 0.115 < chance[row] < 0.116 else None,
        )
    return b"".join(made)


class CapturesTarget:
    """Files that are replayed to a NIC."""

    name = "captures"
    operations = "frames"
    setups = 2
    kinds = ("pcap", "pcapng", "changed")
    blocks = 8

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        with tempfile.TemporaryDirectory() as folder:
            for block in example.blocks:
                for part in block.parts():
                    self._replay(Path(folder), example.setup, part, run)

    def _replay(self, folder: Path, setup: int, block: Block, run: Run) -> None:
        octets = bytearray((pcapng if block.kind == "pcapng" or block.seed % 2 else pcap)(block))
        if block.kind == "changed":
            rng = np.random.default_rng(block.seed + 1)
            for place in rng.integers(0, min(len(octets), 4096), int(rng.integers(1, 6))).tolist():
                octets[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
            del octets[int(rng.integers(0, 2 * len(octets))) :]
        path = folder / "capture"
        path.write_bytes(octets)
        run.counts["files"] += 1
        run.counts["frames"] += block.size
        run.counts["bytes"] += len(octets)
        try:
            wire = PcapWire(str(path), pace="max" if setup else "original", loop=1 + setup)
        except WireError as error:
            run.reached.add(str(error).removeprefix(f"pcap:{path}: ")[:40])
            return
        profile = Profile(mac=parse_mac(NIC_MAC), queues=2, default_queues=1)
        ram = make_ram()
        with Loopback(profile, wire=wire, ram=ram) as lab:  # type: ignore[arg-type]
            for _ in range(4 * ROWS):
                due = lab.clock.next_due
                if due is None:
                    break
                lab.advance(max(0, due - lab.clock.now))
            assert wire._next is None, "the replay does not end"
            report = snapshot(lab.nic)
            assert wire.counters["rx_frames"] == report["delivered"] + sum(report["drops"].values())
            run.counts["replayed"] += wire.counters["rx_frames"]
            run.reached |= {name for name, count in wire.counters.items() if count}
