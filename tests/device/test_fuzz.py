"""A few seconds of each fuzz target, the same examples every time. Longer: ``python -m tests.device.fuzz``."""

from __future__ import annotations

from pathlib import Path

import pytest

from nicmodel.jit.compiled import JIT_DISABLED

from .fuzz.campaign import ROWS, Block, Campaign, Example, Run, Target, execute, flat, short_run
from .fuzz.idpf import IdpfRings
from .fuzz.rings import Rings
from .fuzz.targets import TARGETS

#: Examples of each target: about a second's work.
EXAMPLES = {
    "messages": 3,
    "admin": 2,
    "rings": 8,
    "wires": 8,
    "control": 3,
    "captures": 3,
    "idpf-mailbox": 2,
    "idpf-rings": 6,
}


@pytest.mark.skipif(JIT_DISABLED, reason="so many operations take compiled code")
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_fuzz(target: Target) -> None:
    counts = short_run(target, EXAMPLES[target.name])
    assert counts[target.operations] >= ROWS
    assert not counts["stray bytes"] and not counts["unanswered"]


class Toy:
    """Fails of one row in a thousand."""

    name, operations, setups, kinds, blocks = "toy", "rows", 3, ("good", "bad"), 20

    def run(self, example: Example, run: Run) -> None:
        for block in example.blocks:
            for part in block.parts():
                rows = part.rng.integers(0, 1000, ROWS)[part.rows]
                run.counts["rows"] += len(rows)
                assert part.kind == "good" or 7 not in rows


def test_a_failure_is_made_small_kept_and_replayed(tmp_path: Path) -> None:
    campaign = Campaign(Toy(), tmp_path, seed=1, most_examples=1000)
    assert not campaign.run()
    assert campaign.failing is not None
    (block,) = campaign.failing.blocks
    assert (block.kind, block.size) == ("bad", 1)
    with pytest.raises(AssertionError):
        execute(Toy(), Example.parse(campaign.failing.text()))
    again = Campaign(Toy(), tmp_path, seed=2, most_examples=1000)
    assert not again.run()
    assert again.counts["examples"] == 0, "the corpus is looked at first"


def test_a_campaign_ends(tmp_path: Path) -> None:
    campaign = Campaign(TARGETS["captures"], tmp_path, seed=1, most_operations=1)
    assert campaign.run()
    assert campaign.counts["frames"] >= 1 and campaign.counts["examples"] == 1


@pytest.mark.parametrize(
    "kind, setup", [*((Rings, setup) for setup in range(4)), *((IdpfRings, setup) for setup in range(2))]
)
def test_a_stray_byte_is_found(kind: type[Rings | IdpfRings], setup: int) -> None:
    """In a guard, where a buffer might be, in memory that the device may only read, and in the driver's own."""
    rings = kind(setup, Run())
    try:
        arena = rings.arena
        for memory, place in (
            (arena, arena.first - 1), (arena, arena.stop), (arena, arena.read_only), (arena, arena.first),
            (rings.ram, rings.ram.size - 1),
        ):  # fmt: skip
            memory.bytes[place] ^= 1
            with pytest.raises(AssertionError, match="1 stray bytes"):
                rings.doorbells(Block("doorbells", 0, 0, 1))
        rings.receive(Block("rx", 1, 0, ROWS))
        rings.transmit(Block("tx", 1, 0, ROWS))
    finally:
        rings.close()


def test_memory_that_grows() -> None:
    assert flat([100 << 20] * 20) is True
    assert flat([number << 20 for number in range(100)]) is False
    assert flat([1, 2]) is None
