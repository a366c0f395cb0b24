"""The PCI configuration space that guests know, byte for byte, and what they may write there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.pci.config import SIZE

#: What is not zero after power-on, by offset; with 8 queues and revision 1.
POWER_ON = {
    0x00: "e01a4200 00001000 01000002 00000000",
    0x20: "00000000 00000000 00000000 e01a5800",
    0x30: "00000000 40000000 00000000 00000000",
    0x40: "01500300 08000000 00000000 00000000",
    0x50: "11601000 01000000 01080000 00000000",
    0x60: "10000200 02800010 10280000 04010000",
    0x70: "00000401 00000000 00000000 00000000",
}
#: Which bits software may change; the one that asks for a function level reset reads as zero.
WRITABLE = {
    0x00: "00000000 47050000 00000000 ffff0000",
    0x10: "00f0ffff 00f0ffff 0000ffff 00000000",
    0x30: "00000000 00000000 00000000 ff000000",
    0x40: "00000000 03000000 00000000 00000000",
    0x50: "000000c0 00000000 00000000 00000000",
    0x60: "00000000 00000000 ff7f0000 00000000",
}
FLR = 0x69, 0x80


def image(rows: dict[int, str]) -> bytearray:
    whole = bytearray(SIZE)
    for offset, row in rows.items():
        whole[offset : offset + 16] = bytes.fromhex(row)
    return whole


@pytest.mark.parametrize(("queues", "revision"), [(8, 1), (4, 0), (63, 7)])
def test_config_space(make_lab: Callable[..., Loopback], queues: int, revision: int) -> None:
    """*Steps*: read all; write ones and zeros to every byte. *Verify*: every bit, and which of them take a value."""
    config = make_lab(queues=queues, revision=revision).nic.config
    expected = image(POWER_ON)
    expected[0x08] = revision
    expected[0x52] = 2 * queues  # of 2 * queues + 1 vectors
    assert config.read(0, SIZE) == expected

    changed = bytearray(SIZE)
    for offset in range(SIZE):
        asks_reset = FLR[1] if offset == FLR[0] else 0
        config.write(offset, bytes([0xFF & ~asks_reset]))
        ones = config.read(offset, 1)[0]
        config.write(offset, b"\0")
        changed[offset] = ones ^ config.read(offset, 1)[0]
    assert changed == image(WRITABLE)

    config.write(FLR[0], bytes([FLR[1]]))
    assert config.read(0, SIZE) == expected
