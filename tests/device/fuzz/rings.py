"""Rings of all four formats: any descriptors, any frames, any doorbells; and every byte of memory accounted for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import Opcode, QueueFormat
from nicmodel.gvnic.descriptors import (
    GQI_RX_SLOT,
    GQI_TX_PACKET,
    GQI_TX_SEGMENT,
    RX_BUFFER,
    RX_COMPLETION,
    TX_COMPLETION,
    TX_PACKET,
    TX_TSO_CONTEXT,
    GqiTxType,
    TxType,
)
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.gqi import BUFFER, GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.nic.layout import Bits
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.observe.snapshot import snapshot
from nicmodel.packet.frames import Batch, Offload
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.testing.wire import TestWire

from ..frames import NIC_MAC, tcp
from . import frames
from .campaign import ROWS, Block, Example, Run
from .memory import Arena, Shadow, ranges

BASE, RAM_SIZE = 0x1000_0000, 4 << 20
ENTRIES = 2 * ROWS
FORMATS = (QueueFormat.DQO_RDA, QueueFormat.DQO_QPL, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)


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


class Rings:
    """One queue each way of one format, whose descriptors and doorbells are written here."""

    def __init__(self, setup: int, run: Run) -> None:
        self.run_ = run
        self.format = FORMATS[setup % 4]
        self.qpl = self.format == QueueFormat.GQI_QPL
        self.gqi = self.format in (QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)
        split = bool(setup & 4)
        self.sink = Sink(Offload.ALL if setup & 8 else Offload.NONE)
        profile = Profile(
            mac=parse_mac(NIC_MAC), queues=2, default_queues=1, formats=tuple({QueueFormat.DQO_RDA, self.format})
        )
        self.lab = Loopback(profile, wire=self.sink, ram=GuestMemory("ram", base=BASE, size=RAM_SIZE))
        self.arena = Arena(BASE + 2 * RAM_SIZE)
        self.ram = self.lab.ram
        driver = self.lab.driver
        driver.probe()
        self.arena.map(driver.client)
        if self.gqi:
            self._open_gqi(driver)
        else:
            self._open_dqo(driver, split, rsc=bool(setup & 16))
        driver.set_rss(table=[0] * 128)
        self.lab.run()
        rng = np.random.default_rng(setup)
        content, lengths = frames.contents(rng)
        for number in range(self.arena.size // BUFFER):  # frames to be sent; the guards are no different
            self.arena.bytes[number * BUFFER :][: lengths[number]] = np.resize(content[number], lengths[number])[
                : self.arena.size - number * BUFFER
            ]
        self.shadows = [Shadow(self.ram), Shadow(self.arena)]
        self.tx_before = self._tx_account()

    def _open_dqo(self, driver: Driver, split: bool, rsc: bool) -> None:
        if self.format != QueueFormat.DQO_RDA:
            driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
            driver.configure_resources(self.format)
        config = RxConfig(ENTRIES, BUFFER, driver._described().header_buffer_size if split else 0, rsc)
        self.rx, self.tx = driver.make_rx(0, config), driver.make_tx(0, ENTRIES)
        driver.admin_batch([self.tx.create_command(), self.rx.create_command()])
        self.rx_doorbell, self.tx_doorbell = self.rx.doorbell_index, self.tx.doorbell_index
        self.buffer_size, self.header_size = BUFFER, config.header_size
        # What the device may write in ordinary memory.
        self.completions = np.zeros(RAM_SIZE, np.bool_)
        for address, size in (
            (self.rx.completion_ring_address, ENTRIES * RX_COMPLETION.size),
            (self.tx.completion_ring_address, ENTRIES * TX_COMPLETION.size),
        ):
            self.completions[address - BASE : address - BASE + size] = True

    def _open_gqi(self, driver: Driver) -> None:
        queues = GqiQueues(driver, self.qpl, ENTRIES)
        self.queues = queues
        self.rx_doorbell, self.tx_doorbell = queues.rx_doorbell, queues.tx_doorbell
        self.buffer_size, self.header_size = BUFFER, 0
        self.completions = np.zeros(RAM_SIZE, np.bool_)
        start = queues.descriptor_ring - BASE
        self.completions[start : start + ENTRIES * 64] = True
        place = driver.counters.ctypes.data - self.ram.bytes.ctypes.data
        self.completions[place : place + driver.counters.nbytes] = True
        for page in queues.tx_pages:
            self.ram.write(page, np.resize(np.frombuffer(tcp(2000), np.uint8), PAGE).tobytes())

    # Receive.

    def receive(self, block: Block) -> None:
        """Fuzzed buffers are posted, and fuzzed frames arrive."""
        rng = block.rng
        addresses = self._offsets(rng) if self.qpl else self.arena.addresses(rng, ROWS)
        headers = self.arena.addresses(rng, ROWS)
        batch = frames.batch(rng, block.rows)
        state = self.lab.nic.state.rx[0]
        head = int(state["buffer_head"])
        posted = addresses[block.rows]
        places = (head + np.arange(len(posted))) % ENTRIES
        if self.gqi:
            slots = self.ram.records(self.queues.data_ring, GQI_RX_SLOT, ENTRIES)
            slots["address"][places] = posted
        else:
            ring = self.rx.buffer_ring
            ring[places, RX_BUFFER.buffer_id.word] = places
            ring[places, RX_BUFFER.buffer_address.word] = posted
            ring[places, RX_BUFFER.header_address.word] = headers[block.rows]
        positions = int(state["positions"])
        ahead = (int(state["buffer_tail"]) - head) % positions
        self.shadows[0].refresh()
        if len(posted) > ahead:
            self._ring(self.rx_doorbell, (head + len(posted)) % positions)
        self.lab.run()
        held = int(self.lab.nic.state.rx[0]["buffer_head"])  # frames of the backlog may have taken some
        self.sink.inject_batch(batch)
        self.lab.run()
        assert (held - head) % positions <= ENTRIES
        self._check(head, int(self.lab.nic.state.rx[0]["buffer_head"]), positions)
        self.run_.counts["descriptors"] += len(posted)
        self.run_.counts["frames"] += batch.count

    def _offsets(self, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
        """Places in the page list: of a buffer, anywhere, around its end, nowhere."""
        size = ENTRIES * BUFFER
        chance = rng.random(ROWS)
        wild = rng.choice(np.array([(1 << 32) - 1, 1 << 63, (1 << 64) - 1], np.uint64), ROWS)
        inside = np.select(
            [chance < 0.7, chance < 0.8, chance < 0.96],
            [
                rng.integers(0, ENTRIES, ROWS) * BUFFER,
                rng.integers(0, size, ROWS),
                size + rng.integers(-4096, 4096, ROWS),
            ],
        )
        return np.where(chance < 0.96, inside.astype(np.uint64), wild)

    def _check(self, head: int, after: int, positions: int) -> None:
        """Only the buffers that were used may have changed, and the rings that the device writes."""
        used = (head + np.arange((after - head) % positions)) % ENTRIES
        allowed = [self.completions, np.zeros(self.arena.size, np.bool_)]
        if self.gqi:
            slots = self.ram.records(self.queues.data_ring, GQI_RX_SLOT, ENTRIES)["address"][used].astype(np.uint64)
            if self.qpl:
                allowed[0] = allowed[0] | self._listed(slots)
            else:
                allowed[1] |= ranges(self.arena, self.arena.first, self.arena.stop, slots, BUFFER)
                # Buffers that the queue began with.
                allowed[0] = allowed[0] | ranges(self.ram, 0, RAM_SIZE, slots, BUFFER)
        else:
            for field, size in (
                (RX_BUFFER.buffer_address, self.buffer_size), (RX_BUFFER.header_address, self.header_size)
            ):  # fmt: skip
                if size:
                    words = self.rx.buffer_ring[used, field.word]
                    allowed[1] |= ranges(self.arena, self.arena.first, self.arena.stop, words, size)
        self._no_strays(allowed)

    def _listed(self, offsets: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """The bytes of buffers at these places in the page list."""
        pages = np.array(self.queues.rx_pages, np.uint64)
        size = np.uint64(len(pages) * PAGE)
        allowed = np.zeros(RAM_SIZE, np.bool_)
        for offset in offsets[offsets < size].tolist():
            end = min(offset + BUFFER, int(size))
            while offset < end:
                piece = min(end - offset, PAGE - offset % PAGE)
                at = int(pages[offset // PAGE]) - BASE + offset % PAGE
                allowed[at : at + piece] = True
                offset += piece
        return allowed

    def _no_strays(self, allowed: list[npt.NDArray[np.bool_]]) -> None:
        for shadow, fine in zip(self.shadows, allowed, strict=True):
            strays = shadow.strays(fine)
            self.run_.counts["stray bytes"] += len(strays)
            assert not len(strays), f"{len(strays)} stray bytes in {shadow.memory.name} from {strays[0]:#x} on"

    # Transmit.

    def transmit(self, block: Block) -> None:
        """Fuzzed descriptors, after which a plain packet ends what they have begun."""
        rng = block.rng
        self.sink.refusals = int(rng.integers(0, 4))
        table = (self._gqi_table if self.gqi else self._dqo_table)(rng)[block.rows]
        state = self.lab.nic.state.tx[0]
        tail, positions = int(state["tail"]), int(state["positions"])
        if self.gqi:
            # A packet of up to 255 descriptors may be wanting some.
            last = np.array((0, 0, 0, 1, 60, 60, self._plain()), GQI_TX_PACKET).tobytes()
            table = np.concatenate([table, np.tile(np.frombuffer(last, "<u8"), (256, 1))])
        else:
            last = TX_PACKET.encode(
                dtype=TxType.PACKET, buffer_address=self._plain(), buffer_size=60, end_of_packet=1, completion_tag=1
            )
            table = np.concatenate([table, np.frombuffer(last, "<u8").reshape(1, 2)])
        places = (tail + np.arange(len(table))) % ENTRIES
        if self.gqi:
            self.ram.view(self.queues.tx_ring, ENTRIES * 16).view("<u8").reshape(-1, 2)[places] = table
        else:
            self.tx.ring.view("<u8")[places] = table
        self.shadows[0].refresh()
        # DQO positions are indices in the ring, those of GQI counts.
        self._ring(self.tx_doorbell, (tail + len(table)) % positions)
        self.lab.run()
        for _ in range(8):
            if not self.sink.refusals:
                break
            self.sink.unblock()
            self.lab.run()
        self.sink.refusals = 0
        self.sink.unblock()
        self.lab.run()
        state = self.lab.nic.state.tx[0]
        if self.gqi:
            rest = (int(state["tail"]) - int(state["head"])) % positions
            assert rest < 255, f"{rest} descriptors are left"
            assert self.queues.done == int(state["head"])
        else:
            assert int(state["head"]) == int(state["tail"]) == (tail + len(table)) % positions
            self._account_dqo(table)
        self._no_strays([self.completions, np.zeros(self.arena.size, np.bool_)])
        self.run_.counts["descriptors"] += len(table)

    def _plain(self) -> int:
        return 0 if self.qpl else self.arena.base + self.arena.first

    def _account_dqo(self, table: npt.NDArray[np.uint64]) -> None:
        """Each packet has one completion, and each descriptor of a packet that asked for one has another."""
        high = table[:, 1]
        packet = _column(high, TX_PACKET.dtype) == TxType.PACKET
        packets = int((packet & (_column(high, TX_PACKET.end_of_packet) == 1)).sum())
        reports = int((packet & (_column(high, TX_PACKET.report_event) == 1)).sum())
        now = self._tx_account()
        before, self.tx_before = self.tx_before, now
        assert now[0] - before[0] == packets, f"{now[0] - before[0]} of {packets} packets"
        assert now[1] - before[1] == packets + reports, f"{now[1] - before[1]} of {packets + reports} completions"

    def _tx_account(self) -> tuple[int, int]:
        state = self.lab.nic.state
        completions = int(state.ledger[len(state.rx), Purpose.COMPLETION].sum()) // TX_COMPLETION.size
        return int(state.tx[0]["packets"]), completions

    def _dqo_table(self, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
        """Descriptors as words, shape (ROWS, 2): packets, contexts and noise."""
        table = rng.integers(0, 1 << 64, (ROWS, 2), np.uint64, endpoint=False)
        addresses = self.arena.addresses(rng, ROWS)
        kind, odd = rng.random(ROWS), rng.random(ROWS)
        size = np.where(odd < 0.7, rng.choice([60, 354, 1514, 2048], ROWS), rng.integers(0, 0x4000, ROWS))
        high = (
            _field(TX_PACKET.dtype, np.full(ROWS, int(TxType.PACKET)))
            | _field(TX_PACKET.end_of_packet, rng.random(ROWS) < 0.7)
            | _field(TX_PACKET.checksum, rng.random(ROWS) < 0.5)
            | _field(TX_PACKET.report_event, rng.random(ROWS) < 0.1)
            | _field(TX_PACKET.completion_tag, rng.integers(0, 1 << 16, ROWS))
            | _field(TX_PACKET.buffer_size, size)
        )
        header = np.where(odd < 0.7, rng.choice([0, 14, 42, 54, 74], ROWS), rng.integers(0, 256, ROWS))
        mss = np.where(odd < 0.7, rng.choice([0, 1, 536, 1448, 9000], ROWS), rng.integers(0, 0x4000, ROWS))
        tso = (
            _field(TX_TSO_CONTEXT.total_length, np.where(odd < 0.9, 0xFFFFFF, rng.integers(0, 1 << 24, ROWS)))
            | _field(TX_TSO_CONTEXT.mss, mss)
            | _field(TX_TSO_CONTEXT.header_length, header)
        )
        context = _field(TX_TSO_CONTEXT.dtype, np.full(ROWS, int(TxType.TSO_CONTEXT))) | _field(
            TX_TSO_CONTEXT.tso, np.ones(ROWS)
        )
        packet, is_context = kind < 0.75, (kind >= 0.75) & (kind < 0.95)
        table[:, 0] = np.select([packet, is_context], [addresses, tso], table[:, 0])
        table[:, 1] = np.select([packet, is_context], [high, context], table[:, 1])
        return table

    def _gqi_table(self, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
        """Descriptors as words, shape (ROWS, 2)."""
        noise = rng.integers(0, 1 << 64, (ROWS, 2), np.uint64, endpoint=False)
        chance = rng.random(ROWS)
        near = rng.integers(0, 5 * PAGE, ROWS).astype(np.uint64)
        addresses = np.where(chance < 0.8, near, noise[:, 0]) if self.qpl else self.arena.addresses(rng, ROWS)
        lengths = rng.choice([0, 14, 54, 60, 182, 354, 4096, 65535], ROWS)
        count = np.where(chance < 0.9, rng.choice([1, 1, 1, 2, 3], ROWS), rng.integers(0, 256, ROWS))
        first = np.zeros(ROWS, GQI_TX_PACKET)
        kinds = rng.choice([GqiTxType.STANDARD, GqiTxType.STANDARD, GqiTxType.TSO], ROWS)
        first["type_flags"] = kinds << 4 | rng.integers(0, 2, ROWS)
        first["l4_checksum_offset"] = rng.choice([0, 3, 8, 255], ROWS)
        first["l4_header_offset"] = rng.choice([0, 17, 27, 255], ROWS)
        first["descriptors"] = count
        first["length"] = lengths
        first["segment_length"] = np.where(count == 1, lengths, lengths // 2)
        first["segment_address"] = addresses
        further = np.zeros(ROWS, GQI_TX_SEGMENT)
        further["type_flags"] = rng.choice([GqiTxType.SEGMENT, GqiTxType.SEGMENT, GqiTxType.METADATA], ROWS) << 4
        further["l3_offset"] = rng.choice([0, 7, 255], ROWS)
        further["mss"] = rng.choice([0, 1, 536, 1448, 65535], ROWS)
        further["segment_length"] = lengths
        further["segment_address"] = addresses
        kind = rng.random(ROWS)[:, None]
        words = [one.view("<u8").reshape(ROWS, 2) for one in (first, further)]
        return np.where(kind < 0.6, words[0], np.where(kind < 0.95, words[1], noise))

    # Doorbells, and the end.

    def doorbells(self, block: Block) -> None:
        """Any value in any doorbell but those of the rings, and of those only what leaves them as they are."""
        rng = block.rng
        indices = rng.integers(0, 40, ROWS)[block.rows]
        values = rng.integers(0, 1 << 32, ROWS, np.uint32, endpoint=False)[block.rows]
        client = self.lab.driver.client
        own = (self.rx_doorbell, self.tx_doorbell)
        for index, value in zip(indices.tolist(), values, strict=True):
            if index not in own:
                client.region_write(Bar.DOORBELLS, 4 * index, value.tobytes(), posted=True)
        self.lab.run()
        self._no_strays([self.completions, np.zeros(self.arena.size, np.bool_)])
        self.run_.counts["doorbells"] += len(values)

    def _ring(self, index: int, value: int) -> None:
        data = value.to_bytes(4, "big" if self.gqi else "little")
        self.lab.driver.client.region_write(Bar.DOORBELLS, 4 * index, data, posted=True)

    def finish(self) -> None:
        """Every frame is accounted for, and the next driver can work."""
        nic = self.lab.nic
        for row, drop in zip(*np.nonzero(nic.state.drops), strict=True):
            way = "tx" if len(nic.state.rx) <= row < len(nic.state.drops) - 1 else "rx"
            self.run_.reached.add(f"{self.format.name} {way} {Drop(int(drop)).name.lower()}")
        for name in ("split", "header_overflow", "aggregated", "bad_checksum"):
            if nic.state.rx[0][name]:
                self.run_.reached.add(name)
        state, report = nic.state, snapshot(nic)
        drops = np.delete(state.drops, Drop.HELD, axis=1)
        lost = int(drops.sum()) - int(drops[len(state.rx) : len(state.rx) + len(state.tx)].sum())
        held = sum(queue["held"] for queue in report["rx_queues"])
        assert self.sink.counters["rx_frames"] == report["delivered"] + held + lost, "frames are not accounted for"
        segments = int(state.tx["segments"].sum())
        assert segments == self.sink.counters["tx_frames"], f"{segments} frames made, {self.sink.counters} on the wire"
        assert nic.counters["internal_error"] == 0
        works(self.lab)

    def close(self) -> None:
        self.lab.close()
        self.arena.close()


def works(lab: Loopback, arrive: Callable[[bytes], None] | None = None) -> None:
    """The device serves the next driver: a plain frame goes through in each direction; `arrive` has it come."""
    lab.driver.disconnect()
    lab.driver = lab.connect()
    lab.driver.probe()
    lab.driver.open(ring_entries=64, buffer_size=BUFFER)
    lab.nic.set_cable(True)
    lab.run()
    (arrive or lab.receive)(tcp(100))
    assert [packet.frame for packet in lab.driver.poll_all()] == [tcp(100)], "a plain frame is not received"
    before = lab.wire.counters["tx_frames"]
    lab.driver.send(0, tcp(100), report_event=True)
    lab.run()
    assert len(lab.driver.poll_tx(0)) == 2 and lab.wire.counters["tx_frames"] == before + 1, "or not sent"


class RingsTarget:
    """Descriptors, frames and doorbells in all formats."""

    name = "rings"
    operations = "descriptors"
    setups = 32
    kinds = ("rx", "rx", "tx", "tx", "doorbells")
    blocks = 24

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        rings = Rings(example.setup, run)
        steps: dict[str, Callable[[Block], None]] = {
            "rx": rings.receive, "tx": rings.transmit, "doorbells": rings.doorbells
        }  # fmt: skip
        try:
            for block in example.blocks:
                for part in block.parts():
                    steps[part.kind](part)
            rings.finish()
        finally:
            rings.close()


def _column(words: npt.NDArray[np.uint64], bits: Bits) -> npt.NDArray[np.uint64]:
    return words >> np.uint64(bits.shift) & np.uint64(bits.mask)


def _field(bits: Bits, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint64]:
    return (values.astype(np.uint64) & np.uint64(bits.mask)) << np.uint64(bits.shift)
