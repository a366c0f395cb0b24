"""A few cycles of each kind; `cycles.py` goes on as long as is wanted."""

import pytest
from cycles import KINDS, repeat

pytestmark = pytest.mark.guest


#: Twice: whatever a cycle changes for the next one shows in the second. After a server was killed all is new, so once.
#: Each packet of test_layouts.py's IOMMU is mapped and unmapped anyway.
COUNTS = dict.fromkeys(KINDS, 2) | {"kill-server": 1, "remap": 0}


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        pytest.param(kind, count, marks=[] if kind in ("reload", "kill-server") else pytest.mark.long)
        for kind, count in COUNTS.items()
        if count
    ],
)
def test_cycles(kind: str, count: int) -> None:
    assert repeat(kind, count).cycles == count
