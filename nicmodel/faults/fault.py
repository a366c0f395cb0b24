"""What every fault has: when it acts, how often, and how its parameters are read.

A fault is described by a `Fault`, which says nothing about any NIC. One that has been given to a NIC is an `Injection`:
it knows whether its time has come, throws the dice, counts, and tells.
"""

from __future__ import annotations

import random
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from nicmodel.gvnic.device import Nic

#: Where a fault sits, in the order of a frame's way and of a person's interest.
Where = Literal["wire", "receive", "transmit", "interrupts", "admin queue", "DMA", "device"]


class FaultError(ValueError):
    """There is no such fault, or it takes no such parameter or value; the text says which there are."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a fault: its name, the types that it may have, its default and what it means."""

    name: str
    kinds: tuple[Any, ...]
    default: Any
    meaning: str

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
        if value in self.words or (value is None and types.NoneType in self.kinds):
            return value
        for kind in self.kinds:
            try:
                if kind is int and not isinstance(value, (bool, float)):
                    return int(value, 0) if isinstance(value, str) else int(value)
                if kind is float and not isinstance(value, bool):
                    return float(value)
            except (ValueError, TypeError):
                continue
        expected = " or ".join(self.words) if self.words else "a number"
        raise ValueError(f"{self.name} is {value!r}; it takes {expected}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that is there or not: from `start` for `duration`.

    Attributes:
        name: what it is called everywhere.
        where: what it is in.
        effect: what the stock Linux driver and the stack above it make of it.
    """

    name: ClassVar[str]
    where: ClassVar[Where]
    effect: ClassVar[str]

    start: Annotated[float, "seconds from now until it begins"] = 0.0
    duration: Annotated[float | None, "seconds that it lasts; none: until it is removed"] = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, (int, float)) and value < 0:
                raise FaultError(f"{self.name}: {one.name} is {value}; it cannot be negative")

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """Its parameters by name, those of all faults last."""
        hints = typing.get_type_hints(cls, include_extras=True)
        found = {}
        for one in fields(cls):
            hint, meaning = typing.get_args(hints[one.name])
            is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
            kinds = typing.get_args(hint) if is_union else (hint,)
            found[one.name] = Parameter(one.name, kinds, one.default, meaning)
        common = [name for name in ("probability", "count", "start", "duration") if name in found]
        return {name: found[name] for name in (*(name for name in found if name not in common), *common)}

    @classmethod
    def summary(cls) -> str:
        """What it does, in one sentence."""
        return (cls.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")


@dataclass(frozen=True, kw_only=True)
class Chance(Fault):
    """A fault that strikes some of the occasions that it has.

    Attributes:
        lasting: what it has struck stays so until it is over; reaching `count` does not end it.
    """

    lasting: ClassVar[bool] = False

    probability: Annotated[float, "of each occasion, 0 to 1"] = 1.0
    count: Annotated[int | None, "strikes after which it is over; none: no limit"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probability > 1:
            raise FaultError(f"{self.name}: probability is {self.probability}; it is 0 to 1")


def make(kind: type[Fault], values: Mapping[str, Any]) -> Fault:
    """A fault from parameters as a person or a file gives them: numbers, or text that reads as such.

    Raises:
        FaultError: no such parameter, or not such a value.
    """
    known = kind.parameters()
    for name in values:
        if name not in known:
            raise FaultError(f"{kind.name} has no parameter {name!r}, but {', '.join(known)}")
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
        nic: whom it strikes.
        seed: of its dice; the same seed and the same occasions give the same strikes.
        on_exhausted: called with it when it has struck as often as it may, unless what it struck lasts.

    Attributes:
        state: ``waiting`` for its time, ``active`` or ``over``.
        hits: how often it has struck.
    """

    def __init__(
        self, number: int, fault: Fault, nic: Nic, seed: str, on_exhausted: Callable[[Injection], None]
    ) -> None:  # fmt: skip
        self.number = number
        self.fault = fault
        self.state: Literal["waiting", "active", "over"] = "waiting"
        self.hits = 0
        self.random = random.Random(seed)
        self._nic = nic
        self._on_exhausted = on_exhausted

    @property
    def exhausted(self) -> bool:
        """It has struck as often as it may."""
        return isinstance(self.fault, Chance) and self.fault.count is not None and self.hits >= self.fault.count

    def chance(self) -> bool:
        """Throw the dice for one occasion."""
        if self.state != "active" or self.exhausted:
            return False
        return not isinstance(self.fault, Chance) or self.random.random() < self.fault.probability

    def strike(self, **details: Any) -> None:
        """Count that it has struck, and tell so; `details` say whom."""
        self.hits += 1
        self._nic.count(f"fault {self.fault.name}")
        if self._nic.observers:
            self._nic.tell("injected", fault=self.fault.name, injection=self.number, **details)
        if self.exhausted and not (isinstance(self.fault, Chance) and self.fault.lasting):
            self._on_exhausted(self)

    def hit(self, **details: Any) -> bool:
        """Throw the dice and, if it is to be, strike."""
        if not self.chance():
            return False
        self.strike(**details)
        return True

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
