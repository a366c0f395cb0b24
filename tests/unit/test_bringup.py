"""What the ladder says: each step leads to the datasheet, the rules and a line to read; the tables fit the terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from myst_parser.slugs import github_slugify
from rich.console import Console

from nicmodel.client import bringup as text
from nicmodel.gvnic.bringup.steps import STEPS
from nicmodel.gvnic.contract.rules import RULES
from nicmodel.idpf.bringup import STEPS as IDPF_STEPS
from nicmodel.idpf.contract.rules import RULES as IDPF_RULES
from nicmodel.observe.ladder import Need, Step

ROOT = Path(__file__).parents[2]
NAMES = [step.name for step in STEPS]


@pytest.mark.parametrize("step", [*STEPS, *IDPF_STEPS], ids=lambda step: step.name)
def test_a_step_leads_to_places_that_there_are(step: Step[Any]) -> None:
    page, _, anchor = step.datasheet.partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "datasheet" / page).read_text(), re.MULTILINE)
    assert anchor in map(github_slugify, headings)
    assert set(step.rules) <= (IDPF_RULES if step in IDPF_STEPS else RULES).keys()
    lines = (ROOT / step.example.file).read_text().splitlines()
    assert step.example.text in lines[step.example.line - 1]
    assert [step.example.text in line for line in lines].count(True) == 1
    for words in (step.title, step.shows, step.does):
        assert words and not words.endswith(".")


def test_names_are_unique_and_features_come_last() -> None:
    assert len(set(NAMES)) == len(NAMES)
    needs = [step.need is Need.FEATURE for step in STEPS]
    assert needs == sorted(needs)


def step(name: str, stage: str = "missing", **fields: Any) -> dict[str, Any]:
    reached = stage == "reached"
    return {
        "name": name, "title": f"the title of {name}", "need": "required", "stage": stage,
        "after_ns": 1_234_567 if reached else None, "order": 1 if reached else None, "sampled": False,
        "now": "", "shows": "it", "waits": f"the register of {name} (BAR 0, offset 0x4)", "does": f"does {name}",
        "example": "nicmodel/x.py:7", "datasheet": "docs/datasheet/x.md#y", "rules": ["REG-001"], **fields,
    }  # fmt: skip


def life(number: int = 1, *steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    here = next((one["name"] for one in steps if one["stage"] == "here"), None)
    return {
        "number": number, "began": 1_000_000_000, "ended": None, "driver": "", "system": "", "queue_format": "",
        "steps": list(steps), "stands": here, "problems": [], **fields,
    }  # fmt: skip


def report(*lives: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"nic": "nic0", "client": "qemu[1]", "time": 3_000_000_000, "at_work": True, "lives": list(lives), **fields}


def shown(found: dict[str, Any], width: int = 100, number: int | None = None) -> str:
    file = io.StringIO()
    text.show(Console(file=file, width=width, highlight=False, markup=False, emoji=False), found, number)
    return file.getvalue()


STUCK = life(
    2,
    step("first", "reached", now="as it is"),
    step("second", "skipped"),
    step("third", "here", now="so far"),
    step("fourth", now="what nobody asks for"),
    step("extra", "reached", need="feature", sampled=True),
    driver="mine 1", problems=["something was refused"],
)  # fmt: skip


def test_where_a_driver_stands() -> None:
    said = shown(report(STUCK))
    assert said.startswith("nic0, client qemu[1], driver's life 2 (mine 1): at work for 2.0 s\n")
    assert re.search(r"^reached +the title of first +1.2 ms +as it is *$", said, re.MULTILINE)
    assert re.search(r"^skipped +the title of second *$", said, re.MULTILINE)
    assert re.search(r"^> HERE +the title of third +so far *$", said, re.MULTILINE)
    assert re.search(r"^- +the title of fourth *$", said, re.MULTILINE)
    assert re.search(r"^used +the title of extra +<= 1.2 ms *$", said, re.MULTILINE)
    words = " ".join(said.split())
    assert "stands at: the title of third. It has done 1 of 4 steps, the last: the title of first." in words
    assert "The device waits for the register of third (BAR 0, offset 0x4). A working driver does third" in words
    assert "nicmodel/x.py:7 See docs/datasheet/x.md#y; nicmodel rules REG-001" in words
    assert "What the device has met: - something was refused" in words


def test_every_step_taken() -> None:
    said = shown(report(life(1, step("first", "reached"), step("extra", need="feature"))))
    assert "The driver has taken every step; 0 of 1 features were used." in said


def test_every_step_that_a_driver_needs_which_polls() -> None:
    """What it left out is said. Where a device knows of no features there is nothing to count."""
    steps = [step("first", "reached"), step("second", "skipped", need="usual"), step("third", "reached")]
    said = shown(report(life(1, *steps)))
    assert "The driver has taken every step, going on without 1 (the title of second)." in said
    assert "feature" not in said
    waits = shown(report(life(1, step("first", "reached"), step("second", "here", need="usual"))))
    assert "stands at: the title of second." in " ".join(waits.split())
    assert "It may go on without this step, as one that polls does" in " ".join(waits.split())


def test_a_life_that_is_over() -> None:
    gone = life(1, *STUCK["steps"], ended={"time": 2_500_000_000, "how": "the device was reset"})
    said = shown(report(STUCK, gone))
    assert "Life 1 did 1 of 4 steps and stood at: the title of third; the device was reset 500.0 ms ago (--life 1)" in (
        " ".join(said.split())
    )
    words = " ".join(shown(report(STUCK, gone), number=1).split())
    assert words.startswith("nic0, driver's life 1: the device was reset 500.0 ms ago step after in the end")
    assert "The driver stood at: the title of third. It had done" in words and "The device waited for" in words
    with pytest.raises(ValueError, match="life 7 is not remembered; there is 2, 1"):
        shown(report(STUCK, gone), number=7)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_it_fits_the_terminal(width: int) -> None:
    said = shown(report(STUCK), width)
    assert max(map(len, said.splitlines())) <= width
    assert "as it is" in said and "what nobody asks for" not in said


def test_words_of_the_driver_are_harmless() -> None:
    evil = "\x1b[31m\u202e"
    found = report(life(1, step("first", "here", now=evil), driver=evil, system=evil, problems=[evil]), client=evil)
    for said in (shown(found), "\n".join(text.news(None, found))):
        assert "\x1b" not in said and "\u202e" not in said and r"\x1b[31m\u202e" in said


def test_news() -> None:
    """What --follow prints: the steps that are new, in their order, and what is waited for now."""
    first, second = step("first", "reached", order=1), step("second", "reached", order=2, now="two")
    before = report(life(1, first, step("second", "here")))
    assert list(text.news(None, before)) == [
        "nic0, client qemu[1], driver's life 1: at work for 2.0 s",
        "      1.2 ms  the title of first",
        "              waits for the register of second (BAR 0, offset 0x4)",
    ]
    assert not list(text.news(before, before))
    after = report(life(1, first, second, step("third", "here"), problems=["refused"]))
    assert list(text.news(before, after)) == [
        "      1.2 ms  the title of second: two",
        "              ! refused",
        "              waits for the register of third (BAR 0, offset 0x4)",
    ]
    ended = report(life(1, first, second, ended={"time": 0, "how": "the device was reset"}), at_work=False)
    assert list(text.news(after, ended)) == ["              the device was reset"]
    [headline, *_] = text.news(ended, report(life(2, first), ended["lives"][0]))
    assert "life 2" in headline


@pytest.mark.parametrize(
    ("ns", "said"), [(0, "0 us"), (999_499, "999 us"), (1_500_000, "1.5 ms"), (61_000_000_000, "61.0 s")]
)
def test_durations(ns: int, said: str) -> None:
    assert text.duration(ns) == said
