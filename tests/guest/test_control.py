"""Every knob that a driver offers, turned while traffic runs: the traffic must go on, and the device must follow.

What both drivers have runs with both. The others are gve's: buffers' lengths, rules of every type, which idpf has for
TCP and UDP over IPv4 only, counters by ethtool, its own reset.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from contextlib import ExitStack

import pytest
from lab import LINK0, LINK1, Cable, Lab, Port, active, add_address6, ethtool, on_each_device, wait_until
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet
from streams import ENOUGH, STREAM_PORT, Traffic

pytestmark = pytest.mark.guest

#: The largest coalescing interval that the driver takes, µs: 12 bits of 2 µs each.
LONGEST_INTERVAL = 8190


@on_each_device
def test_down_and_up(traffic: Traffic) -> None:
    lab, here = traffic.lab, traffic.cable.here
    for _ in range(3):
        lab.run(f"ip link set {here.interface} down")
        assert active(lab, here, "rx") == active(lab, here, "tx") == []
        lab.run(f"ip link set {here.interface} up")
        add_address6(lab.guest, here)
        lab.await_carrier(here)
        traffic.goes_on()


#: What ethtool -L is told, and the queues that there are then; the last is what the driver begins with. idpf has pairs.
QUEUES = {
    "gvnic": [(f"rx {rx} tx {tx}", rx, tx) for rx, tx in ((8, 8), (1, 1), (2, 5), (7, 3), (4, 4))],
    "idpf": [(f"combined {count}", count, count) for count in (8, 1, 2)],
}


@on_each_device
def test_numbers_of_queues(traffic: Traffic) -> None:
    lab, here = traffic.lab, traffic.cable.here
    try:
        for setting, rx, tx in QUEUES[here.device]:
            ethtool(lab, here, "-L", setting)
            lab.await_carrier(here)
            assert active(lab, here, "rx") == list(range(rx))
            assert active(lab, here, "tx") == list(range(tx))
            traffic.goes_on()
    finally:
        ethtool(lab, here, "-L", QUEUES[here.device][-1][0])


#: Receive and transmit descriptors of a queue; the last is what the driver begins with. gve's are powers of two, idpf's
#: multiples of 64 and of 32.
RINGS = {
    "gvnic": [(256, 256), (4096, 256), (512, 4096), (1024, 1024)],
    "idpf": [(192, 160), (8128, 8160), (512, 512)],
}


@on_each_device
def test_sizes_of_rings(traffic: Traffic) -> None:
    lab, here = traffic.lab, traffic.cable.here
    try:
        for rx, tx in RINGS[here.device]:
            ethtool(lab, here, "-G", f"rx {rx} tx {tx}")
            lab.await_carrier(here)
            report = lab.report(here)
            # Each of idpf's two buffer queues has half as many.
            ring = "buffer_entries" if here.device == "gvnic" else "completion_entries"
            assert report["rx_queues"][0][ring] == rx
            assert report["tx_queues"][0]["entries"] == tx
            traffic.goes_on()
    finally:
        ethtool(lab, here, "-G", "rx {} tx {}".format(*RINGS[here.device][-1]))


def test_receive_buffers_and_header_split(traffic: Traffic) -> None:
    lab = traffic.lab
    try:
        for length, split in ((2048, "on"), (2048, "off"), (4096, "on"), (4096, "off")):
            ethtool(lab, LINK0, "-G", f"rx-buf-len {length} tcp-data-split {split}")
            before = lab.report(LINK0)["rx_queues"]
            assert before[0]["buffer_size"] == length
            assert (before[0]["header_size"] > 0) == (split == "on")
            traffic.goes_on()
            after = lab.report(LINK0)["rx_queues"]
            counted = sum(now["split"] - then["split"] for now, then in zip(after, before, strict=True))
            assert (counted > 0) == (split == "on")
    finally:
        ethtool(lab, LINK0, "-G", "rx-buf-len 4096")
        lab.split(LINK0, False)


def hash_of(key: bytes, source: str, destination: str, sport: int, dport: int) -> int:
    """Toeplitz by its definition: for every set bit of addresses and ports, the 32 bits of the key from there on."""
    message = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(">HH", sport, dport)
    window = int.from_bytes(key, "big")
    result = 0
    for position in range(8 * len(message)):
        if message[position // 8] & 0x80 >> position % 8:
            result ^= window >> (8 * len(key) - 32 - position) & 0xFFFFFFFF
    return result


def indirection(lab: Lab, port: Port) -> tuple[list[int], bytes]:
    """Table and key, as the driver shows them."""
    shown = ethtool(lab, port, "-x")
    rows = re.findall(r"^ +\d+:((?: +\d+)+)$", shown, re.MULTILINE)
    key = re.search(r"^RSS hash key:\n([0-9a-f:]+)$", shown, re.MULTILINE)
    assert key
    return [int(entry) for row in rows for entry in row.split()], bytes.fromhex(key[1].replace(":", ""))


#: Settings of a table for four queues, and for two.
TABLES = {"gvnic": ("equal 2", "weight 1 0 3 0", "start 1 equal 3"), "idpf": ("weight 1 3", "start 1 equal 1")}


@on_each_device
def test_rss_follows_table_and_key(lab: Lab, cable: Cable) -> None:
    """Datagrams of 64 flows land on the queues that table and key, as the driver shows them, say."""
    here, there = cable.here, cable.there
    flows, repeats = 64, 20
    base, dport = 20000, 7777
    program = (
        "import socket, time\n"
        f"for port in range({base}, {base + flows}):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:\n"
        "        sender.bind(('', port))\n"
        f"        for _ in range({repeats}): sender.sendto(bytes(20), ('{here.address}', {dport}))\n"
        "    time.sleep(0.01)\n"
    )

    def received() -> list[int]:
        return [queue["frames"] for queue in lab.report(here)["rx_queues"]]

    def spread() -> list[int]:
        """Send; frames that came to each queue, but for the few that others send, in multiples of `repeats`."""
        before = received()
        lab.run(["ip", "netns", "exec", "peer", "python3", "-c", program], timeout=120)
        wait_until(lambda: sum(received()) - sum(before) >= flows * repeats)
        return [(now - then) // repeats for now, then in zip(received(), before, strict=True)]

    sink = lab.guest.start(f"exec socat -u UDP-RECV:{dport} OPEN:/dev/null")
    key = ":".join(f"{byte:02x}" for byte in range(0x11, 0x11 + 40))
    try:
        default = indirection(lab, here)
        for setting in (*TABLES[here.device], f"hkey {key}", "default"):
            ethtool(lab, here, "-X", setting)
            table, shown_key = indirection(lab, here)
            assert len(table) == 128
            expected = [0] * 8
            for port in range(base, base + flows):
                expected[table[hash_of(shown_key, there.address, here.address, port, dport) % 128]] += 1
            assert spread() == expected, setting
            if setting == "equal 2":
                assert set(table) == {0, 1}
            elif setting.startswith("weight"):
                assert (table.count(0), table.count(1) + table.count(2)) == (32, 96)
            elif setting.startswith("hkey"):
                assert shown_key.hex(":") == key
        assert table == default[0]
    finally:
        ethtool(lab, here, "-X", "default")
        ethtool(lab, here, "-X", f"hkey {default[1].hex(':')}")
        sink.kill()


def test_rss_under_traffic(traffic: Traffic) -> None:
    lab = traffic.lab
    try:
        for setting, allowed in (("equal 1", {0}), ("start 2 equal 2", {2, 3}), ("weight 0 1 0 0", {1})):
            ethtool(lab, LINK0, "-X", setting)
            before = lab.report(LINK0)["rx_queues"]
            traffic.goes_on()
            after = lab.report(LINK0)["rx_queues"]
            moved = {queue for queue in range(8) if after[queue]["bytes"] - before[queue]["bytes"] > 0}
            # What has no hash goes by the table's first entry, which each of these settings names too.
            assert moved and moved <= allowed, setting
    finally:
        ethtool(lab, LINK0, "-X", "default")
    traffic.goes_on()


def test_interrupt_coalescing(traffic: Traffic) -> None:
    """With the longest interval, no vector fires more often than once in it, whatever the traffic."""
    lab = traffic.lab
    try:
        ethtool(lab, LINK0, "-C", f"rx-usecs {LONGEST_INTERVAL} tx-usecs {LONGEST_INTERVAL}")
        shown = ethtool(lab, LINK0, "-c")
        assert f"rx-usecs:\t{LONGEST_INTERVAL}" in shown and f"tx-usecs:\t{LONGEST_INTERVAL}" in shown
        started = time.monotonic()
        before = lab.report(LINK0)["interrupts"]
        traffic.goes_on()
        fired = [now - then for now, then in zip(lab.report(LINK0)["interrupts"], before, strict=True)]
        at_most = (time.monotonic() - started) / (LONGEST_INTERVAL * 1e-6) + 2
        assert 0 < max(fired) <= at_most
        ethtool(lab, LINK0, "-C", "rx-usecs 0 tx-usecs 0")
        traffic.goes_on()
    finally:
        ethtool(lab, LINK0, "-C", "rx-usecs 20 tx-usecs 50")
    traffic.goes_on()


def test_aggregation_by_the_device(traffic: Traffic) -> None:
    lab = traffic.lab
    try:
        ethtool(lab, LINK0, "-K", "rx-gro-hw off")
        before = lab.report(LINK0)["rx_queues"]
        assert not any(queue["rsc"] for queue in before)
        traffic.goes_on()
        after = lab.report(LINK0)["rx_queues"]
        assert [queue["aggregated"] for queue in after] == [queue["aggregated"] for queue in before]
    finally:
        ethtool(lab, LINK0, "-K", "rx-gro-hw on")
    assert all(queue["rsc"] for queue in lab.report(LINK0)["rx_queues"][:4])
    traffic.goes_on()


def test_segmentation(traffic: Traffic) -> None:
    """Without it, no packet that the driver hands over is longer than a frame."""
    lab = traffic.lab

    def packets_and_bytes() -> tuple[int, int]:
        queues = lab.report(LINK0)["tx_queues"]
        return sum(queue["packets"] for queue in queues), sum(queue["bytes"] for queue in queues)

    def mean_size() -> float:
        """Send 4 MB as fast as it goes, beside the streams."""
        packets, size = packets_and_bytes()
        lab.run(f"head -c 4000000 /dev/zero | socat -u -b 65536 - TCP:{LINK0.peer}:5501", timeout=120)
        packets_now, size_now = packets_and_bytes()
        return (size_now - size) / (packets_now - packets)

    lab.tcp_listen(5501, where="ip netns exec peer")
    largest_frame = 8896 + 14
    # On a busy machine TCP may send little at a time; and what was queued before is sent as it was.
    wait_until(lambda: mean_size() > largest_frame, timeout=300)
    try:
        ethtool(lab, LINK0, "-K", "tso off")
        wait_until(lambda: mean_size() <= largest_frame, timeout=300)
        traffic.goes_on()
    finally:
        ethtool(lab, LINK0, "-K", "tso on")
    traffic.goes_on()


def test_checksums_by_the_cpu(traffic: Traffic) -> None:
    """Neither the device's transmit checksums nor its verdicts on received ones."""
    lab = traffic.lab
    try:
        for port in (LINK0, LINK1):
            ethtool(lab, port, "-K", "tx off rx off")
            traffic.goes_on()
    finally:
        for port in (LINK0, LINK1):
            # Segmentation went off with the checksums it needs.
            ethtool(lab, port, "-K", "tx on rx on tso on tx-udp-segmentation on rx-gro-hw on")
    traffic.goes_on()


