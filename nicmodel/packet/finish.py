"""What one medium takes undone and the next does not: GSO frames are cut and checksums completed, in a copy.

A NIC does this for its own wire while it transmits. It is done here for a frame that goes on to another wire.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.packet.checksum import complete, pseudo
from nicmodel.packet.frames import FrameFlag, Gso, Offload
from nicmodel.packet.headers import L4
from nicmodel.packet.parse import parse
from nicmodel.packet.segment import segment_header

_TCP, _UDP = int(L4.TCP), int(L4.UDP)
_NEEDS_CSUM = int(FrameFlag.NEEDS_CSUM)
_GSO_NONE, _GSO_TCPV4, _GSO_TCPV6 = int(Gso.NONE), int(Gso.TCPV4), int(Gso.TCPV6)
_CSUM, _TSO4, _TSO6, _USO = (int(offload) for offload in (Offload.CSUM, Offload.TSO4, Offload.TSO6, Offload.USO))


@inlined
def _is_taken(frame: Record, offloads: int) -> bool:
    gso = frame["gso"]
    needed = _CSUM if frame["flags"] & _NEEDS_CSUM else 0
    if gso == _GSO_TCPV4:
        needed |= _TSO4
    elif gso == _GSO_TCPV6:
        needed |= _TSO6
    elif gso != _GSO_NONE:
        needed |= _USO
    return needed & ~offloads == 0


@compiled
def are_taken(frames: npt.NDArray[np.void], count: int, offloads: int) -> bool:
    """Whether a wire with these `Offload` takes the first `count` frames as they are."""
    for number in range(count):  # noqa: SIM110  # compiled
        if not _is_taken(frames[number], offloads):
            return False
    return True


@inlined
def _append(out_frames: npt.NDArray[np.void], out: npt.NDArray[np.int64], offset: int, length: int) -> Record:
    frame = out_frames[out[0]]
    frame["offset"] = offset
    frame["length"] = length
    frame["time"] = 0
    frame["flags"] = 0
    frame["gso"] = _GSO_NONE
    frame["segment"] = 0
    frame["header"] = 0
    frame["csum_start"] = 0
    frame["csum_offset"] = 0
    out[0] += 1
    out[1] = offset + length
    return frame


@compiled
def finish(
    data: npt.NDArray[np.uint8], frames: npt.NDArray[np.void], first: int, count: int, offloads: int, headroom: int,
    headers: npt.NDArray[np.void], out_data: npt.NDArray[np.uint8], out_frames: npt.NDArray[np.void],
    out: npt.NDArray[np.int64],
) -> int:  # fmt: skip
    """Copy frames to another batch, in a form that a wire takes.

    Args:
        data: bytes of the frames, shape (n,), uint8; they stay as they are.
        frames: their records (`FRAME`).
        first: index of the first frame to copy.
        count: index after the last one.
        offloads: what the wire takes undone (`Offload`).
        headroom: bytes to leave free before each copy.
        headers: room for what `parse` finds, shape (1,), `HEADERS`.
        out_data: bytes of the other batch, which is added to.
        out_frames: its records.
        out: its number of frames and of bytes, and how many frames were left out because they cannot be cut or do not
            fit even an empty batch, shape (3,).

    Returns:
        Index of the first frame for which there was no room, or `count`: call again with an empty batch.
    """
    source = u64(data.ctypes.data)
    target = u64(out_data.ctypes.data)
    for number in range(first, count):
        frame = frames[number]
        start = i64(frame["offset"])
        length = i64(frame["length"])
        taken = _is_taken(frame, offloads)
        whole = taken or frame["gso"] == _GSO_NONE
        header = length
        step = 0
        pieces = 1
        if not whole:
            parse(data, start, length, headers)
            header = i64(headers[0]["payload"])
            length = i64(headers[0]["length"])
            step = i64(frame["segment"])
            l4 = headers[0]["l4"]
            if step == 0 or length <= header or (l4 != _TCP and l4 != _UDP):
                out[2] += 1
                continue
            pieces = (length - header + step - 1) // step
        if (
            out[0] + pieces > len(out_frames)
            or out[1] + pieces * (headroom + header) + (length - header) > len(out_data)
        ):  # fmt: skip
            if out[0] > 0:
                return number
            out[2] += 1
            continue
        for k in range(pieces):
            piece = min(step, length - header - k * step)
            at = out[1] + headroom
            copy(target + u64(at), source + u64(start), header)
            copy(target + u64(at + header), source + u64(start + header + k * step), piece)
            done = _append(out_frames, out, at, header + piece)
            if taken:
                done["flags"] = frame["flags"]
                done["gso"] = frame["gso"]
                done["segment"] = frame["segment"]
                done["header"] = frame["header"]
                done["csum_start"] = frame["csum_start"]
                done["csum_offset"] = frame["csum_offset"]
                continue
            if whole:
                parse(out_data, at, length, headers)
            else:
                segment_header(out_data, at, headers, k * step, piece, k, k == 0, k == pieces - 1)
            if offloads & _CSUM:
                h = headers[0]
                pseudo(out_data, at, headers)
                done["flags"] = _NEEDS_CSUM
                done["csum_start"] = h["l4_offset"]
                done["csum_offset"] = 16 if h["l4"] == _TCP else 6
            else:
                complete(out_data, at, headers, False)
    return count
