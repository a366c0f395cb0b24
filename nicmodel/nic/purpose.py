"""What a NIC accesses memory for.

In a file of its own: clients of a server, which show the ledger, need not load what compiles code.
"""

from __future__ import annotations

from enum import IntEnum


class Purpose(IntEnum):
    """What a DMA access is for, which also says in which direction it goes: second index of the ledger."""

    #: Received bytes, into data buffers. Device writes.
    PAYLOAD = 0
    #: Received bytes, into header buffers. Device writes.
    HEADER = 1
    #: Entries of the rings that the driver fills. Device reads.
    DESCRIPTOR = 2
    #: Entries of the rings that the device fills, or counts in their place. Device writes.
    COMPLETION = 3
    #: Bytes to be sent, headers included. Device reads.
    TRANSMIT = 4
    #: Commands and what they point at, such as rules and RSS tables. Device reads.
    COMMAND = 5
    #: Their statuses and answers. Device writes.
    ANSWER = 6
    #: The statistics region. Device writes.
    STATISTICS = 7

    @property
    def written(self) -> bool:
        """Whether the device writes, rather than reads."""
        return self not in (Purpose.DESCRIPTOR, Purpose.TRANSMIT, Purpose.COMMAND)
