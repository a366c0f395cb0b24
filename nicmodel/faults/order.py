"""Transmit completions in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nicmodel.faults.fault import Injection

T = TypeVar("T")


def mixed(injection: Injection, completions: list[T], is_report: Callable[[T], bool]) -> list[T]:
    """Completions in another order; those of descriptors stay in theirs, as each says how far the device has come."""
    order = list(range(len(completions)))
    injection.random.shuffle(order)
    following = iter([one for one in completions if is_report(one)])
    shuffled = [completions[number] for number in order]
    return [next(following) if is_report(one) else one for one in shuffled]
