"""Registers, and commands of the admin queue: any values in any field, and what they point at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import HEADER, SLOT_SIZE, Inner, Opcode, QueueFormat, Status
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.mac import parse_mac
from nicmodel.packet.frames import Offload

from ..frames import NIC_MAC, tcp, udp
from .bench import Bench, Sink, make_ram
from .campaign import ROWS, Block, Example, Run
from .memory import Arena
from .rings import FORMATS

_SMALL = np.array([0, 1, 2, 3, 4, 31, 40, 64, 92, 128, 256, 304, 512, 1024, 2048, 4096], np.uint64)
#: What a driver might write, by field: else hardly any command gets past its first check.
_LIKELY: dict[str, list[int]] = {
    "queue_id": [0, 1, 2],
    "notification_block": [0, 1, 2, 3],
    "page_list_id": [0xFFFFFFFF, 1, 2],
    "num_pages": [1, 2, 16],
    "page_size": [4096],
    "ring_entries": [64, 256],
    "completion_ring_entries": [64, 256],
    "buffer_ring_entries": [64, 256],
    "packet_buffer_size": [2048, 4096],
    "header_buffer_size": [0, 64, 128],
    "num_counters": [4, 8, 32],
    "num_irq_doorbells": [4, 8],
    "irq_doorbell_stride": [4, 64],
    "msix_base_index": [0, 1],
    "queue_format": [1, 2, 3, 4],
    "version": [1],
    "hash_algorithm": [0, 1],
    "key_size": [0, 40],
    "lut_size": [0, 64, 128],
    "query": [0, 1, 2],
    "starting_rule_id": [0, 1, 5],
    "inner_opcode": [int(inner) for inner in Inner],
    "inner_length": [2, 4, 8, 16, 32, 92],
    "interval_ms": [0, 1, 20_000],
}
#: All of the model's own options.
OPTIONS: dict[str, Any] = {"deferred_bytes": 1 << 16, "queue_flush": True, "owners": 2, "ddp_flows": 2}
_OPCODES = [int(opcode) for opcode in Opcode]
_NAMES: dict[int, str] = {int(opcode): opcode.name.lower() for opcode in Opcode}
_STATUSES: dict[int, str] = {int(status): status.name for status in Status}


def commands(rng: np.random.Generator, arena: Arena) -> npt.NDArray[np.uint8]:
    """`ROWS` slots, shape (ROWS, 64); what they point at is in the arena, or nowhere."""
    slots = np.zeros((ROWS, SLOT_SIZE), np.uint8)
    opcodes = rng.choice(_OPCODES, ROWS)
    likely = rng.random(ROWS) < 0.97
    slots.view(">u4")[:, 0] = np.where(likely, opcodes, rng.integers(0, 1 << 32, ROWS))
    for opcode in Opcode:
        layout = opcode.command.payload
        whose = np.flatnonzero(opcodes == opcode)
        for name in layout.names or ():
            assert layout.fields is not None
            field, place = layout.fields[name][:2]
            if "address" in name or name == "counter_array":
                values = arena.addresses(rng, len(whose))
            else:
                chance = rng.random(len(whose))
                wild = rng.integers(0, 1 << 64, len(whose), np.uint64, endpoint=False)
                plausible = rng.choice(np.array(_LIKELY.get(name, [0, 1, 64, 4096, 8192]), np.uint64), len(whose))
                small = rng.choice(_SMALL, len(whose))
                values = np.select([chance < 0.85, chance < 0.95], [plausible, small], wild)
            width = field.itemsize
            octets = values.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - width :]
            slots[whose[:, None], 8 + place + np.arange(width)] = octets
    return slots


class Commands(Bench):
    """A driver after its probe, whose admin queue is used for other things from then on."""

    def __init__(self, setup: int, run: Run) -> None:
        options = OPTIONS if setup & 4 else {}
        profile = Profile(
            mac=parse_mac(NIC_MAC), queues=2, default_queues=2,
            formats=tuple({QueueFormat.DQO_RDA, FORMATS[setup % 4]}), **options,
        )  # fmt: skip
        super().__init__(Loopback(profile, wire=Sink(Offload.NONE), ram=make_ram()), run)
        driver = self.lab.driver
        if setup & 8:
            driver.open(ring_entries=64, header_split=True)
        assert driver.adminq is not None
        self.queue = driver.adminq
        self.slots = self.lab.ram.view(self.queue.address, 64 * SLOT_SIZE).reshape(64, SLOT_SIZE)
        self.fill_with_numbers(np.random.default_rng(setup))
        self.allowed = self.all_of_the_drivers()

    def execute(self, block: Block) -> None:
        """Commands, up to 63 with one doorbell; frames arrive between them."""
        slots = commands(block.rng, self.arena)[block.rows]
        for first in range(0, len(slots), 63):
            batch = slots[first : first + 63]
            places = (self.queue.produced + np.arange(len(batch))) % 64
            self.slots[places] = batch
            self.queue.produced = (self.queue.produced + len(batch)) & 0xFFFF_FFFF
            registers = self.lab.driver.registers
            registers.write(r.ADMINQ_DOORBELL, self.queue.produced)
            self.lab.run()
            done = registers.read(r.ADMINQ_EVENT_COUNTER)
            unanswered = (self.queue.produced - done) & 0xFFFF_FFFF
            self.run_.counts["unanswered"] += unanswered
            assert not unanswered, f"{unanswered} of {len(batch)} commands are not executed"
            headers = self.slots[places, : HEADER.itemsize].copy().view(HEADER)[:, 0]
            for opcode, status in zip(headers["opcode"].tolist(), headers["status"].tolist(), strict=True):
                name = _STATUSES.get(status)
                assert name not in (None, "UNSET", "INTERNAL_ERROR"), f"opcode {opcode:#x} ends with {status:#x}"
                self.run_.reached.add(f"{_NAMES.get(opcode, 'other')}: {name}")
            self.lab.wire.inject(tcp(100), udp(100), tcp(300, v=6))
            self.lab.run()
            self.no_strays(self.allowed)
        self.run_.counts["commands"] += len(slots)

    def write(self, block: Block) -> None:
        """Writes of any size and alignment to all BARs and the configuration space, and reads of them."""
        rng = block.rng
        bars = rng.choice([0, 0, 0, 1, 2, 2, 7], ROWS)[block.rows]
        sizes = rng.choice([1, 2, 4, 8, 3, 16], ROWS)[block.rows]
        known = rng.choice(sorted(r.REGISTERS), ROWS)
        offsets = np.where(rng.random(ROWS) < 0.7, known, rng.integers(0, 4096, ROWS))[block.rows]
        values = rng.choice(np.array([0, 0, 1, 2, 0x10, 0x7F, 0xFF], np.uint8), (ROWS, 16))[block.rows]
        reading = (rng.random(ROWS) < 0.2)[block.rows]
        client = self.lab.driver.client
        for bar, size, offset, value, read in zip(
            bars.tolist(), sizes.tolist(), offsets.tolist(), values, reading.tolist(), strict=True
        ):
            offset = min(offset, (256 if bar == 7 else 4096) - size)
            if read:
                assert len(client.region_read(bar, offset, size)) == size
            else:
                client.region_write(bar, offset, value[:size].tobytes(), posted=True)
        self.lab.run()
        self.run_.counts["register accesses"] += len(bars)
        # The admin queue may have been anywhere, and its statuses with it: only the guards tell.
        self.shadows[0].refresh()
        self.no_strays(self.allowed)
        self.lab.driver.set_bus_master()
        self.queue.release()
        self.queue.start()
        self.lab.run()
        self.shadows[0].refresh()


class AdminTarget:
    """Registers and commands."""

    name = "admin"
    operations = "commands"
    setups = 16
    kinds = ("commands", "commands", "commands", "registers")
    blocks = 12

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        device = Commands(example.setup, run)
        example.play(device, {"commands": device.execute, "registers": device.write})
