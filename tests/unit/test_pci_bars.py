"""BARs: what software reads before and after it writes, decoded as the specification says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest

from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.config import ConfigSpace

BAR0 = 0x10


def space(bars: Mapping[int, MemoryBar]) -> ConfigSpace:
    return ConfigSpace(
        vendor=1, device=2, subsystem=3, class_code=0, revision=0, bars=bars, capabilities=(), on_reset=lambda: None
    )  # fmt: skip


def read(config: ConfigSpace, register: int) -> int:
    return int.from_bytes(config.read(BAR0 + 4 * register, 4), "little")


def write(config: ConfigSpace, register: int, value: int) -> None:
    config.write(BAR0 + 4 * register, value.to_bytes(4, "little"))


def size_as_linux(config: ConfigSpace, register: int) -> tuple[int, bool, bool]:
    """Size, whether 64-bit and whether prefetchable, found out as Linux does (`pci_read_bases`)."""
    before = [read(config, register), read(config, register + 1)]
    write(config, register, 0xFFFFFFFF)
    mask = read(config, register)
    assert mask & 1 == 0, "no memory BAR"
    wide = mask >> 1 & 3 == 2
    if wide:
        write(config, register + 1, 0xFFFFFFFF)
        mask |= read(config, register + 1) << 32
    write(config, register, before[0])
    if wide:
        write(config, register + 1, before[1])
    address_bits = mask & ~0xF
    size = address_bits & -address_bits
    assert address_bits + size == 1 << (64 if wide else 32), "the ones above the size are not all there"
    return size, wide, bool(mask & 8)


@pytest.mark.parametrize("prefetchable", [False, True])
@pytest.mark.parametrize(
    ("size", "width"),
    [(16, 32), (4096, 32), (1 << 31, 32), (16, 64), (65536, 64), (1 << 31, 64), (1 << 32, 64), (1 << 40, 64)],
)
def test_size(size: int, width: Literal[32, 64], prefetchable: bool) -> None:
    """Software learns what was declared, and what it had written is there again afterwards."""
    config = space({2: MemoryBar(size, width, prefetchable)})
    assert size_as_linux(config, 2) == (size, width == 64, prefetchable)
    address = max(size, 1 << width - 2)
    write(config, 2, address & 0xFFFFFFFF)
    if width == 64:
        write(config, 3, address >> 32)
    assert size_as_linux(config, 2) == (size, width == 64, prefetchable)
    assert config.bar(2) == address


def test_address() -> None:
    """The address has neither the flags nor bits below the size; a reset takes it away."""
    config = space({0: MemoryBar(1 << 28, 64, True), 2: MemoryBar(1 << 16)})
    assert (config.bar(0), config.bar(2)) == (0, 0)
    config.write(BAR0, bytes.fromhex("ffffffff 45230100 ffff34f2"))
    assert config.bar(0) == 0x0001_2345_F000_0000
    assert config.bar(2) == 0xF234_0000
    assert config.read(BAR0, 12) == bytes.fromhex("0c0000f0 45230100 000034f2")
    config.reset()
    assert (config.bar(0), config.bar(2)) == (0, 0)
    assert config.read(BAR0, 12) == bytes.fromhex("0c000000 00000000 00000000")


def test_registers_without_bar() -> None:
    """They read as zero, so that software finds nothing there; so do the upper halves of 64-bit BARs at first."""
    config = space({1: MemoryBar(4096), 4: MemoryBar(4096, 64)})
    assert [read(config, register) for register in range(6)] == [0, 0, 0, 0, 4, 0]
    for register in (0, 2, 3):
        write(config, register, 0xFFFFFFFF)
        assert read(config, register) == 0
    with pytest.raises(KeyError):
        config.bar(5)


def test_all_registers_used() -> None:
    config = space({number: MemoryBar(1 << 32, 64) for number in (0, 2, 4)})
    assert [size_as_linux(config, number)[0] for number in (0, 2, 4)] == [1 << 32] * 3
    config = space({number: MemoryBar(16 << number) for number in range(6)})
    assert [size_as_linux(config, number)[0] for number in range(6)] == [16 << number for number in range(6)]


@pytest.mark.parametrize(
    ("size", "width", "reason"),
    [
        (0, 32, "a BAR of 0 bytes: the size must be a power of two"),
        (-16, 32, "a BAR of -16 bytes: between 16"),
        (4095, 32, "a BAR of 4095 bytes: the size must be a power of two"),
        (0x3000, 64, "a BAR of 12288 bytes: the size must be a power of two"),
        (8, 32, "a BAR of 8 bytes: between 16"),
        (8, 64, "a BAR of 8 bytes: between 16"),
        (1 << 32, 32, "between 16 and 0x80000000 are possible with 32 address bits"),
        (1 << 64, 64, "between 16 and 0x8000000000000000 are possible with 64 address bits"),
    ],
)
def test_impossible_size(size: int, width: Literal[32, 64], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MemoryBar(size, width)


@pytest.mark.parametrize(
    ("bars", "reason"),
    [
        ({0: MemoryBar(16, 64), 1: MemoryBar(16)}, "BAR 1 lies where the upper half of BAR 0 is"),
        ({3: MemoryBar(16), 2: MemoryBar(16, 64)}, "BAR 3 lies where the upper half of BAR 2 is"),
        ({5: MemoryBar(16, 64)}, "a 64-bit BAR 5: there are only registers 0 to 5"),
        ({6: MemoryBar(16)}, "a 32-bit BAR 6: there are only registers 0 to 5"),
        ({-1: MemoryBar(16)}, "a 32-bit BAR -1: there are only registers 0 to 5"),
    ],
)
def test_no_place(bars: dict[int, MemoryBar], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        space(bars)
