"""What the checker finds: a rule that was broken, with the evidence, and what happened before."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from nicmodel.client.text import escaped
from nicmodel.client.text import fields as fields_as_text

if TYPE_CHECKING:
    from nicmodel.observe.mapped_memory import MappedMemory  # which stands on compiled code

log = logging.getLogger(__name__)

#: Events of a queue, and of the device, that a finding shows.
_RECENT = 8

#: Findings that are kept of a NIC.
MAX_FINDINGS = 1000


class Severity(StrEnum):
    """What a violation does."""

    #: Traffic or memory is corrupted, or the device refuses to go on.
    ERROR = "error"
    #: This device bears it, another may not.
    WARNING = "warning"


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: its identifier, such as ``RX-BUF-003``; the first part is the area.
        says: what a driver has to do.
        why: what happens otherwise.
        source: where it is written down.
        severity: what a violation does.
    """

    name: str
    says: str
    why: str
    source: str
    severity: Severity = Severity.ERROR

    @property
    def area(self) -> str:
        """First part of its name."""
        return self.name.split("-", 1)[0]


#: What a report says of the checker itself, in the form of findings, so that nobody takes its silence for praise.
FAILED = Rule(
    "CHECKER-001",
    "The checker is able to judge what the driver does.",
    "What it could not look at may be right or wrong.",
    "this model: nicmodel/observe/findings.py",
)
MORE = Rule(
    "CHECKER-002",
    f"A driver has no more than {MAX_FINDINGS} findings.",
    "Further ones are only counted: a guest could make them without end.",
    "this model: nicmodel/observe/findings.py",
)


@dataclass
class Finding:
    """A rule that a driver has broken on a queue, or on the device as a whole, once or more often.

    Attributes:
        rule: the rule.
        nic: name of the NIC.
        queue: ``rx1``, ``tx0``, or None.
        time: when it was broken first, ns on the NIC's clock.
        what: what the driver did, as a sentence.
        evidence: addresses, and structures decoded, by name.
        recent: the last events of that queue before it, oldest first, as text.
        count: how often it was broken.
    """

    rule: Rule
    nic: str
    queue: str | None
    time: int
    what: str
    evidence: Mapping[str, Any]
    recent: tuple[str, ...]
    count: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "rule": self.rule.name,
            "severity": self.rule.severity.value,
            "says": self.rule.says,
            "nic": self.nic,
            "queue": self.queue,
            "time": self.time,
            "what": self.what,
            "evidence": dict(self.evidence),
            "recent": list(self.recent),
            "source": self.rule.source,
            "count": self.count,
        }

    def __str__(self) -> str:
        return as_text(self.as_dict())


def as_text(finding: Mapping[str, Any]) -> str:
    """A finding, as `Finding.as_dict` gives it, in lines for a person."""
    finding = escaped(finding)
    times = f", {finding['count']} times" if finding["count"] > 1 else ""
    lines = [
        f"{finding['rule']} {finding['severity']}: {finding['nic']} {finding['queue'] or ''}{times}: {finding['what']}",
        f"  rule    {finding['says']}",
        f"  source  {finding['source']}",
    ]
    for name, value in finding["evidence"].items():
        text = fields_as_text({name: value}).removeprefix(f"{name}=")
        lines.append(f"  {name.replace('_', ' ')}: {text}")
    lines += [f"  before  {event}" for event in finding["recent"]]
    return "\n".join(lines)


class Checker(Protocol):
    """Watches a driver keep the contract of its NIC.

    Attributes:
        failed: it has met an error of its own, of which there is a finding; it goes on with what follows.
        memory: what it reads guest memory by.
    """

    failed: bool
    memory: MappedMemory

    @property
    def findings(self) -> list[Finding]:
        """What was found, in the order in which it was."""

    def clear(self) -> None:
        """Forget what was found: what is broken again is found again, with new evidence."""


class Journal:
    """Findings of one NIC, and the events that a finding is shown with.

    Args:
        nic: its name.
        clock: its clock.
        rules: the contract, by the rules' names.
        on_finding: called with each finding when it is new.
    """

    def __init__(
        self,
        nic: str,
        clock: Callable[[], int],
        rules: Mapping[str, Rule],
        on_finding: Callable[[Finding], None] | None,
    ) -> None:
        self._nic = nic
        self._clock = clock
        self._rules = rules
        self._on_finding = on_finding
        self._found: dict[tuple[str, str | None], Finding] = {}
        self._events: defaultdict[str | None, deque[tuple[int, str, dict[str, Any]]]] = defaultdict(
            lambda: deque(maxlen=_RECENT)
        )

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order in which they were made."""
        return list(self._found.values())

    def clear(self) -> None:
        """Forget the findings."""
        self._found.clear()

    def note(self, queue: str | None, what: str, **fields: Any) -> None:
        """Keep an event of a queue, or of the device."""
        self._events[queue].append((self._clock(), what, fields))

    def report(self, rule: str, what: str, queue: str | None = None, **evidence: Any) -> None:
        """A rule is broken; if it was before on the same queue, that is only counted."""
        self._add(self._rules[rule], what, queue, evidence)

    def failed(self, event: str, error: Exception) -> None:
        """The checker itself has failed at an event of the device."""
        self._add(FAILED, f"the checker failed at {event}; the server's log says where", None, {"error": repr(error)})

    def _add(self, rule: Rule, what: str, queue: str | None, evidence: Mapping[str, Any]) -> None:
        if (rule.name, queue) not in self._found and len(self._found) >= MAX_FINDINGS:
            rule, what, queue, evidence = MORE, "there are more findings, which are not shown", None, {}
        known = self._found.get((rule.name, queue))
        if known is not None:
            known.count += 1
            return
        now = self._clock()
        recent = tuple(
            f"{(time - now) / 1e9:+.6f} s {event} {fields_as_text(fields)}".rstrip()
            for time, event, fields in self._events[queue]
        )
        finding = Finding(rule, self._nic, queue, now, what, evidence, recent)
        self._found[rule.name, queue] = finding
        log.debug("%s: %s: %s", self._nic, rule.name, what)
        if self._on_finding is not None:
            self._on_finding(finding)
