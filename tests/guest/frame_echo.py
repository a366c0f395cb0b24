"""Send frames and wait for each to come back, its Ethernet addresses swapped. Runs in a guest, as a program.

Usage: frame_echo.py INTERFACE FILE, the file with one frame a line, in hexadecimal. Prints, as JSON, the frames that
did not come back as they should (``missing``), and those that came again (``twice``).
"""

import json
import select
import socket
import sys
import time
from collections import Counter

#: Frames on their way at once: no ring and no buffer on the way overflows.
WINDOW = 64
#: Seconds without any frame that are too many.
PATIENCE = 60
RECEIVE_BUFFER = 8 << 20


def swapped(frame: bytes) -> bytes:
    return frame[6:12] + frame[:6] + frame[12:]


def echo(interface: str, frames: list[bytes]) -> dict[str, list[str]]:
    expected, sent_frames = Counter(map(swapped, frames)), set(frames)
    twice = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as packets:  # ETH_P_ALL
        packets.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE
        packets.bind((interface, 0))
        sent = 0
        deadline = time.monotonic() + PATIENCE
        while expected and time.monotonic() < deadline:
            while sent < len(frames) and sent - (len(frames) - expected.total()) < WINDOW:
                packets.send(frames[sent])
                sent += 1
            if not select.select([packets], [], [], 1)[0]:
                continue
            frame, (_, _, kind, _, _) = packets.recvfrom(1 << 16)
            if kind == socket.PACKET_OUTGOING:
                continue
            if expected[frame]:
                expected[frame] -= 1
                deadline = time.monotonic() + PATIENCE
                expected += Counter()  # drops what has all come
            elif swapped(frame) in sent_frames:
                twice.append(frame.hex())
    return {"missing": [frame.hex() for frame in expected.elements()], "twice": twice}


if __name__ == "__main__":
    with open(sys.argv[2]) as lines:
        print(json.dumps(echo(sys.argv[1], [bytes.fromhex(line) for line in lines])))
