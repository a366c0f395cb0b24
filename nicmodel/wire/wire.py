"""What the NIC knows of a wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from nicmodel.packet.frames import Batch, Offload
from nicmodel.wire.errors import WireError as WireError


class Poller(Protocol):
    """The event loop, as far as a wire needs it (`nicmodel.vfio_user.poll.Poller` is one).

    Attributes:
        clock: the loop's time, ns.
    """

    clock: Callable[[], int]

    def add(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever `fd` can be read."""

    def want_write(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """Call `on_writable` whenever `fd` can be written; None: no longer."""

    def remove(self, fd: int) -> None:
        """Forget `fd`."""

    def call_at(self, t_ns: int, callback: Callable[[], None]) -> Any:
        """Call once at `t_ns` on the loop's clock; the result goes to `cancel`."""

    def cancel(self, timer: Any) -> None:
        """Take back a `call_at`."""


#: Link speed of a medium that has none of its own, Mbit/s: what Linux reports for a tap.
SPEED = 10_000


def new_counters() -> dict[str, int]:
    """Counts by name, in frames except for the two in bytes. A name that has not been counted yet stands at 0."""
    return Counter(rx_frames=0, rx_bytes=0, tx_frames=0, tx_bytes=0)


class Wire(Protocol):
    """One end of a medium.

    Attributes:
        name: what a person calls it: ``tap:nic0``, ``stream:/run/passt.sock``.
        headroom: bytes that must be free before each frame in a batch given to `send`; the wire may write there.
            Frames of such a batch lie back to back: headroom, frame, headroom, frame.
        offloads: what `send` takes undone.
        speed: link speed to report, Mbit/s.
        up: whether the far end is there.
        counters: by name: frames and bytes each way, and what was lost on the wire's side and why.
    """

    name: str
    headroom: int
    offloads: Offload
    speed: int
    up: bool

    @property
    def counters(self) -> dict[str, int]:
        """Described above; an attribute of most wires."""

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """Begin: `receive` gets each batch of incoming frames and must be done with it when it returns; `writable` is
        called when a `send` that fell short can go on; `link_changed` when `up` has changed.
        """

    def send(self, batch: Batch) -> bool:
        """Take the frames from ``batch.sent`` on, without blocking, and move ``batch.sent`` past those taken.

        Returns:
            True when all are taken (or counted as lost); False when the rest has to wait for `writable`.
        """

    def stop(self) -> None:
        """Leave the poller and close every descriptor."""


@runtime_checkable
class Patient(Protocol):
    """A wire that can leave what comes where it is, such as in the kernel's queue, where losing it costs least."""

    def rest(self, *, room: bool) -> None:
        """Frames wait in the NIC for buffers: bring few the next time.

        Args:
            room: there was some for others that came with them; if not, bring nothing for a moment, or until `go_on`.
        """

    def go_on(self) -> None:
        """There is room again."""
