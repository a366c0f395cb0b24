"""devmem TCP the other way: payload that the NIC reads out of a dma-buf; and both ways at once.

The senders are the kernel's own ncdevmem, unmodified, as a client, and ours (guest/devmem_sender.c). The cases of the
kernel's tools/testing/selftests/drivers/net/hw/devmem.py are here too, with its assertions: its harness wants combined
channels, which gve does not have.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from lab import LINK0, LINK1, USER, Lab, Port

from nicmodel.vm.devmem import PATTERN_BYTES, Received, pattern, receive_pattern
from nicmodel.vm.tools import install_guest_tools

pytestmark = pytest.mark.guest

MIB = 1 << 20
QUEUE = 3
IN_PEER = "ip netns exec peer"
PORT = 5301


@pytest.fixture(scope="module")
def _tools(bench: Lab) -> None:
    install_guest_tools(bench.guest)


@pytest.fixture
def ends(lab: Lab, _tools: None) -> Iterator[Lab]:
    """The linked NICs, ready for flow rules."""
    for inside, port in (("", LINK0), (IN_PEER, LINK1)):
        lab.run(f"{inside} ethtool -K {port.interface} ntuple on")
    yield lab
    lab.run("pkill -9 ncdevmem; pkill -9 devmem_; true")
    for inside, port in (("", LINK0), (IN_PEER, LINK1)):
        lab.run(f"{inside} ethtool -K {port.interface} ntuple off; {inside} ethtool -X {port.interface} default")


def sender(lab: Lab, port: Port, number: int, nbytes: int, seed: int) -> dict[str, Any]:
    """Send the pattern through a NIC out of a dma-buf in device memory; what our sender says at its end."""
    said = lab.run(
        f"devmem_sender --interface {port.interface} --connect {port.peer} --port {number} --bytes {nbytes}"
        f" --seed {seed} --node {lab.guest.device_memory['hbm'].node}",
        timeout=120,
    ).stdout
    return dict(json.loads(said.splitlines()[-1]))


def dma(report: dict[str, Any], purpose: str, kind: str) -> int:
    """Bytes moved so far for a purpose, from or to a kind of memory."""
    return int(report["dma"].get(purpose, {}).get(kind, 0))


def check_read_from_dma_buf(before: dict[str, Any], after: dict[str, Any], nbytes: int) -> None:
    """All payload was read from device memory; from ordinary memory no more than headers and acknowledgements."""
    assert dma(after, "transmit", "hbm") - dma(before, "transmit", "hbm") >= nbytes
    assert dma(after, "transmit", "ram") - dma(before, "transmit", "ram") < nbytes // 20
    assert after["dma_faults"] == before["dma_faults"]


def pattern_digest(nbytes: int, seed: int) -> str:
    """SHA-256 of the stream's content."""
    period = pattern(seed).tobytes()
    digest = hashlib.sha256()
    for start in range(0, nbytes, PATTERN_BYTES):
        digest.update(period[: nbytes - start])
    return digest.hexdigest()


def test_sent_from_device_memory_to_a_neighbour(ends: Lab) -> None:
    """Segments pass the link whole, gathered from up to 17 fragments of 4096 bytes."""
    nbytes = 8 * MIB
    sink = ends.tcp_listen(PORT, "sha256sum >/tmp/sum.unfinished; mv /tmp/sum.unfinished /tmp/sum", IN_PEER)
    ends.run("rm -f /tmp/sum")
    before = ends.report(LINK0)
    said = sender(ends, LINK0, PORT, nbytes, seed=5)
    ends.run("until [ -e /tmp/sum ]; do sleep 0.05; done", timeout=120)
    sink.kill()
    sink.wait()
    assert ends.run("cat /tmp/sum").stdout.split()[0] == pattern_digest(nbytes, 5)
    assert (said["bytes"], said["copied"]) == (nbytes, 0)
    check_read_from_dma_buf(before, ends.report(LINK0), nbytes)


