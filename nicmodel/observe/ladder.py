"""How far a driver has come: the steps from the device's power-on to traffic, and where the driver stands.

A personality declares the steps (`Step`) and keeps what has to be remembered of a driver's life (`Life`). A life begins
when the admin queue of the one before was released, or the device was reset, and ends likewise. Only the device looks,
so any driver can be asked about, of any system.

The ladder listens to the control path only, and looks at the NIC's state whenever something happens there and whenever
it is asked: packets cost no more than without it. The price is that a step which only packets show, or the client's
interrupts, is dated with the moment at which it was seen, which may be later than it happened (`Step.sampled`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from nicmodel.nic import events
from nicmodel.nic.view import View

log = logging.getLogger(__name__)

#: Lives that are remembered, besides the one that goes on.
PAST_LIVES = 2
_CHECKOUT = Path(__file__).parents[2]


class Need(StrEnum):
    """What a step is to those after it."""

    #: They wait for it.
    REQUIRED = "required"
    #: Working drivers do it, but a driver that goes on without it gets on.
    USUAL = "usual"
    #: It is for what a driver may do besides, once packets pass.
    FEATURE = "feature"


class Stage(StrEnum):
    """What has become of a step."""

    REACHED = "reached"
    #: The driver stands here: this is what the device waits for.
    HERE = "here"
    #: The driver has gone on without it.
    SKIPPED = "skipped"
    MISSING = "missing"


@dataclass(frozen=True)
class Example:
    """A place in the driver in Python that does a step.

    Attributes:
        file: its path, from the folder of the package on: ``nicmodel/…``.
        text: what is written on that line, and on no other line of the file.
    """

    file: str
    text: str

    @property
    def line(self) -> int:
        """The line's number; 0 if the text is on no line, or on several."""
        return _line(self.file, self.text)


