"""Files of results, as those who read them do, and two runs held against each other."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped

from nicmodel.vm.errors import VmError
from nicmodel.vm.selftests import Expectation, Outcome, Program, Result, interrupted
from nicmodel.vm.selftests_report import Run, ci_json, compare, junit, ktap

RESULTS = (
    Result("get", "pass"),
    Result("set_xdp", "fail", "STDERR: no # XDP\x1b[31m"),
    Result("thresh", "skip", "no threshold"),
    Result("nsim", "xfail", "netdevsim only"),
    Result("lost", "fail", "failed 1 != 2"),
    Result("#6", "crash", "[   14.5] BUG: kernel NULL pointer dereference"),
)
EXPECTED = (
    Expectation("set_xdp", ("fail",), "the driver wants small buffers"),
    Expectation("time", ("pass", "fail"), "T"),
)


def run_of(*outcomes: Outcome, quick: bool = False) -> Run:
    times = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 1, tzinfo=UTC))
    return Run(outcomes, "7.3.4+deb13-cloud-amd64", *times, quick)


def outcome(results: tuple[Result, ...] = RESULTS, name: str = "hds", quick: tuple[str, ...] = ()) -> Outcome:
    program = Program(name, f"drivers/net/hw/{name}.py", len(results), quick=quick, expected=EXPECTED)
    return Outcome(program, results, (), 2.04, "output\x00\nBUG")


def of(cases: Mapping[str, str], **more: Any) -> Run:
    quick = bool(more.get("quick"))
    return run_of(outcome(tuple(Result(case, found) for case, found in cases.items()), **more), quick=quick)


def test_json_is_that_of_the_netdev_ci() -> None:
    content = json.loads(json.dumps(ci_json(run_of(outcome()))))
    assert content.items() >= {"executor": "nicmodel", "branch": "7.3.4+deb13-cloud-amd64"}.items()
    assert datetime.fromisoformat(content["start"]) < datetime.fromisoformat(content["end"])
    [test] = content["results"]
    assert (test["test"], test["group"], test["result"], test["time"]) == (
        "hds",
        "selftests-drivers-net-hw",
        "fail",
        2.0,
    )
    assert [case["result"] for case in test["results"]] == ["pass", "fail", "skip", "pass", "fail", "fail"]
    assert [case["outcome"] for case in test["results"]] == [result.outcome for result in RESULTS]
    assert test["results"][1].items() >= {"test": "set-xdp", "reason": "the driver wants small buffers"}.items()
    assert test["results"][4]["reason"] == ""


@pytest.mark.parametrize(
    ("found", "result"),
    [
        (("pass", "skip"), "pass"),
        (("skip", "skip"), "skip"),
        (("pass", "none"), "fail"),
        (("xfail",), "pass"),
        ((), "fail"),
    ],
)
def test_the_result_of_a_whole_test(found: tuple[str, ...], result: str) -> None:
    run = of({str(number): one for number, one in enumerate(found)})
    assert ci_json(run)["results"][0]["result"] == result
    assert ktap(run).splitlines()[-1].startswith("not ok" if result == "fail" else "ok")


#: Linux, tools/testing/kunit/kunit_parser.py: what the kernel's own reader takes for a version, a plan and a result.
VERSION, PLAN = re.compile(r"\s*KTAP version 1"), re.compile(r"\s*1\.\.([0-9]+)")
LINE = re.compile(
    r"(?P<indent>\s*)(?P<ok>ok|not ok) (?P<number>[0-9]+) (?P<name>[^#]*?)(?: # (?P<directive>[A-Z]+)(?P<said>.*))?"
)


def test_ktap() -> None:
    lines = ktap(run_of(outcome(), outcome(RESULTS[2:3], "irq"))).splitlines()
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    nested = [match for match in found if match["indent"] == "  "]
    assert [(match["ok"], match["number"], match["name"], match["directive"]) for match in nested] == [
        ("ok", "1", "get", None),
        ("not ok", "2", "set_xdp", None),
        ("ok", "3", "thresh", "SKIP"),
        ("ok", "4", "nsim", "XFAIL"),
        ("not ok", "5", "lost", None),
        ("not ok", "6", "case 6", "ERROR"),
        ("ok", "1", "thresh", "SKIP"),
    ]
    top = [(match["ok"], match["name"], match["directive"]) for match in found if not match["indent"]]
    assert top == [("not ok", "hds", None), ("ok", "irq", "SKIP")]
    assert lines[:2] == ["KTAP version 1", "1..2"]
    assert [line for line in lines if PLAN.fullmatch(line)] == ["1..2", "  1..6", "  1..1"]
    assert [line for line in lines if VERSION.fullmatch(line)] == [
        "KTAP version 1",
        "  KTAP version 1",
        "  KTAP version 1",
    ]
    # All others are diagnostic lines, in which nothing of a terminal's is left.
    others = [line for line in lines if not (LINE.fullmatch(line) or PLAN.fullmatch(line) or VERSION.fullmatch(line))]
    assert all(line.startswith("  # ") and line.isprintable() for line in others)
    assert "  # expected: the driver wants small buffers" in others


def test_junit(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    junit(run_of(outcome(), outcome(RESULTS[:1], "irq"))).write(str(file), pretty=True)
    read = JUnitXml.fromfile(str(file))
    assert (read.tests, read.failures, read.errors, read.skipped) == (7, 1, 1, 3)
    hds, irq = read
    assert (hds.name, irq.name) == ("hds", "irq")
    kinds = {case.name: [type(one) for one in case.result] for case in hds}
    assert kinds == {
        "get": [], "set_xdp": [Skipped], "thresh": [Skipped], "nsim": [Skipped], "lost": [Failure], "#6": [Error],
    }  # fmt: skip
    found = {case.name: one for case in hds for one in case.result}
    assert found["set_xdp"].message.endswith(": the driver wants small buffers")
    assert "BUG: kernel NULL pointer dereference" in found["#6"].message
    assert found["#6"].text == "output\\x00\nBUG"


def test_what_is_better_and_what_is_worse() -> None:
    before = {"a": "pass", "b": "fail", "c": "pass", "d": "skip", "e": "skip", "f": "pass", "time": "pass"}
    after = {"a": "pass", "b": "pass", "c": "crash", "d": "fail", "e": "xfail", "g": "pass", "time": "fail"}
    found = compare(of(after), ci_json(of(before)))
    assert found.worse == ["hds: c: crash, was pass", "hds: d: fail, was skip"]
    assert found.better == ["hds: b: pass, was fail"]
    assert found.other == ["hds: e: xfail, was skip", "hds: time: fail, was pass (both are expected)"]
    assert (found.new, found.vanished, found.same) == (["hds: g: pass"], ["hds: f: was pass"], 1)


def test_a_case_that_a_crash_has_kept_from_running_has_not_vanished() -> None:
    whole, broken = {"a": "pass", "b": "pass", "c": "pass"}, {"a": "pass", "#2": "crash", "#3": "none"}
    found = compare(of(broken), ci_json(of(whole)))
    assert (found.worse, found.vanished) == (["hds: b: crash, was pass", "hds: c: crash, was pass"], [])
    found = compare(of(whole), ci_json(of(broken)))
    assert (found.better, found.new) == (["hds: b: pass, was crash", "hds: c: pass, was crash"], [])
    assert compare(of({"#1": "crash"}), ci_json(of({"#1": "crash"}))).same == 1
    assert compare(of({"#1": "crash"}), ci_json(of({"#1": "none"}))).worse == ["hds: all cases: crash, was none"]


def test_only_what_has_run_is_compared() -> None:
    earlier = ci_json(run_of(outcome(), outcome(name="irq")))
    assert compare(run_of(outcome(name="irq")), earlier).same == 5  # and one that has no name
    assert compare(run_of(outcome(name="stats")), earlier).new == ["stats: the whole test"]
    quick = compare(of({"a": "pass"}, quick=("a", "x")), ci_json(of({"a": "pass", "b": "pass", "x": "pass"})))
    assert (quick.same, quick.vanished) == (1, ["hds: x: was pass"])


@pytest.mark.parametrize("earlier", [[], {}, {"results": [{"test": "hds"}]}, 7, {"results": None}])
def test_what_is_no_earlier_run(earlier: Any) -> None:
    with pytest.raises(VmError, match="no results of 'nicmodel selftests --json'"):
        compare(run_of(outcome()), earlier)


def test_an_outcome_that_there_is_not() -> None:
    earlier = ci_json(of({"a": "pass"}))
    earlier["results"][0]["results"][0]["outcome"] = "great"
    with pytest.raises(VmError, match="'great'"):
        compare(of({"a": "pass"}), earlier)


BUG = "[   14.5] BUG: kernel NULL pointer dereference"


@pytest.mark.parametrize(
    ("results", "fatal", "dead", "after"),
    [
        (["pass", "none", "none"], BUG, "", ["pass", "crash", "none"]),
        (["pass"], BUG, "the guest no longer answers", ["pass", "crash"]),
        ([], BUG, "", ["crash"]),
        (["pass", "none"], "", "the guest no longer answers", ["pass", "none"]),
        ([], "", "the guest no longer answers", ["none"]),
        # The kernel's complaint is told otherwise.
        (["pass", "pass"], BUG, "", ["pass", "pass"]),
    ],
)
def test_the_case_in_which_the_kernel_crashes(results: list[str], fatal: str, dead: str, after: list[str]) -> None:
    found = interrupted([Result(f"#{n}", one) for n, one in enumerate(results, 1)], fatal, dead)
    assert [result.outcome for result in found] == after
    said = [result.said for result in found if result.said]
    assert said == ([] if after == results == ["pass", "pass"] else [fatal or dead])
