"""Makes a recording smaller, while the same remains: a difference, a broken rule, or an exception.

Calls are left out, and then frames, as far as the call in which it happens ends as before (`nicmodel.delta`). What the
other calls have done when they were recorded is then no longer what a right NIC would do, so it is not in the smaller
recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from nicmodel.delta import fewer
from nicmodel.recording.call import Call
from nicmodel.recording.compare import Outcome, run
from nicmodel.recording.file import Recording
from nicmodel.recording.replay import Model

#: Calls that bring frames, of which some may be left out.
_WITH_FRAMES = ("receive", "inject")


class Kind(StrEnum):
    """What a recording can show, the worst first."""

    EXCEPTION = "exception"
    DIFFERENCE = "difference"
    FINDING = "finding"


@dataclass(frozen=True)
class Effect:
    """What is to remain.

    Attributes:
        kind: what it is.
        number: of the call in which it happens.
        sign: what it is known by: the exception's text, what the NIC does, the rule and the queue.
    """

    kind: Kind
    number: int
    sign: Any

    def __str__(self) -> str:
        detail = {Kind.EXCEPTION: f" {self.sign}", Kind.DIFFERENCE: "", Kind.FINDING: f" {self.sign[0]}"}[self.kind]
        return f"the {self.kind}{detail}"


def effects_of(outcome: Outcome) -> Iterator[Effect]:
    """What a recording has shown, the worst first."""
    for number, reason in outcome.failures:
        yield Effect(Kind.EXCEPTION, number, reason)
    if outcome.difference is not None:
        made = outcome.difference.made
        done = (made.answer, made.error, *made.vectors, *made.writes, *made.sent)
        yield Effect(Kind.DIFFERENCE, outcome.difference.number, done)
    for number, finding in outcome.findings:
        yield Effect(Kind.FINDING, number, (finding.rule.name, finding.queue))


class Minimiser:
    """Makes one recording smaller.

    Args:
        recording: the recording.
        model: the NIC to be made.
        effect: what is to remain.
        tries: how often a smaller one is run at most.
        seconds: how long that may take.
        tell: called after each try with the number of tries and of calls that are left.
    """

    def __init__(
        self,
        recording: Recording,
        model: Model,
        effect: Effect,
        *,
        tries: int,
        seconds: float,
        tell: Callable[[int, int], None] = lambda tries, calls: None,
    ) -> None:
        self.tries = 0
        self._recording = recording
        self._model = model
        self._effect = effect
        self._most = tries
        self._end = time.monotonic() + seconds
        self._tell = tell
        self._last = replace(recording.calls[effect.number], expected=effect.kind == Kind.DIFFERENCE)

    def run(self) -> Recording:
        """The smaller recording."""
        calls = [replace(call, expected=False) for call in self._recording.calls[: self._effect.number]]
        calls = fewer(calls, self._remains, lambda: self.in_time)
        for place in range(len(calls)):
            if calls[place].name in _WITH_FRAMES:
                calls = self._fewer_frames(calls, place)
        return self._with(calls)

    @property
    def in_time(self) -> bool:
        """Whether there are tries left, and time."""
        return self.tries < self._most and time.monotonic() < self._end

    def _with(self, calls: list[Call]) -> Recording:
        return Recording(self._recording.header, [*calls, self._last])

    def _remains(self, calls: list[Call]) -> bool:
        self.tries += 1
        shorter = self._with(calls)
        outcome = run(shorter, self._model, check=self._effect.kind == Kind.FINDING)
        self._tell(self.tries, len(calls) + 1)
        return replace(self._effect, number=len(calls)) in effects_of(outcome)

    def _fewer_frames(self, calls: list[Call], place: int) -> list[Call]:
        used, frames = calls[place].arguments
        size = len(frames) // 2
        while size and self.in_time:
            start = 0
            while start < len(frames) and len(frames) > size and self.in_time:
                rest = frames[:start] + frames[start + size :]
                smaller = [*calls]
                smaller[place] = replace(calls[place], arguments=[used, rest])
                if self._remains(smaller):
                    calls, frames = smaller, rest
                else:
                    start += size
            size //= 2
        return calls
