"""Capabilities as software finds and decodes them: offsets and bits are the specification's, not the declarations'."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.capabilities import Capability, Express, Msix, PowerManagement
from nicmodel.pci.config import SIZE, Command, ConfigSpace
from nicmodel.pci.msix import MsixTable

#: As a second device may have them: 64-bit BARs, and the MSI-X table behind other registers.
BARS = {0: MemoryBar(1 << 28, 64), 2: MemoryBar(1 << 16, 64, True)}
TABLE = MsixTable(18, 2, table=0x8000, pba=0x9000)


def space(
    capabilities: Sequence[Capability] | None = None,
    bars: Mapping[int, MemoryBar] = BARS,
    on_reset: Callable[[], None] = lambda: None,
) -> ConfigSpace:
    return ConfigSpace(
        vendor=0x8086,
        device=0x145C,
        subsystem=0x1234,
        class_code=0x020001,
        revision=2,
        bars=bars,
        capabilities=(PowerManagement(), Msix(TABLE), Express()) if capabilities is None else capabilities,
        on_reset=on_reset,
    )


def walk(config: ConfigSpace) -> dict[int, int]:
    """Offsets of the capabilities by ID, in the order in which they are linked."""
    found: dict[int, int] = {}
    assert config.read(0x06, 1)[0] & 0x10, "the status register says that there is no list"
    place = config.read(0x34, 1)[0]
    while place:
        assert place >= 0x40 and place % 4 == 0
        number, following = config.read(place, 2)
        assert number not in found
        found[number] = place
        place = following
    return found


def u16(config: ConfigSpace, offset: int) -> int:
    return int(struct.unpack("<H", config.read(offset, 2))[0])


def u32(config: ConfigSpace, offset: int) -> int:
    return int(struct.unpack("<I", config.read(offset, 4))[0])


def test_header() -> None:
    config = space()
    assert struct.unpack("<HHHHBBHBBBB", config.read(0, 16)) == (
        0x8086, 0x145C, 0, 0x10, 2, 0x01, 0x0200, 0, 0, 0, 0,
    )  # fmt: skip
    assert struct.unpack("<HH", config.read(0x2C, 4)) == (0x8086, 0x1234)
    assert config.read(0x100, SIZE - 0x100) == bytes(SIZE - 0x100)
    config.write(0, bytes(4) + struct.pack("<H", 0xFFFF))
    assert config.command & Command.MEMORY and config.command & Command.BUS_MASTER
    assert u16(config, 0) == 0x8086


def test_linked_in_order() -> None:
    assert list(walk(space())) == [0x01, 0x11, 0x10]
    assert list(walk(space((Express(), PowerManagement())))) == [0x10, 0x01]
    assert walk(space(())) == {}


@pytest.mark.parametrize("capability", [PowerManagement(), Msix(TABLE), Express()], ids=lambda c: type(c).__name__)
def test_sound(capability: Capability) -> None:
    """ID and link are the configuration space's; a bit that asks for a reset is kept by nobody."""
    assert capability.length == len(capability.writable) == len(capability.resets)
    assert capability.power_on[1] == 0
    assert capability.writable[:2] == bytes(2)
    rows = zip(capability.power_on, capability.writable, capability.resets, strict=True)
    assert not any(resets & (power_on | writable) for power_on, writable, resets in rows)


@pytest.mark.parametrize("capability", [PowerManagement, Msix, Express])
def test_diagram(capability: type[Capability]) -> None:
    """It has a row for each dword of the capability, and its right border is straight."""
    text = capability.__doc__ or ""
    rows = [int(offset, 16) for offset in re.findall(r"^ *(0x[0-9a-f]{2}) \|", text, re.MULTILINE)]
    length = (Msix(TABLE) if capability is Msix else capability()).length  # type: ignore[call-arg]
    assert rows == list(range(0, length, 4))
    assert len({len(line) for line in text.splitlines() if line.endswith(("|", "+"))}) == 1


def test_power_management() -> None:
    config = space()
    place = walk(config)[0x01]
    assert u16(config, place + 2) & 7 == 3, "version"
    assert u16(config, place + 2) >> 9 == 0, "neither D1, D2 nor power management events"
    assert u16(config, place + 4) == 1 << 3, "D0, no soft reset"
    config.write(place, b"\xff" * 8)
    assert u16(config, place + 4) == 1 << 3 | 3
    config.write(place + 4, b"\0\0")
    assert u16(config, place + 4) == 1 << 3
    assert PowerManagement().length == 8


def test_msix() -> None:
    config = space()
    place = walk(config)[0x11]
    assert u16(config, place + 2) == 18 - 1, "vectors, disabled"
    assert (u32(config, place + 4) & ~7, u32(config, place + 4) & 7) == (0x8000, 2)
    assert (u32(config, place + 8) & ~7, u32(config, place + 8) & 7) == (0x9000, 2)
    config.write(place, b"\xff" * 12)
    assert u16(config, place + 2) == 0xC000 | 18 - 1
    assert (u32(config, place + 4), u32(config, place + 8)) == (0x8002, 0x9002)
    assert Msix(TABLE).length == 12


