"""What any NIC is fuzzed on: its driver, a wire, and memory of which every byte is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nicmodel.nic.layout import Bits, Layout
from nicmodel.nic.nic import Nic
from nicmodel.nic.state import Drop
from nicmodel.observe.snapshot import snapshot
from nicmodel.packet.frames import Batch, Offload
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.wire import TestWire

from ..frames import tcp
from . import frames
from .campaign import ROWS, Run
from .memory import Arena, Shadow

BASE, RAM_SIZE = 0x1000_0000, 4 << 20
#: Bytes of a buffer.
BUFFER = 2048


class Sink(TestWire):
    """A wire that counts what it gets and looks at its records; now and then it takes only a part."""

    def __init__(self, offloads: Offload) -> None:
        super().__init__(offloads=offloads, headroom=12)
        self.refusals = 0

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        rest = batch.frames[batch.sent : batch.count]
        start, length = rest["offset"].astype(np.int64), rest["length"].astype(np.int64)
        assert (length > 0).all() and (start >= 12).all() and (start + length <= batch.used).all()
        if not self.offloads:
            assert not (rest["gso"].any() or rest["flags"].any())
        done = len(rest)
        if self.refusals and done > 1:
            self.refusals -= 1
            done //= 2
        batch.sent += done
        self.counters["tx_frames"] += done
        return batch.sent == batch.count


class Lab(Protocol):
    """A NIC, its wire and its driver in one thread (`nicmodel.gvnic.testing.loopback.Loopback`)."""

    driver: Any
    clock: VirtualClock
    path: Path

    @property
    def nic(self) -> Nic: ...
    @property
    def ram(self) -> GuestMemory: ...
    @property
    def wire(self) -> Any: ...
    def connect(self) -> Any: ...
    def run(self) -> None: ...
    def advance(self, ns: int) -> None: ...
    def receive(self, *frames: bytes) -> None: ...
    def close(self) -> None: ...


def make_ram() -> GuestMemory:
    """A guest's memory; there is an `Arena` beside it."""
    return GuestMemory("ram", base=BASE, size=RAM_SIZE)


