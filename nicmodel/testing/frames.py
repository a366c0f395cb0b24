"""Frames for a NIC to receive, made of scapy packets, bytes or captures, and kept ready: scapy takes its time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, overload

from nicmodel.packet.frames import MAX_FRAME, Batch

#: What frames can be made of: bytes, a scapy packet, the path of a capture, or any number of these.
Source: TypeAlias = Any

#: Who sends, unless a packet says so itself.
PEER_MAC = "02:00:00:00:00:fe"


class Frames(Sequence[bytes]):
    """Any number of frames, ready to be injected any number of times.

    Attributes:
        batch: the frames as the device takes them; not to be changed.
    """

    def __init__(self, frames: Iterable[bytes], **fields: Any) -> None:
        """`fields` are those of `Batch.append` and hold for every frame.

        Raises:
            ValueError: a frame is empty, or too long.
        """
        frames = list(frames)
        for number, frame in enumerate(frames):
            if not 0 < len(frame) <= MAX_FRAME:
                raise ValueError(f"frame {number} has {len(frame)} bytes; 1 to {MAX_FRAME} are possible")
        self.batch = Batch(max(1, sum(map(len, frames))), max(1, len(frames)))
        for frame in frames:
            self.batch.append(frame, **fields)

    def __len__(self) -> int:
        return self.batch.count

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        record = self.batch.frames[range(len(self))[number]]
        start = int(record["offset"])
        return self.batch.data[start : start + int(record["length"])].tobytes()

    def part(self, start: int, stop: int) -> Batch:
        """Frames `start` to `stop` as a batch of their own: the device marks what it has verified."""
        return Batch.over(self.batch.data, self.batch.frames[start:stop].copy())


def build(source: Source, mac: str, **fields: Any) -> Frames:
    """Make frames.

    Args:
        source: bytes, a scapy packet, the path of a pcap or pcapng file, or an iterable of these. A scapy packet with
            several values in a field stands for as many frames.
        mac: where scapy packets go whose Ethernet layer does not say.
        fields: those of `Batch.append`, for every frame.

    Raises:
        ValueError: a frame is empty, or too long.
        TypeError: there is something else among them.
    """
    return Frames(_encode(source, mac), **fields)


def is_one(source: Source) -> bool:
    """Whether it is one frame rather than any number of them.

    Raises:
        ValueError: it is a scapy packet that stands for several.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return True
    if not _is_packet(source):
        return False
    if source.__iterlen__() != 1:
        raise ValueError(f"{source!r} stands for {source.__iterlen__()} packets: give list(packet)")
    return True


def encode(packet: Any, dst: str, src: str = PEER_MAC) -> bytes:
    """The bytes of a scapy packet; `dst` and `src` stand in for addresses that its Ethernet layer leaves out."""
    from scapy.layers.l2 import Ether

    if isinstance(packet, Ether):
        # scapy would ask this host's network for the addresses.
        packet = packet.copy()
        packet.dst = packet.fields.get("dst", dst)
        packet.src = packet.fields.get("src", src)
    return bytes(packet)


def _encode(source: Source, mac: str) -> Iterator[bytes]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        yield from read_capture(os.fspath(source))
    elif _is_packet(source):
        for packet in source:
            yield encode(packet, mac)
    elif isinstance(source, Iterable):
        for one in source:
            yield from _encode(one, mac)
    else:
        raise TypeError(f"{source!r} is neither bytes, nor a scapy packet, nor the path of a capture")


def _is_packet(source: Any) -> bool:
    from scapy.packet import Packet

    return isinstance(source, Packet)


def read_capture(path: str) -> Iterator[bytes]:
    """The frames of a pcap or pcapng file.

    Raises:
        scapy.error.Scapy_Exception: it is something else.
    """
    from scapy.utils import RawPcapReader

    with RawPcapReader(path) as reader:
        for data, _ in reader:
            yield data
