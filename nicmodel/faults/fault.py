"""What every fault has: when it acts, how often, and how its parameters are read.

A fault is described by a `Fault`, which says nothing about any NIC. One that has been given to a NIC is an `Injection`:
it knows whether its time has come, throws the dice, counts, and tells.
"""

from __future__ import annotations

import functools
import math
import random
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from nicmodel.nearest import did_you_mean
from nicmodel.nic import events
from nicmodel.nic.seams import Seams
from nicmodel.vfio_user.poll import Timer

#: Where a fault sits, in the order of a frame's way and of a person's interest.
Where = Literal["wire", "receive", "transmit", "interrupts", "admin queue", "mailbox", "DMA", "device"]


class FaultError(ValueError):
    """There is no such fault, or it takes no such parameter or value; the text says which there are."""


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 60


def shortened(value: Any) -> str:
    """A value as an error quotes it: as Python writes it, of a long one the beginning and the end."""
    return _REPR.repr(value)


@dataclass(frozen=True)
class Range:
    """The numbers that a parameter may be, both ends included; the last may depend on the NIC."""

    low: float
    high: float | Callable[[Seams], int]

    def check(self, value: float, nic: Seams | None) -> None:
        """See that a number is one of them; without a NIC, as far as that can be said.

        Raises:
            ValueError: it is not; the text says which are.
        """
        high = self.high if not callable(self.high) else self.high(nic) if nic is not None else math.inf
        if not self.low <= value <= high or value == math.inf:  # no NaN either
            beyond = f"{self.low:g} or more" if high == math.inf else f"{self.low:g} to {_number(high)}"
            raise ValueError(f"is {shortened(value)}; it is {beyond}")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


#: Moments and spans of time, seconds: up to 30 years, which any clock here can add.
SPAN = Range(0, 10**9)


