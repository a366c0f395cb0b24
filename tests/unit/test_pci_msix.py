"""Where MSI-X table and pending bits lie, and where they cannot."""

from __future__ import annotations

import pytest

from nicmodel.pci.msix import MsixTable


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
