"""Wrong input of every sort: the device answers, counts or ignores it, and works on.

Here it may point anywhere, also at the rings themselves. `fuzz` goes through far more of it, and knows of every byte of
memory whether the device may write it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import SLOT_SIZE, Inner, Opcode, QueueFormat, Status
from nicmodel.gvnic.descriptors import (
    GQI_TX_PACKET,
    GQI_TX_SEGMENT,
    RX_BUFFER,
    TX_PACKET,
    TX_TSO_CONTEXT,
    GqiTxType,
    TxType,
)
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.gqi import GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.mac import parse_mac
from nicmodel.packet.frames import Batch, FrameFlag, Gso
from nicmodel.testing.guest_memory import GuestMemory

from .conftest import ENTRIES, RAM_SIZE
from .frames import NIC_MAC, PEER_MAC, tcp, udp
from .fuzz.admin import OPTIONS
from .fuzz.campaign import Failures

BASE = 0x1000_0000
EXAMPLES = settings(max_examples=25, deadline=None)

#: Addresses in memory, at its edges, across them, and where nothing is.
ADDRESSES = st.one_of(
    st.integers(BASE, BASE + RAM_SIZE - 1),
    st.integers(BASE + RAM_SIZE - 4096, BASE + RAM_SIZE + 4096),
    st.integers(BASE - 4096, BASE + 4096),
    st.sampled_from([0, 1, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)


@contextmanager
def running(queue_format: QueueFormat = QueueFormat.DQO_RDA, **options: Any) -> Iterator[Loopback]:
    """A lab, in format DQO-RDA with all queues open; in the end nothing has failed and a new driver can work."""
    with Failures() as failures:
        formats = tuple({QueueFormat.DQO_RDA, queue_format})
        profile = Profile(mac=parse_mac(NIC_MAC), queues=2, default_queues=2, formats=formats, **options)
        with Loopback(profile, ram=GuestMemory("ram", base=BASE, size=RAM_SIZE)) as lab:
            lab.driver.probe()
            if queue_format == QueueFormat.DQO_RDA:
                lab.driver.open(ring_entries=ENTRIES, header_split=True, buffer_size=2048)
            yield lab
            assert lab.nic.counters["internal_error"] == 0
            lab.driver.disconnect()
            lab.driver = lab.connect()
            lab.driver.probe()
            lab.driver.open(ring_entries=ENTRIES)
            lab.receive(tcp(100))
            assert [packet.frame for packet in lab.driver.poll_all()] == [tcp(100)]
    assert failures.records == []


@st.composite
def tx_descriptors(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["packet", "tso", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(min_size=16, max_size=16))
    if kind == "tso":
        return TX_TSO_CONTEXT.encode(
            dtype=TxType.TSO_CONTEXT,
            tso=1,
            total_length=draw(st.integers(0, 0xFFFFFF)),
            mss=draw(st.integers(0, 0x3FFF)),
            header_length=draw(st.one_of(st.sampled_from([14, 42, 54, 74]), st.integers(0, 255))),
        )
    return TX_PACKET.encode(
        dtype=TxType.PACKET,
        buffer_address=draw(ADDRESSES),
        buffer_size=draw(st.integers(0, 0x3FFF)),
        end_of_packet=draw(st.booleans()),
        checksum=draw(st.booleans()),
        report_event=draw(st.booleans()),
        completion_tag=draw(st.integers(0, 0xFFFF)),
    )


@EXAMPLES
@given(
    descriptors=st.lists(tx_descriptors(), max_size=ENTRIES - 1),
    tail=st.one_of(st.none(), st.integers(0, ENTRIES)),
    content=st.sampled_from([tcp(2000), tcp(100, v=6), udp(40), b"\xff" * 100, b"\x00" * 100]),
)
def test_transmit_descriptors(descriptors: list[bytes], tail: int | None, content: bytes) -> None:
    """Any bytes in a transmit ring, which point at frames, at themselves or nowhere."""
    with running() as lab:
        queue = lab.driver.tx[0]
        lab.ram.bytes[RAM_SIZE // 2 :] = np.resize(np.frombuffer(content, np.uint8), RAM_SIZE // 2)
        for number, descriptor in enumerate(descriptors):
            queue.ring[number] = np.frombuffer(descriptor, np.uint8)
        lab.driver.doorbells.ring(queue.doorbell_index, len(descriptors) if tail is None else tail)
        lab.run()
        assert lab.nic.state.tx["head"][0] < ENTRIES


@EXAMPLES
@given(data=st.data(), frames=st.lists(st.binary(max_size=3000), max_size=20))
def test_receive_descriptors(data: st.DataObject, frames: list[bytes]) -> None:
    """Buffers anywhere, and frames of any bytes to this station."""
    with running() as lab:
        queue = lab.driver.rx[0]
        for number in range(ENTRIES):
            queue.buffer_ring[number][RX_BUFFER.buffer_address.word] = data.draw(ADDRESSES)
            queue.buffer_ring[number][RX_BUFFER.header_address.word] = data.draw(ADDRESSES)
        ethernet = bytes.fromhex((NIC_MAC + PEER_MAC).replace(":", ""))
        lab.driver.set_rss(table=[0] * 128)
        lab.receive(*[ethernet + frame for frame in frames])
        lab.run()


ETHERTYPES = [b"\x08\x00\x45", b"\x08\x00\x4f", b"\x86\xdd\x60", b"\x81\x00\x00\x07\x08\x00\x45", b"\x88\xa8"]


@EXAMPLES
@given(
    frames=st.lists(
        st.tuples(
            st.one_of(
                st.tuples(st.sampled_from(ETHERTYPES), st.binary(max_size=200)).map(b"".join),
                st.tuples(
                    st.sampled_from([tcp(300), tcp(300, v=6), udp(9)]), st.integers(14, 80), st.integers(0, 255)
                ).map(lambda parts: (parts[0][: parts[1]] + bytes([parts[2]]) + parts[0][parts[1] + 1 :])[12:]),
            ),
            st.sampled_from([0, 1, 2, 3, 255]),
            st.sampled_from([*Gso, 2, 255]),
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFF),
        ),
        max_size=20,
    )
)
def test_frames(frames: list[tuple[bytes, int, int, int, int]]) -> None:
    """Frames with torn headers, and records that say wrong things of them."""
    with running() as lab:
        ethernet = bytes.fromhex((NIC_MAC + PEER_MAC).replace(":", ""))
        batch = Batch(1 << 17, 32)
        for frame, flags, gso, segment, header in frames:
            fields: dict[str, Any] = {"flags": FrameFlag(flags), "gso": gso, "segment": segment, "header": header}
            batch.append(ethernet + frame, csum_start=header, csum_offset=segment, **fields)
        lab.run()
        lab.wire.inject_batch(batch)
        for packet in lab.driver.poll_all():
            assert packet.frame[:12] == ethernet


@st.composite
def slots(draw: st.DrawFn) -> bytes:
    opcode = draw(st.sampled_from(list(Opcode)))
    layout = opcode.command.payload
    slot = bytearray(opcode.to_bytes(4, "big") + bytes(SLOT_SIZE - 4))
    for name in layout.names or ():
        assert layout.fields is not None
        field, place = layout.fields[name][:2]
        bits = 8 * field.itemsize
        small = st.sampled_from([0, 1, 2, 3, 4, 31, 40, 64, 92, 128, 304, 2048, 4096])
        value = draw(
            ADDRESSES if "address" in name or name == "counter_array" else small | st.integers(0, (1 << bits) - 1)
        )
        slot[8 + place : 8 + place + field.itemsize] = (value & (1 << bits) - 1).to_bytes(field.itemsize, "big")
    return bytes(slot)


@EXAMPLES
@given(commands=st.lists(slots(), min_size=1, max_size=40))
def test_admin_commands(commands: list[bytes]) -> None:
    """Any values in any command: each gets a status the contract knows.

    Results are allowed to land anywhere in memory, on the admin queue too; so each command gets a fresh slot.
    """
    with running() as lab:
        for command in commands:
            assert lab.driver.adminq is not None
            try:
                lab.driver.admin_batch([command])
            except AdminError as error:
                assert isinstance(error.status, Status) and error.status != Status.UNSET
        lab.receive(tcp(9))


@EXAMPLES
@given(
    writes=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2]),
            st.one_of(st.sampled_from(sorted(r.REGISTERS)), st.integers(0, 4095)),
            st.binary(min_size=1, max_size=16),
        ),
        max_size=40,
    )
)
def test_register_writes(writes: list[tuple[int, int, bytes]]) -> None:
    """Writes of any size and alignment to all BARs."""
    with running() as lab:
        for bar, offset, data in writes:
            lab.driver.client.region_write(bar, min(offset, 4096 - len(data)), data, posted=True)
        lab.run()
        for bar in (0, 1, 2):
            assert len(lab.driver.client.region_read(bar, 0, 4096)) == 4096


@pytest.mark.parametrize("value", [b"\x00", b"\xff"])
def test_configuration_space(value: bytes) -> None:
    """All of the configuration space written with zeros or ones, byte by byte."""
    with running() as lab:
        for offset in range(256):
            lab.driver.client.region_write(7, offset, value, posted=True)
        lab.run()
        assert lab.driver.client.region_read(7, 0, 4) == bytes.fromhex("e01a4200")


VALUES = st.one_of(
    st.integers(0, 2 * ENTRIES),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 31).map(lambda bit: 1 << bit),
    st.integers(0, ENTRIES).map(lambda back: (1 << 32) - 1 - back),
)


@EXAMPLES
@given(
    queue_format=st.sampled_from([QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL]),
    writes=st.lists(st.tuples(st.integers(0, 20), VALUES, st.sampled_from([0, 0, 0, 1, 2])), max_size=60),
)
def test_doorbells(queue_format: QueueFormat, writes: list[tuple[int, int, int]]) -> None:
    """Any value in every doorbell there is and in some that are none, in every format."""
    with running(queue_format) as lab:
        if queue_format != QueueFormat.DQO_RDA:
            GqiQueues(lab.driver, queue_format == QueueFormat.GQI_QPL, 256)
        for index, value, shift in writes:
            data = value.to_bytes(4, "big" if lab.nic.gqi else "little")
            lab.driver.client.region_write(r.Bar.DOORBELLS, 4 * index + shift, data, posted=True)
            lab.wire.inject(tcp(100), udp(100))
        lab.run()
        for queues, head, tail, entries in (
            (lab.nic.state.tx, "head", "tail", "entries"),
            (lab.nic.state.rx, "buffer_head", "buffer_tail", "buffer_entries"),
        ):
            ahead = (queues[tail] - queues[head]) % queues["positions"]
            assert (ahead <= queues[entries]).all()


@st.composite
def gqi_descriptors(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(st.binary(min_size=16, max_size=16))
    lengths = st.one_of(st.sampled_from([0, 14, 54, 60, 182, 4096]), st.integers(0, 0xFFFF))
    address = draw(st.one_of(st.integers(0, 4 * 4096), ADDRESSES))
    if draw(st.booleans()):
        kind = draw(st.sampled_from([GqiTxType.STANDARD, GqiTxType.TSO]))
        length = draw(lengths)
        segment = draw(st.one_of(st.just(length), lengths))
        flags = kind << 4 | draw(st.integers(0, 1))
        count = draw(st.one_of(st.integers(0, 4), st.integers(0, 255)))
        offsets = draw(st.integers(0, 255)), draw(st.integers(0, 255))
        return np.array((flags, *offsets, count, length, segment, address), GQI_TX_PACKET).tobytes()
    kind = draw(st.sampled_from([GqiTxType.SEGMENT, GqiTxType.METADATA]))
    values = (kind << 4, draw(st.integers(0, 255)), 0, draw(lengths), draw(lengths), address)
    return np.array(values, GQI_TX_SEGMENT).tobytes()


@EXAMPLES
@given(
    qpl=st.booleans(),
    descriptors=st.lists(gqi_descriptors(), max_size=200),
    slots=st.lists(st.one_of(st.integers(0, 1 << 20), ADDRESSES), min_size=1, max_size=8),
    content=st.sampled_from([tcp(2000), tcp(100, v=6), udp(40), b"\xff" * 100, b"\x00" * 100]),
)
def test_gqi_descriptors(qpl: bool, descriptors: list[bytes], slots: list[int], content: bytes) -> None:
    """Any bytes in the rings of the GQI formats."""
    with running(QueueFormat.GQI_QPL if qpl else QueueFormat.GQI_RDA) as lab:
        queues = GqiQueues(lab.driver, qpl, 256)
        for page in queues.tx_pages:
            lab.ram.write(page, np.resize(np.frombuffer(content, np.uint8), 4096).tobytes())
        lab.ram.write(queues.data_ring, np.resize(np.array(slots, np.uint64), 256).astype(">u8").tobytes())
        queues.post(*(np.frombuffer(descriptor, np.uint8) for descriptor in descriptors))
        lab.receive(tcp(9), tcp(5000), udp(3000, v=6), b"\xff" * 60)
        tx = lab.nic.state.tx[0]
        assert (int(tx["tail"]) - int(tx["head"])) & 0xFFFFFFFF < 256
        assert queues.done == int(tx["head"])


@EXAMPLES
@given(
    base=ADDRESSES,
    length=st.integers(0, 0xFFFF),
    contents=st.lists(st.binary(min_size=SLOT_SIZE, max_size=SLOT_SIZE), max_size=8),
    rings=st.lists(VALUES, max_size=10),
    page=st.one_of(st.none(), st.integers(0, (1 << 32) - 1)),
)
def test_admin_queue_anywhere(
    base: int, length: int, contents: list[bytes], rings: list[int], page: int | None
) -> None:  # fmt: skip
    """An admin queue of any length at any address, with any bytes in it, rung in any way."""
    with running() as lab:
        for number, content in enumerate(contents):
            address = base + SLOT_SIZE * number
            if BASE <= address <= BASE + RAM_SIZE - SLOT_SIZE:
                opcode = content[0] % 20  # else hardly any is known
                lab.ram.write(address, opcode.to_bytes(4, "big") + content[4:])

        def write(register: r.Register, value: int) -> None:
            data = value.to_bytes(register.size, "big")
            lab.driver.client.region_write(r.Bar.REGISTERS, register.offset, data, posted=True)

        write(r.ADMINQ_BASE_HI, base >> 32)
        write(r.ADMINQ_BASE_LO, base & 0xFFFFFFFF)
        write(r.ADMINQ_LENGTH, length)
        write(r.DRIVER_STATUS, int(r.DriverStatus.RUN))
        if page is not None:
            write(r.ADMINQ_PFN, page)
        for value in rings:
            write(r.ADMINQ_DOORBELL, value)
        lab.run()
        assert lab.nic.admin.counter == lab.nic.admin._producer


@EXAMPLES
@given(
    commands=st.lists(
        st.tuples(
            st.sampled_from(list(Inner)),
            st.one_of(
                st.binary(min_size=128, max_size=128),
                st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 64, 255]), min_size=128, max_size=128).map(bytes),
            ),
            st.one_of(st.sampled_from([0, 92, 128]), st.integers(0, (1 << 32) - 1)),
        ),
        max_size=20,
    )
)
def test_inner_commands(commands: list[tuple[Inner, bytes, int]]) -> None:
    """Any bytes in what extended commands point at, those of the model's own options too; frames in between."""
    with running(**OPTIONS) as lab:
        place = lab.ram.allocate(4096)
        for inner, content, length in commands:
            lab.ram.write(place, content)
            try:
                lab.driver.admin(
                    Opcode.EXTENDED_COMMAND, inner_opcode=inner, inner_length=length, inner_address=place
                )  # fmt: skip
            except AdminError as error:
                assert isinstance(error.status, Status) and error.status != Status.INTERNAL_ERROR
            lab.wire.inject(tcp(100), udp(100))
        lab.run()


@EXAMPLES
@given(reads=st.lists(st.tuples(st.sampled_from([0, 1, 2, 7]), st.integers(0, 4095), st.integers(1, 64)), max_size=40))
def test_register_reads(reads: list[tuple[int, int, int]]) -> None:
    """Reads of any size and alignment; they change nothing."""
    with running() as lab:
        before = lab.nic.state.rx.tobytes() + lab.nic.state.tx.tobytes()
        for region, offset, count in reads:
            offset = min(offset, (255 if region == 7 else 4095) - count)
            assert len(lab.driver.client.region_read(region, max(offset, 0), count)) == count
        assert lab.nic.state.rx.tobytes() + lab.nic.state.tx.tobytes() == before
