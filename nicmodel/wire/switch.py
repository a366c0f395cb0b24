"""A learning switch inside a server: any number of NICs, and one wire to the outside if there is one.

It forwards as a bridge does (IEEE 802.1Q, 8.6 to 8.8, without VLANs and without spanning tree): it learns on which port
a source address is, and sends a frame to the port of its destination, or to all others while that is unknown. Frames to
the bridge group address pass like other multicast, so that LLDP or LACP can be tried between two NICs.

Frames are not copied: each port is handed the records of its frames, over the bytes where the sender put them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled
from nicmodel.packet.finish import are_taken, finish
from nicmodel.packet.frames import Batch, Offload
from nicmodel.packet.headers import HEADERS
from nicmodel.packet.parse import ETHERNET_SIZE
from nicmodel.packet.words import load_be16, load_be32
from nicmodel.wire.wire import SPEED, Poller, Wire, new_counters

log = logging.getLogger(__name__)

#: How long a port is remembered for an address that is not heard of (802.1Q's and Linux's default), ns.
AGEING = 300 * 1_000_000_000

#: A station: its address, on which port it is, and when it was last heard, ns.
STATION = np.dtype([("address", "<i8"), ("seen", "<i8"), ("port", "<i8")])
_NOBODY = np.array((-1, -(1 << 62), -1), STATION)
#: The table is an array of buckets; in a full one, who has been silent for longest makes room.
_BUCKETS, _BUCKET = 512, 8

# Where a frame goes, unless it is the number of a port, from 1 on.
_UPLINK, _FLOOD, _NOWHERE = 0, -1, -2


@compiled
def _learn(table: npt.NDArray[np.void], address: int, port: int, now: int) -> None:
    bucket = table[(address ^ address >> 16 ^ address >> 32) & (len(table) - 1)]
    oldest = 0
    for k in range(len(bucket)):
        if bucket[k]["address"] == address:
            oldest = k
            break
        if bucket[k]["seen"] < bucket[oldest]["seen"]:
            oldest = k
    bucket[oldest]["address"] = address
    bucket[oldest]["seen"] = now
    bucket[oldest]["port"] = port


@compiled
def _look_up(table: npt.NDArray[np.void], address: int, now: int) -> int:
    bucket = table[(address ^ address >> 16 ^ address >> 32) & (len(table) - 1)]
    for k in range(len(bucket)):
        if bucket[k]["address"] == address and now - bucket[k]["seen"] < AGEING:
            return int(bucket[k]["port"])
    return _FLOOD


@compiled
def _forward(
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
    count: int,
    port: int,
    now: int,
    table: npt.NDArray[np.void],
    egress: npt.NDArray[np.int64],
) -> None:
    """Learn that the senders of `count` frames are on `port`; put into `egress` where each frame goes."""
    for number in range(count):
        at = int(frames[number]["offset"])
        if frames[number]["length"] < ETHERNET_SIZE:
            egress[number] = _NOWHERE
            continue
        destination = load_be32(data, at) << 16 | load_be16(data, at + 4)
        source = load_be32(data, at + 6) << 16 | load_be16(data, at + 10)
        if source >> 40 & 1 == 0:
            _learn(table, source, port, now)
        to = _FLOOD
        if destination >> 40 & 1 == 0:
            to = _look_up(table, destination, now)
        egress[number] = _NOWHERE if to == port else to


class Switch:
    """A switch, to which `port` adds a port.

    Frames that the uplink does not take at once wait, and until they have left every port makes its NIC wait: nothing
    is lost inside. What the uplink's wire does not take undone is done here.

    Args:
        name: what a person calls it.
        uplink: a wire to the outside. It is the switch's from then on: started with the first port, stopped with the
            last.
    """

    def __init__(self, name: str = "switch", uplink: Wire | None = None) -> None:
        self.name = name
        self.uplink = uplink
        self._ports: list[SwitchPort] = []
        self._table = np.full((_BUCKETS, _BUCKET), _NOBODY)
        self._egress = np.zeros(0, np.int64)
        self._poller: Poller | None = None
        self._headers = np.zeros(1, HEADERS)
        self._finished = Batch(1 << 21, 4096)
        self._backlog: deque[Batch] = deque()
        self._waiting: dict[SwitchPort, None] = {}

    def port(self) -> SwitchPort:
        """A new port."""
        made = SwitchPort(self, 1 + len(self._ports))
        self._ports.append(made)
        return made

    def _start(self, poller: Poller) -> None:
        """A port is started."""
        if self._poller is not None:
            return
        self._poller = poller
        nothing = Batch(0, 0)  # loads the compiled code now and not with the first frame
        _forward(nothing.data, nothing.frames, 0, 0, 0, self._table, self._egress)
        if self.uplink is not None:
            self._finish(nothing, self.uplink)
            self.uplink.start(poller, self._from_uplink, self._uplink_writable, self._uplink_changed)

    def _stop(self, port: SwitchPort) -> None:
        """A port is stopped: forget who was there."""
        self._table[self._table["port"] == port.number] = _NOBODY
        self._waiting.pop(port, None)
        if self.uplink is not None and all(port.stopped for port in self._ports):
            self.uplink.stop()

    def _send(self, port: SwitchPort, batch: Batch) -> bool:
        """`Wire.send` of a port."""
        if self._backlog:
            self._waiting[port] = None
            return False
        rest = batch.rest()
        batch.sent = batch.count
        port.count("tx", rest)
        if rest.count:
            lost = self._distribute(rest, port.number)
            if lost:
                port.own["nowhere"] += lost
        return True

    def _distribute(self, batch: Batch, ingress: int) -> int:
        """Hand each frame to where it goes; returns how many go nowhere.

        The uplink is first: a NIC completes checksums in place.
        """
        if self._poller is None:
            return 0
        count = batch.count
        if len(self._egress) < count:
            self._egress = np.zeros(count, np.int64)
        egress = self._egress[:count]
        _forward(batch.data, batch.frames, count, ingress, self._poller.clock(), self._table, egress)
        if self.uplink is not None and ingress != _UPLINK and (part := _part(batch, egress, _UPLINK)):
            self._to_uplink(part, self.uplink)
        for port in self._ports:
            if port.number != ingress and port.started and (part := _part(batch, egress, port.number)):
                port.deliver(part)
        return int(np.count_nonzero(egress == _NOWHERE))

    # The uplink

    def _to_uplink(self, batch: Batch, uplink: Wire) -> None:
        if are_taken(batch.frames, batch.count, int(uplink.offloads)):
            self._push(batch, uplink)
        else:
            self._finish(batch, uplink)

    def _finish(self, batch: Batch, uplink: Wire) -> None:
        """Send copies of the frames with everything done that the uplink does not do."""
        out, used, done = self._finished, np.zeros(3, np.int64), 0
        while done < batch.count:
            used[:] = 0
            done = finish(
                batch.data, batch.frames, done, batch.count, int(uplink.offloads), uplink.headroom, self._headers,
                out.data, out.frames, used,
            )  # fmt: skip
            out.clear()
            out.count, out.used = int(used[0]), int(used[1])
            if used[2]:
                uplink.counters["bad_gso"] = uplink.counters.get("bad_gso", 0) + int(used[2])
            self._push(out, uplink)

    def _push(self, batch: Batch, uplink: Wire) -> None:
        """Send, or keep a copy of what has to wait."""
        if self._backlog or not uplink.send(batch):
            rest = batch.rest()
            end = int((rest.frames["offset"].astype(np.int64) + rest.frames["length"]).max(initial=0))
            self._backlog.append(Batch.over(rest.data[:end].copy(), rest.frames.copy()))

    def _from_uplink(self, batch: Batch) -> None:
        self._distribute(batch, _UPLINK)

    def _uplink_changed(self) -> None:
        if self.uplink is not None:
            log.info("%s: uplink %s is %s", self.name, self.uplink.name, "up" if self.uplink.up else "down")

    def _uplink_writable(self) -> None:
        while self._backlog and self.uplink is not None:
            if not self.uplink.send(self._backlog[0]):
                return
            self._backlog.popleft()
        while self._waiting and not self._backlog:  # who has to wait again is the last in line
            port = next(iter(self._waiting))
            del self._waiting[port]
            port._writable()


def _part(batch: Batch, egress: npt.NDArray[np.int64], port: int) -> Batch | None:
    """The frames of a batch that go to a port, over the same bytes."""
    chosen = (egress == port) | (egress == _FLOOD)
    count = int(np.count_nonzero(chosen))
    if count == 0:
        return None
    frames = batch.frames[: batch.count]  # a wire's batch has room for more
    return Batch.over(batch.data, frames if count == batch.count else frames[chosen])


class SwitchPort:
    """A port of a switch, made by `Switch.port`. Its link is always up.

    Attributes:
        number: from 1 on.
        own: what this port counts; `counters` shows the uplink's beside it.

    Losses counted: ``nowhere``, sent to somebody on the same port, or too short to be a frame.
    """

    offloads = Offload.ALL
    speed = SPEED
    up = True

    def __init__(self, switch: Switch, number: int) -> None:
        self.name = f"{switch.name}:port{number}"
        self.headroom = 0 if switch.uplink is None else switch.uplink.headroom
        self.number = number
        self.started = self.stopped = False
        self.own = new_counters()
        self._switch = switch

    @property
    def counters(self) -> dict[str, int]:
        """Counts of the port, and of the switch's uplink as ``uplink_<name>``."""
        uplink = self._switch.uplink
        theirs = {} if uplink is None else uplink.counters
        return {**self.own, **{f"uplink_{name}": count for name, count in theirs.items()}}

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`. `link_changed` is never called."""
        self._receive, self._writable = receive, writable
        self.started = True
        self._switch._start(poller)

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        return self._switch._send(self, batch)

    def stop(self) -> None:
        """See `Wire.stop`."""
        self.started, self.stopped = False, True
        self._switch._stop(self)

    def deliver(self, batch: Batch) -> None:
        """Frames from the switch."""
        self.count("rx", batch)
        self._receive(batch)

    def count(self, way: str, batch: Batch) -> None:
        """Count a batch as "rx" or "tx", from the NIC's side."""
        self.own[f"{way}_frames"] += batch.count
        self.own[f"{way}_bytes"] += int(batch.frames["length"].sum())
