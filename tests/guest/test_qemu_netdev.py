"""The wires that speak to QEMU's network back ends, against QEMU itself: it joins two of them, and no guest runs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nicmodel.packet.frames import MAX_FRAME, Batch
from nicmodel.vfio_user.poll import Poller
from nicmodel.vm.qemu import find_qemu, spawn
from nicmodel.vm.qmp import Qmp
from nicmodel.wire.spec import open_wire
from nicmodel.wire.wire import Wire

pytestmark = pytest.mark.guest


class Nic:
    """Takes frames."""

    def __init__(self, wire: Wire, poller: Poller) -> None:
        self.wire = wire
        self.poller = poller
        self.received: list[bytes] = []
        wire.start(poller, self.received.extend, lambda: None, lambda: None)

    def send(self, frames: list[bytes]) -> None:
        batch = Batch.of(frames, headroom=self.wire.headroom)
        while not self.wire.send(batch):
            self.poller.run_once(1)


def test_dgram_and_stream(tmp_path: Path) -> None:
    """Steps: a hub in QEMU joins `-netdev dgram` and `-netdev stream`; frames of all lengths go each way.
    Verify: all arrive, in order.
    """
    ours, theirs, stream = (str(tmp_path / name) for name in ("ours", "theirs", "stream"))
    poller = Poller()
    a = Nic(open_wire(f"dgram:local={ours},remote={theirs}"), poller)
    b = Nic(open_wire(f"stream:listen={stream}"), poller)
    qemu = find_qemu()
    monitor, control = socket.socketpair()
    arguments = (
        "-machine", "none", "-nodefaults", "-display", "none", "-S",
        "-chardev", f"socket,id=monitor,fd={control.fileno()}", "-mon", "chardev=monitor,mode=control",
        "-netdev", f"dgram,id=a,local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}",
        "-netdev", f"stream,id=b,server=off,addr.type=unix,addr.path={stream}",
        "-netdev", "hubport,id=ha,hubid=0,netdev=a", "-netdev", "hubport,id=hb,hubid=0,netdev=b",
    )  # fmt: skip
    frames = [bytes([length % 251]) * length for length in (60, 61, 1514, 9014, MAX_FRAME - 8)] * 3
    with (
        control,
        spawn([*qemu.command, *arguments], qemu.environment, pass_fds=[control.fileno()]) as process,
    ):
        try:
            while not b.wire.up:
                assert poller.run_once(20), "QEMU does not connect"
            qmp = Qmp(monitor, lambda _: None)
            qmp.execute("cont")  # until it runs, QEMU holds frames back
            qmp.close()
            for sender, receiver in ((a, b), (b, a)):
                for frame in frames:  # one by one: QEMU drops what finds no room
                    before = len(receiver.received)
                    sender.send([frame])
                    while len(receiver.received) == before:
                        assert poller.run_once(10), f"{len(frame)} bytes got lost"
                assert receiver.received == frames
        finally:
            process.terminate()
            for nic in (a, b):
                nic.wire.stop()
            poller.close()
