"""What a NIC lets others know: events, counters of its control path, exceptions that it has survived."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from nicmodel.nic import events

log = logging.getLogger(__name__)


class Diagnostics:
    """Told by every part of a NIC.

    Args:
        name: the NIC's, for logs.

    Attributes:
        observers: called with each event of `nicmodel.nic.events`; none is the default.
        control_observers: called with those of the control path only (`nicmodel.nic.events.Control`), which costs
            packets nothing.
        counters: events of the control path; ``internal_error`` and, by what has failed, ``failed_…`` are exceptions
            that the device has survived.
    """

    def __init__(self, name: str) -> None:
        self.observers: tuple[events.Observer, ...] = ()
        self.control_observers: tuple[events.ControlObserver, ...] = ()
        self.counters: Counter[str] = Counter()
        self._name = name

    def watch(self, observer: events.Observer) -> None:
        """Have an observer called with each event from now on, after all others."""
        self.unwatch(observer)
        self.observers = (*self.observers, observer)

    def unwatch(self, observer: events.Observer) -> None:
        """Leave an observer alone; one that does not watch is ignored."""
        self.observers = tuple(one for one in self.observers if one != observer)

    def watch_control(self, observer: events.ControlObserver) -> None:
        """Have an observer called with each event of the control path from now on. It must not raise anything."""
        self.control_observers = (*self.control_observers, observer)

    def tell(self, event: events.Event) -> None:
        """Let the observers know of an event. Who calls this looks first whether there are any."""
        for observer in self.observers:
            observer(event)

    def tell_control(self, event: events.Control) -> None:
        """Let all observers know of an event of the control path."""
        for control_observer in self.control_observers:
            control_observer(event)
        for observer in self.observers:
            observer(event)

    def count(self, name: str) -> None:
        """Count an event of the control path."""
        self.counters[name] += 1

    def fail(self, what: str, error: Exception) -> None:
        """Note an exception that the device survives, whoever is to blame. The log tells of the first of each kind."""
        self.counters["internal_error"] += 1
        name = f"failed_{what.lower().replace(' ', '_')}"
        self.counters[name] += 1
        if self.counters[name] == 1:
            log.error("%s: %s failed, which is counted from now on", self._name, what, exc_info=error)
        try:
            if self.observers:
                self.tell(events.Failed(f"{what} failed: {error!r}"))
        except Exception:  # an observer is what fails
            self.counters["failed_observer"] += 1

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Have an exception inside noted, and go on behind it."""
        try:
            yield
        except Exception as error:
            self.fail(what, error)