def test_sent_from_device_memory_and_segmented(ends: Lab) -> None:
    """On the way to passt the NIC itself cuts the segments."""
    nbytes = 8 * MIB
    results: list[Received] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        receiver = threading.Thread(target=lambda: results.append(receive_pattern(listener, seed=6)))
        receiver.start()
        before = ends.report(USER)
        said = sender(ends, USER, number, nbytes, seed=6)
        receiver.join(60)
    assert [(received.nbytes, received.mismatch) for received in results] == [(nbytes, None)]
    assert (said["bytes"], said["copied"]) == (nbytes, 0)
    check_read_from_dma_buf(before, ends.report(USER), nbytes)


def test_device_memory_at_both_ends(ends: Lab) -> None:
    """Payload goes from one dma-buf to another, and through ordinary memory at neither end."""
    nbytes = 8 * MIB
    node = ends.guest.device_memory["hbm"].node
    ends.split(LINK1, True)
    ends.in_peer(
        f"""
        ethtool -X eth1 equal {QUEUE}
        ethtool -N eth1 flow-type tcp4 dst-port {PORT} action {QUEUE}
        """
    )
    receiver = ends.guest.start(
        f"{IN_PEER} devmem_receiver --interface eth1 --port {PORT} --queues {QUEUE} --size {32 * MIB}"
        f" --node {node} --seed 8"
    )
    receiver.expect("ready")
    before = ends.report(LINK0), ends.report(LINK1)
    said = sender(ends, LINK0, PORT, nbytes, seed=8)
    result = receiver.wait(60)
    assert result.status == 0, result.stdout + result.stderr
    received = json.loads(result.stdout.splitlines()[-1])
    after = ends.report(LINK0), ends.report(LINK1)
    assert (said["bytes"], said["copied"]) == (nbytes, 0)
    assert (received["bytes"], received["linear_bytes"], received["errors"]) == (nbytes, 0, 0)
    check_read_from_dma_buf(before[0], after[0], nbytes)
    assert dma(after[1], "payload", "hbm") - dma(before[1], "payload", "hbm") >= nbytes
    assert dma(after[1], "payload", "ram") - dma(before[1], "payload", "ram") < nbytes // 20
    ends.split(LINK1, False)


def ncdevmem_sends(
    lab: Lab, content: bytes, options: str = "", receiver: str = f"socat -u -b 65536 TCP-LISTEN:{PORT},reuseaddr -"
) -> str:
    """Send lines with ncdevmem from link0 to a receiver in the peer; what it says on its standard error.

    What the receiver prints is in /tmp/received then. After each line ncdevmem waits half a second for the kernel's
    word that the memory is free again (waittime_ms), that is for the peer's acknowledgement: on a busy machine that may
    take longer, and then, and only then, all is done again.
    """
    lab.guest.put(content, "/tmp/lines")
    lab.run(
        f"""
        for try in 1 2 3 4 5; do
            {IN_PEER} {receiver} >/tmp/received 2>/tmp/receiver.err &
            until {IN_PEER} ss -ltn | grep -q :{PORT}; do kill -0 $! || exit 1; sleep 0.05; done
            ncdevmem -f {LINK0.interface} -s {LINK0.peer} -p {PORT} {options} </tmp/lines 2>/tmp/sender.err
            sender=$?
            wait $!
            receiver=$?
            grep -q 'did not receive tx completion' /tmp/sender.err || break
        done
        tail -n 5 /tmp/sender.err /tmp/receiver.err >&2
        [ $sender = 0 -a $receiver = 0 ]
        """,
        timeout=240,
    )
    said = lab.run("cat /tmp/sender.err").stdout
    assert said.count("tx complete") == content.count(b"\n")
    return lab.run("cat /tmp/receiver.err").stdout


@pytest.mark.parametrize(
    ("chunk", "sizes"),
    [
        (0, (6, 6)),  # devmem.py: check_tx
        (3, (6, 6)),  # check_tx_chunks
        # A segment has no more than nine pieces, which pages cut too: gve drops a packet of more than ten descriptors
        # whose content the kernel cannot copy together (gve_try_tx_skb: skb_linearize).
        (3, (1, 2, 3, 4, 27)),
        (0, (1, 4095, 4096, 4097, 300_000)),
        (2500, (2499, 2500, 2501, 300_000)),
        (4096, (4096, 8193, 300_000)),
        (70_001, (300_000, 5)),
    ],
)
def test_ncdevmem_sends_lines(ends: Lab, chunk: int, sizes: tuple[int, ...]) -> None:
    """One call of sendmsg for each line, in pieces of `chunk` bytes (-z)."""
    random_bytes = random.Random(chunk).randbytes
    content = b"".join(random_bytes(size - 1).replace(b"\n", b"N") + b"\n" for size in sizes)
    ncdevmem_sends(ends, content, f"-z {chunk}" if chunk else "")
    assert ends.guest.get("/tmp/received") == content


