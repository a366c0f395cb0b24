"""What ethtool shows, and what it sets while the interface is down, which must hold once it is up.

With gve alone: statistics on request, and a reset, for which idpf has no functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab import LINK0, STOCK, Cable, Lab, Port, active, add_address6, ethtool, on_each_device, wait_until
from streams import ENOUGH, STREAM_PORT, Traffic

pytestmark = pytest.mark.guest


@pytest.fixture
def as_always(lab: Lab, cable: Cable) -> Lab:
    """The first interface with the settings that tests of traffic choose among."""
    lab.split(cable.here, cable.device == "idpf")
    ethtool(lab, cable.here, "-X", "default")
    return lab


@pytest.fixture
def down(as_always: Lab, cable: Cable) -> Iterator[Lab]:
    """The first interface is down during the test."""
    lab, here = as_always, cable.here
    lab.run(f"ip link set {here.interface} down")
    yield lab
    bring_up(lab, here)


def bring_up(lab: Lab, port: Port) -> None:
    lab.run(f"ip link set {port.interface} up")
    add_address6(lab.guest, port)
    lab.await_carrier(port)


def shown(lab: Lab, port: Port, option: str, pattern: str) -> list[str]:
    """What a pattern finds in ethtool's output."""
    return re.findall(pattern, ethtool(lab, port, option), re.MULTILINE)


#: By a pattern for what ethtool shows with an option, what it finds.
ANSWERS = {
    "gvnic": {
        ("-l", r"^[RT]X:\s+(\d+)$"): ["8", "8", "4", "4"],
        ("-g", r"^[RT]X:\s+(\d+)$"): ["4096", "4096", "1024", "1024"],
        ("-g", r"^(?:RX Buf Len|TCP data split):\s+(\w+)$"): ["4096", "off"],
        ("-x", r"^\s+0:\s+(.*)$"): ["0     1     2     3     0     1     2     3"],
        ("-x", r"^    (\w+): on$"): ["toeplitz"],
        ("-c", r"^[rt]x-usecs:\s+(\d+)$"): ["20", "50"],
        ("-n", r"^Total (\d+) rules$"): ["0"],
        ("-T", r"(hardware-receive)$"): ["hardware-receive"],
    },
    "idpf": {
        ("-l", r"^(?:[RT]X|Combined):\s+(\d+)$"): ["8", "16", "8", "0", "0", "2"],
        ("-g", r"^[RT]X:\s+(\d+)$"): ["8128", "8160", "512", "512"],
        ("-g", r"^TCP data split:\s+(\w+)$"): ["on"],
        ("-x", r"^\s+0:\s+(.*)$"): ["0     1     0     1     0     1     0     1"],
        ("-x", r"^    (\w+): on$"): ["toeplitz"],
        ("-c", r"^[rt]x-usecs:\s+(\d+)$"): ["50", "50"],
        ("-n", r"^Total (\d+) rules$"): ["0"],
    },
}
#: With the interface down idpf has no queues whose intervals it could tell (idpf_ethtool.c, idpf_get_q_coalesce).
ANSWERS_DOWN = {"gvnic": {}, "idpf": {("-c", r"^[rt]x-usecs:\s+(\d+)$"): ["0", "0"]}}
FEATURES = ("tcp-segmentation-offload", "tx-udp-segmentation", "receive-hashing", "rx-checksumming", "scatter-gather")
#: Whether a feature is on at first, where the drivers differ.
AT_FIRST = {"gvnic": {"rx-gro-hw": "on", "ntuple-filters": "off"}, "idpf": {"rx-gro-hw": "off", "ntuple-filters": "on"}}
STATISTICS = {
    "gvnic": {
        "rx_packets",
        "tx_bytes",
        "tx_timeouts",
        "adminq_cmd_fail",
        "rx_no_buffers_posted[3]",
        "tx_event_counter[3]",
    },
    "idpf": {"rx-csum_errors", "rx-hsplit", "rx-bad_descs", "tx-busy_events", "rx-unicast_pkts", "tx_q-1_pkts"},
}


def check_what_is_shown(lab: Lab, port: Port, *, down: bool = False) -> None:
    """Each of ethtool's questions, and the answer by the profile of the NIC."""
    device = port.device
    bus = lab.run(f"basename $(readlink /sys/class/net/{port.interface}/device)").stdout.strip()
    info = ethtool(lab, port, "-i")
    assert info.startswith(f"driver: {STOCK[device].module}\n") and f"bus-info: {bus}\n" in info
    for question, answer in {**ANSWERS[device], **(ANSWERS_DOWN[device] if down else {})}.items():
        assert shown(lab, port, *question) == answer, question
    features = ethtool(lab, port, "-k")
    for feature, state in {**dict.fromkeys(FEATURES, "on"), **AT_FIRST[device]}.items():
        assert f"{feature}: {state}\n" in features
    assert STATISTICS[device] <= set(shown(lab, port, "-S", r"^ +(\S+): \d+$"))
    # What neither driver has a function for: a dump of registers, self-tests, EEPROM, EEE, pause frames.
    for option in ("-d", "-t", "-e", "--show-eee", "-a"):
        assert "not supported" in lab.run(f"ethtool {option} {port.interface}", check=False).stderr, option


def check_settings_of_gve(lab: Lab) -> None:
    """Private flags, tunables and the level of its messages, which idpf does not have, or not to be set."""
    assert shown(lab, LINK0, "--show-priv-flags", r"^report-stats\s*: (\w+)$") == ["off"]
    lab.run("ethtool --set-tunable eth0 rx-copybreak 512")
    assert lab.run("ethtool --get-tunable eth0 rx-copybreak").stdout.strip() == "rx-copybreak: 512"
    lab.run("ethtool --set-tunable eth0 rx-copybreak 256; ethtool -s eth0 msglvl 7")
    assert "0x00000007" in ethtool(lab, LINK0, "")


