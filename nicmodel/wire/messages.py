"""Many datagrams by one system call: recvmmsg(2) and sendmmsg(2), and the structures they take.

One message is one frame. A message points at its pieces (iovec), so that the frames of a batch leave from where they
lie.
"""

from __future__ import annotations

import numpy as np

#: struct iovec.
PIECE = np.dtype([("base", "<i8"), ("length", "<i8")])

#: struct mmsghdr; `received` is the kernel's answer, the bytes of this message.
MESSAGE = np.dtype(
    [
        ("name", "<i8"),
        ("name_length", "<i8"),
        ("pieces", "<i8"),
        ("piece_count", "<i8"),
        ("control", "<i8"),
        ("control_length", "<i8"),
        ("flags", "<i8"),
        ("received", "<i8"),
    ]
)

#: Messages for one system call.
BURST = 64


class Messages:
    """Messages of `pieces` pieces and `control` bytes of control data each, all addressed.

    Attributes:
        messages: shape (BURST,), `MESSAGE`.
        pieces: shape (BURST, pieces), `PIECE`, to be pointed at memory by whoever uses them.
        control: shape (BURST, control), uint8.
    """

    def __init__(self, pieces: int = 1, control: int = 0) -> None:
        self.pieces = np.zeros((BURST, pieces), PIECE)
        self.control = np.zeros((BURST, control), np.uint8)
        self.messages = np.zeros(BURST, MESSAGE)
        self.messages["pieces"] = self.pieces.ctypes.data + np.arange(BURST) * self.pieces.strides[0]
        self.messages["piece_count"] = pieces
        if control:
            self.messages["control"] = self.control.ctypes.data + np.arange(BURST) * control
            self.messages["control_length"] = control
