"""io_uring zero-copy receive: payload of a steered flow lands in memory that a program has registered.

The program is the kernel's own, iou-zcrx, unmodified, which compares every byte; the cases are those of iou-zcrx.py
beside it (tools/testing/selftests/drivers/net/hw), whose harness wants combined channels, which gve does not have. The
program's memory is taken from device memory, so that the device's ledger tells it from all other.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import LINK0, Lab, wait_until, with_memory_of

from nicmodel.vm.tools import build_selftests

pytestmark = pytest.mark.guest

QUEUE = 3
PORT = 5310
#: What the client sends unless told otherwise (iou-zcrx.c, SEND_SIZE).
ALL = 512 * 4096


@pytest.fixture
def zcrx(lab: Lab) -> Iterator[Lab]:
    """Header split on, a rule for the port, other traffic kept off the queue, and the program in place."""
    if lab.run("command -v iou-zcrx", check=False).status:
        lab.guest.put(build_selftests() / "drivers/net/hw/iou-zcrx", "/usr/local/bin/iou-zcrx")
    lab.split(LINK0, True)
    lab.run(
        f"""
        set -e
        ethtool -K {LINK0.interface} ntuple on
        ethtool -X {LINK0.interface} equal {QUEUE}
        ethtool -N {LINK0.interface} flow-type tcp6 dst-port {PORT} action {QUEUE}
        """
    )
    yield lab
    lab.run(f"pkill -9 iou-zcrx; ethtool -K {LINK0.interface} ntuple off; ethtool -X {LINK0.interface} default")
    lab.split(LINK0, False)


def payload(lab: Lab, kind: str) -> int:
    """Bytes written to the queue's data buffers so far, in a kind of memory."""
    return int(lab.report(LINK0)["rx_queues"][QUEUE]["dma"].get("payload", {}).get(kind, 0))


def receive(lab: Lab, server: str, client: str) -> tuple[bool, str]:
    """Run the program at both ends, once, until it has left the queue; whether all was well, and what it said."""

    def queues_created() -> int:
        return int(lab.report(LINK0)["admin"]["CREATE_RX_QUEUE PASSED"])

    before = queues_created()
    program = f"{with_memory_of(lab.guest, 'hbm')} iou-zcrx -s -i {LINK0.interface} -q {QUEUE} -p {PORT} {server}"
    result = lab.run(
        f"""
        {program} 2>&1 &
        until ss -ltn | grep -q :{PORT}; do kill -0 $! || break; sleep 0.02; done
        ip netns exec peer iou-zcrx -c -h {LINK0.address6} -p {PORT} {client} 2>&1
        client=$?
        wait $!
        server=$?
        [ $client = 0 -a $server = 0 ]
        """,
        check=False,
        timeout=120,
    )
    # The kernel gives the queue back, by a second restart, some time after the program's end (io_ring_exit_work).
    wait_until(lambda: queues_created() - before == 2, timeout=120, what=lambda: result.stdout)
    return result.status == 0, result.stdout


@pytest.mark.parametrize(
    ("server", "client", "nbytes"),
    [
        ("", "-l 12840", ALL),  # test_zcrx
        ("-o 4", "-l 4096 -z 16384", 16384),  # test_zcrx_oneshot
    ],
    ids=["multishot", "oneshot"],
)
def test_payload_lands_in_registered_memory(zcrx: Lab, server: str, client: str, nbytes: int) -> None:
    """The program gives itself five seconds; only when they have passed on a busy machine it is started again."""
    before = payload(zcrx, "hbm"), payload(zcrx, "ram"), zcrx.report(LINK0)["dma_faults"]
    for _ in range(5):
        well, said = receive(zcrx, server, client)
        if "test failed" not in said:
            break
    assert well, said
    assert payload(zcrx, "hbm") - before[0] >= nbytes
    assert payload(zcrx, "ram") == before[1]
    assert zcrx.report(LINK0)["dma_faults"] == before[2]


def test_afterwards_the_queue_is_an_ordinary_one(zcrx: Lab) -> None:
    before = payload(zcrx, "hbm"), payload(zcrx, "ram")
    said = zcrx.run(
        f"""
        socat -u -b 65536 TCP6-LISTEN:{PORT},reuseaddr - | wc -c &
        until ss -ltn | grep -q :{PORT}; do sleep 0.05; done
        head -c {ALL} /dev/zero | ip netns exec peer socat -u -b 65536 - TCP6:[{LINK0.address6}]:{PORT}
        wait
        """
    ).stdout
    assert said.strip() == str(ALL)
    assert payload(zcrx, "hbm") == before[0]
    assert payload(zcrx, "ram") - before[1] >= ALL


def test_larger_chunks_are_refused(zcrx: Lab) -> None:
    """test_zcrx_large_chunks: gve takes buffers of a page only (its queue_mgmt_ops have no QCFG_RX_PAGE_SIZE)."""
    zcrx.run("echo 64 >/proc/sys/vm/nr_hugepages")
    result = zcrx.run(f"iou-zcrx -s -p {PORT} -i {LINK0.interface} -q {QUEUE} -x 2 -d", check=False)
    zcrx.run("echo 0 >/proc/sys/vm/nr_hugepages")
    assert result.status == 42, result.stdout + result.stderr
    assert "Large chunks are not supported" in result.stdout