class Bench:
    """A NIC that is being fuzzed.

    Args:
        lab: the NIC, with its driver, which has not probed it yet.
        run: told what happens.

    Attributes:
        arena: buffers, some of which the device may not write, or not reach.
    """

    def __init__(self, lab: Lab, run: Run) -> None:
        self.run_ = run
        self.lab, self.ram = lab, lab.ram
        self.arena = Arena(BASE + 2 * RAM_SIZE)
        lab.driver.probe()
        self.arena.map(lab.driver.client)
        self.shadows = [Shadow(self.ram), Shadow(self.arena)]

    def fill_with_frames(self, rng: np.random.Generator) -> None:
        """Have frames in the arena, which can be sent from there; its guards are no different."""
        content, lengths = frames.contents(rng)
        for number in range(self.arena.size // BUFFER):
            self.arena.bytes[number * BUFFER :][: lengths[number]] = np.resize(content[number], lengths[number])[
                : self.arena.size - number * BUFFER
            ]
        self.shadows[1].refresh()

    def fill_with_numbers(self, rng: np.random.Generator) -> None:
        """Have small numbers in the arena, which may be lengths, identifiers, and addresses where nothing is."""
        self.arena.bytes[:] = rng.choice(np.array([0, 0, 0, 1, 2, 3, 64, 255], np.uint8), self.arena.size)
        self.shadows[1].refresh()

    def all_of_the_drivers(self) -> list[npt.NDArray[np.bool_]]:
        """What `no_strays` is to be told if all may have changed that the driver has allocated, or mapped to write."""
        allowed = self.nothing()
        for address, size in self.ram._allocated.items():
            allowed[0][address - BASE : address - BASE + size] = True
        allowed[1][self.arena.first : self.arena.stop] = True
        return allowed

    def nothing(self) -> list[npt.NDArray[np.bool_]]:
        """What `no_strays` is to be told if no byte may have changed."""
        return [np.zeros(RAM_SIZE, np.bool_), np.zeros(self.arena.size, np.bool_)]

    def no_strays(self, allowed: list[npt.NDArray[np.bool_]]) -> None:
        """See that only bytes have changed which may: those of ordinary memory, and of the arena."""
        for shadow, fine in zip(self.shadows, allowed, strict=True):
            strays = shadow.strays(fine)
            self.run_.counts["stray bytes"] += len(strays)
            assert not len(strays), f"{len(strays)} stray bytes in {shadow.memory.name} from {strays[0]:#x} on"

    def send_all(self, sink: Sink) -> None:
        """Let the wire take everything, however often it has refused."""
        self.lab.run()
        for _ in range(8):
            if not sink.refusals:
                break
            sink.unblock()
            self.lab.run()
        sink.refusals = 0
        sink.unblock()
        self.lab.run()

    def account(self, sink: Sink, name: str) -> None:
        """See that every frame is accounted for; what has happened is noted, of rings of this `name`."""
        nic = self.lab.nic
        state, report = nic.state, snapshot(nic)
        for row, drop in zip(*np.nonzero(state.drops), strict=True):
            way = "tx" if len(state.rx) <= row < len(state.drops) - 1 else "rx"
            self.run_.reached.add(f"{name} {way} {Drop(int(drop)).name.lower()}")
        for counter in ("split", "header_overflow", "aggregated", "bad_checksum"):
            if state.rx[0][counter]:
                self.run_.reached.add(counter)
        drops = np.delete(state.drops, Drop.HELD, axis=1)
        lost = int(drops.sum()) - int(drops[len(state.rx) : len(state.rx) + len(state.tx)].sum())
        held = sum(queue["held"] for queue in report["rx_queues"])
        assert sink.counters["rx_frames"] == report["delivered"] + held + lost, "frames are not accounted for"
        segments = int(state.tx["segments"].sum())
        assert segments == sink.counters["tx_frames"], f"{segments} frames made, {sink.counters} on the wire"

    def finish(self) -> None:
        """Nothing has failed inside, and the next driver can work."""
        failed = {name: count for name, count in self.lab.nic.counters.items() if name.startswith("failed")}
        assert self.lab.nic.counters["internal_error"] == 0, failed
        works(self.lab)

    def close(self) -> None:
        """End everything."""
        self.lab.close()
        self.arena.close()


def works(lab: Lab, arrive: Callable[[bytes], None] | None = None) -> None:
    """The device serves the next driver: a plain frame goes through in each direction; `arrive` has it come."""
    lab.driver.disconnect()
    lab.driver = driver = lab.connect()
    driver.probe()
    driver.open(ring_entries=64)
    lab.nic.set_cable(True)
    lab.run()
    (arrive or lab.receive)(tcp(100))
    came = [packet.frame for number in sorted(driver.rx) for packet in driver.poll(number)]
    assert came == [tcp(100)], "a plain frame is not received"
    before = lab.wire.counters["tx_frames"]
    driver.send(0, tcp(100))
    lab.run()
    assert driver.poll_tx(0) and lab.wire.counters["tx_frames"] == before + 1, "or not sent"


def tx_table(
    rng: np.random.Generator, arena: Arena, data: Layout, data_type: int, tso: Layout, tso_type: int
) -> npt.NDArray[np.uint64]:
    """Transmit descriptors of 16 bytes as words, shape (ROWS, 2): data, contexts of segmentation, and noise.

    Args:
        rng: chooses.
        arena: where the data are.
        data: how data are described.
        data_type: its `dtype`.
        tso: how segmentation is.
        tso_type: its `dtype`.
    """
    table = rng.integers(0, 1 << 64, (ROWS, 2), np.uint64, endpoint=False)
    addresses = arena.addresses(rng, ROWS)
    kind, odd = rng.random(ROWS), rng.random(ROWS)
    size = np.where(odd < 0.7, rng.choice([60, 354, 1514, 2048], ROWS), rng.integers(0, 0x4000, ROWS))
    chances = {"end_of_packet": 0.7, "checksum": 0.5, "report_event": 0.1, "report_status": 0.1}
    high = field(data.dtype, np.full(ROWS, int(data_type))) | field(data.buffer_size, size)
    for name, chance in chances.items():
        if name in data.fields:
            high |= field(data.fields[name], rng.random(ROWS) < chance)
    if "completion_tag" in data.fields:
        high |= field(data.completion_tag, rng.integers(0, 1 << 16, ROWS))
    header = np.where(odd < 0.7, rng.choice([0, 14, 42, 54, 74], ROWS), rng.integers(0, 256, ROWS))
    mss = np.where(odd < 0.7, rng.choice([0, 1, 536, 1448, 9000], ROWS), rng.integers(0, 0x4000, ROWS))
    total = np.where(odd < 0.9, tso.total_length.mask, rng.integers(0, tso.total_length.mask, ROWS))
    low = field(tso.total_length, total) | field(tso.mss, mss) | field(tso.header_length, header)
    context = field(tso.dtype, np.full(ROWS, int(tso_type))) | field(tso.tso, np.ones(ROWS))
    packet, is_context = kind < 0.75, (kind >= 0.75) & (kind < 0.95)
    table[:, 0] = np.select([packet, is_context], [addresses, low], table[:, 0])
    table[:, 1] = np.select([packet, is_context], [high, context], table[:, 1])
    return table


def column(words: npt.NDArray[np.uint64], bits: Bits) -> npt.NDArray[np.uint64]:
    """A field of many descriptors."""
    return words >> np.uint64(bits.shift) & np.uint64(bits.mask)


def field(bits: Bits, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint64]:
    """Its place in them."""
    return (values.astype(np.uint64) & np.uint64(bits.mask)) << np.uint64(bits.shift)
