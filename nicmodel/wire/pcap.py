"""Captures: a file of frames that the NIC receives at the pace they were captured, and one of what it sends.

Reads pcap and pcapng, also compressed by gzip; writes pcap with time stamps in nanoseconds (pcap-savefile(5)).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from scapy.data import DLT_EN10MB
from scapy.error import Scapy_Exception
from scapy.utils import RawPcapReader, RawPcapWriter

from nicmodel.packet.frames import MAX_FRAME, Batch, Offload
from nicmodel.wire.wire import SPEED, Poller, WireError, new_counters

log = logging.getLogger(__name__)

#: When frames are replayed: as they were captured, as fast as the NIC takes them, or at a number of frames a second.
Pace = Literal["original", "max"] | int

_SNAPLEN = 262144  # tcpdump's, and larger than any frame
_SECOND = 1_000_000_000


class PcapWire:
    """A medium whose traffic is a file. Its link is up, also when the replay has ended.

    Args:
        replay: the capture to receive from, of an Ethernet.
        write: the file to write what the NIC sends to; replaced if it exists.
        pace: when frames are replayed. "original" keeps the time between them.
        loop: how many times to replay; 0: for ever. One round follows the other at once.
        after: begin when the NIC has sent this many frames. A guest's first ones tell that its interface is up, and
            before that the NIC drops all it gets.

    Losses counted: ``truncated``, captured in part only, or longer than `MAX_FRAME`; ``not_ethernet``, captured on some
    other link (pcapng); ``not_written``, sent when the file could not be written, which ends the writing.

    Raises:
        WireError: a file cannot be opened, or is no capture of an Ethernet.
    """

    headroom = 0
    speed = SPEED

    def __init__(
        self,
        replay: str | None = None,
        *,
        write: str | None = None,
        pace: Pace = "original",
        loop: int = 1,
        after: int = 0,
    ) -> None:
        self.name = "pcap:" + (replay or f"write={write}")
        self.offloads = Offload.ALL if write is None else Offload.NONE  # in the file, frames as on a cable
        self.up = True
        self.counters = new_counters()
        self._replay, self._pace, self._loop, self._after = replay, pace, loop, after
        if replay is not None:
            _open(replay).close()
        self._writer = None if write is None else _create(write)
        self._incoming = Batch(1 << 20, 512)
        self._schedule: Iterator[tuple[int, bytes]] | None = None
        self._next: tuple[int, bytes] | None = None
        self._timer: Any = None

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`. Neither `writable` nor `link_changed` is ever called."""
        self._poller, self._receive = poller, receive
        self._epoch = time.time_ns() - poller.clock()
        self._begin_if_due()

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        frames = batch.frames[batch.sent : batch.count]
        self.counters["tx_frames"] += len(frames)
        self.counters["tx_bytes"] += int(frames["length"].sum())
        if self._writer is not None:
            self._write(self._writer, batch)
        batch.sent = batch.count
        self._begin_if_due()
        return True

    def stop(self) -> None:
        """See `Wire.stop`."""
        if self._timer is not None:
            self._poller.cancel(self._timer)
        self._schedule = self._next = self._timer = self._replay = None
        self._end_writing()

    # Frames in

    def _begin_if_due(self) -> None:
        if self._replay is not None and self._schedule is None and self.counters["tx_frames"] >= self._after:
            self._schedule = self._due_frames(self._replay)
            self._timer = self._poller.call_at(self._poller.clock(), self._play)

    def _play(self) -> None:
        """Deliver the frames that are due: a batch at most, of as many records of the capture."""
        batch = self._incoming
        batch.clear()
        if self._schedule is None:
            return
        now = self._poller.clock()
        if self._next is None:
            self._next = next(self._schedule, None)
        octets = records = 0
        while self._next is not None and self._next[0] <= now:
            frame = self._next[1]
            if records == len(batch.frames) or batch.used + len(frame) > len(batch.data):
                break
            records += 1
            if frame:
                batch.append(frame)
                octets += len(frame)
            self._next = next(self._schedule, None)
        self.counters["rx_frames"] += batch.count
        self.counters["rx_bytes"] += octets
        if self._next is not None:
            # Other events have their turn, even when the next frame is overdue.
            self._timer = self._poller.call_at(max(self._next[0], now + 1), self._play)
        if batch.count:
            self._receive(batch)
        if self._next is None:
            log.info("%s: replay has ended: %d frames", self.name, self.counters["rx_frames"])

    def _due_frames(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Each frame of the replay, and when it is due on the poller's clock; nothing for one that is lost."""
        due = origin = self._poller.clock()
        count = 0
        for _ in itertools.count() if self._loop == 0 else range(self._loop):
            begin, first = due, None
            for captured, frame in self._captured(path):
                if not frame:
                    yield due, frame
                    continue
                if isinstance(self._pace, int):
                    due = origin + count * _SECOND // self._pace
                elif self._pace == "original":
                    first = captured if first is None else first
                    due = max(due, begin + captured - first)
                yield due, frame
                count += 1
            if count == 0:
                break

    def _captured(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Each frame of the capture and its time stamp, ns; nothing, at 0, for each that cannot be replayed."""
        with _open(path) as reader:
            while (found := self._next_of(reader)) is not None:
                frame, about = found
                if getattr(about, "linktype", DLT_EN10MB) != DLT_EN10MB:
                    yield self._lose("not_ethernet")
                elif len(frame) < about.wirelen or not 0 < len(frame) <= MAX_FRAME:
                    yield self._lose("truncated")
                elif hasattr(about, "tsresol"):
                    ticks = (about.tshigh or 0) << 32 | (about.tslow or 0)
                    yield ticks * _SECOND // about.tsresol, frame
                else:
                    yield about.sec * _SECOND + about.usec * (1 if reader.nano else 1000), frame

    def _next_of(self, reader: Any) -> tuple[bytes, Any] | None:
        """The next frame and what the capture says of it; None behind the last one that can be read."""
        try:
            found: tuple[bytes, Any] | None = next(reader, None)
        except Exception as error:  # of many types: a damaged file meets all of a reader that is scapy's
            log.debug("%s: %s", self.name, error)
            self._lose("damaged")
            return None
        return found

    # Frames out

    def _write(self, writer: Any, batch: Batch) -> None:
        seconds, rest = divmod(self._epoch + self._poller.clock(), _SECOND)
        try:
            for frame in itertools.islice(batch, batch.sent, None):
                writer.write_packet(frame, sec=seconds, usec=rest)
            writer.flush()
        except OSError as error:
            log.error("%s: no more is written: %s", self.name, error)
            self.counters["not_written"] += batch.count - batch.sent
            self._end_writing()

    def _end_writing(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):  # all is flushed, unless that has failed already
                writer.close()

    def _lose(self, reason: str) -> tuple[int, bytes]:
        self.counters[reason] += 1
        if self.counters[reason] == 1:
            log.warning("%s: losing frames: %s", self.name, reason)
        return 0, b""


def _open(path: str) -> Any:
    try:
        reader = RawPcapReader(path)
    except (OSError, Scapy_Exception) as error:
        raise WireError(f"pcap:{path}: {getattr(error, 'strerror', None) or error}") from error
    if getattr(reader, "linktype", DLT_EN10MB) != DLT_EN10MB:
        reader.close()
        raise WireError(f"pcap:{path}: it was captured on a link of type {reader.linktype}, which is no Ethernet")
    return reader


def _create(path: str) -> Any:
    writer = None
    try:
        writer = RawPcapWriter(path, linktype=DLT_EN10MB, nano=True, snaplen=_SNAPLEN, bufsz=1 << 16)
        writer.write_header(None)
    except OSError as error:
        if writer is not None:
            with contextlib.suppress(OSError):  # what is buffered cannot be written either
                writer.close()
        raise WireError(f"pcap:write={path}: {error.strerror}") from error
    return writer
