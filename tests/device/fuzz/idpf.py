"""An idpf: its mailbox, its registers, and its rings in both modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import (
    MAILBOX,
    MAILBOX_BUFFER,
    QUEUE_COMPLETION_SIZE,
    RX_BUFFER,
    RX_COMPLETION,
    TX_COMPLETION,
    TX_FLOW_DATA,
    TX_QUEUE_DATA,
    TX_TSO_CONTEXT,
    MailboxOpcode,
    TxType,
)
from nicmodel.idpf.profile import Profile
from nicmodel.idpf.registers import Bar
from nicmodel.idpf.testing.driver import ENABLE
from nicmodel.idpf.testing.mailbox import ENTRIES as MAILBOX_ENTRIES
from nicmodel.idpf.testing.mailbox import Mailbox, one
from nicmodel.idpf.testing.rx import HEADER_SIZE, BufferQueue, RxConfig, RxQueue
from nicmodel.idpf.testing.tx import TxQueue
from nicmodel.idpf.virtchnl import Op, QueueType, Result, Scheduling
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.purpose import Purpose
from nicmodel.packet.frames import Offload

from ..frames import NIC_MAC, tcp, udp
from . import frames
from .bench import BASE, RAM_SIZE, Bench, Sink, column, make_ram, tx_table
from .campaign import ROWS, Block, Example, Run
from .labs import IdpfLab
from .memory import ranges

#: Of the rings of buffers; completions have twice as many.
ENTRIES = 2 * ROWS
SMALL = 512


class IdpfRings(Bench):
    """One queue each way, whose descriptors and tails are written here."""

    lab: IdpfLab

    def __init__(self, setup: int, run: Run) -> None:
        self.flow = not setup & 1
        split, small = bool(setup & 2), SMALL if setup & 4 else 0
        self.sink = Sink(Offload.ALL if setup & 8 else Offload.NONE)
        lab = IdpfLab(Profile(mac=parse_mac(NIC_MAC), queues=2), wire=self.sink, ram=make_ram())
        super().__init__(lab, run)
        driver = lab.driver
        config = RxConfig(2 * ENTRIES, 1024, small, split, rsc=bool(setup & 16))
        self.rx = driver.rx[0] = RxQueue(0, config, self.ram, driver._buffer_tail)
        scheduling = Scheduling.FLOW if self.flow else Scheduling.QUEUE
        self.tx = driver.tx[0] = TxQueue(0, ENTRIES, scheduling, self.ram, self._tx_tail)
        driver.configure()
        driver.map_vectors()
        driver.enable_queues()
        driver.request(Op.ENABLE_VPORT, one(v.VPORT))
        driver.set_rss_table([0] * 128)
        self._revive()
        lab.run()
        self.fill_with_frames(np.random.default_rng(setup))
        # What the device may write in ordinary memory.
        self.completions = np.zeros(RAM_SIZE, np.bool_)
        for address, size in (
            (self.rx.ring, 2 * ENTRIES * RX_COMPLETION.size), (self.tx.completion_ring, ENTRIES * self._size)
        ):  # fmt: skip
            self.completions[address - BASE : address - BASE + size] = True
        self.shadows[0].refresh()

    @property
    def _size(self) -> int:
        return TX_COMPLETION.size if self.flow else QUEUE_COMPLETION_SIZE

    def _tx_tail(self, tail: int) -> None:
        self.lab.driver._tail(QueueType.TX, 0, tail)

    def _buffer_tail(self, number: int, tail: int) -> None:
        self.lab.driver._tail(QueueType.RX_BUFFER, self.rx.buffers[number].number, tail)

    def _revive(self) -> None:
        """The queues' vector is switched on."""
        self.lab.driver.set_vector(0, int.from_bytes(ENABLE, "little"))

    # Receive.

    def _records(self, number: int) -> np.void:
        found: np.void = (self.lab.nic.state.rx, self.lab.nic.state.small)[number][0]
        return found

    def receive(self, block: Block) -> None:
        """Fuzzed buffers are posted in each ring, by tails of which some jump or go back, and fuzzed frames arrive."""
        rng = block.rng
        batch = frames.batch(rng, block.rows)
        heads = []
        for number, buffers in enumerate(self.rx.buffers):
            addresses, headers = (
                self.arena.addresses(rng, ROWS)[block.rows],
                self.arena.addresses(rng, ROWS)[block.rows],
            )
            head, tail = (int(self._records(number)[name]) for name in ("buffer_head", "buffer_tail"))
            heads.append(head)
            places = (head + np.arange(len(addresses))) % ENTRIES
            ring = self._ring(buffers)
            ring[places, 0] = places
            ring[places, RX_BUFFER.buffer_address.word] = addresses
            ring[places, RX_BUFFER.header_address.word] = headers
            self.shadows[0].refresh()
            if rng.random() < 0.1:
                self._buffer_tail(number, int(rng.choice([0, 1, ENTRIES - 1, ENTRIES, 1 << 31, head])))
            elif len(addresses) > (tail - head) % ENTRIES:
                self._buffer_tail(number, (head + len(addresses)) % ENTRIES)
            self.run_.counts["descriptors"] += len(addresses)
        self.lab.run()
        self.sink.inject_batch(batch)
        self.lab.run()
        self.no_strays([self.completions, self._used(heads)])
        self.run_.counts["frames"] += batch.count

    def _ring(self, buffers: BufferQueue) -> npt.NDArray[np.uint64]:
        """A ring of buffers as words, shape (ENTRIES, 4)."""
        return self.ram.view(buffers.ring, ENTRIES * RX_BUFFER.size).view("<u8").reshape(ENTRIES, -1)

    def _used(self, heads: list[int]) -> npt.NDArray[np.bool_]:
        """Which bytes of the arena lie in buffers that were used since the rings' heads were these."""
        allowed = np.zeros(self.arena.size, np.bool_)
        for number, (buffers, head) in enumerate(zip(self.rx.buffers, heads, strict=True)):
            after = int(self._records(number)["buffer_head"])
            used = self._ring(buffers)[(head + np.arange((after - head) % ENTRIES)) % ENTRIES]
            sizes = [(RX_BUFFER.buffer_address, buffers.size)]
            if self.rx.config.header_split:
                sizes.append((RX_BUFFER.header_address, HEADER_SIZE))
            for where, size in sizes:
                allowed |= ranges(self.arena, self.arena.first, self.arena.stop, used[:, where.word], size)
        return allowed

    # Transmit.

    def transmit(self, block: Block) -> None:
        """Fuzzed descriptors, after which a plain packet ends what they have begun."""
        rng = block.rng
        self.sink.refusals = int(rng.integers(0, 4))
        data = TX_FLOW_DATA if self.flow else TX_QUEUE_DATA
        kind = TxType.FLOW_DATA if self.flow else TxType.QUEUE_DATA
        table = tx_table(rng, self.arena, data, kind, TX_TSO_CONTEXT, TxType.TSO_CONTEXT)[block.rows]
        last = data.encode(
            dtype=kind, buffer_address=self.arena.base + self.arena.first, buffer_size=60, end_of_packet=1
        )  # fmt: skip
        table = np.concatenate([table, np.frombuffer(last, "<u8").reshape(1, 2)])
        head, tail = (int(self.lab.nic.state.tx[0][name]) for name in ("head", "tail"))
        ring = self.ram.view(self.tx.ring, ENTRIES * TX_FLOW_DATA.size).view("<u8").reshape(-1, 2)
        if (tail - head) % ENTRIES + len(table) >= ENTRIES:  # what has been begun leaves too little room
            table = table[-1:]
        ring[(tail + np.arange(len(table))) % ENTRIES] = table
        before = self._tx_account()
        self.shadows[0].refresh()
        end = (tail + len(table)) % ENTRIES
        self._tx_tail(end)
        self.send_all(self.sink)
        state = self.lab.nic.state.tx[0]
        assert int(state["head"]) == int(state["tail"]) == end
        self._account(ring[(head + np.arange((end - head) % ENTRIES)) % ENTRIES, 1], before)
        self.no_strays([self.completions, np.zeros(self.arena.size, np.bool_)])
        self.run_.counts["descriptors"] += len(table)

    def _account(self, high: npt.NDArray[np.uint64], before: tuple[int, int]) -> None:
        """Each packet has what was asked for of it; in flow scheduling mode there is one completion besides."""
        data = TX_FLOW_DATA if self.flow else TX_QUEUE_DATA
        described = column(high, data.dtype) == (TxType.FLOW_DATA if self.flow else TxType.QUEUE_DATA)
        packets = int((described & (column(high, data.end_of_packet) == 1)).sum())
        expected = packets if self.flow else 0
        for name in ("report_event", "report_status"):
            if name in data.fields:
                expected += int((described & (column(high, data.fields[name]) == 1)).sum())
        found = tuple(now - then for now, then in zip(self._tx_account(), before, strict=True))
        assert found == (packets, expected), f"(packets, completions) {found}, not {(packets, expected)}"

    def _tx_account(self) -> tuple[int, int]:
        state = self.lab.nic.state
        completions = int(state.ledger[len(state.rx), Purpose.COMPLETION].sum()) // self._size
        return int(state.tx[0]["packets"]), completions

    # Doorbells, lives of queues, memory.

    def doorbells(self, block: Block) -> None:
        """Any value in any tail, interval and vector's control; those of the rings, too."""
        rng = block.rng
        places = np.array([place for place, (one, _) in r.PLACES.items() if one.doorbell or one is r.RX_TAIL])
        own = [r.TX_TAIL.at(0), r.RX_BUFFER_TAIL.at(0), r.RX_BUFFER_TAIL.at(1), r.QUEUE_DYN_CTL.at(0)]
        offsets = np.where(rng.random(ROWS) < 0.5, rng.choice(own, ROWS), rng.choice(places, ROWS))[block.rows]
        values = np.where(
            rng.random(ROWS) < 0.5, rng.integers(0, ENTRIES + 2, ROWS), rng.integers(0, 1 << 32, ROWS)
        )[block.rows].astype("<u4")  # fmt: skip
        heads = [int(self._records(number)["buffer_head"]) for number in range(len(self.rx.buffers))]
        client = self.lab.driver.client
        for number, (offset, value) in enumerate(zip(offsets.tolist(), values, strict=True)):
            client.region_write(Bar.REGISTERS, offset, value.tobytes(), posted=True)
            if number % 64 == 63:
                self.send_all(self.sink)
        self._revive()
        self.send_all(self.sink)
        self.no_strays([self.completions, self._used(heads)])
        self.run_.counts["doorbells"] += len(values)

    def restart(self, block: Block) -> None:
        """Queues are disabled by message, or by their vector, or memory goes: nothing is written then."""
        rng = block.rng
        driver, batch = self.lab.driver, frames.batch(rng, block.rows)
        way = int(rng.integers(0, 3))
        if way == 0:
            driver.disable_queues()
        elif way == 1:
            driver.set_vector(0, 0)
        else:
            driver.client.dma_unmap(self.arena.base + self.arena.first, self.arena.stop - self.arena.first)
        self.lab.run()
        self.shadows[0].refresh()
        self.sink.inject_batch(batch)
        self._tx_tail(int(rng.integers(0, ENTRIES)))
        for number in range(len(self.rx.buffers)):
            self._buffer_tail(number, int(rng.integers(0, ENTRIES)))
        self.send_all(self.sink)
        self.no_strays([self.completions, self.nothing()[1]] if way == 2 else self.nothing())
        if way == 0:
            driver.enable_queues()
        elif way == 1:
            self._revive()
        else:
            self.arena.map_writable(driver.client)
        self.send_all(self.sink)
        for shadow in self.shadows:
            shadow.refresh()
        self.run_.counts["restarts"] += 1
        self.run_.counts["frames"] += batch.count

    def finish(self) -> None:
        """Every frame is accounted for, and the next driver can work."""
        self.account(self.sink, "flow" if self.flow else "queue")
        super().finish()


