"""What is read in the BAR of the MSI-X table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicmodel.pci.msix import MsixTable


def nothing(vector: int) -> bool:
    return False


def is_pending(bar: bytes, pba: int, vector: int) -> bool:
    """As a driver looks: a quadword for each 64 vectors."""
    quadword = int.from_bytes(bar[pba + vector // 64 * 8 :][:8], "little")
    return bool(quadword >> vector % 64 & 1)


@pytest.mark.parametrize("vectors", [1, 2, 64, 65, 127, 129, 2048])
def test_pending_bits(vectors: int) -> None:
    """Every vector has its bit, and there are no others."""
    table = MsixTable(vectors, 0, table=0, pba=0x8000)
    chosen = {0, vectors // 2, vectors - 1}
    bar = table.read(0, bytes(0x10000), chosen.__contains__)
    assert {vector for vector in range(vectors) if is_pending(bar, 0x8000, vector)} == chosen
    assert int.from_bytes(bar, "little").bit_count() == len(chosen)


@pytest.mark.parametrize(("table", "pba"), [(0x100, 0x180), (0x188, 0x100), (0x100, 0x150)])
def test_beside_other_registers(table: int, pba: int) -> None:
    """*Steps*: read a BAR full of other registers. *Verify*: they show wherever table and pending bits do not."""
    layout = MsixTable(5, 2, table=table, pba=pba)
    bar = layout.read(0, b"\xa5" * 0x200, {0, 3}.__contains__)
    expected = bytearray(b"\xa5" * 0x200)
    expected[table : table + 5 * 16] = bytes(5 * 16)
    expected[pba : pba + 8] = bytes.fromhex("0900000000000000")
    assert bar == expected


@given(st.integers(0, 0x200), st.integers(0, 0x200), st.sets(st.integers(0, 69)))
def test_any_part(offset: int, count: int, pending: set[int]) -> None:
    """Whatever part is read, by registers or all at once, its bytes are those of the whole."""
    count = min(count, 0x200 - offset)
    layout = MsixTable(4, 0, table=0x48, pba=0x90) if max(pending, default=0) < 4 else MsixTable(7, 0, 0x100, 0x40)
    beneath = bytes(index * 7 & 0xFF for index in range(0x200))
    whole = layout.read(0, beneath, pending.__contains__)
    assert layout.read(offset, beneath[offset : offset + count], pending.__contains__) == whole[offset : offset + count]


def test_end() -> None:
    """The bytes that the BAR must have."""
    assert MsixTable(3, 0, table=0, pba=0x800).end == 0x808
    assert MsixTable(65, 0, table=0, pba=0x800).end == 0x810
    assert MsixTable(3, 0, table=0x800, pba=0).end == 0x830


@pytest.mark.parametrize(
    ("vectors", "table", "pba", "reason"),
    [
        (0, 0, 0x800, "0 MSI-X vectors: between 1 and 2048"),
        (2049, 0, 0x10000, "2049 MSI-X vectors: between 1 and 2048"),
        (4, 4, 0x800, "table at 0x4, pending bits at 0x800: no multiples of 8"),
        (4, 0, 0x804, "table at 0x0, pending bits at 0x804: no multiples of 8"),
        (129, 0, 0x800, "table at 0x0 and pending bits at 0x800 of 129 vectors overlap"),
        (65, 0x808, 0x800, "table at 0x808 and pending bits at 0x800 of 65 vectors overlap"),
    ],
)
def test_impossible(vectors: int, table: int, pba: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MsixTable(vectors, 0, table=table, pba=pba)


def test_borders() -> None:
    """Back to back is no overlap."""
    MsixTable(128, 0, table=0, pba=0x800)
    MsixTable(64, 0, table=0x808, pba=0x800)


def test_nothing_pending() -> None:
    assert MsixTable(17, 1, table=0, pba=0x800).read(0, bytes(0x1000), nothing) == bytes(0x1000)
