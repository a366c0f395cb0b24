"""Makes a recording that can be given to others: without the payload of frames.

Payload is what is behind the headers that the NIC knows: all of what it knows nothing of but the Ethernet header. It
becomes zeros, in frames from the wire and in what the NIC reads to send; headers stay as they are, addresses included,
so that frames are parsed, hashed and steered as before. The checksum of a TCP or UDP frame from the wire is corrected
by what the payload was to it: one that was right is right, one that was wrong is wrong.

What the NIC does with it all, it does once more: a replay of the blanked calls makes what is expected of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.nic.purpose import Purpose
from nicmodel.packet.checksum import fold, ones_sum
from nicmodel.packet.frames import FrameFlag
from nicmodel.packet.headers import HEADERS, L4
from nicmodel.packet.parse import parse
from nicmodel.recording.call import LOOKED_AT, Access, Call, RecordingError, as_list, frame
from nicmodel.recording.compare import run
from nicmodel.recording.file import Recording
from nicmodel.recording.replay import Model

#: Where the checksum is in a header of layer 4.
_CHECKSUMS = {L4.TCP: 16, L4.UDP: 6}


def blanked(recording: Recording, model: Model) -> Recording:
    """The same recording without payload.

    Args:
        recording: one that shows no difference: what is expected of the NIC is made anew.
        model: the NIC to be made.

    Raises:
        RecordingError: it shows a difference, which would be lost.
    """
    if run(recording, model).difference is not None:
        raise RecordingError(
            "this version of nicmodel does something else than was recorded, which blanking would hide: use the "
            "version that has recorded it"
        )
    # What who checks the driver has looked at may be payload, too.
    header = replace(recording.header, checked=False)
    inputs = Recording(header, [_blanked(call) for call in recording.calls], recording.missing)
    return remade(inputs, run(inputs, model, keep=True).made)


def remade(recording: Recording, made: list[Call]) -> Recording:
    """The same calls, with what a NIC has made of them now."""
    calls = [
        replace(
            call, answer=now.answer, error=now.error, writes=now.writes, vectors=now.vectors, sent=now.sent,
            expected=call.expected,
        )
        for call, now in zip(recording.calls, made, strict=True)
    ]  # fmt: skip
    return Recording(recording.header, calls, recording.missing)


def _blanked(call: Call) -> Call:
    if call.name in ("receive", "inject", "send"):
        used, frames = call.arguments
        return replace(call, arguments=[used, [_without_payload(one) for one in frames]])
    return replace(call, reads=list(_reads_blanked(call.reads)))


def _without_payload(value: list[Any]) -> list[Any]:
    """A frame as JSON has it, likewise."""
    one = frame(value)
    data = np.frombuffer(bytearray(one.data), np.uint8)
    h = _headers(data)
    payload, place = int(h["payload"]), _CHECKSUMS.get(L4(int(h["l4"])))
    if place is not None and not one.fields["flags"] & FrameFlag.NEEDS_CSUM:
        at = int(h["l4_offset"]) + place
        before = int(data[at]) << 8 | int(data[at + 1])
        length = int(h["length"]) - payload
        if length > 0 and (before or h["l4"] == L4.TCP):
            part = fold(ones_sum(data, payload, length, 0))
            if (payload - int(h["l4_offset"])) & 1:
                part = (part & 0xFF) << 8 | part >> 8
            after = fold(before + part)
            data[at], data[at + 1] = after >> 8, after & 0xFF
    data[payload:] = 0
    return as_list(one._replace(data=data.tobytes()))


def _reads_blanked(reads: list[Access]) -> Iterator[Access]:
    """What the NIC has read, without the payload of the packets in it, each of which is read in one go."""
    packet: list[Access] = []
    for one in [*reads, None]:
        if one is not None and one.purpose in (Purpose.TRANSMIT, LOOKED_AT):
            if one.purpose == Purpose.TRANSMIT:
                packet.append(one)
            continue
        yield from _packet_blanked(packet)
        packet = []
        if one is not None:
            yield one


def _packet_blanked(packet: list[Access]) -> list[Access]:
    """The pieces of a packet, in the order in which they were read: its beginning may have been read twice."""
    places: dict[int, int] = {}  # of each byte, by its address, in the packet
    octets = bytearray()
    for address, data, _ in packet:
        for at, octet in enumerate(data):
            if address + at not in places:
                places[address + at] = len(octets)
                octets.append(octet)
    if not octets:
        return packet
    payload = int(_headers(np.frombuffer(octets, np.uint8))["payload"])
    return [
        Access(
            address,
            bytes(octet if places[address + at] < payload else 0 for at, octet in enumerate(data)),
            purpose,
        )
        for address, data, purpose in packet
    ]


def _headers(data: npt.NDArray[np.uint8]) -> np.void:
    """What the NIC knows of a frame's headers, a record of `HEADERS`."""
    headers = np.zeros(1, HEADERS)
    parse(data, 0, len(data), headers)
    found: np.void = headers[0]
    return found
