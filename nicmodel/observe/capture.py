"""Frames on their way through a NIC, for a capture: each once, with the queue it came to or from and why.

A frame is a dictionary, ready for JSON:

- ``time``: the NIC's clock, ns; ``nic``: its name; ``direction``: ``in`` or ``out``;
- ``length`` in bytes, ``data`` in base64: all of it, or as much as was asked for;
- received: what `nicmodel.nic.plain.where` tells: ``verdict``, ``queue``, ``hash``, ``rule`` or ``table_entry``,
  ``header`` (bytes that went to the header buffer); ``coalesced`` if it continues the packet of a frame before it. One
  that waits for buffers is told of when it is delivered or dropped;
- sent: ``queue`` unless no driver has sent it; of a piece of a longer packet its number, ``segment``, and the ``mss``;
  ``gso``, the payload of the segments that the wire is left to cut it into; ``checksum``, ``filled`` or ``left`` to the
  wire; ``verdict`` ``device_down`` if the cable is out.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from nicmodel.nic import events
from nicmodel.nic.plain import followers, where
from nicmodel.nic.state import Drop, Records
from nicmodel.nic.view import View
from nicmodel.observe.trace import check_queues
from nicmodel.packet.frames import NO_QUEUE, Batch, FrameFlag

log = logging.getLogger(__name__)


class Capture:
    """Tells a listener of every frame of a NIC, from now until `close`.

    Args:
        nic: the NIC.
        listener: called with each frame.
        queues: only frames of these, such as ``rx3``; all if empty, also those that come to no queue.
        limit: how many bytes of each frame at most; None: all.

    Raises:
        ValueError: there is no such queue.
    """

    def __init__(
        self,
        nic: View,
        listener: Callable[[dict[str, Any]], None],
        queues: Collection[str] = (),
        limit: int | None = None,
    ) -> None:
        check_queues(nic, queues)
        self._nic = nic
        self._listener = listener
        self._queues = frozenset(queues)
        self._limit = limit
        nic.diagnostics.watch(self._hear)

    def close(self) -> None:
        """Listen no more."""
        self._nic.diagnostics.unwatch(self._hear)

    def _hear(self, event: events.Event) -> None:
        """The device's hook: an error here must not become its own."""
        try:
            match event:
                case events.Received(batch, outcomes):
                    self._received(batch, outcomes)
                case events.Sending(batch):
                    self._sent(batch)
        except Exception:
            log.exception("%s: the capture failed at %s", self._nic.name, type(event).__name__)

    def _received(self, batch: Batch, outcomes: Records) -> None:
        merged = followers(outcomes[: batch.count])
        for number, outcome in enumerate(outcomes[: batch.count]):
            if outcome["verdict"] != Drop.HELD:
                coalesced = {"coalesced": True} if number in merged else {}
                self._tell("in", batch, batch.frames[number], where(self._nic.state, outcome) | coalesced)

    def _sent(self, batch: Batch) -> None:
        for record in batch.frames[: batch.count]:
            fields: dict[str, Any] = {} if self._nic.port.cable else {"verdict": Drop.DEVICE_DOWN.name.lower()}
            if record["queue"] != NO_QUEUE:
                fields["queue"] = f"tx{record['queue']}"
            if record["cut"]:
                fields |= {"segment": int(record["part"]), "mss": int(record["cut"])}
            if record["gso"]:
                fields["gso"] = int(record["segment"])
            if record["filled"] or record["flags"] & FrameFlag.NEEDS_CSUM:
                fields["checksum"] = "filled" if record["filled"] else "left"
            self._tell("out", batch, record, fields)

    def _tell(self, direction: str, batch: Batch, record: np.void, fields: dict[str, Any]) -> None:
        if self._queues and fields.get("queue") not in self._queues:
            return
        start, length = int(record["offset"]), int(record["length"])
        kept = length if self._limit is None else min(length, self._limit)
        self._listener(
            {
                "time": self._nic.clock(),
                "nic": self._nic.name,
                "direction": direction,
                "length": length,
                "data": base64.b64encode(batch.data[start : start + kept].tobytes()).decode(),
                **fields,
            }
        )