class IdpfRingsTarget:
    """Descriptors, frames, doorbells."""

    name = "idpf-rings"
    operations = "descriptors"
    setups = 32
    kinds = ("rx", "rx", "tx", "tx", "doorbells", "restart")
    blocks = 24

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        rings = IdpfRings(example.setup, run)
        example.play(rings, {
            "rx": rings.receive, "tx": rings.transmit, "doorbells": rings.doorbells, "restart": rings.restart,
        })  # fmt: skip


#: What a driver might write, by field of a message: else hardly any gets past its first check.
_LIKELY: dict[str, list[int]] = {
    "vport_id": [0], "type": [0, 1, 2, 3], "queue_type": [0, 1], "queue_id": [0, 1, 2, 3], "start_queue_id": [0, 0, 1],
    "num_queues": [1, 1, 2, 4], "vector_id": [1, 2, 3], "itr_idx": [0, 1], "model": [1], "txq_model": [1],
    "rxq_model": [1], "sched_mode": [0, 1], "ring_len": [32, 64, 512, 8160], "tx_compl_queue_id": [0, 1],
    "relative_queue_id": [0, 1], "data_buffer_size": [128, 512, 2048], "hdr_buffer_size": [0, 64, 256],
    "qflags": [0, 1, 2, 3, 0x13], "rx_bufq1_id": [0, 2], "rx_bufq2_id": [1, 3], "bufq2_ena": [0, 1], "major": [2],
    "num_tx_q": [1, 2, 4], "num_rx_q": [1, 2], "num_tx_complq": [1, 2, 4], "num_rx_bufq": [2, 4], "num_vectors": [1, 3],
    "num_ptypes": [1, 58, 1024], "key_len": [40], "lut_entries": [128, 16], "lut_entries_start": [0],
    "enable": [0, 0, 1], "num_headers": [2], "num_actions": [1],
    "rule_id": [0, 1, 5, 1023], "tunnel_level": [0], "value": [0, 1],
}  # fmt: skip
_SMALL = [0, 1, 2, 3, 4, 31, 32, 64, 128, 255, 256, 1024, 4096, 8160]
_OPS = [int(op) for op in Op if op is not Op.RESET_VF]
_NAMES = {int(op): op.name.lower() for op in Op}
_RESULTS = {int(result): result.name for result in Result}


