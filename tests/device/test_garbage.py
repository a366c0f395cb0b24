"""Wrong input of every sort: the device answers, counts or ignores it, and works on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import PAYLOADS, SLOT_SIZE, Opcode, Status
from nicmodel.gvnic.descriptors import RX_BUFFER, TX_PACKET, TX_TSO_CONTEXT, TxType
from nicmodel.gvnic.profile import Profile, parse_mac
from nicmodel.packet.frames import Batch, FrameFlag, Gso
from nicmodel.testing.adminq import AdminError
from nicmodel.testing.loopback import Loopback
from nicmodel.testing.memory import GuestMemory

from .conftest import ENTRIES, RAM_SIZE
from .frames import NIC_MAC, PEER_MAC, tcp, udp

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


class Failures(logging.Handler):
    """Keeps what is logged as an error: an exception that a callback swallowed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


@contextmanager
def running() -> Iterator[Loopback]:
    """A lab with all queues open, at the end of which nothing has failed and a new driver can work."""
    failures = Failures()
    logging.getLogger("nicmodel").addHandler(failures)
    try:
        profile = Profile(mac=parse_mac(NIC_MAC), queues=2, default_queues=2)
        with Loopback(profile, ram=GuestMemory("ram", base=BASE, size=RAM_SIZE)) as lab:
            lab.driver.probe()
            lab.driver.open(ring_entries=ENTRIES, header_split=True, buffer_size=2048)
            yield lab
            lab.driver.disconnect()
            lab.driver = lab.connect()
            lab.driver.probe()
            lab.driver.open(ring_entries=ENTRIES)
            lab.receive(tcp(100))
            assert [packet.frame for packet in lab.driver.poll_all()] == [tcp(100)]
    finally:
        logging.getLogger("nicmodel").removeHandler(failures)
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
    layout = PAYLOADS[opcode]
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
