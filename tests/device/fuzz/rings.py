"""Rings of all four formats: any descriptors, any frames, any doorbells; and every byte of memory accounted for."""

from __future__ import annotations

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
from nicmodel.gvnic.testing.gqi import GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.purpose import Purpose
from nicmodel.packet.frames import Offload
from nicmodel.testing.guest_memory import PAGE

from ..frames import NIC_MAC, tcp
from . import frames
from .bench import BASE, BUFFER, RAM_SIZE, Bench, Sink, column, make_ram, tx_table
from .campaign import ROWS, Block, Example, Run
from .memory import ranges

ENTRIES = 2 * ROWS
FORMATS = (QueueFormat.DQO_RDA, QueueFormat.DQO_QPL, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)


class Rings(Bench):
    """One queue each way of one format, whose descriptors and doorbells are written here."""

    def __init__(self, setup: int, run: Run) -> None:
        self.format = FORMATS[setup % 4]
        self.qpl = self.format == QueueFormat.GQI_QPL
        self.gqi = self.format in (QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)
        split = bool(setup & 4)
        self.sink = Sink(Offload.ALL if setup & 8 else Offload.NONE)
        profile = Profile(
            mac=parse_mac(NIC_MAC), queues=2, default_queues=1, formats=tuple({QueueFormat.DQO_RDA, self.format})
        )
        super().__init__(Loopback(profile, wire=self.sink, ram=make_ram()), run)
        driver = self.lab.driver
        if self.gqi:
            self._open_gqi(driver)
        else:
            self._open_dqo(driver, split, rsc=bool(setup & 16))
        driver.set_rss(table=[0] * 128)
        self.lab.run()
        self.fill_with_frames(np.random.default_rng(setup))
        self.shadows[0].refresh()
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
        self.no_strays(allowed)

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

    # Transmit.

    def transmit(self, block: Block) -> None:
        """Fuzzed descriptors, after which a plain packet ends what they have begun."""
        rng = block.rng
        self.sink.refusals = int(rng.integers(0, 4))
        if self.gqi:
            table = self._gqi_table(rng)[block.rows]
        else:
            table = tx_table(rng, self.arena, TX_PACKET, TxType.PACKET, TX_TSO_CONTEXT, TxType.TSO_CONTEXT)[block.rows]
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
        self.send_all(self.sink)
        state = self.lab.nic.state.tx[0]
        if self.gqi:
            rest = (int(state["tail"]) - int(state["head"])) % positions
            assert rest < 255, f"{rest} descriptors are left"
            assert self.queues.done == int(state["head"])
        else:
            assert int(state["head"]) == int(state["tail"]) == (tail + len(table)) % positions
            self._account_dqo(table)
        self.no_strays([self.completions, np.zeros(self.arena.size, np.bool_)])
        self.run_.counts["descriptors"] += len(table)

    def _plain(self) -> int:
        return 0 if self.qpl else self.arena.base + self.arena.first

    def _account_dqo(self, table: npt.NDArray[np.uint64]) -> None:
        """Each packet has one completion, and each descriptor of a packet that asked for one has another."""
        high = table[:, 1]
        packet = column(high, TX_PACKET.dtype) == TxType.PACKET
        packets = int((packet & (column(high, TX_PACKET.end_of_packet) == 1)).sum())
        reports = int((packet & (column(high, TX_PACKET.report_event) == 1)).sum())
        now = self._tx_account()
        before, self.tx_before = self.tx_before, now
        assert now[0] - before[0] == packets, f"{now[0] - before[0]} of {packets} packets"
        assert now[1] - before[1] == packets + reports, f"{now[1] - before[1]} of {packets + reports} completions"

    def _tx_account(self) -> tuple[int, int]:
        state = self.lab.nic.state
        completions = int(state.ledger[len(state.rx), Purpose.COMPLETION].sum()) // TX_COMPLETION.size
        return int(state.tx[0]["packets"]), completions

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
        self.no_strays([self.completions, np.zeros(self.arena.size, np.bool_)])
        self.run_.counts["doorbells"] += len(values)

    def _ring(self, index: int, value: int) -> None:
        data = value.to_bytes(4, "big" if self.gqi else "little")
        self.lab.driver.client.region_write(Bar.DOORBELLS, 4 * index, data, posted=True)

    def finish(self) -> None:
        """Every frame is accounted for, and the next driver can work."""
        self.account(self.sink, self.format.name)
        super().finish()


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
        example.play(rings, {"rx": rings.receive, "tx": rings.transmit, "doorbells": rings.doorbells})