#: By ethtool's name of the flow type: further fields of the rule, how ethtool lists the rule's type, and a frame's
#: headers that match. The driver passes on neither TOS nor, for IPv6, the mask of the SPI.
FLOWS: dict[str, tuple[str, str, Packet]] = {
    "tcp4": ("src-port 7001 dst-port 7002", "TCP over IPv4", TCP(sport=7001, dport=7002, flags="R")),
    "udp4": ("src-port 7003 dst-port 7004", "UDP over IPv4", UDP(sport=7003, dport=7004)),
    "sctp4": ("src-port 7005 dst-port 7006", "SCTP over IPv4", SCTP(sport=7005, dport=7006)),
    "ah4": ("spi 7007", "IPSEC AH over IPv4", AH(spi=7007, icv=bytes(12), nh=17)),
    "esp4": ("spi 7008", "IPSEC ESP over IPv4", ESP(spi=7008, data=bytes(32))),
    "tcp6": ("src-port 7011 dst-port 7012", "TCP over IPv6", TCP(sport=7011, dport=7012, flags="R")),
    "udp6": ("src-port 7013 dst-port 7014", "UDP over IPv6", UDP(sport=7013, dport=7014)),
    "sctp6": ("src-port 7015 dst-port 7016", "SCTP over IPv6", SCTP(sport=7015, dport=7016)),
    "ah6": ("spi 7017", "IPSEC AH over IPv6", AH(spi=7017, icv=bytes(12), nh=17)),
    "esp6": ("spi 7018", "IPSEC ESP over IPv6", ESP(spi=7018, data=bytes(32))),
}  # fmt: skip


