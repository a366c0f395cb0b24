"""A batch of frames: one block of bytes and one record per frame.

Everything that carries frames carries a `Batch`: a wire hands one to the NIC, the NIC hands one to a wire. The record
says what a virtio-net header says (virtio 1.2, section 5.1.6), since that is what a tap speaks and what lets an
aggregated or partially checksummed frame travel whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt


class FrameFlag(IntFlag):
    """What is known of a frame's checksums."""

    NONE = 0
    #: The L4 checksum field holds only the pseudo-header sum; the bytes are vouched for (VIRTIO_NET_HDR_F_NEEDS_CSUM).
    NEEDS_CSUM = 1
    #: Somebody trustworthy has verified the checksums (VIRTIO_NET_HDR_F_DATA_VALID).
    CSUM_VALID = 2


class Gso(IntEnum):
    """What a frame has to be cut into before it can leave on a real medium (numbers of VIRTIO_NET_HDR_GSO_*)."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP_L4 = 5


class Offload(IntFlag):
    """What a wire takes from the NIC without having it done before."""

    NONE = 0
    CSUM = 1
    TSO4 = 2
    TSO6 = 4
    USO = 8
    ALL = 15


#: `offset` and `length` are the frame's place in the batch's bytes; `segment` the payload bytes of each segment and
#: `header` the bytes of L2-L4 header when `gso` is set; `csum_start`/`csum_offset` as in a virtio-net header. A frame
#: that a NIC sends also says where it comes from: the transmit `queue`, or `NO_QUEUE`; if it was cut from a longer
#: packet (TSO, USO) the payload bytes of each such `cut`, and its number (`part`); whether the NIC has `filled` in the
#: L4 checksum.
FRAME = np.dtype(
    [
        ("offset", "<u4"),
        ("length", "<u4"),
        ("time", "<u8"),
        ("flags", "u1"),
        ("gso", "u1"),
        ("segment", "<u2"),
        ("header", "<u2"),
        ("csum_start", "<u2"),
        ("csum_offset", "<u2"),
        ("cut", "<u2"),
        ("part", "<u2"),
        ("queue", "u1"),
        ("filled", "u1"),
    ],
    align=False,
)

#: `FRAME.queue` of a frame that no driver has sent.
NO_QUEUE = 255

#: Longest frame that can be carried whole: a 64 KiB IP packet with its Ethernet and VLAN header.
MAX_FRAME = 65535 + 14 + 8


class Batch:
    """Frames in one block of bytes.

    Args:
        capacity: bytes of frame data that fit, headroom included.
        frames: number of frames that fit.

    Attributes:
        data: the bytes, shape (capacity,), uint8.
        frames: the records, shape (frames,), `FRAME`; the first `count` are valid.
        count: number of frames in it.
        used: bytes of `data` in use.
        sent: for a batch on its way out, how many frames the wire has taken already.
    """

    def __init__(self, capacity: int = 1 << 20, frames: int = 1024) -> None:
        self.data: npt.NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self.frames: npt.NDArray[np.void] = np.zeros(frames, FRAME)
        self.count = 0
        self.used = 0
        self.sent = 0

    def clear(self) -> None:
        """Forget all frames; the memory stays."""
        self.count = self.used = self.sent = 0

    def append(
        self,
        frame: bytes | memoryview,
        *,
        headroom: int = 0,
        flags: FrameFlag = FrameFlag.NONE,
        gso: Gso = Gso.NONE,
        segment: int = 0,
        header: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
        time: int = 0,
    ) -> None:
        """Add one frame, `headroom` bytes left free before it.

        Raises:
            OverflowError: the batch is full.
        """
        start = self.used + headroom
        if self.count == len(self.frames) or start + len(frame) > len(self.data):
            raise OverflowError(f"batch of {len(self.frames)} frames and {len(self.data)} bytes is full")
        self.data[start : start + len(frame)] = np.frombuffer(frame, np.uint8)
        self.frames[self.count] = (
            start, len(frame), time, flags, gso, segment, header, csum_start, csum_offset, 0, 0, 0, 0,
        )  # fmt: skip
        self.used = start + len(frame)
        self.count += 1

    def take(self, other: Batch) -> bool:
        """Add copies of all frames of another batch; false, and nothing added, if they do not fit."""
        frames = other.frames[: other.count]
        if not len(frames):
            return True
        start = int(frames["offset"].min())
        end = int((frames["offset"] + frames["length"]).max())
        if self.count + len(frames) > len(self.frames) or self.used + end - start > len(self.data):
            return False
        copies = self.frames[self.count : self.count + len(frames)]
        copies[:] = frames
        copies["offset"] = frames["offset"].astype(np.int64) + (self.used - start)
        self.data[self.used : self.used + end - start] = other.data[start:end]
        self.used += end - start
        self.count += len(frames)
        return True

    @classmethod
    def of(cls, frames: Iterable[bytes], *, flags: FrameFlag = FrameFlag.NONE, headroom: int = 0) -> Batch:
        """A batch that holds just these frames."""
        frames = list(frames)
        batch = cls(max(1, sum(len(frame) + headroom for frame in frames)), max(1, len(frames)))
        for frame in frames:
            batch.append(frame, flags=flags, headroom=headroom)
        return batch

    @classmethod
    def over(cls, data: npt.NDArray[np.uint8], frames: npt.NDArray[np.void]) -> Batch:
        """A batch of just these frames, over bytes that are there already."""
        batch = cls(0, 0)
        batch.data, batch.frames = data, frames
        batch.count, batch.used = len(frames), len(data)
        return batch

    def rest(self) -> Batch:
        """The frames that have not been sent yet, as a batch over the same memory."""
        return Batch.over(self.data, self.frames[self.sent : self.count])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[bytes]:
        """The frames as bytes (copies), for tests and display."""
        for record in self.frames[: self.count]:
            start = int(record["offset"])
            yield self.data[start : start + int(record["length"])].tobytes()