def test_express() -> None:
    config = space()
    place = walk(config)[0x10]
    assert u16(config, place + 2) == 2, "version 2, endpoint"
    can = u32(config, place + 4)
    assert 128 << (can & 7) == 512
    assert can >> 15 & 1 and can >> 28 & 1, "role-based errors, function level reset"
    control = u16(config, place + 8)
    assert 128 << (control >> 5 & 7) == 128 and 128 << (control >> 12 & 7) == 512
    for link in (u32(config, place + 0xC) & 0xFFFF, u16(config, place + 0x12)):
        assert (link & 0xF, link >> 4 & 0x3F) == (4, 16)
    assert config.read(place + 0x14, 0x28) == bytes(0x28)
    config.write(place + 8, b"\xff\x7f\xff\xff")
    assert (u16(config, place + 8), u16(config, place + 0xA)) == (0x7FFF, 0)
    assert Express().length == 0x3C


@pytest.mark.parametrize(
    ("offset", "data", "asked"),
    [
        (8, "0080", True),
        (9, "80", True),
        (8, "10a80000", True),
        (0, "00" * 9 + "80", True),
        (8, "ff7f", False),
        (9, "7f", False),
        (8, "80", False),
        (10, "0080", False),
        (4, "ffffffff", False),
        (10, "ff" * 0x32, False),
    ],
)
def test_function_level_reset(offset: int, data: str, asked: bool) -> None:
    """Only a one in bit 15 of device control asks for it; the bit reads as zero all the same."""
    resets: list[bool] = []
    config = space(on_reset=lambda: resets.append(True))
    place = walk(config)[0x10]
    config.write(place + offset, bytes.fromhex(data))
    assert resets == [True] * asked
    assert u16(config, place + 8) & 0x8000 == 0


def test_reset_in_one_write_with_others() -> None:
    """What the write says besides is done before the reset, which takes it back."""
    config = space(on_reset=lambda: config.reset())
    before = config.read(0, SIZE)
    config.write(0, b"\xff" * 0x100)
    assert config.read(0, SIZE) == before


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (MsixTable(4, 1, table=0, pba=0x800), "the MSI-X table is in BAR 1, which the device does not have"),
        (MsixTable(4, 5, table=0, pba=0x800), "in BAR 5, which the device does not have"),
        (MsixTable(4, 2, table=0xFFC8, pba=0), "need 65544 bytes of BAR 2, which has 65536"),
        (MsixTable(65, 2, table=0, pba=0xFFF8), "need 65544 bytes of BAR 2, which has 65536"),
    ],
)
def test_table_outside_bar(table: MsixTable, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        space((Msix(table),))


def test_table_up_to_the_end() -> None:
    space((Msix(MsixTable(4, 2, table=0xFFC0, pba=0)),))


def test_no_room() -> None:
    """Capabilities of this kind have to be in the first 256 bytes."""
    space((Express(), Express(), Express()))
    with pytest.raises(ValueError, match="no room for PowerManagement: capabilities would end at 0x108"):
        space((Express(), Express(), Express(), PowerManagement()))


@pytest.mark.skipif(not shutil.which("lspci"), reason="lspci is missing")
def test_lspci(tmp_path: Path) -> None:
    """lspci, which decodes a dump as it does a device, agrees."""
    config = space()
    config.write(0x10, struct.pack("<IIII", 0xE0000000, 0x12, 0xFFFF0000, 0x34))
    config.write(0x04, struct.pack("<H", 0x6))
    data = config.read(0, SIZE)
    rows = (f"{at:02x}: {data[at : at + 16].hex(' ')}\n" for at in range(0, SIZE, 16))
    dump = tmp_path / "dump"
    dump.write_text("00:01.0 Ethernet controller\n" + "".join(rows))
    shown = subprocess.run(["lspci", "-n", "-vvv", "-F", dump], capture_output=True, text=True, check=True).stdout
    words = " ".join(shown.split())
    for expected in (
        "0200: 8086:145c (rev 02) (prog-if 01)",
        "Mem+ BusMaster+",
        "Region 0: Memory at 12e0000000 (64-bit, non-prefetchable)",
        "Region 2: Memory at 34ffff0000 (64-bit, prefetchable)",
        "Capabilities: [40] Power Management version 3",
        "Status: D0 NoSoftRst+",
        "Capabilities: [50] MSI-X: Enable- Count=18 Masked-",
        "Vector table: BAR=2 offset=00008000",
        "PBA: BAR=2 offset=00009000",
        "Capabilities: [60] Express (v2) Endpoint",
        "MaxPayload 512 bytes",
        "FLReset+",
        "Speed 16GT/s",
        "Width x16",
    ):
        assert expected in words, shown