def listed(lab: Lab) -> dict[int, dict[str, str]]:
    """Flow rules as the driver lists them: fields by ethtool's names, by location."""
    rules: dict[int, dict[str, str]] = {}
    for part in ethtool(lab, LINK0, "-n").split("Filter: ")[1:]:
        location, *lines = part.splitlines()
        fields = (line.strip().partition(": ")[::2] for line in lines if ": " in line)
        rules[int(location)] = dict(fields)
    return rules


def send_raw(lab: Lab, frames: list[Packet]) -> None:
    """Put frames on the cable at LINK1, as they are."""
    program = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:\n"
        "    sender.bind(('eth1', 0))\n"
        "    for line in sys.stdin: sender.send(bytes.fromhex(line))\n"
    )
    lines = "".join(bytes(frame).hex() + "\n" for frame in frames)
    lab.run(["ip", "netns", "exec", "peer", "python3", "-c", program], input=lines.encode())


def addresses(flow: str) -> tuple[str, str]:
    """Source and destination of a flow over the cable to LINK0."""
    return (LINK0.peer6, LINK0.address6) if flow.endswith("6") else (LINK0.peer, LINK0.address)


def rule_hits(lab: Lab) -> dict[int, int]:
    """Frames that each rule has steered, by location."""
    return {rule["location"]: rule["hits"] for rule in lab.report(LINK0)["rules"]}


