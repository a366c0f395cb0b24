"""A finding made small: the fewest parts of the inputs before it with which it happens again, in fresh guests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nicmodel.delta import fewer
from nicmodel.faults.scenario import Scenario

#: How many of the last inputs are tried, one after the other, until it happens again.
_LAST = (1, 3, 10, 40, 200)


@dataclass(frozen=True)
class Limits:
    """How long it may take to make a finding small.

    Attributes:
        tries: how often inputs are played again.
        seconds: how long in all.
    """

    tries: int
    seconds: float


class Smaller:
    """Makes one finding small.

    Args:
        happens: plays inputs in a fresh guest; whether the same happens.
        limits: when to be content.
        tell: called before each try with its number and how many parts are left.
    """

    def __init__(
        self, happens: Callable[[list[Scenario]], bool], limits: Limits, tell: Callable[[int, int], None]
    ) -> None:  # fmt: skip
        self.tries = 0
        self._happens, self._limits, self._tell = happens, limits, tell
        self._end = time.monotonic() + limits.seconds

    @property
    def goes_on(self) -> bool:
        """Whether there are tries left, and time."""
        return self.tries < self._limits.tries and time.monotonic() < self._end

    def run(self, inputs: Sequence[Scenario]) -> list[Scenario] | None:
        """The inputs that are left; None if it does not happen again."""
        for count in _LAST:
            last = list(inputs[-count:])
            if self._tried(last):
                break
            if count >= len(inputs) or not self.goes_on:
                return None
        else:
            return None
        last = fewer(last, self._tried, lambda: self.goes_on) if len(last) > 1 else last
        parts = _parts(last)
        parts = fewer(parts, lambda some: self._tried(_joined(some)), lambda: self.goes_on) if len(parts) > 1 else parts
        return _joined(parts)

    def _tried(self, inputs: list[Scenario]) -> bool:
        if not inputs:  # nothing happens by itself
            return False
        self.tries += 1
        self._tell(self.tries, len(_parts(inputs)))
        return self._happens(inputs)


@dataclass(frozen=True)
class _Part:
    """One fault, one frame, or one thing that the guest does; `place` is the number of its input."""

    place: int
    one: Scenario


def _parts(inputs: Sequence[Scenario]) -> list[_Part]:
    found = []
    for place, one in enumerate(inputs):
        nothing = replace(one, faults=(), frames=(), guest=())
        found += [_Part(place, replace(nothing, faults=(fault,))) for fault in one.faults]
        found += [_Part(place, replace(nothing, frames=(frame,))) for frame in one.frames]
        found += [_Part(place, replace(nothing, guest=(deed,))) for deed in one.guest]
    return found


def _joined(parts: Sequence[_Part]) -> list[Scenario]:
    """The inputs that these parts make."""
    inputs: dict[int, Scenario] = {}
    for part in parts:
        so_far = inputs.setdefault(part.place, replace(part.one, faults=(), frames=(), guest=()))
        inputs[part.place] = replace(
            so_far,
            faults=so_far.faults + part.one.faults,
            frames=so_far.frames + part.one.frames,
            guest=so_far.guest + part.one.guest,
        )
    return list(inputs.values())
