"""Results of the selftests as files that other programs read, and two runs held against each other.

The files say what each test said. Of a case that was not expected to pass they also have the reason.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from nicmodel.client.text import printable
from nicmodel.vm.errors import VmError
from nicmodel.vm.selftests import Outcome, Result

#: Outcomes, from good to bad; those of one row are no better than each other.
_RANKS = (("pass",), ("skip", "xfail"), ("fail",), ("none",), ("crash",))
_RANK = {outcome: rank for rank, outcomes in enumerate(_RANKS) for outcome in outcomes}
#: What the netdev CI knows: it takes an expected failure (XFAIL) for a pass, as it is an `ok` line.
_CI_RESULTS = {"pass": "pass", "xfail": "pass", "skip": "skip", "fail": "fail", "none": "fail", "crash": "fail"}


@dataclass(frozen=True)
class Run:
    """A run of some programs.

    Attributes:
        outcomes: Of each, in order.
        kernel: The guest's, as `uname -r` prints it.
        start: When it began.
        end: When it ended.
        quick: Whether only some cases of each have run.
        logs: The folder with what programs printed, one file each; None: nothing was kept.
    """

    outcomes: Sequence[Outcome]
    kernel: str
    start: datetime
    end: datetime
    quick: bool = False
    logs: Path | None = None


def reason(outcome: Outcome, result: Result) -> str:
    """Why a case of `outcome` ends as it does, if that is known and expected; else empty."""
    expectation = outcome.program.expectation(result.case)
    return expectation.reason if expectation and expectation.fits(result) else ""


def ci_json(run: Run) -> dict[str, Any]:
    """The form of the netdev CI's results (NIPA, contest/remote: lib/fetcher.py and vmksft-p.py), as JSON has it.

    Its keys are `executor`, `branch`, `start`, `end` and `results`; of a test `test`, `group`, `result`, `time` (s),
    `link` and `results`; of a case `test` and `result`. Names are reduced to letters, digits and dashes there. Besides,
    a test has `name`, and a case has `name`, `outcome`, `said` and `reason`, which tell all that is known.
    """
    return {
        "executor": "nicmodel",
        "branch": run.kernel,
        "start": str(run.start),
        "end": str(run.end),
        "quick": run.quick,
        "results": [_ci_test(run, outcome) for outcome in run.outcomes],
    }


def _ci_test(run: Run, outcome: Outcome) -> dict[str, Any]:
    name = outcome.program.name
    found = {_CI_RESULTS[result.outcome] for result in outcome.results}
    return {
        "test": _reduced(name),
        "group": _reduced(f"selftests-{Path(outcome.program.path).parent}"),
        # A test of which nothing has passed counts as skipped, as there.
        "result": "fail" if "fail" in found or not found else "pass" if "pass" in found else "skip",
        "time": round(outcome.seconds, 1),
        "link": str(run.logs / f"{name}.log") if run.logs else "",
        "name": name,
        "results": [
            {
                "test": _reduced(result.case),
                "result": _CI_RESULTS[result.outcome],
                "name": result.case,
                "outcome": result.outcome,
                "said": result.said,
                "reason": reason(outcome, result),
            }
            for result in outcome.results
        ],
    }


def _reduced(name: str) -> str:
    return re.sub("[^0-9a-zA-Z]+", "-", name).strip("-")


def ktap(run: Run) -> str:
    """KTAP (Linux, Documentation/dev-tools/ktap.rst): a test for each program, its cases nested in it."""
    lines = ["KTAP version 1", f"1..{len(run.outcomes)}"]
    for number, outcome in enumerate(run.outcomes, 1):
        lines += (f"  {line}" for line in _ktap_cases(outcome))
        found = {result.outcome for result in outcome.results}
        failed = not found or found & {"fail", "none", "crash"}
        skipped = " # SKIP" if found == {"skip"} else ""
        lines.append(f"{'not ok' if failed else 'ok'} {number} {_ktap_name(outcome.program.name)}{skipped}")
    return "\n".join(lines) + "\n"


def _ktap_cases(outcome: Outcome) -> Iterator[str]:
    yield "KTAP version 1"
    yield f"# Subtest: {_ktap_name(outcome.program.name)}"
    yield f"1..{len(outcome.results)}"
    for number, result in enumerate(outcome.results, 1):
        said = printable(result.said)
        if why := reason(outcome, result):
            yield f"# expected: {printable(why)}"
        directive = {"skip": " # SKIP", "xfail": " # XFAIL", "none": " # ERROR", "crash": " # ERROR"}.get(
            result.outcome, ""
        )
        if not directive and said:
            yield f"# {said}"
        words = said or {"none": "the test ended before", "crash": "the kernel crashed"}.get(result.outcome, "")
        ok = "not ok" if _CI_RESULTS[result.outcome] == "fail" else "ok"
        yield f"{ok} {number} {_ktap_name(result.case)}" + (f"{directive} {words}".rstrip() if directive else "")


def _ktap_name(name: str) -> str:
    # A name ends where a directive begins: "#6", a case that has told no name, would be one.
    return printable(name).replace("#", "case ")


def junit(run: Run) -> JUnitXml:
    """JUnit's XML: a suite for each program.

    What fails as expected counts as skipped, with the reason, as pytest has it of xfail: failures and errors are those
    that are not expected.
    """
    document = JUnitXml("nicmodel selftests")
    for outcome in run.outcomes:
        suite = TestSuite(outcome.program.name)
        suite.timestamp = run.start.isoformat()
        suite.add_property("kernel", printable(run.kernel))
        for result in outcome.results:
            case = TestCase(printable(result.case), printable(outcome.program.path))
            if verdict := _junit_verdict(outcome, result):
                case.result = [verdict]
            suite.add_testcase(case)
        suite.time = round(outcome.seconds, 1)
        document.add_testsuite(suite)
    return document


def _junit_verdict(outcome: Outcome, result: Result) -> Failure | Error | Skipped | None:
    said = printable(result.said)
    why = printable(reason(outcome, result))
    if result.outcome == "pass":
        return None
    if result.outcome in ("skip", "xfail") or why:
        return Skipped(": ".join(word for word in (result.outcome, said, why) if word), result.outcome)
    kind = Failure if result.outcome == "fail" else Error
    verdict = kind(said or result.outcome, result.outcome)
    if result.outcome == "crash":
        verdict.text = "\n".join(map(printable, outcome.log.splitlines()))
    return verdict


@dataclass
class Comparison:
    """How a run differs from an earlier one; each is a sentence.

    Attributes:
        worse: Cases that end worse now.
        better: Cases that end better now.
        other: Cases that end otherwise, but neither better nor worse: skip for xfail, or as time decides.
        new: Cases that were not there.
        vanished: Cases that are no longer there.
        same: How many cases ended as they did.
    """

    worse: list[str] = field(default_factory=list)
    better: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    same: int = 0


def compare(run: Run, earlier: Any) -> Comparison:
    """Hold a run against an earlier one, as `ci_json` has made it.

    Tests that the earlier one lacks are new; those that have not run now do not count.

    A case that is gone because its program ended early, or the kernel crashed, has not vanished: it is worse.

    Raises:
        VmError: `earlier` is something else.
    """
    comparison = Comparison()
    known = _cases(earlier)
    for outcome in run.outcomes:
        name = outcome.program.name
        if name not in known:
            comparison.new.append(f"{name}: the whole test")
            continue
        # Cases without a name are those which a program announced, and did not come to.
        now = {result.case: result.outcome for result in outcome.results if not result.case.startswith("#")}
        rest = [result.outcome for result in outcome.results if result.case.startswith("#")]
        before = {case: found for case, found in known[name].items() if not case.startswith("#")}
        before_rest = [found for case, found in known[name].items() if case.startswith("#")]
        patterns = outcome.program.quick if run.quick else ()
        for case in [*now, *(case for case in before if case not in now)]:
            old, new = before.get(case), now.get(case)
            if old is None and before_rest:
                old = before_rest[0]
            if new is None and rest:
                new = rest[0]
            if new is None and patterns and not any(fnmatchcase(case, pattern) for pattern in patterns):
                continue
            _sort(comparison, outcome, case, old, new)
        if not now and not before:
            _sort(comparison, outcome, "all cases", before_rest[0] if before_rest else None, rest[0] if rest else None)
    return comparison


def check_earlier(earlier: Any) -> None:
    """Whether `compare` can do with it.

    Raises:
        VmError: It is not what `ci_json` has made.
    """
    _cases(earlier)


def _sort(comparison: Comparison, outcome: Outcome, case: str, old: str | None, new: str | None) -> None:
    who = f"{outcome.program.name}: {case}"
    expectation = outcome.program.expectation(case)
    either = expectation and old in expectation.outcomes and new in expectation.outcomes
    if old == new:
        comparison.same += 1
    elif old is None:
        comparison.new.append(f"{who}: {new}")
    elif new is None:
        comparison.vanished.append(f"{who}: was {old}")
    elif either or _RANK[old] == _RANK[new]:
        comparison.other.append(f"{who}: {new}, was {old}" + (" (both are expected)" if either else ""))
    elif _RANK[new] > _RANK[old]:
        comparison.worse.append(f"{who}: {new}, was {old}")
    else:
        comparison.better.append(f"{who}: {new}, was {old}")


def _cases(earlier: Any) -> Mapping[str, Mapping[str, str]]:
    """Outcomes by case by program."""
    try:
        found = {
            str(test["name"]): {str(case["name"]): str(case["outcome"]) for case in test["results"]}
            for test in earlier["results"]
        }
    except (KeyError, TypeError):
        raise VmError("these are no results of 'nicmodel selftests --json'") from None
    if unknown := {outcome for cases in found.values() for outcome in cases.values()} - _RANK.keys():
        raise VmError(f"these are no results of 'nicmodel selftests --json': an outcome is '{unknown.pop()}'")
    return found