def await_hits(lab: Lab, expected: dict[int, int]) -> None:
    """Wait until the rules have just these hits: what was sent may still be on its way."""
    wait_until(lambda: rule_hits(lab) == expected, timeout=120, what=lambda: f"{rule_hits(lab)}, not {expected}")


def test_flow_rules_of_every_type(traffic: Traffic) -> None:
    """Added, listed as they were added, hit by the frames that match and by no other, deleted."""
    lab = traffic.lab
    rules: dict[str, int] = {}
    with ExitStack() as undo:
        ethtool(lab, LINK0, "-K", "ntuple on")
        undo.callback(ethtool, lab, LINK0, "-K", "ntuple off")
        for number, (flow, (fields, _, _)) in enumerate(FLOWS.items()):
            source, target = addresses(flow)
            rule = f"flow-type {flow} src-ip {source} dst-ip {target} {fields} action {number % 4}"
            said = ethtool(lab, LINK0, "-N", rule)
            added = re.search(r"Added rule with ID (\d+)", said)
            assert added, said
            rules[flow] = int(added[1])

        shown = listed(lab)
        assert set(shown) == set(rules.values())
        for number, (flow, (fields, kind, _)) in enumerate(FLOWS.items()):
            source, target = addresses(flow)
            exact = "::" if flow.endswith("6") else "0.0.0.0"
            expected = {
                "Rule Type": kind,
                "Src IP addr": f"{source} mask: {exact}",
                "Dest IP addr": f"{target} mask: {exact}",
                "Action": f"Direct to queue {number % 4}",
            }
            values = fields.split()[1::2]
            if len(values) == 2:
                expected |= {"Src port": f"{values[0]} mask: 0x0", "Dest port": f"{values[1]} mask: 0x0"}
            else:
                expected["SPI"] = f"{values[0]} mask: {'0xffffffff' if flow.endswith('6') else '0x0'}"
            assert {name: shown[rules[flow]][name] for name in expected} == expected

        frames: list[Packet] = []
        hits = {}
        for repeats, (flow, (_, _, headers)) in enumerate(FLOWS.items(), 1):
            source, target = addresses(flow)
            network = (IPv6 if flow.endswith("6") else IP)(src=source, dst=target)
            frames += [Ether(src=LINK1.mac, dst=LINK0.mac) / network / headers / bytes(50)] * repeats
            hits[rules[flow]] = repeats
        send_raw(lab, frames)
        await_hits(lab, hits)
        traffic.goes_on()

        for rule_location in rules.values():
            ethtool(lab, LINK0, "-N", f"delete {rule_location}")
        assert listed(lab) == {} and lab.report(LINK0)["rules"] == []
    traffic.goes_on()


