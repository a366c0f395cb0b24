"""Weather under the stock driver: whatever the seed, no byte of a stream and no datagram is lost, and nobody complains.

What the driver does wrong by XDP is in `test_found.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datagrams
import pytest
from lab import IN_PEER, LINK0, LINK1, Lab

from nicmodel.client.control import Control
from nicmodel.faults.weather import behaviours
from nicmodel.gvnic.faults.kinds import KINDS

pytestmark = pytest.mark.guest

FLOWS = 24
MIB = 1 << 20
#: What a guest's traffic may not bring about in so short a time.
_RARE = {"stats-late", "clock-jump", "rx-spread", "rx-cut"}
GENTLE = {name for name, kind in behaviours(KINDS).items() if not kind.loses}

#: A TCP stream each way at the same time, each compared.
STREAMS = f"""
set -e
for n in 1 2; do [ -e /tmp/weather$n ] || head -c $(({MIB} + n)) /dev/urandom >/tmp/weather$n; done
rm -f /tmp/got1 /tmp/got2
timeout 200 socat -u -b 65536 TCP-LISTEN:7101,reuseaddr OPEN:/tmp/got1,creat,trunc & one=$!
{IN_PEER}timeout 200 socat -u -b 65536 TCP-LISTEN:7102,reuseaddr OPEN:/tmp/got2,creat,trunc & two=$!
until ss -ltn | grep -q :7101; do sleep 0.05; done
until {IN_PEER}ss -ltn | grep -q :7102; do sleep 0.05; done
{IN_PEER}timeout 200 socat -u -b 65536 OPEN:/tmp/weather1 TCP:{LINK1.peer}:7101 & three=$!
timeout 200 socat -u -b 65536 OPEN:/tmp/weather2 TCP:{LINK0.peer}:7102
wait $three; wait $one; wait $two
cmp /tmp/weather1 /tmp/got1; cmp /tmp/weather2 /tmp/got2
echo equal
"""


@contextmanager
def weather(lab: Lab, seed: int, strength: float) -> Iterator[Counter[str]]:
    """Both ends of the cable have weather inside the block; what of it was shown, filled in at the end."""
    shown: Counter[str] = Counter()
    before = _strikes(lab)
    text = f"[[weather]]\nseed = {seed}\nstrength = {strength}\nnic = "
    with Control(lab.server.control) as control:
        control.begin_scenario("".join(f"{text}'{nic}'\n" for nic in ("nic0", "nic1")))
        try:
            yield shown
        finally:
            for nic in ("nic0", "nic1"):
                control.end_fault(nic=nic)
    shown.update(_strikes(lab) - before)


def _strikes(lab: Lab) -> Counter[str]:
    total: Counter[str] = Counter()
    for port in (LINK0, LINK1):
        for name, count in lab.report(port)["events"].items():
            if name.startswith("fault "):
                total[name.removeprefix("fault ")] += count
    return total


def datagrams_pass(lab: Lab) -> None:
    """Datagrams over many flows, asked from one end and from the other."""
    lab.guest.put(Path(datagrams.__file__), "/tmp/datagrams.py")
    for here, there, asker, answerer in ((LINK0, LINK1, "", IN_PEER), (LINK1, LINK0, IN_PEER, "")):
        answering = lab.guest.start(
            f"exec {answerer}python3 -IS /tmp/datagrams.py answer {there.address} {here.address} {FLOWS}"
        )
        try:
            answering.expect("ready", timeout=120)
            lab.run(f"{asker}python3 -IS /tmp/datagrams.py ask {here.address} {there.address} {FLOWS}", timeout=240)
        finally:
            answering.kill()
            answering.wait(60)


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, *range(3, 12)))])
def test_the_stock_driver_loses_nothing(lab: Lab, seed: int) -> None:
    split = seed % 2 == 0
    if split:
        lab.split(LINK0, True)
    with weather(lab, seed, 0.4) as shown:
        assert lab.run(STREAMS, timeout=400).stdout.endswith("equal\n")
        datagrams_pass(lab)
        lab.run(f"ethtool -S {LINK0.interface} >/dev/null; ethtool {LINK0.interface} >/dev/null")
    if split:
        lab.split(LINK0, False)
    needs_split = {name for name in GENTLE if name in ("rx-unsplit", "rx-split-beyond", "rx-header-overflow")}
    missing = GENTLE - shown.keys() - _RARE - (set() if split else needs_split)
    assert len(missing) <= 3, f"never shown: {missing}; shown: {shown}"


@pytest.mark.long
def test_a_stream_survives_resets_and_flaps(lab: Lab) -> None:
    """What loses packets is had by its name: TCP sends them again."""
    with weather(lab, 4, 0.3) as shown, Control(lab.server.control) as control:
        control.add_fault("device-reset", nic="nic0", period=3)
        control.add_fault("wire-flap", nic="nic0", period=2, down=0.3)
        for _ in range(3):
            assert lab.run(STREAMS, timeout=400).stdout.endswith("equal\n")
    assert shown["device-reset"] and shown["wire-flap"]
    lab.await_carrier(LINK0)
