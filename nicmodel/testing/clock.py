"""Time that passes only when a test says so."""

from __future__ import annotations

from nicmodel.vfio_user.poll import Poller


class VirtualClock:
    """A clock for NICs and their event loops.

    Attributes:
        now: the time, ns.
    """

    def __init__(self, now: int = 1_000_000_000_000) -> None:
        self.now = now
        self._pollers: list[Poller] = []

    def __call__(self) -> int:
        """The time, as an event loop asks for it."""
        return self.now

    def make_poller(self) -> Poller:
        """An event loop on this clock, which `advance` turns; `forget` it before it is closed."""
        poller = Poller(clock=self)
        self._pollers.append(poller)
        return poller

    def forget(self, poller: Poller) -> None:
        """Leave an event loop alone."""
        self._pollers.remove(poller)

    def advance(self, ns: int) -> None:
        """Let time pass: each timer on the way is called at its time, then everything that waits."""
        end = self.now + ns
        self.turn()
        while (due := self.next_due) is not None and due <= end:
            self.now = max(self.now, due)
            self.turn()
        self.now = end
        self.turn()

    @property
    def next_due(self) -> int | None:
        """The time of the next timer, ns; None: there is none."""
        return min((due for poller in self._pollers if (due := poller.next_due) is not None), default=None)

    def turn(self) -> None:
        """Have the event loops handle all that has arrived and is due."""
        busy = True
        while busy:
            busy = False
            for poller in self._pollers:
                busy |= poller.run_once(0)