def test_flow_rules_with_masks_and_replaced(lab: Lab) -> None:
    """Bits of a mask do not count (in ethtool's sense of the word); of several rules the first location wins, and a new
    rule at a location replaces the old.
    """

    def datagrams(*targets: tuple[int, int]) -> list[Packet]:
        ethernet, ip = Ether(src=LINK1.mac, dst=LINK0.mac), IP(src=LINK0.peer, dst=LINK0.address)
        return [ethernet / ip / UDP(sport=sport, dport=dport) / bytes(20) for sport, dport in targets]

    def frames() -> list[int]:
        return [queue["frames"] for queue in lab.report(LINK0)["rx_queues"][:4]]

    with ExitStack() as undo:
        ethtool(lab, LINK0, "-K", "ntuple on")
        undo.callback(ethtool, lab, LINK0, "-K", "ntuple off")
        ethtool(lab, LINK0, "-N", "flow-type udp4 src-ip 10.1.0.0 m 0.0.0.255 dst-port 0x1200 m 0xff action 1 loc 20")
        ethtool(lab, LINK0, "-N", "flow-type udp4 src-port 7 dst-port 0x1234 action 2 loc 10")
        shown = listed(lab)
        assert set(shown) == {10, 20}
        assert shown[20]["Src IP addr"] == "10.1.0.0 mask: 0.0.0.255" and shown[20]["Dest port"] == "4608 mask: 0xff"
        send_raw(lab, datagrams((7, 0x1234), (8, 0x1234), (8, 0x12FF), (8, 0x1300), (7, 0x1235)))
        await_hits(lab, {10: 1, 20: 3})

        ethtool(lab, LINK0, "-N", "flow-type udp4 src-port 8 action 3 loc 10")
        assert listed(lab)[10]["Src port"] == "8 mask: 0x0" and listed(lab)[10]["Dest port"] == "0 mask: 0xffff"
        before = frames()
        send_raw(lab, datagrams(*[(8, 0x1234)] * 50))
        await_hits(lab, {10: 50, 20: 3})
        assert frames()[3] - before[3] >= 50

        # A queue that there is not is refused before the device hears of it.
        assert lab.run("ethtool -N eth0 flow-type udp4 dst-port 9 action 4", check=False).status
        assert set(rule_hits(lab)) == {10, 20}
        ethtool(lab, LINK0, "-N", "delete 10")
        send_raw(lab, datagrams((8, 0x1234)))
        await_hits(lab, {20: 4})


def test_more_flow_rules_than_one_query_returns(lab: Lab) -> None:
    """The driver asks for them page by page: 4096 bytes hold 46 rules."""
    rules = 100
    with ExitStack() as undo:
        ethtool(lab, LINK0, "-K", "ntuple on")
        undo.callback(ethtool, lab, LINK0, "-K", "ntuple off")
        lab.run(
            f"set -e; for n in $(seq {rules}); do"
            " ethtool -N eth0 flow-type tcp4 dst-port $((7000 + n)) action $((n % 4)) loc $((n * 10)) >/dev/null; done",
            timeout=120,
        )
        shown = listed(lab)
        assert {location: rule["Dest port"] for location, rule in shown.items()} == {
            10 * n: f"{7000 + n} mask: 0x0" for n in range(1, rules + 1)
        }
        assert "Total 100 rules" in ethtool(lab, LINK0, "-n")
        ethtool(lab, LINK0, "-N", "delete 500")
        assert set(listed(lab)) == set(shown) - {500}