@cache
def _line(file: str, text: str) -> int:
    lines = (_CHECKOUT / file).read_text("utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if text in line]
    return found[0] if len(found) == 1 else 0


class Life(Protocol):
    """What is remembered of a driver, from its first register to the release of its admin queue, or to a reset."""

    @property
    def at_work(self) -> bool:
        """Whether the driver has done anything yet that only a driver does."""

    def hear(self, event: events.Control) -> bool:
        """Take in an event of the control path; whether anything is new by it."""

    def look(self) -> None:
        """Take in what has to be seen from time to time, as the moment for it has come."""

    def about(self) -> dict[str, Any]:
        """Who the driver is and what it has chosen, by name."""

    def problems(self) -> list[str]:
        """What the device has had to refuse, drop or count in this life, the worst first; a sentence each."""


L = TypeVar("L", bound=Life)


def _nothing(_: Any) -> str:
    return ""


def _always(_: Any) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Step(Generic[L]):
    """A step, and what there is to say of it. What is said ends without a full stop.

    Attributes:
        name: what programs call it.
        title: what is so once it is reached.
        need: what it is to the steps after it.
        shows: what the device takes as the sign that it is reached.
        waits: what the device waits for until then: it goes on the sentence "The device waits for".
        does: what a working driver does then: it goes on "A working driver".
        example: where the driver in Python does so.
        datasheet: where it is described: a page and a heading of ``docs/datasheet``.
        rules: names of the rules of the contract that speak of it.
        reached: whether it is.
        now: what the device has of it now; empty: nothing worth a word.
        amiss: why it is not reached, if the device can tell; empty: it cannot.
        applies: whether the driver has it to go, by what it has chosen and what the device offers.
        sampled: it is not the control path that shows it: it was reached when it is dated, or before.
        costly: it is looked at only when somebody asks, and at a life's end.
    """

    name: str
    title: str
    need: Need
    shows: str
    waits: Callable[[L], str]
    does: str
    example: Example
    datasheet: str
    reached: Callable[[L], bool]
    rules: tuple[str, ...] = ()
    now: Callable[[L], str] = _nothing
    amiss: Callable[[L], str] = _nothing
    applies: Callable[[L], bool] = _always
    sampled: bool = False
    costly: bool = False


@dataclass(frozen=True)
class _Reached:
    """When a step was reached: the time, its place in the order, whether it was so before the life began."""

    time: int
    order: int
    before: bool


class _Climb(Generic[L]):
    """A life on the ladder."""

    def __init__(self, steps: Sequence[Step[L]], life: L, now: int) -> None:
        self.life = life
        self.began: int | None = None
        self._steps = steps
        self._reached: dict[str, _Reached] = {}
        self.look(now, before=True)

    def look(self, now: int, *, costly: bool = False, before: bool = False) -> None:
        """See which steps are reached that were not."""
        self.life.look()
        for step in self._steps:
            if step.name in self._reached or (step.costly and not costly):
                continue
            if step.applies(self.life) and step.reached(self.life):
                self._reached[step.name] = _Reached(now, len(self._reached) + 1, before)

    def begin(self, now: int) -> None:
        """The driver is at work from now on: what it has lost of what there was before is not reached."""
        self.began = now
        lost = [step.name for step in self._steps if step.name in self._reached and not step.reached(self.life)]
        for name in lost:
            del self._reached[name]

    def _stage(self, number: int, way: Sequence[Step[L]], stands: bool) -> Stage:
        """Of step `number` of the way, where the driver may stand only if it stands nowhere else."""
        step = way[number]
        if step.name in self._reached:
            return Stage.REACHED
        if step.need is Need.FEATURE:
            return Stage.MISSING
        later = (self._reached.get(one.name) for one in way[number + 1 :] if one.need is not Need.FEATURE)
        if step.need is Need.USUAL and any(one is not None and not one.before for one in later):
            return Stage.SKIPPED
        return Stage.MISSING if stands else Stage.HERE

    def told(self, number: int, ended: dict[str, Any] | None) -> dict[str, Any]:
        """All of it, as plain data (`Ladder.report`)."""
        way = [step for step in self._steps if step.applies(self.life)]
        steps: list[dict[str, Any]] = []
        stands: Step[L] | None = None
        for place, step in enumerate(way):
            stage = self._stage(place, way, stands is not None)
            if stage is Stage.HERE:
                stands = step
            steps.append(self._step(step, stage))
        amiss = [] if stands is None else [stands.amiss(self.life)]
        problems = dict.fromkeys([*filter(None, amiss), *self.life.problems()])
        return {
            "number": number,
            "began": self.began,
            "ended": ended,
            **self.life.about(),
            "steps": steps,
            "stands": None if stands is None else stands.name,
            "problems": list(problems),
        }

    def _step(self, step: Step[L], stage: Stage) -> dict[str, Any]:
        reached = self._reached.get(step.name)
        dated = reached is not None and not reached.before and self.began is not None
        after = reached.time - self.began if dated and reached and self.began is not None else None
        return {
            "name": step.name,
            "title": step.title,
            "need": step.need.value,
            "stage": stage.value,
            "after_ns": after if after is not None and after >= 0 else None,
            "order": reached.order if reached is not None else None,
            "sampled": step.sampled,
            "now": step.now(self.life),
            "shows": step.shows,
            "waits": step.waits(self.life),
            "does": step.does,
            "example": f"{step.example.file}:{step.example.line}",
            "datasheet": f"docs/datasheet/{step.datasheet}",
            "rules": list(step.rules),
        }


class Ladder(Generic[L]):
    """Watches the driver of one NIC climb, from now on.

    Args:
        nic: the device.
        steps: in the order of a driver's life; features last.
        begin: makes a life: of what the driver is after a release, from the life before, which still counts for what
            the driver has learnt; of a device as after power-on, from None.
    """

    def __init__(self, nic: View, steps: Sequence[Step[L]], begin: Callable[[L | None], L]) -> None:
        self._nic = nic
        self._steps = steps
        self._begin = begin
        self._climb = _Climb(steps, begin(None), nic.clock())
        self._lives = 0
        self._past: deque[dict[str, Any]] = deque(maxlen=PAST_LIVES)
        self._resetting = self._failed = False
        nic.diagnostics.watch_control(self._hear)

    def report(self, findings: Sequence[str] = ()) -> dict[str, Any]:
        """How far the driver has come, and those before it.

        Args:
            findings: rules of the contract that the driver of the life that goes on is known to have broken, as
                sentences.

        Returns:
            JSON-ready: ``nic``, ``client``, ``time`` (the NIC's clock, ns), and ``at_work``, whether a driver is at
            work; ``lives``, the newest first, of which the first goes on if a driver is at work, and there is one at
            least. Of each: its ``number``; when it ``began``, by the driver's first write to a register; how and when
            it ``ended``, None: it goes on; what the driver tells of itself and has chosen; the ``steps``, each with its
            ``stage`` (`Stage`), nanoseconds ``after_ns`` the life began (None: before,
            or not at all), what the device
            has of it ``now`` or had in the end, and what `Step` says; the step at which the driver ``stands``, None:
            it has come to the end; ``problems``, sentences.
        """
        now = self._nic.clock()
        self._begin_work(now)
        self._climb.look(now, costly=True)
        lives = list(self._past)
        at_work = self._climb.life.at_work
        if at_work or not lives:
            current = self._climb.told(self._lives + (not at_work), None)
            current["problems"] += findings
            lives.insert(0, current)
        client = self._nic.link.name if self._nic.link is not None else None
        return {"nic": self._nic.name, "client": client, "time": now, "at_work": at_work, "lives": lives}

    @property
    def began(self) -> int | None:
        """When the life that goes on began; None: no driver is at work."""
        return self._climb.began

    def _hear(self, event: events.Control) -> None:
        """The NIC's hook: an error here must not become the NIC's."""
        try:
            self._take(event)
        except Exception:
            if not self._failed:
                log.exception("%s: the ladder failed at %s", self._nic.name, type(event).__name__)
            self._failed = True

    def _take(self, event: events.Control) -> None:
        now = self._nic.clock()
        match event:
            case events.Resetting():
                self._end("the device was reset", event, now)
                self._resetting = True
            case events.Reset():
                self._resetting = False
                self._climb = _Climb(self._steps, self._begin(None), now)
            case _ if self._resetting:
                pass
            case events.Releasing():
                self._end("the driver released the admin queue", event, now)
            case events.Released():
                self._climb = _Climb(self._steps, self._begin(self._climb.life), now)
                self._nic.poller.when_idle(self._look)
            case _:
                self._go_on(event, now)

    def _go_on(self, event: events.Control, now: int) -> None:
        # A read changes nothing, and drivers read in loops; what a command has done is seen at the next event, or soon.
        if not isinstance(event, (events.Read, events.CommandExecuted)):
            self._climb.look(now)
        if self._climb.life.hear(event):
            self._begin_work(now)
            self._nic.poller.when_idle(self._look)

    def _begin_work(self, now: int) -> None:
        """See whether the driver has begun."""
        if self._climb.began is None and self._climb.life.at_work:
            self._climb.begin(now)
            self._lives += 1

    def _look(self) -> None:
        """What was heard last has taken effect."""
        try:
            now = self._nic.clock()
            self._begin_work(now)
            self._climb.look(now)
        except Exception:
            log.exception("%s: the ladder failed", self._nic.name)

    def _end(self, how: str, event: events.Control, now: int) -> None:
        """The life that goes on is about to end: keep what it has come to."""
        climb = self._climb
        climb.life.hear(event)
        self._begin_work(now)
        climb.look(now, costly=True)
        if climb.life.at_work:
            self._past.appendleft(climb.told(self._lives, {"time": now, "how": how}))
