"""What got slower: made-up histories of benchmarks, and what is said of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from history import LEAST_NOISE, NOTEWORTHY, changes, read, show_changes

HERE, THERE = "One processor, 2 cores, 4 GiB", "Another, 8 cores, 64 GiB"


def run(value: float, runs: list[float] | None = None, *, machine: str = HERE, what: str = "start") -> dict[str, Any]:
    """A line of `small`, where less is better."""
    row = {"what": what, "unit": "s", "value": value, "runs": runs or []}
    about = {"benchmark": "small", "machine": f"{machine}; Linux 6", "commit": f"c{value:g}", "rows": [row]}
    return json.loads(json.dumps(about))  # type: ignore[no-any-return]


STEADY = run(1.0, [0.98, 1.0, 1.02])  # 4 percent


@pytest.mark.parametrize(
    ("now", "slower", "faster"),
    [
        (run(1.2, [1.19, 1.2, 1.21]), True, False),
        (run(0.8, [0.79, 0.8, 0.81]), False, True),
        (run(1.03, [1.02, 1.03, 1.04]), False, False),
        (run(0.97, [0.96, 0.97, 0.98]), False, False),
        (run(1.2, [1.0, 1.2, 1.4]), False, False),  # it moves that much by itself
    ],
    ids=["slower", "faster", "a little slower", "a little faster", "unsteady now"],
)
def test_noise_is_the_spread_of_repetitions(now: dict[str, Any], slower: bool, faster: bool) -> None:
    [change] = changes([STEADY], now)
    assert (change.slower, change.faster) == (slower, faster)
    assert (change.before, change.commit, change.after) == (1.0, "c1", now["rows"][0]["value"])


def test_that_it_was_unsteady_before_counts_as_well() -> None:
    [change] = changes([run(1.0, [0.8, 1.0, 1.2])], run(1.2, [1.19, 1.2, 1.21]))
    assert change.noise == pytest.approx(0.4) and not change.slower


def test_other_machines_are_not_compared() -> None:
    assert changes([run(0.1, machine=THERE)], run(1.0)) == []
    [change] = changes([run(0.9), run(0.1, machine=THERE)], run(1.0))
    assert change.before == 0.9


def test_rows_that_were_not_there_are_not_compared() -> None:
    """The last run that has the row counts, which may have been of other rows only."""
    assert changes([], run(1.0)) == []
    assert changes([run(0.5, what="memory")], run(1.0)) == []
    [change] = changes([run(0.9), run(0.5, what="memory")], run(1.0))
    assert change.before == 0.9


def test_noise_is_also_how_far_runs_lie_apart() -> None:
    """By the median: one commit that has changed the figure for good is no noise."""
    moody = [run(value) for value in (1.0, 1.2, 1.0, 1.2, 1.0)]
    [change] = changes(moody, run(1.15))
    assert change.noise == pytest.approx(0.183, abs=0.02) and not change.slower
    steady = [run(value) for value in (3.0, 1.0, 1.001, 1.0)]
    [change] = changes(steady, run(1.05))
    assert change.noise == LEAST_NOISE and change.slower


def test_a_figure_of_which_nothing_is_known() -> None:
    [change] = changes([run(1.0)], run(1.04))
    assert change.noise == NOTEWORTHY and not change.slower


def test_a_ratio_has_the_noise_of_both() -> None:
    """Of `guest_tap` more is better, and the spread of our figures and of the peer's adds up."""

    def tap(ratio: float, ours: list[float], peer: list[float]) -> dict[str, Any]:
        row = {"case": "tcp receive", "best": "igb", "ratio": ratio, "runs": {"nicmodel": ours, "igb": peer}}
        return {"benchmark": "guest_tap", "machine": HERE, "commit": "c", "rows": [row]}

    before = tap(1.0, [1.0, 1.0, 1.1], [1.0, 1.0, 1.0])
    [change] = changes([before], tap(0.8, [0.8, 0.8, 0.84], [1.0, 1.1, 1.0]))
    assert change.noise == pytest.approx(0.15) and change.share == pytest.approx(0.2) and change.slower
    [change] = changes([before], tap(1.2, [1.2], [1.0]))
    assert change.noise == pytest.approx(0.1) and change.faster


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """*Verify*: what is slower is named, with before and now; what cannot be compared is said to be so."""
    history = tmp_path / "history.jsonl"
    assert read(history) == []
    show_changes([], ["small"])
    assert "small: nothing to compare with" in capsys.readouterr().out
    history.write_text("".join(json.dumps(one) + "\n" for one in (STEADY, run(9.0, machine=THERE), run(1.2))))
    show_changes(read(history), ["small", "growth"])
    said = capsys.readouterr().out
    assert "small: of 1 figures 1 slower, 0 faster" in said and "growth: nothing to compare with" in said
    assert "+20.0%" in said and "start" in said and " c1 " in said
    show_changes([STEADY, STEADY], ["small"])
    said = capsys.readouterr().out
    assert "0 slower, 0 faster" in said and "%" not in said