class IdpfMailbox(Bench):
    """A driver after its probe, whose mailbox is used for other things from then on."""

    lab: IdpfLab

    def __init__(self, setup: int, run: Run) -> None:
        self.sink = Sink(Offload.NONE)
        profile = Profile(mac=parse_mac(NIC_MAC), queues=2)
        super().__init__(IdpfLab(profile, wire=self.sink, ram=make_ram()), run)
        if setup & 1:
            self.lab.driver.open(ring_entries=64, rsc=bool(setup & 2))
        self.lab.run()
        self.fill_with_numbers(np.random.default_rng(setup))
        self.allowed = self.all_of_the_drivers()
        self.shadows[0].refresh()

    @property
    def mailbox(self) -> Mailbox:
        """The driver's."""
        assert self.lab.driver.mailbox is not None
        return self.lab.driver.mailbox

    def execute(self, block: Block) -> None:
        """Messages, up to 63 at one tail; frames arrive between them, and tails move."""
        rng = block.rng
        descriptors = self._descriptors(rng)[block.rows]
        for first in range(0, len(descriptors), MAILBOX_ENTRIES - 1):
            self._hand_over(descriptors[first : first + MAILBOX_ENTRIES - 1])
            self.sink.inject(tcp(100), udp(100), tcp(300, v=6))
            for queue in range(4):
                self.lab.driver.registers.write(r.TX_TAIL, int(rng.integers(0, 32)), queue)
                self.lab.driver.registers.write(r.RX_BUFFER_TAIL, int(rng.integers(0, 32)), queue)
            self.lab.run()
            self.no_strays(self.allowed)
        self.run_.counts["messages"] += len(descriptors)

    def _hand_over(self, batch: list[tuple[int, dict[str, int], bytes]]) -> None:
        """Put messages into the ring, and see that each is answered, in their order."""
        mailbox = self.mailbox
        ring = mailbox._send_ring
        places = []
        for cookie, (place, fields, payload) in enumerate(batch, 1):
            at = mailbox._sent
            address = mailbox._send_buffers + at * MAILBOX_BUFFER if place == 0 else place
            if place == 0:
                self.ram.write(address, payload)
            where = {"address_high": address >> 32, "address_low": address & 0xFFFFFFFF}
            self.ram.write(ring + at * MAILBOX.size, MAILBOX.encode(**fields, **where, cookie=cookie))
            places.append(at)
            mailbox._sent = (at + 1) % MAILBOX_ENTRIES
        self.shadows[0].refresh()
        self.lab.driver.registers.write(r.ATQ_TAIL, mailbox._sent)
        came: list[int] = []
        while True:
            self.lab.run()
            found = mailbox.receive()
            if not found:
                break
            for reply in found:
                name = _RESULTS.get(reply.result)
                assert name not in (None, "IO_ERROR"), f"message {reply.number} ends with {reply.result}"
                self.run_.reached.add(f"{_NAMES.get(reply.number, 'other')}: {name}")
                if reply.cookie:
                    came.append(reply.cookie)
        undone = [at for at in places if not MAILBOX.done.get(self.ram.read(ring + at * MAILBOX.size, MAILBOX.size))]
        expected = list(range(1, len(batch) + 1))
        self.run_.counts["unanswered"] += len(undone) + len(expected) - len(came)
        assert not undone, f"{len(undone)} of {len(batch)} messages are not taken"
        assert came == expected, f"answers to {came} of {len(batch)} messages"

    def _descriptors(self, rng: np.random.Generator) -> list[tuple[int, dict[str, int], bytes]]:
        """Where the payload lies (0: where the driver has room for it), what a descriptor says, the payload."""
        opcodes = rng.choice(_OPS, ROWS).tolist()
        wild = rng.integers(0, 1 << 28, ROWS).tolist()
        chance = rng.random((ROWS, 3)).tolist()
        addresses = self.arena.addresses(rng, ROWS).tolist()
        lengths = rng.integers(0, 1 << 16, ROWS).tolist()
        found = []
        for row, (unknown, odd, elsewhere) in enumerate(chance):
            number = opcodes[row] if unknown < 0.97 else wild[row]
            payload = self._payload(rng, opcodes[row])
            length = len(payload) if odd < 0.9 else lengths[row] % (len(payload) + 1) if odd < 0.95 else lengths[row]
            flags = {"buffer": int(odd < 0.98), "read": 1} if length else {}
            opcode = MailboxOpcode.SEND_TO_CONTROL_PLANE if odd > 0.01 else lengths[row]
            place = 0 if elsewhere < 0.9 else addresses[row]
            found.append((place, {"opcode": opcode, "message": number, "length": length, **flags}, payload))
        return found

    def _payload(self, rng: np.random.Generator, number: int) -> bytes:
        message = Op(number).message
        head = self._some(rng, message.head, 1)
        if message.many is None:
            return head.tobytes()
        most = (MAILBOX_BUFFER - message.head.itemsize) // message.many.itemsize
        likely = _LIKELY.get(message.count, [1, 1, 2, 4]) if rng.random() < 0.9 else [0, 128, most]
        count = min(most, int(rng.choice(likely)))
        many = self._some(rng, message.many, count)
        ones = (1 << 8 * head.dtype[message.count].itemsize) - 1
        head[message.count] = count if rng.random() < 0.95 else rng.choice(np.array([0, 1, 255, ones], np.uint64))
        return (head.tobytes() + many.tobytes())[:MAILBOX_BUFFER]

    def _some(self, rng: np.random.Generator, form: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        """`count` structures of a form."""
        made = np.frombuffer(bytearray(rng.bytes(form.itemsize * count)), form)
        if form.names is None:
            if form.itemsize == 4:
                made %= 2 if rng.random() < 0.8 else 1 << 31
            return made
        for name in form.names:
            field = form[name]
            if field.shape:
                if field.base.names:
                    made[name] = self._some(rng, field.base, count * field.shape[0]).reshape(count, *field.shape)
                    self._be_a_rule(rng, name, made[name])
                elif name in ("spec", "mask") and rng.random() < 0.7:
                    made[name] = 0
            elif name == "ring_address":
                made[name] = self.arena.addresses(rng, count) & ~np.uint64(31)
            else:
                chance = rng.random(count)
                likely = rng.choice(np.array(_LIKELY.get(name, _SMALL), np.uint64), count)
                small = rng.choice(np.array(_SMALL, np.uint64), count)
                made[name] = np.select([chance < 0.93, chance < 0.97], [likely, small], made[name].astype(np.uint64))
        return made

    def _be_a_rule(self, rng: np.random.Generator, name: str, made: npt.NDArray[Any]) -> None:
        """Types of a flow rule's headers and actions that the device has."""
        if rng.random() < 0.8:
            made["type"][:, :2] = [v.Protocol.IPV4, rng.choice([v.Protocol.TCP, v.Protocol.UDP])]
            if name == "actions":
                made["type"] = v.ACTION_QUEUE

    def reset(self, block: Block) -> None:
        """A reset among messages, by one of the ways that there are; then what a driver does after it."""
        rng = block.rng
        driver, mailbox = self.lab.driver, self.mailbox
        for _ in range(int(rng.integers(0, 8))):
            mailbox.send(Op.VERSION, one(v.VERSION, major=2).tobytes())
        way = int(rng.integers(0, 4))
        if way == 0:
            mailbox.send(Op.RESET_VF)
            mailbox.send(Op.GET_STATS, one(v.VPORT_STATS).tobytes())
        elif way == 1:
            driver.set_bus_master(False)
        elif way == 2:
            driver.client.reset()
        else:
            self.lab.call(self.lab.nic.request_reset)
        self.lab.run()
        assert driver.registers.read(r.ARQ_LEN) == 0 and not self.lab.nic.configured
        self.shadows[0].refresh()
        self.sink.inject(tcp(100))
        self.lab.run()
        self.no_strays(self.nothing())
        self._set_up()
        self.run_.counts["resets"] += 1

    def _set_up(self) -> None:
        """What follows a reset; what the driver had allocated is used again."""
        driver = self.lab.driver
        driver.client.reset()
        driver.set_bus_master()
        if driver.mailbox is not None:
            driver.mailbox.free()
        driver.set_up()
        self.lab.run()
        self.allowed = self.all_of_the_drivers()
        for shadow in self.shadows:
            shadow.refresh()

    def write(self, block: Block) -> None:
        """Writes of any size and alignment to both BARs and the configuration space, and reads of them."""
        rng = block.rng
        bars = rng.choice([0, 0, 0, 0, 2, 7], ROWS)[block.rows]
        sizes = rng.choice([4, 4, 4, 1, 2, 8, 3, 16], ROWS)[block.rows]
        mailbox = [one.offset for one in r.REGISTERS.values() if one.count == 1]
        chance = rng.random(ROWS)
        anywhere = rng.integers(0, r.REGISTERS_SIZE, ROWS)
        offsets = np.select(
            [chance < 0.4, chance < 0.8], [rng.choice(mailbox, ROWS), rng.choice(sorted(r.PLACES), ROWS)], anywhere
        )[block.rows]  # fmt: skip
        values = rng.choice(np.array([0, 0, 1, 2, 0x10, 0x40, 0x80, 0xFF], np.uint8), (ROWS, 16))[block.rows]
        reading = (rng.random(ROWS) < 0.2)[block.rows]
        client = self.lab.driver.client
        limits = {0: r.REGISTERS_SIZE, 2: 0x1000, 7: 256}
        for bar, size, offset, value, read in zip(
            bars.tolist(), sizes.tolist(), offsets.tolist(), values, reading.tolist(), strict=True
        ):
            offset = min(offset, limits[bar] - size)
            if read:
                assert len(client.region_read(bar, offset, size)) == size
            else:
                client.region_write(bar, offset, value[:size].tobytes(), posted=True)
        self.lab.run()
        self.run_.counts["register accesses"] += len(bars)
        # The mailbox may have been anywhere, and replies with it: only the guards tell.
        self.shadows[0].refresh()
        self.no_strays(self.allowed)
        self._set_up()


class IdpfMailboxTarget:
    """Registers and messages."""

    name = "idpf-mailbox"
    operations = "messages"
    setups = 4
    kinds = ("messages", "messages", "messages", "registers", "reset")
    blocks = 12

    def run(self, example: Example, run: Run) -> None:
        """See `Target.run`."""
        device = IdpfMailbox(example.setup, run)
        example.play(device, {"messages": device.execute, "registers": device.write, "reset": device.reset})