@dataclass(frozen=True)
class Drawn:
    """The values from which weather draws a parameter (`nicmodel.faults.weather`), both ends included.

    Each power of ten is as likely as another.
    """

    low: float
    high: float

    def draw(self, chance: random.Random) -> float:
        """One of them, to three digits, so that a person can read and repeat it."""
        return float(f"{self.low * (self.high / self.low) ** chance.random():.3g}")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a fault.

    Attributes:
        name: its name.
        kinds: the types that it may have.
        default: its value if none is given.
        meaning: what it means.
        range: the numbers that it may be; None: it is a word.
        drawn: the values that weather draws from; None: weather leaves it at its default.
    """

    name: str
    kinds: tuple[Any, ...]
    default: Any
    meaning: str
    range: Range | None = None
    drawn: Drawn | None = None

    @property
    def allowed(self) -> str:
        """What it may be, for a person."""
        if self.words:
            return ", ".join(self.words)
        if self.range is None or callable(self.range.high):
            return ""
        return f"{_number(self.range.low)} to {_number(self.range.high)}"

    def check(self, value: Any, nic: Seams | None = None) -> None:
        """See that it may be `value`, on `nic`.

        Raises:
            ValueError: it may not; the text says what it may be.
        """
        if value is None and types.NoneType in self.kinds:
            return
        if self.range is None:
            if not isinstance(value, str) or value not in self.words:
                raise ValueError(f"{self.name} is {shortened(value)}; it is {' or '.join(self.words)}")
            return
        whole = float not in self.kinds
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError(f"{self.name} is {shortened(value)}; it is a {'whole ' if whole else ''}number")
        try:
            self.range.check(value, nic)
        except ValueError as error:
            raise ValueError(f"{self.name} {error}") from None

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it may be; none if it is a number."""
        return tuple(
            word for kind in self.kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)
        )

    def read(self, value: Any) -> Any:
        """The value that `value` stands for: itself, or what it reads as if it is text.

        Raises:
            ValueError: it stands for none; the text says what would.
        """
        if not isinstance(value, str) or self.range is None:
            return value
        for kind in (int, float):
            try:
                if kind in self.kinds:
                    return int(value, 0) if kind is int else float(value)
            except ValueError:
                continue
        expected = "a number" if float in self.kinds else "a whole number"
        raise ValueError(f"{self.name} is {shortened(value)}; it takes {expected}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that is there or not: from `start` for `duration`.

    Attributes:
        name: what it is called everywhere.
        where: what it is in.
        effect: what the stock Linux driver and the stack above it make of it.
        source: where a driver's author finds that a device may do so, with which it is a behaviour of weather
            (`nicmodel.faults.weather`); empty: the contract is broken, or it is none of the device's doing.
        loses: though a device may do so, packets under way are lost: weather has it only where it is named.
    """

    name: ClassVar[str]
    where: ClassVar[Where]
    effect: ClassVar[str]
    source: ClassVar[str] = ""
    loses: ClassVar[bool] = False

    start: Annotated[float, "seconds from now until it begins", SPAN] = 0.0
    duration: Annotated[float | None, "seconds that it lasts; none: until it is removed", SPAN] = None

    def __post_init__(self) -> None:
        self.check()

    def check(self, nic: Seams | None = None) -> None:
        """See that its parameters are what they may be, on `nic` if it is given.

        Raises:
            FaultError: one is not; the text says what it may be.
        """
        try:
            for one in self.parameters().values():
                one.check(getattr(self, one.name), nic)
        except ValueError as error:
            raise FaultError(f"{self.name}: {error}") from None

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """Its parameters by name; those that every fault has come last."""
        return dict(_parameters(cls))  # type: ignore[arg-type]  # a class is hashable, whatever its objects are

    def given(self) -> dict[str, int | float]:
        """Its parameters that are not as they are by default."""
        values = ((name, getattr(self, name), one.default) for name, one in self.parameters().items())
        return {name: value for name, value, default in values if value != default}

    @classmethod
    def summary(cls) -> str:
        """One sentence on what it does."""
        return (cls.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")


@functools.cache
def _parameters(kind: type[Fault]) -> dict[str, Parameter]:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for one in fields(kind):
        hint, meaning, *ranges = typing.get_args(hints[one.name])
        is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        kinds = typing.get_args(hint) if is_union else (hint,)
        found[one.name] = Parameter(one.name, kinds, one.default, meaning, *ranges)
    common = [name for name in ("probability", "count", "start", "duration") if name in found]
    return {name: found[name] for name in (*(name for name in found if name not in common), *common)}


@dataclass(frozen=True, kw_only=True)
class Chance(Fault):
    """A fault that strikes some of the occasions that it has.

    Attributes:
        lasting: what it has struck stays so until it is over; reaching `count` does not end it.
    """

    lasting: ClassVar[bool] = False

    probability: Annotated[float, "of each occasion", Range(0, 1)] = 1.0
    count: Annotated[int | None, "strikes after which it is over; none: no limit", Range(1, 1 << 63)] = None


def make(kind: type[Fault], values: Mapping[str, Any]) -> Fault:
    """A fault from parameters as a person or a file gives them: numbers, or text that reads as such.

    Raises:
        FaultError: no such parameter, or not such a value.
    """
    known = kind.parameters()
    for name in values:
        if name not in known:
            among = f"{', '.join(known)}{did_you_mean(name, known)}"
            raise FaultError(f"{kind.name} has no parameter {shortened(name)}, but {among}")
    try:
        return kind(**{name: known[name].read(value) for name, value in values.items()})
    except FaultError:
        raise
    except ValueError as error:
        raise FaultError(f"{kind.name}: {error}") from None


class Injection:
    """A fault given to a NIC.

    Args:
        number: its number among those of the NIC.
        fault: what it is.
        nic: the NIC that it is for.
        seed: of its random numbers; the same seed and the same occasions give the same strikes.
        on_exhausted: called with it when it has struck as often as it may, unless what it struck lasts.

    Attributes:
        state: ``waiting`` for its time, ``active`` or ``over``.
        hits: how often it has struck.
    """

    def __init__(
        self, number: int, fault: Fault, nic: Seams, seed: str, on_exhausted: Callable[[Injection], None]
    ) -> None:  # fmt: skip
        self.number = number
        self.fault = fault
        self.state: Literal["waiting", "active", "over"] = "waiting"
        self.hits = 0
        self.random = random.Random(seed)
        self._nic = nic
        self._on_exhausted = on_exhausted
        self._timers: dict[str, Timer] = {}

    @property
    def exhausted(self) -> bool:
        """It has struck as often as it may."""
        return isinstance(self.fault, Chance) and self.fault.count is not None and self.hits >= self.fault.count

    def chance(self) -> bool:
        """Throw the dice for one occasion."""
        if self.state != "active" or self.exhausted:
            return False
        return not isinstance(self.fault, Chance) or self.random.random() < self.fault.probability

    def strike(self, **details: events.Detail) -> None:
        """Count that it has struck, and tell so; `details` say whom."""
        self.hits += 1
        self._nic.diagnostics.count(f"fault {self.fault.name}")
        if self._nic.diagnostics.observers:
            self._nic.diagnostics.tell(events.Injected(self.fault.name, self.number, details))
        if self.exhausted and not (isinstance(self.fault, Chance) and self.fault.lasting):
            self._on_exhausted(self)

    def hit(self, **details: events.Detail) -> bool:
        """Throw the dice and, if it is to be, strike."""
        if not self.chance():
            return False
        self.strike(**details)
        return True

    def after(self, seconds: float, name: str, callback: Callable[[], None]) -> None:
        """Call back later, unless it is over by then, or the same `name` is used for another call."""
        if name in self._timers:
            self._nic.poller.cancel(self._timers[name])
        self._timers[name] = self._nic.poller.call_at(self._nic.clock() + round(seconds * 1e9), callback)

    def end(self) -> None:
        """It is over."""
        self.state = "over"
        for timer in self._timers.values():
            self._nic.poller.cancel(timer)
        self._timers.clear()

    def describe(self) -> dict[str, Any]:
        """Itself as plain data."""
        given = {name: getattr(self.fault, name) for name in self.fault.parameters()}
        return {
            "id": self.number,
            "fault": self.fault.name,
            "state": self.state,
            "hits": self.hits,
            "parameters": {name: value for name, value in given.items() if value is not None},
        }


class Late:
    """What faults have put off, a limited number of things at a time: a guest decides how often it happens."""

    #: Things that may wait.
    LIMIT = 4096

    def __init__(self, nic: Seams) -> None:
        self._nic = nic
        self._waiting = 0

    def call(self, delay: float, callback: Callable[[], None]) -> bool:
        """Call back in `delay` seconds; False, and counted: too much waits already, so it has to be done at once."""
        if self._waiting >= self.LIMIT:
            self._nic.diagnostics.count("fault not late: too much waits")
            return False
        self._waiting += 1

        def run() -> None:
            self._waiting -= 1
            callback()

        self._nic.poller.call_at(self._nic.clock() + round(delay * 1e9), run)
        return True

    def tell(self, way: Literal["rx", "tx"], queue: int, index: int) -> None:
        """Tell who listens that a completion has been written now, at this index of the queue's ring."""
        diagnostics = self._nic.diagnostics
        if diagnostics.observers:
            with diagnostics.surviving("observer"):
                diagnostics.tell(events.CompletedLate(way, queue, index))
