"""A live NIC under a stock driver, looked into and acted on by the control socket."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab import LINK0, LINK1, Lab, wait_until

from nicmodel.client.control import Control
from nicmodel.vm.qemu import spawn

pytestmark = pytest.mark.guest

NIC = f"nic{LINK0.number}"
#: What gve asks for between its probe and the first packet, in this order; more may come between.
BRING_UP = (
    "VERIFY_DRIVER_COMPATIBILITY", "DESCRIBE_DEVICE", "CONFIGURE_DEVICE_RESOURCES", "GET_PTYPE_MAP", "CREATE_TX_QUEUE",
    "CREATE_RX_QUEUE",
)  # fmt: skip


def ping(lab: Lab) -> None:
    lab.run(f"ping -q -c 3 -i 0.01 -w 20 {LINK0.peer}", timeout=120)


def trace(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    """`nicmodel trace` of the first NIC; it is tracing when this returns."""
    command = [sys.executable, "-m", "nicmodel.cli", "trace", "--control", str(lab.server.control), "--nic", NIC]
    process = spawn([*command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "tracing\n"
    return process


def test_a_pulled_cable_is_no_carrier(lab: Lab) -> None:
    def state() -> str:
        return lab.run(f"ip link show {LINK0.interface}").stdout

    with Control(lab.server.control) as control:
        assert control.set_link(False, NIC) is False
        try:
            wait_until(lambda: "NO-CARRIER" in state())
            [frame] = control.inject([bytes(60)], NIC)
            assert frame == {"verdict": "device_down"}
        finally:
            assert control.set_link(True, NIC) is True
        wait_until(lambda: "LOWER_UP" in state())
    ping(lab)


def test_a_reset_that_the_device_asks_for(lab: Lab, tmp_path: Path) -> None:
    """The driver lets go of everything, sets up again, and traffic passes; the trace shows each step."""
    file = tmp_path / "trace.json"
    process = trace(lab, "--json", "--kind", "admin", "--kind", "reset", "--kind", "register", "-o", str(file))
    try:
        with Control(lab.server.control) as control:
            before = control.show(NIC)
            control.request_reset(NIC)
            wait_until(lambda: "CREATE_RX_QUEUE" in file.read_text())
            lab.await_carrier(LINK0)
            ping(lab)
            after = control.show(NIC)
    finally:
        process.terminate()
        process.wait(120)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    [asked] = [event for event in events if event["kind"] == "reset"]
    assert asked["what"] == "requested of the driver"
    assert any(event.get("register") == "device_status" and "reset" in event["flags"] for event in events)
    commands = [event for event in events if event["kind"] == "admin"]
    assert {event["status"] for event in commands} == {"PASSED"}
    assert set(BRING_UP) - {"DESCRIBE_DEVICE"} <= {event["command"] for event in commands}
    assert after["queues"].keys() == before["queues"].keys()
    assert after["registers"]["device_status_flags"] == ["link_up"]


def test_the_ladder_of_a_driver(lab: Lab) -> None:
    """*Steps*: unload the driver, load it, ping. *Verify*: the life that has ended ended cleanly; in the new one every
    step is taken, by the stock driver's own ways, and the features are seen that it uses by itself.
    """
    with Control(lab.server.control) as control:
        before = control.bringup(NIC)
        assert before["at_work"]
        lab.run("rmmod gve; ip netns del peer")
        gone = control.bringup(NIC)
        assert not gone["at_work"]
        last = gone["lives"][0]
        assert last["number"] == before["lives"][0]["number"]
        assert last["ended"]["how"] == "the driver released the admin queue"
        assert {step["name"]: step["stage"] for step in last["steps"]}["removal"] == "reached"
        lab.set_up()
        lab.run(f"ping -q -c 200 -i 0.01 -w 60 {LINK0.peer}", timeout=120)  # buffers come back 32 at a time
        life = control.bringup(NIC)["lives"][0]
    assert life["number"] == last["number"] + 1
    assert life["stands"] is None, life
    stages = {step["name"]: step["stage"] for step in life["steps"]}
    way = {step["name"] for step in life["steps"] if step["need"] != "feature"}
    assert {name for name in way if stages[name] != "reached"} == set()
    used = {name for name, stage in stages.items() if stage == "reached"} - way
    assert {"rss", "statistics", "moderation", "timestamps"} <= used
    assert not {"removal", "flow_rules", "jumbo"} & used
    assert life["system"].startswith("LINUX") and life["driver"].startswith("GVE-")
    assert life["queue_format"] == "DQO_RDA" and not [one for one in life["problems"] if "refused" in one]


def test_a_probe_traced(lab: Lab, tmp_path: Path) -> None:
    """Load the driver and pass packets: commands by name in the order of the driver's source, packets decoded."""
    lab.run("rmmod gve; ip netns del peer")
    file = tmp_path / "trace.txt"
    process = trace(lab, "-o", str(file))
    try:
        lab.set_up()
        ping(lab)
    finally:
        process.terminate()
        process.wait(120)
    said = file.read_text()
    places = [said.index(f" {NIC} admin     {name} PASSED") for name in BRING_UP]
    assert places == sorted(places)
    assert "os_type=1" in said and "queue_format=DQO_RDA" in said
    assert re.search(r"register  write driver_status value=0x1 flags=run", said)
    assert re.search(r"doorbell  rx0 tail=\d+", said)
    assert re.search(r"rx +rx\d delivered length=98 .*protocol=IPV4/ICMP", said)
    assert re.search(r"buffer \d+: .*buffer_address=0x", said)
    assert re.search(r"descriptor \d+: type=PACKET .*end_of_packet=1", said)
    assert re.search(r"completion \d+: rxdid=1 .*packet_length=98", said)
    assert re.search(r"interrupt rx\d vector=", said)
    assert "UNIMPLEMENTED" not in said
    assert LINK1.interface not in lab.run("ip -br link").stdout
