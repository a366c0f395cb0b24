"""What ethtool shows, and what it sets while the interface is down, which must hold once it is up."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from lab import LINK0, Lab, active, ethtool, wait_until
from streams import ENOUGH, STREAM_PORT, Traffic

pytestmark = pytest.mark.guest


@pytest.fixture
def as_always(lab: Lab) -> Lab:
    """The first interface with the settings that tests of traffic choose among."""
    lab.split(LINK0, False)
    ethtool(lab, LINK0, "-X", "default")
    return lab


@pytest.fixture
def down(as_always: Lab) -> Iterator[Lab]:
    """The first interface is down during the test."""
    lab = as_always
    lab.run("ip link set eth0 down")
    yield lab
    lab.run(f"ip link set eth0 up; ip addr replace {LINK0.address6}/64 dev eth0 nodad")
    lab.await_carrier(LINK0)


def shown(lab: Lab, option: str, pattern: str) -> list[str]:
    """What a pattern finds in ethtool's output."""
    return re.findall(pattern, ethtool(lab, LINK0, option), re.MULTILINE)


def check_what_is_shown(lab: Lab) -> None:
    """Each of ethtool's questions, and the answer by the profile of the NIC."""
    bus = lab.run("basename $(readlink /sys/class/net/eth0/device)").stdout.strip()
    info = ethtool(lab, LINK0, "-i")
    assert info.startswith("driver: gve\n") and f"bus-info: {bus}\n" in info
    assert shown(lab, "-l", r"^[RT]X:\s+(\d+)$") == ["8", "8", "4", "4"]
    assert shown(lab, "-g", r"^[RT]X:\s+(\d+)$") == ["4096", "4096", "1024", "1024"]
    assert shown(lab, "-g", r"^(?:RX Buf Len|TCP data split):\s+(\w+)$") == ["4096", "off"]
    assert shown(lab, "-x", r"^\s+0:\s+(.*)$") == ["0     1     2     3     0     1     2     3"]
    assert shown(lab, "-x", r"^    (\w+): on$") == ["toeplitz"]
    assert shown(lab, "-c", r"^[rt]x-usecs:\s+(\d+)$") == ["20", "50"]
    features = ethtool(lab, LINK0, "-k")
    for feature in ("tcp-segmentation-offload", "rx-gro-hw", "receive-hashing", "rx-checksumming", "scatter-gather"):
        assert f"{feature}: on\n" in features
    assert "ntuple-filters: off\n" in features
    assert "Total 0 rules" in ethtool(lab, LINK0, "-n")
    assert "hardware-receive" in ethtool(lab, LINK0, "-T")
    statistics = shown(lab, "-S", r"^ +(\S+): \d+$")
    assert {"rx_packets", "tx_bytes", "tx_timeouts", "adminq_cmd_fail"} <= set(statistics)
    assert {"rx_no_buffers_posted[3]", "tx_event_counter[3]"} <= set(statistics)
    assert shown(lab, "--show-priv-flags", r"^report-stats\s*: (\w+)$") == ["off"]
    lab.run("ethtool --set-tunable eth0 rx-copybreak 512")
    assert lab.run("ethtool --get-tunable eth0 rx-copybreak").stdout.strip() == "rx-copybreak: 512"
    lab.run("ethtool --set-tunable eth0 rx-copybreak 256; ethtool -s eth0 msglvl 7")
    assert "0x00000007" in ethtool(lab, LINK0, "")
    # What gve has no function for (gve_ethtool.c, gve_ethtool_ops): a dump of registers, self-tests, EEPROM, EEE.
    for option in ("-d", "-t", "-e", "--show-eee", "-a"):
        assert "not supported" in lab.run(f"ethtool {option} eth0", check=False).stderr, option


def test_what_is_shown(as_always: Lab) -> None:
    check_what_is_shown(as_always)


def test_what_is_shown_while_down(down: Lab) -> None:
    check_what_is_shown(down)
    assert "Link detected: no" in ethtool(down, LINK0, "")


