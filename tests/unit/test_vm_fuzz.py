"""Fuzzing a driver, without one: inputs, the corpus, what counts as a finding, how it is made small."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from nicmodel.cli.fuzz import fuzz
from nicmodel.faults.faults import Kinds, named_fault
from nicmodel.faults.scenario import Deed, Frame, Scenario
from nicmodel.gvnic.faults.kinds import KINDS
from nicmodel.idpf.faults.kinds import KINDS as IDPF
from nicmodel.vm.coverage.module import Module
from nicmodel.vm.errors import VmError
from nicmodel.vm.fuzz.corpus import MOST, Corpus
from nicmodel.vm.fuzz.finding import KNOWN, Sign, signs
from nicmodel.vm.fuzz.guide import Seen
from nicmodel.vm.fuzz.inputs import ABOUT, Inputs, keeps_contract
from nicmodel.vm.fuzz.smaller import Limits, Smaller
from nicmodel.vm.fuzz.target import STEP, in_a_row

FRAMES = [bytes(range(60)), bytes(1500)]


def inputs(kinds: Kinds = KINDS, seed: int = 1) -> Inputs:
    return Inputs(kinds, tuple(ABOUT), FRAMES, random.Random(seed))


@pytest.mark.parametrize("kinds", [KINDS, IDPF], ids=["gvnic", "idpf"])
@pytest.mark.parametrize("about", ABOUT)
def test_inputs_are_scenarios_that_can_be_written_and_read(kinds: Kinds, about: str) -> None:
    """*Verify*: also after many changes; and that faults end by themselves."""
    made = inputs(kinds)
    one = made.draw(about)
    met = set()
    for _ in range(300):
        assert Scenario.parse(one.toml(), kinds) == one
        assert len(one.toml()) < 1 << 17
        for _, fault in one.faults:
            met.add(fault.name)
            assert fault.start == 0 and (hasattr(fault, "count") or fault.duration is not None)
        one = made.draw(about) if random.Random(len(met)).random() < 0.2 else made.mutate(one, made.draw(about))
    assert (len(met) > 3) == (about != "frames")


@pytest.mark.parametrize("kinds", [KINDS, IDPF], ids=["gvnic", "idpf"])
def test_every_fault_that_a_device_may_have_is_drawn(kinds: Kinds) -> None:
    """Those of its wire, of which there is none, and those that say nothing of a driver are left out."""
    made = inputs(kinds)
    met = {fault.name for about in ABOUT for _ in range(600) for _, fault in made.draw(about).faults}
    left_out = {"device-gone", "clock-jump", "admin-silent", "mailbox-lost", "dma-slow"}
    assert met == {name for name, kind in kinds.items() if kind.where != "wire"} - left_out


def test_the_same_seed_makes_the_same_inputs() -> None:
    drawn = [[one.draw(about) for about in ABOUT for _ in range(20)] for one in (inputs(), inputs(), inputs(seed=2))]
    assert drawn[0] == drawn[1] != drawn[2]


def scenario(*names: str, frames: int = 0, guest: tuple[str, ...] = ()) -> Scenario:
    return Scenario(
        0,
        tuple((None, named_fault(name, {"count": 1}, KINDS)) for name in names),
        frames=tuple(Frame(bytes([number])) for number in range(frames)),
        guest=tuple(Deed(line) for line in guest),
    )


def test_what_the_contract_allows() -> None:
    assert keeps_contract(scenario("rx-late", "tx-miss", "admin-status", frames=3))
    assert not keeps_contract(scenario("rx-late", "rx-field"))
    for status in ("UNDEFINED", "PASSED"):
        lie = named_fault("admin-status", {"status": status}, KINDS)
        assert not keeps_contract(replace(scenario(), faults=((None, lie),)))


def test_inputs_in_a_row_have_their_times() -> None:
    row = in_a_row([scenario("rx-late", frames=1), scenario("rx-field", guest=("true", "false")), scenario("tx-tag")])
    assert [(fault.name, fault.start, fault.duration) for _, fault in row.faults] == [
        ("rx-late", 0, STEP), ("rx-field", STEP, 3.0), ("tx-tag", STEP + 3, None),
    ]  # fmt: skip
    assert [deed.start for deed in row.guest] == [STEP, 2 * STEP]
    assert Scenario.parse(row.toml(), KINDS) == row


def smaller(happens: Callable[[list[Scenario]], bool], tries: int = 1000) -> Smaller:
    return Smaller(happens, Limits(tries, 60), lambda tries, parts: None)


def test_a_finding_is_made_small() -> None:
    """*Verify*: of a hundred inputs two remain, of which each has only what matters."""
    many = [scenario("rx-late", "irq-late", frames=4, guest=("true",)) for _ in range(100)]
    many[20] = replace(many[20], guest=(Deed("ip link set $NETIF down"), Deed("true")))
    many[97] = scenario("irq-late", "rx-field", frames=3)

    def happens(some: list[Scenario]) -> bool:
        down = [n for n, one in enumerate(some) if any("down" in deed.run for deed in one.guest)]
        field = [n for n, one in enumerate(some) if any(fault.name == "rx-field" for _, fault in one.faults)
                 and any(frame.data == b"\x02" for frame in one.frames)]  # fmt: skip
        return bool(down and field and down[0] < field[-1])

    found = smaller(happens).run(many)
    assert found is not None
    first, second = found
    assert first == replace(many[20], faults=(), frames=(), guest=many[20].guest[:1])
    assert second == replace(many[97], faults=many[97].faults[1:], frames=many[97].frames[2:])


def test_what_does_not_happen_again_is_not_made_small() -> None:
    once = smaller(lambda some: False)
    assert once.run([scenario("rx-late")] * 50) is None
    assert once.tries == 5  # of 1, 3, 10, 40, all


def test_there_is_a_limit_to_tries() -> None:
    limited = smaller(lambda some: len(some) >= 5, tries=12)
    found = limited.run([scenario("rx-late", frames=8)] * 60)
    assert limited.tries <= 12 and found is not None and len(found) >= 5


OOPS = """\
eth0: a line before
BUG: kernel NULL pointer dereference, address: 0000000000000070
#PF: supervisor read access in kernel mode
Oops: Oops: 0000 [#1] SMP PTI
RIP: 0010:gve_handle_miss_completion+0xc1/0x100 [gve]
Call Trace:
 gve_clean_tx_done_dqo+0x59e/0x5e0 [gve]
---[ end trace 0000000000000000 ]---
RIP: 0010:gve_handle_miss_completion+0xc1/0x100 [gve]
"""
KASAN = """\
BUG: KASAN: slab-use-after-free in skb_release_data+0x12/0x400
Call Trace:
 ? show_trace+0x1/0x2
 dump_stack_lvl+0x5d/0x80
 skb_release_data+0x12/0x400
 gve_rx_poll_dqo.isra.0+0x207/0x5e0 [gve]
"""
DMA = (
    "DMA-API: gve 0000:01:00.0: device driver tries to free DMA memory it has not allocated [device address=0x12] "
    "[size=66 bytes]"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OOPS, [Sign("bad pointer", "gve_handle_miss_completion")]),
        (KASAN, [Sign("slab-use-after-free", "gve_rx_poll_dqo")]),
        (DMA, [Sign("DMA-API: device driver tries to free DMA memory it has not allocated", "")]),
        ("WARNING: CPU: 1 PID: 5 at a.c:1 f+0x1/0x2\n gve_close+0x1/0x2 [gve]", [Sign("WARNING", "gve_close")]),
        ("gve 0000:01:00.0: AQ command failed with status -3\neth0: Invalid RX buffer_id=65535", []),
        (OOPS + KASAN, [
            Sign("bad pointer", "gve_handle_miss_completion"),
            Sign("slab-use-after-free", "gve_rx_poll_dqo"),
        ]),
    ],
)  # fmt: skip
def test_what_the_kernel_says_is_recognised(text: str, expected: list[Sign]) -> None:
    assert [sign for sign, _ in signs(text.splitlines(), ["gve"])] == expected


DOCS = Path(__file__).parents[2] / "docs"


def test_what_is_known_is_on_its_page() -> None:
    page = (DOCS / "found.md").read_text().lower()
    contract = {title for sign, title in KNOWN.items() if sign.what == "contract"}
    assert [title for title in {*KNOWN.values()} - contract if f"## {title}\n".lower() not in page] == []
    assert {sign.where for sign in KNOWN if sign.what == "contract"} == {"DBL-001", "DBL-003", "INT-004", "REG-008"}


def test_the_page_has_what_inputs_are_about() -> None:
    page = (DOCS / "fuzzing.md").read_text()
    assert [name for name in ABOUT if f"| `{name}` |" not in page] == []


def test_wrong_options_are_refused_before_a_guest_starts(tmp_path: Path) -> None:
    said = CliRunner().invoke(fuzz, ["--inputs", "frames,completion"]).output
    assert "'completion' is none of frames, completions" in said
    (tmp_path / "wrong.toml").write_text("[[fault]]\nname = 'rx-feild'\n")
    with pytest.raises(VmError, match="there is no fault 'rx-feild'"):
        CliRunner().invoke(fuzz, ["--replay", str(tmp_path / "wrong.toml")], catch_exceptions=False)


def test_the_corpus_is_there_the_next_time(tmp_path: Path) -> None:
    made, corpus = inputs(), Corpus(tmp_path, KINDS, random.Random(1))
    kept = [made.draw("completions") for _ in range(10)]
    for one in kept + kept:
        corpus.add("completions", one)
    (tmp_path / "completions" / "wrong.toml").write_text("[[fault]]\nname = 'rx-nothing'\n")
    again = Corpus(tmp_path, KINDS, random.Random(1))
    assert sorted(again.load("completions"), key=repr) == sorted(kept, key=repr)
    assert list(again.load("frames")) == [] and again.choose("frames") is None
    assert again.choose("completions") in kept


def test_the_corpus_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nicmodel.vm.fuzz.corpus.MOST", 5)
    assert MOST > 5
    corpus = Corpus(tmp_path, KINDS, random.Random(1))
    made = inputs()
    for _ in range(20):
        corpus.add("frames", made.draw("frames"))
    assert len(corpus) == len(list(tmp_path.rglob("*.toml"))) == 5


class _Code(Module):
    def __init__(self) -> None:
        self.name, self.text = "mine", np.zeros(100, np.uint8)


def test_new_blocks_and_new_counts_are_news() -> None:
    seen = Seen([_Code()])

    def add(*blocks: tuple[int, int]) -> bool:
        places, counts = (np.array(column, np.int64) for column in zip(*blocks, strict=True))
        return seen.add(0, places, counts)

    assert add((4, 1), (9, 1)) and seen.blocks == 2
    assert not add((4, 1)) and not add((9, 1), (4, 1))
    assert add((4, 2)) and add((4, 100)) and not add((4, 33))
    assert add((4, 1), (50, 7)) and seen.blocks == 3
