"""Direct data placement's part of the state (`nicmodel.gvnic.state`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.options.ddp.declarations import MAX_DDP_BUFFERS, MAX_DDP_PIECES, PLACEMENT
from nicmodel.jit.arrays import Arrays
from nicmodel.packet.nvme_tcp import TRACKER

#: In the record of the device: how many flows are to be looked at.
DEVICE_FIELDS = (("ddp_flows", "<i4"),)

#: The most placements in one packet.
MAX_PLACEMENTS = 4095

#: What direct data placement counts: frames of its flows, and of these those with nothing new (`old`), with bytes
#: missing before them (`ahead`), and those that came while the PDUs' beginnings were not known (`out_of_sync`); how
#: often they were `lost`, and what followed: `requests`, `confirmed` and `refused` by a wrong answer. PDUs whose data
#: was placed, all of it, and bytes; bytes of data that were not (`unplaced`), and by run why not: in no order
#: (`unordered`), `short`, of an `unknown_command`, `beyond_buffer`, or for a DMA fault. Data digests that were checked,
#: and those that did not hold; headers that cannot be, or whose digest did not hold.
DDP = np.dtype(
    [
        (name, "<i8")
        for name in (
            *("frames", "old", "ahead", "out_of_sync", "lost", "requests", "confirmed", "refused"),
            *("placed_pdus", "placed_bytes", "unplaced_bytes"),
            *("unordered", "short", "unknown_command", "beyond_buffer", "dma_faults"),
            *("digests", "digest_errors", "bad_headers", "header_digest_errors"),
        )
    ]
)

#: One flow: whether it is there; its addresses, each as four words of the header (IPv4: the first), and its ports as
#: one word; how many bytes an address has; bytes placed of the PDU at hand.
DDP_FLOW = np.dtype(
    [("active", "<i4"), ("address_size", "<i4"), ("ports", "<i8"), ("words", "<u4", (8,)), ("placed", "<i8")]
)

#: One buffer: its flow and command, its bytes and its number of pieces; and one of those: where it is, and the buffer's
#: length up to its end.
DDP_BUFFER = np.dtype([("active", "<i4"), ("flow", "<i4"), ("command", "<i4"), ("pieces", "<i4"), ("length", "<i8")])
DDP_PIECE = np.dtype([("address", "<u8"), ("end", "<i8")])


class DdpArrays(Arrays):
    """What the packet path works on; `ddp_rest` is what is left of a packet, `placements` what was taken out of it."""

    ddp: npt.NDArray[np.void]
    ddp_flows: npt.NDArray[np.void]
    ddp_trackers: npt.NDArray[np.void]
    ddp_index: npt.NDArray[np.int32]
    ddp_buffers: npt.NDArray[np.void]
    ddp_pieces: npt.NDArray[np.void]
    ddp_rest: npt.NDArray[np.uint8]
    placements: npt.NDArray[np.void]


def ddp_arrays(
    flows: int, longest: int
) -> dict[str, npt.NDArray[np.void] | npt.NDArray[np.int32] | npt.NDArray[np.uint8]]:
    """Those of a NIC that follows so many flows (0: it has not the option); packets have `longest` bytes at most."""
    buffers = MAX_DDP_BUFFERS if flows else 0
    return {
        "ddp": np.zeros(1, DDP),
        "ddp_flows": np.zeros(flows, DDP_FLOW),
        "ddp_trackers": np.zeros(flows, TRACKER),
        # By flow and command the buffer's number, from 1; memory that is not touched costs nothing.
        "ddp_index": np.zeros((flows, 1 << 16), np.int32),
        "ddp_buffers": np.zeros(buffers, DDP_BUFFER),
        "ddp_pieces": np.zeros((buffers, MAX_DDP_PIECES), DDP_PIECE),
        "ddp_rest": np.zeros(longest if flows else 0, np.uint8),
        "placements": np.zeros(MAX_PLACEMENTS if flows else 0, PLACEMENT),
    }