#: A queue, settings of rings in turn, what ethtool -L may not be told while a rule leads to the queue, and how the rule
#: ends. With gve it goes with all rules, which are off again then; with idpf they are on from the start.
STEERING = {
    "gvnic": (2, ("rx 512", "rx 1024"), "rx 2", ("-K", "ntuple off")),
    "idpf": (1, ("rx 256", "rx 512"), "combined 1", ("-N", "delete 9")),
}


@on_each_device
def test_flow_rules_steer_running_streams(traffic: Traffic) -> None:
    """Every stream to one queue, whatever the table says; the rule outlives rings."""
    lab, here = traffic.lab, traffic.cable.here
    queue, rings, too_few, end = STEERING[here.device]
    with ExitStack() as undo:
        ethtool(lab, here, "-K", "ntuple on")
        undo.callback(ethtool, lab, here, *end)
        ethtool(lab, here, "-N", f"flow-type tcp4 src-port {STREAM_PORT} action {queue} loc 9")
        for change in ("", *rings):
            if change:
                ethtool(lab, here, "-G", change)
                lab.await_carrier(here)
            before = [one["bytes"] for one in lab.report(here)["rx_queues"]]
            traffic.goes_on()
            moved = [now["bytes"] - then for now, then in zip(lab.report(here)["rx_queues"], before, strict=True)]
            assert moved[queue] > ENOUGH and sum(moved) - moved[queue] < ENOUGH / 10
        [rule] = lab.report(here)["rules"]
        assert (rule["location"], rule["queue"]) == (9, queue) and rule["hits"] > 0
        assert lab.run(f"ethtool -L {here.interface} {too_few}", check=False).status
    assert lab.report(here)["rules"] == []
    traffic.goes_on()


def test_statistics(traffic: Traffic) -> None:
    lab = traffic.lab

    def counters() -> dict[str, int]:
        return {name: int(value) for name, value in re.findall(r"^ +(\S+): (\d+)$", ethtool(lab, LINK0, "-S"), re.M)}

    before = counters()
    traffic.goes_on()
    after = counters()
    for name in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes"):
        assert after[name] > before[name]
    for trouble in ("rx_desc_err_dropped_pkt", "tx_timeouts", "dma_mapping_error", "rx_queue_drop_cnt[0]"):
        assert after[trouble] == before[trouble]


def test_reset(traffic: Traffic) -> None:
    lab = traffic.lab
    try:
        for _ in range(3):
            verifications = lab.report(LINK0)["admin"]["VERIFY_DRIVER_COMPATIBILITY PASSED"]
            ethtool(lab, LINK0, "--reset", "all")
            lab.await_carrier(LINK0)
            assert lab.report(LINK0)["admin"]["VERIFY_DRIVER_COMPATIBILITY PASSED"] == verifications + 1
            traffic.goes_on()
    finally:
        lab.run(f"ip addr replace {LINK0.address6}/64 dev eth0 nodad")


def test_driver_reloads(lab: Lab) -> None:
    """Three times, with a ping in between; each time the device is handed back in order."""
    rounds = 3
    round_trip = f"""
        set -e
        rmmod gve
        modprobe gve
        until [ -e /sys/class/net/eth1 ]; do sleep 0.02; done
        ip link set eth1 netns peer
        ip -n peer addr add {LINK1.address}/24 dev eth1
        ip -n peer link set eth1 up
        ip addr add {LINK0.address}/24 dev eth0
        ip link set eth0 up
        ping -q -c 1 -w 10 {LINK0.peer}
    """
    returned = "DECONFIGURE_DEVICE_RESOURCES PASSED"
    before = lab.report(LINK0)["admin"].get(returned, 0)
    for _ in range(rounds):
        lab.run(round_trip, timeout=120)
    lab.run("rmmod gve")
    for port in (LINK0, LINK1):
        assert active(lab, port, "rx") == active(lab, port, "tx") == []
    lab.set_up()
    assert lab.report(LINK0)["admin"][returned] == before + rounds + 1