def listen(lab: Lab, options: str, address: str = LINK0.address) -> Any:
    """The kernel's receiver on link0, listening."""
    process = lab.guest.start(f"ncdevmem -l -f {LINK0.interface} -s {address} -p {PORT} {options}")
    lab.run(f"until ss -ltn | grep -q :{PORT}; do sleep 0.05; done", timeout=120)
    return process


@pytest.mark.parametrize(("address", "peer"), [(LINK0.address, LINK0.peer), (f"{LINK0.address6}", f"{LINK0.peer6}")])
def test_ncdevmem_receives_by_a_rule_of_five_fields(ends: Lab, address: str, peer: str) -> None:
    """devmem.py, check_rx: 1024 bytes, validated; -c puts both addresses and both ports into the rule."""
    receiver = listen(ends, f"-v 7 -L -c {peer}", address)
    rules = ends.run(f"ethtool -n {LINK0.interface}").stdout
    before = ends.report(LINK0)["rx_queues"][QUEUE]["frames"]
    to, of = (f"TCP6:[{address}]", f"[{peer}]") if ":" in address else (f"TCP4:{address}", peer)
    lines = "yes $(printf '\\001\\002\\003\\004\\005\\006') | head -c 1K"
    ends.in_peer(f"{lines} | socat -u - {to}:{PORT},bind={of}:{PORT},reuseaddr")
    result = receiver.wait(60)
    assert result.status == 0, result.stderr[-2000:]
    assert result.stdout.count("Validated buffer") >= 1
    assert "total_received=1024" in result.stderr
    assert re.search(rf"Src port: {PORT} mask: 0x0", rules), rules
    assert ends.report(LINK0)["rx_queues"][QUEUE]["frames"] > before


def test_ncdevmem_at_both_ends(ends: Lab) -> None:
    """What the program's own introduction calls "devmem TCP on RX and TX, validation happens on RX"."""
    receiver = f"ncdevmem -l -f {LINK1.interface} -s {LINK1.address} -p {PORT} -v 8 -L"
    before = ends.report(LINK0)
    said = ncdevmem_sends(ends, b"\1\2\3\4\5\6\7\n" * 100, receiver=receiver)
    assert "total_received=800" in said
    assert "Validated buffer" in ends.run("cat /tmp/received").stdout
    assert ends.report(LINK0)["dma_faults"] == before["dma_faults"]


def test_every_payload_size_is_split(ends: Lab) -> None:
    """devmem.py, check_rx_hds: one segment of each size; -L fails on payload that came with the header."""
    sizes = [1 << n for n in (0, 7, 12, 13)]
    said = ends.run(
        f"""
        for size in {" ".join(map(str, sizes))}; do
            port=$(({PORT} + size))
            ncdevmem -l -f {LINK0.interface} -s {LINK0.address6} -p $port -L >/tmp/ncdevmem.out 2>&1 &
            until ss -ltn | grep -q :$port; do kill -0 $! || break; sleep 0.05; done
            dd if=/dev/zero bs=$size count=1 2>/dev/null |
                {IN_PEER} socat -b $size -u - TCP6:[{LINK0.address6}]:$port,nodelay
            wait $!
            echo $size $? $(grep -ao 'total_received=.*' /tmp/ncdevmem.out | tail -1)
        done
        """,
        timeout=300,
    ).stdout
    assert said.splitlines() == [f"{size} 0 total_received={size}" for size in sizes]


def test_ncdevmem_binds_half_of_the_queues(ends: Lab) -> None:
    """Without addresses it tries what must be refused (no queue, no header split, fewer channels), then binds two."""
    result = ends.run(f"ncdevmem -f {LINK0.interface}", check=False, timeout=120)
    assert result.status == 0, result.stderr[-2000:]
    assert "setting channel count rx:2 tx:2" in result.stderr
