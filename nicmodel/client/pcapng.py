"""Writes captures in the format pcapng, with what it can say of a NIC's queues.

Source: IETF draft-ietf-opsawg-pcapng. Interfaces have names; frames have a direction, a queue, a Toeplitz hash and
a comment, which Wireshark shows as fields of the frame.
"""

from __future__ import annotations

import struct
from typing import Protocol

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 0x00000001, 0x00000006
_BYTE_ORDER = 0x1A2B3C4D
_ETHERNET = 1
_NANOSECONDS = b"\x09"
_INBOUND, _OUTBOUND = 1, 2
_TOEPLITZ = b"\x05"

# Codes of options; 1 is a comment in every block.
_COMMENT = 1
_APPLICATION = 4
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9
_FLAGS, _HASH, _QUEUE = 2, 3, 6


class _Output(Protocol):
    def write(self, block: bytes, /) -> object:
        """Write all of it."""


class PcapngWriter:
    """A capture of Ethernet frames.

    Args:
        file: where it is written, a block by one call.
    """

    def __init__(self, file: _Output) -> None:
        self._file = file
        self._interfaces = 0
        self._block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1), [(_APPLICATION, b"nicmodel")])

    def interface(self, name: str, description: str = "", *, limit: int = 0) -> int:
        """Begin an interface.

        Args:
            name: what it is called.
            description: what it is.
            limit: how many bytes of a frame are kept at most; 0: all.

        Returns:
            Its number, for `packet`.
        """
        options = [(_NAME, name.encode()), (_DESCRIPTION, description.encode()), (_RESOLUTION, _NANOSECONDS)]
        self._block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, limit), options)
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self,
        interface: int,
        data: bytes,
        *,
        time: int,
        length: int | None = None,
        outbound: bool = False,
        queue: int | None = None,
        toeplitz: int | None = None,
        comment: str = "",
    ) -> None:
        """Write one frame.

        Args:
            interface: number of its interface.
            data: its bytes, as many as were kept.
            time: ns since 1970.
            length: of the whole frame; None: that of `data`.
            outbound: the direction.
            queue: number of its queue.
            toeplitz: its RSS hash.
            comment: for people.
        """
        options = [(_FLAGS, struct.pack("<I", _OUTBOUND if outbound else _INBOUND))]
        if toeplitz is not None:
            options.append((_HASH, _TOEPLITZ + struct.pack(">I", toeplitz)))
        if queue is not None:
            options.append((_QUEUE, struct.pack("<I", queue)))
        if comment:
            options.append((_COMMENT, comment.encode()))
        whole = len(data) if length is None else length
        head = struct.pack("<IIIII", interface, time >> 32, time & 0xFFFF_FFFF, len(data), whole)
        self._block(_PACKET, head + _padded(data), options)

    def _block(self, kind: int, body: bytes, options: list[tuple[int, bytes]]) -> None:
        for code, value in options:
            if value:
                body += struct.pack("<HH", code, len(value)) + _padded(value)
        body += bytes(4)  # end of the options
        size = struct.pack("<I", len(body) + 12)
        self._file.write(struct.pack("<I", kind) + size + body + size)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
