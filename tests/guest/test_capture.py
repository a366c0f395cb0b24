"""A capture of a live NIC under a stock driver, read by tshark: queue, hash, direction and reason of every frame."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab import LINK0, LINK1, Lab, wait_until

from nicmodel.client.control import Control
from nicmodel.vm.packages import Packages, obtain
from nicmodel.vm.qemu import spawn

pytestmark = pytest.mark.guest

TSHARK = Packages("tshark", ("tshark",))
FIELDS = (
    "frame.interface_name", "frame.interface_description", "frame.interface_queue", "frame.packet_flags_direction",
    "frame.hash.value", "frame.comment", "frame.len",
)  # fmt: skip
INBOUND, OUTBOUND = "0x00000001", "0x00000002"
PORT = 5299


def tshark(file: Path, condition: str) -> list[dict[str, str]]:
    """The fields of the frames of a capture for which a display filter holds."""
    arguments = ["-r", str(file), "-Y", condition, "-T", "fields", "-E", "separator=,", "-E", "quote=d"]
    arguments += [word for field in FIELDS for word in ("-e", field)]
    command = obtain(TSHARK).command("usr/bin/tshark", *arguments)
    # Frames that tshark finds fault with say so on stderr, as does its opinion of root.
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    return [dict(zip(FIELDS, row, strict=True)) for row in csv.reader(text.splitlines())]


def test_tshark_reads_what_became_of_each_frame(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    nics = [f"nic{port.number}" for port in (LINK0, LINK1)]
    command = [sys.executable, "-m", "nicmodel.cli", "capture", "--control", str(lab.server.control), "-w", str(file)]
    lab.split(LINK1, True)
    lab.in_peer(f"ethtool -K eth1 ntuple on; ethtool -N eth1 flow-type udp4 dst-port {PORT} action 3 loc 7")
    capture = spawn(command, stderr=subprocess.PIPE, text=True)
    try:
        assert capture.stderr is not None and capture.stderr.readline() == "capturing\n"
        lab.run(f"for i in $(seq 20); do echo -n hello | socat -u - UDP:{LINK0.peer}:{PORT}; done", timeout=120)
        with Control(lab.server.control) as control:
            control.inject([bytes.fromhex("02ffffffffff") + bytes(54)], nics[1])
        wait_until(lambda: file.read_bytes().count(b"not_ours") > 0, 60)
        capture.send_signal(signal.SIGINT)
        assert capture.wait(60) == 0
    finally:
        capture.kill()
        capture.wait()
        lab.in_peer("ethtool -N eth1 delete 7")
        lab.split(LINK1, False)

    ours = f"udp.dstport == {PORT} && !icmp"  # nobody listens, so the peer sends some of them back
    received = tshark(file, f"{ours} && frame.packet_flags_direction == 1")
    assert len(received) == 20, "each frame is there once"
    for frame in received:
        assert (frame["frame.interface_name"], frame["frame.interface_queue"]) == (f"{nics[1]}:rx3", "3")
        assert frame["frame.packet_flags_direction"] == INBOUND
        assert frame["frame.comment"] == "rule 7, split: header 42 + payload 5 bytes"
    assert len({frame["frame.hash.value"] for frame in received}) > 1, "each came from another port"

    sent = tshark(file, f"{ours} && frame.packet_flags_direction == 2")
    assert len(sent) == 20
    for frame in sent:
        assert frame["frame.interface_name"] == f"{nics[0]}:tx{frame['frame.interface_queue']}"
        assert frame["frame.packet_flags_direction"] == OUTBOUND and frame["frame.hash.value"] == ""
        assert frame["frame.comment"] == "checksum left to the wire"

    [dropped] = tshark(file, "eth.dst == 02:ff:ff:ff:ff:ff")
    assert dropped["frame.interface_name"] == f"{nics[1]}:wire" and dropped["frame.comment"] == "dropped: not_ours"
    assert dropped["frame.interface_description"].startswith("link") and dropped["frame.len"] == "60"
