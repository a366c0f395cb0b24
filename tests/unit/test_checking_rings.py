"""Where the rings of the queues are, as checkers keep it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nicmodel.nic.layout import record
from nicmodel.observe.checking.rings import Ring, Rings
from nicmodel.vfio_user.dma import READABLE

ENTRY = record(("word", "<u8"))


def ring(address: int, entries: int = 4) -> Ring:
    return Ring("ring", address, entries, ENTRY, READABLE)


def test_borders_are_looked_for_when_queues_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for at each doorbell, whose cost must not grow with the queues that there are."""
    queues = [("active", "<i4")]
    state = SimpleNamespace(rx=np.zeros(63, queues), tx=np.zeros(63, queues))
    rings, looks = Rings(cast("Any", SimpleNamespace(state=state))), 0
    every = rings.all

    def counted() -> list[tuple[str, Ring]]:
        nonlocal looks
        looks += 1
        return every()

    monkeypatch.setattr(rings, "all", counted)
    size = ring(0).size
    for number in range(63):
        rings.expect(f"rx{number}", [ring(1000 * (63 - number))])
        state.rx["active"][number] = 1
    for _ in range(100):
        starts, ends = rings.borders()
    assert looks == 1
    assert starts.tolist() == [1000 * (number + 1) for number in range(63)]
    assert (ends - starts == size).all()

    state.rx["active"][5:] = 0
    assert rings.borders()[0].tolist() == [1000 * (63 - number) for number in (4, 3, 2, 1, 0)]
    rings.expect("rx0", [ring(7)])  # destroyed and created again, which nobody sees between two doorbells
    assert rings.borders()[0].tolist() == [7, *(1000 * (63 - number) for number in (4, 3, 2, 1))]
    assert looks == 3
