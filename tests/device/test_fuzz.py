"""A few seconds of each fuzz target, the same examples every time. Longer: ``python -m tests.device.fuzz``."""

from __future__ import annotations

import pytest

from nicmodel.packet.compiled import JIT_DISABLED

from .fuzz.campaign import Target, short_run
from .fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_fuzz(target: Target) -> None:
    if JIT_DISABLED:
        pytest.skip("hundreds of thousands of operations take compiled code")
    counts = short_run(target, 2 if target.name == "admin" else 5)
    assert counts[target.operations] > 1000
    assert not counts["stray bytes"]