@on_each_device
def test_what_is_shown(as_always: Lab, cable: Cable) -> None:
    check_what_is_shown(as_always, cable.here)
    if cable.device == "gvnic":
        check_settings_of_gve(as_always)


@on_each_device
def test_what_is_shown_while_down(down: Lab, cable: Cable) -> None:
    check_what_is_shown(down, cable.here, down=True)
    if cable.device == "gvnic":
        check_settings_of_gve(down)
    assert "Link detected: no" in ethtool(down, cable.here, "")


def test_statistics_of_the_driver_on_request(traffic: Traffic) -> None:
    """With the flag report-stats the driver adds its own half of the report, and the device goes on with the other."""
    lab = traffic.lab
    try:
        ethtool(lab, LINK0, "--set-priv-flags", "report-stats on")
        assert shown(lab, LINK0, "--show-priv-flags", r"^report-stats\s*: (\w+)$") == ["on"]
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
        bring_up(lab, LINK0)
    traffic.goes_on()


@dataclass(frozen=True)
class WhileDown:
    """Settings that a driver takes while its interface is down, and how the device is afterwards.

    Attributes:
        settings: options of ethtool and their words, one of them with a rule for the streams that leads to queue 2.
        rx: receive queues.
        tx: transmit queues.
        queue: fields of each receive queue.
        entries: of a transmit queue's ring.
        intervals: of interrupts, ns.
        undo: options that have all be as it was.
    """

    settings: tuple[tuple[str, str], ...]
    rx: int
    tx: int
    queue: dict[str, int]
    entries: int
    undo: tuple[tuple[str, str], ...]
    intervals: frozenset[int] = frozenset()


RULE = ("-N", f"flow-type tcp4 src-port {STREAM_PORT} action 2 loc 9")
WHILE_DOWN = {
    "gvnic": WhileDown(
        settings=(
            ("-L", "rx 3 tx 2"),
            ("-G", "rx 512 tx 256 rx-buf-len 2048 tcp-data-split on"),
            ("-C", "rx-usecs 40 tx-usecs 60"),
            ("-K", "rx-gro-hw off ntuple on"),
            ("-X", "weight 0 1 1"),
            RULE,
        ),
        rx=3,
        tx=2,
        queue={"buffer_entries": 512, "buffer_size": 2048, "header_size": 128, "rsc": 0},
        entries=256,
        intervals=frozenset({40_000, 60_000}),
        undo=(
            ("-K", "rx-gro-hw on ntuple off"),
            ("-X", "default"),
            ("-C", "rx-usecs 20 tx-usecs 50"),
            ("-G", "rx 1024 tx 1024 rx-buf-len 4096 tcp-data-split off"),
            ("-L", "rx 4 tx 4"),
        ),
    ),
    # Intervals are those of queues, which idpf has while it is up.
    "idpf": WhileDown(
        settings=(
            ("-L", "combined 3"),
            ("-G", "rx 320 tx 256 tcp-data-split off"),
            ("-X", "weight 0 1 1"),
            RULE,
        ),
        rx=3,
        tx=3,
        queue={"completion_entries": 320, "buffer_entries": 160, "header_size": 0, "rsc": 0},
        entries=256,
        undo=(
            ("-N", "delete 9"),
            ("-X", "default"),
            ("-G", "rx 512 tx 512 tcp-data-split on"),
            ("-L", "combined 2"),
        ),
    ),
}  # fmt: skip


@on_each_device
def test_all_that_can_be_set_while_down(traffic: Traffic) -> None:
    """*Steps*: every setting with the interface down; up; everything back, with it down again.
    *Verify*: nothing reaches the device's queues before; then all of it does, and the streams go on.
    """
    lab, here = traffic.lab, traffic.cable.here
    case, at_first = WHILE_DOWN[here.device], (active(lab, here, "rx"), active(lab, here, "tx"))
    lab.run(f"ip link set {here.interface} down")
    try:
        for option, words in case.settings:
            ethtool(lab, here, option, words)
        assert active(lab, here, "rx") == active(lab, here, "tx") == []
        bring_up(lab, here)
        before = lab.report(here)
        assert (active(lab, here, "rx"), active(lab, here, "tx")) == (list(range(case.rx)), list(range(case.tx)))
        for queue in before["rx_queues"][: case.rx]:
            assert {name: queue[name] for name in case.queue} == case.queue
        assert before["tx_queues"][0]["entries"] == case.entries
        assert shown(lab, here, "-x", r"^\s+0:\s+(.*)$") == ["1     1     1     1     1     1     1     1"]
        assert [rule["location"] for rule in before["rules"]] == [9]
        traffic.goes_on()
        after = lab.report(here)
        moved = [new["bytes"] - old["bytes"] for new, old in zip(after["rx_queues"], before["rx_queues"], strict=True)]
        assert moved[2] > ENOUGH and moved[2] > 0.9 * sum(moved)
        assert case.intervals <= set(after["vectors"]["interval"])
    finally:
        lab.run(f"ip link set {here.interface} down")
        for option, words in case.undo:
            ethtool(lab, here, option, words)
        bring_up(lab, here)
    assert (active(lab, here, "rx"), active(lab, here, "tx")) == at_first
    wait_until(lambda: lab.report(here)["rules"] == [])
    traffic.goes_on()