def test_statistics_of_the_driver_on_request(traffic: Traffic) -> None:
    """With the flag report-stats the driver adds its own half of the report, and the device goes on with the other."""
    lab = traffic.lab
    try:
        ethtool(lab, LINK0, "--set-priv-flags", "report-stats on")
        assert shown(lab, "--show-priv-flags", r"^report-stats\s*: (\w+)$") == ["on"]
        traffic.goes_on()
    finally:
        ethtool(lab, LINK0, "--set-priv-flags", "report-stats off")
    traffic.goes_on()


def test_a_reset_while_down(traffic: Traffic) -> None:
    """Nothing starts by it, and the interface comes up afterwards."""
    lab = traffic.lab
    lab.run("ip link set eth0 down")
    try:
        verified = lab.report(LINK0)["admin"]["VERIFY_DRIVER_COMPATIBILITY PASSED"]
        ethtool(lab, LINK0, "--reset", "all")
        report = lab.report(LINK0)
        assert report["admin"]["VERIFY_DRIVER_COMPATIBILITY PASSED"] == verified + 1
        assert active(lab, LINK0, "rx") == active(lab, LINK0, "tx") == []
    finally:
        lab.run(f"ip link set eth0 up; ip addr replace {LINK0.address6}/64 dev eth0 nodad")
        lab.await_carrier(LINK0)
    traffic.goes_on()


def test_all_that_can_be_set_while_down(traffic: Traffic) -> None:
    """*Steps*: every setting with the interface down; up; everything back, with it down again.
    *Verify*: nothing reaches the device's queues before; then all of it does, and the streams go on.
    """
    lab = traffic.lab

    def up() -> None:
        lab.run(f"ip link set eth0 up; ip addr replace {LINK0.address6}/64 dev eth0 nodad")
        lab.await_carrier(LINK0)

    lab.run("ip link set eth0 down")
    try:
        ethtool(lab, LINK0, "-L", "rx 3 tx 2")
        ethtool(lab, LINK0, "-G", "rx 512 tx 256 rx-buf-len 2048 tcp-data-split on")
        ethtool(lab, LINK0, "-C", "rx-usecs 40 tx-usecs 60")
        ethtool(lab, LINK0, "-K", "rx-gro-hw off ntuple on")
        ethtool(lab, LINK0, "-X", "weight 0 1 1")
        ethtool(lab, LINK0, "-N", f"flow-type tcp4 src-port {STREAM_PORT} action 2 loc 9")
        assert active(lab, LINK0, "rx") == active(lab, LINK0, "tx") == []
        up()
        before = lab.report(LINK0)
        assert (active(lab, LINK0, "rx"), active(lab, LINK0, "tx")) == ([0, 1, 2], [0, 1])
        for queue in before["rx_queues"][:3]:
            expected = {"buffer_entries": 512, "buffer_size": 2048, "header_size": 128, "rsc": 0}
            assert {name: queue[name] for name in expected} == expected
        assert before["tx_queues"][0]["entries"] == 256
        assert shown(lab, "-x", r"^\s+0:\s+(.*)$") == ["1     1     1     1     1     1     1     1"]
        assert [rule["location"] for rule in before["rules"]] == [9]
        traffic.goes_on()
        after = lab.report(LINK0)
        moved = [new["bytes"] - old["bytes"] for new, old in zip(after["rx_queues"], before["rx_queues"], strict=True)]
        assert moved[2] > ENOUGH and moved[2] > 0.9 * sum(moved)
        intervals = set(after["vectors"]["interval"])
        assert {40_000, 60_000} <= intervals
    finally:
        lab.run("ip link set eth0 down")
        ethtool(lab, LINK0, "-K", "rx-gro-hw on ntuple off")
        ethtool(lab, LINK0, "-X", "default")
        ethtool(lab, LINK0, "-C", "rx-usecs 20 tx-usecs 50")
        ethtool(lab, LINK0, "-G", "rx 1024 tx 1024 rx-buf-len 4096 tcp-data-split off")
        ethtool(lab, LINK0, "-L", "rx 4 tx 4")
        up()
    assert active(lab, LINK0, "rx") == active(lab, LINK0, "tx") == [0, 1, 2, 3]
    wait_until(lambda: lab.report(LINK0)["rules"] == [])
    traffic.goes_on()
