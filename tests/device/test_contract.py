"""The contract checker: each rule broken is found, and only that; who keeps the contract hears nothing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import (
    CONFIGURE_FLOW_RULE,
    DEVICE_DESCRIPTOR,
    STATS_DEVICE_RX,
    STATS_DRIVER_RX,
    STATS_DRIVER_TX,
    STATS_ENTRY,
    STATS_HEADER_SIZE,
    Inner,
    Opcode,
)
from nicmodel.gvnic.contract.checker import Checker
from nicmodel.gvnic.contract.rules import AREAS, RULES
from nicmodel.gvnic.descriptors import GQI_RX_SLOT, GQI_TX_PACKET
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.registers import DRIVER_VERSION
from nicmodel.gvnic.testing.adminq import AdminError, encode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.gqi import GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.misbehave import misbehave, open_queues, profile, rules, ways
from nicmodel.observe.findings import MAX_FINDINGS, Journal
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.vfio_user.protocol import DmaFlag

from .frames import icmp, tcp, udp


@pytest.fixture
def checked() -> Iterator[Loopback]:
    """A NIC with all queue formats whose driver is watched."""
    with Loopback(profile(), ram=GuestMemory("ram", size=32 << 20), check=True) as lab:
        yield lab


def names(lab: Loopback) -> list[str]:
    return [finding.rule.name for finding in lab.findings]


def test_every_rule_can_be_broken_on_request() -> None:
    assert sorted(rules()) == sorted(RULES)


@pytest.mark.parametrize(("rule", "way"), [*((rule, 0) for rule in RULES), *ways()])
def test_a_broken_rule_is_found_and_no_other(checked: Loopback, rule: str, way: int) -> None:
    open_queues(checked.driver)
    assert names(checked) == []
    misbehave(checked, rule, way)
    assert names(checked) == [rule], "\n".join(map(str, checked.findings))
    json.dumps([finding.as_dict() for finding in checked.findings])


@pytest.mark.parametrize("rights", [DmaFlag.READABLE, DmaFlag.WRITABLE])
def test_pages_may_be_of_one_way(checked: Loopback, rights: DmaFlag) -> None:
    """Behind an IOMMU Linux maps pages to send from for reading only, and those to receive in for writing."""
    driver = checked.driver
    open_queues(driver)
    with GuestMemory("pages", base=1 << 40, size=1 << 20) as pages:
        driver.client.dma_map(pages.base, pages.size, pages.fd, 0, rights)
        listed = driver.ram.allocate_zeroed(4096)
        driver.ram.write(listed, pages.base.to_bytes(8, "big"))
        driver.admin(Opcode.REGISTER_PAGE_LIST, page_list_id=100, num_pages=1, list_address=listed, page_size=4096)
        assert names(checked) == []
        driver.client.dma_unmap(pages.base, pages.size)


def test_rules_are_told_in_full() -> None:
    assert len(RULES) >= 60
    assert {rule.area for rule in RULES.values()} == set(AREAS)
    for rule in RULES.values():
        assert rule.says.endswith(".") and rule.why.endswith(".")
        assert "gve" in rule.source.lower() or rule.source.startswith(("docs/options.md", "docs/ddp.md"))


def exercise(driver: Driver, lab: Loopback) -> None:
    """What a driver does in its life, in order."""
    driver.probe()
    for split, size in ((True, 4096), (False, 2048)):
        driver.open(rx_queues=4, ring_entries=256, header_split=split, buffer_size=size, rsc=not split)
        driver.add_flow_rule(TCPv4(dst_port=5201), queue=3)
        for number in range(30):
            lab.receive(tcp(100 + number), udp(number), icmp(300), tcp(3000, v=6), tcp(8000, dport=5201))
            for vector in range(driver.blocks):
                if driver.fired(vector):
                    driver.enable(vector)
            assert len(driver.poll_all()) == 5
            driver.send(number % 4, tcp(1400), checksum=True)
            driver.tx[1].send(tcp(8000), tso=(1400, 54), fragments=[54, 4000, 4000], general_context=number % 2 == 0)
            lab.advance(100_000)
            for queue in driver.tx:
                driver.poll_tx(queue)
        driver.restart_rx(2)
        driver.set_rss(table=[0, 1] * 64)
        driver.reset_flow_rules()
        driver.close()
    driver.set_rss(table=list(range(4)) * 32)
    driver.open(ring_entries=256)
    lab.nic.request_reset()
    driver.reset()
    driver.open()
    lab.receive(tcp(100))
    assert len(driver.poll_all()) == 1
    driver.remove()


def test_a_driver_that_keeps_the_contract(checked: Loopback) -> None:
    exercise(checked.driver, checked)
    assert names(checked) == []


def test_results_are_the_same_with_and_without() -> None:
    """All of guest memory: frames, completions, counters, answers; and what was sent, and every interrupt."""

    def results(check: bool) -> tuple[bytes, list[bytes], list[int]]:
        with Loopback(profile(), ram=GuestMemory("ram", size=32 << 20), check=check) as lab:
            exercise(lab.driver, lab)
            return (
                lab.ram.bytes.tobytes(),
                [frame.data for frame in lab.wire.sent],
                lab.nic.state.vectors["fires"].tolist(),
            )

    assert results(False) == results(True)


def test_a_checker_that_fails_says_so(
    checked: Loopback, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of its own neither disturbs the NIC nor passes for a driver without fault."""
    assert checked.checker is not None
    monkeypatch.setattr(checked.checker._tx, "before", lambda: None)  # takes no queue
    open_queues(checked.driver)
    checked.driver.send(0, tcp(100))
    checked.run()
    assert len(checked.wire.take()) == 1
    assert "checker failed at Transmitting" in caplog.text
    with pytest.raises(RuntimeError):
        _ = checked.findings


@pytest.mark.parametrize("scheme", ["base", "pfn"])
def test_either_way_of_setting_up_the_admin_queue(scheme: str) -> None:
    with Loopback(profile(), scheme=scheme, check=True) as lab:  # type: ignore[arg-type]
        lab.driver.probe()
        lab.driver.open()
        lab.driver.remove()
        assert names(lab) == []


@pytest.mark.parametrize("qpl", [False, True], ids=["rda", "qpl"])
def test_a_gqi_driver_that_keeps_the_contract(checked: Loopback, qpl: bool) -> None:
    checked.driver.probe()
    queues = GqiQueues(checked.driver, qpl, 256)
    queues.enable()
    for number in range(100):
        checked.receive(tcp(100 + number), udp(5000))
        assert len(queues.receive()) == 2
        queues.fill(queues.taken + 256 - queues.filled)
        queues.send(tcp(1000 + number), pieces=1 + number % 3, checksum=True)
        queues.send(tcp(3000), tso=(1000, 54))
        assert queues.done == queues.posted
        queues.enable()
    for opcode in (Opcode.DESTROY_TX_QUEUE, Opcode.DESTROY_RX_QUEUE):
        checked.driver.admin(opcode, queue_id=0)
    checked.driver.remove()
    assert names(checked) == []


def test_a_checker_that_comes_late_or_after_a_breach_goes_on(checked: Loopback) -> None:
    """What it does not know it does not judge; what comes later it does."""
    open_queues(checked.driver)
    misbehave(checked, "RX-RNG-001")
    checked.receive(*[tcp(number) for number in range(64)])
    assert names(checked) == ["RX-RNG-001"]
    assert checked.checker is not None
    checked.checker.close()
    late = Checker(checked.nic)
    for number in range(300):
        checked.receive(tcp(number))
        for queue in checked.driver.rx.values():
            queue.discard()
        checked.driver.send(0, tcp(number))
        checked.run()
        checked.driver.poll_tx(0)
    assert late.findings == [] and not late.failed
    checked.driver.doorbells.ring(checked.driver.tx[0].doorbell_index, 5000)
    checked.run()
    assert [finding.rule.name for finding in late.findings] == ["DBL-005"]


def test_buffers_that_a_flush_returns_are_the_driver_s() -> None:
    """*Steps*: flush a queue, again and again, with and without frames between; post the same buffers anew.
    *Verify*: nothing is found; a buffer that is posted twice still is.
    """
    with Loopback(Profile(queue_flush=True), ram=GuestMemory("ram", size=32 << 20), check=True) as lab:
        driver = lab.driver
        driver.probe()
        driver.open(rx_queues=2, ring_entries=256, header_split=True)
        driver.add_flow_rule(TCPv4(dst_port=5201), queue=1)
        for number in range(6):
            lab.receive(*[tcp(100 + k, dport=5201) for k in range(number)])
            driver.flush_rx(1)
            lab.receive(tcp(100, dport=5201), tcp(200))
            driver.poll_all()
        assert names(lab) == []
        queue = driver.rx[1]
        before = int(lab.nic.state.rx[1]["buffer_tail"])
        ring = queue.buffer_ring
        for k in range(8):
            ring[(before + k) % 256] = ring[(before - 8 + k) % 256]
        lab.receive(*[tcp(100, dport=5201)] * 16)  # so that there is room
        queue.ring((before + 8) % 256)
        assert set(names(lab)) == {"RX-BUF-003", "RX-BUF-004", "RX-BUF-009"}


def test_inner_commands_without_flow_rules() -> None:
    """The model's own options are no matter of flow rules; a flow rule that is not offered is found as before."""
    options = Profile(queue_flush=True, max_flow_rules=0)
    with Loopback(options, ram=GuestMemory("ram", size=32 << 20), check=True) as lab:
        lab.driver.probe()
        lab.driver.open(rx_queues=2, ring_entries=256, header_split=True)
        lab.driver.flush_rx(1)
        assert names(lab) == []
        with pytest.raises(AdminError):
            lab.driver.extended(Inner.CONFIGURE_FLOW_RULE, np.zeros((), CONFIGURE_FLOW_RULE))
        assert names(lab) == ["ADM-CMD-005"]


def test_a_checker_that_fails_says_so_and_goes_on(checked: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    checker = checked.checker
    assert checker is not None
    open_queues(checked.driver)

    def fail(*_: object) -> None:
        raise KeyError("\x1bno entry")

    checker._admin._checks[Opcode.REPORT_LINK_SPEED] = fail
    for _ in range(3):
        with contextlib.suppress(AdminError):
            checked.driver.admin(Opcode.REPORT_LINK_SPEED, address=0)
    assert checker.failed and "the contract checker failed at CommandFetched" in caplog.text
    with pytest.raises(RuntimeError, match="has failed"):
        _ = checked.findings
    misbehave(checked, "DBL-005")
    failed, found = checker.findings
    assert (failed.rule.name, failed.count, found.rule.name) == ("CHECKER-001", 3, "DBL-005")
    assert "CHECKER-001 error: nic , 3 times: the checker failed at CommandFetched" in str(failed)
    assert "\x1b" not in str(failed)
    json.dumps([finding.as_dict() for finding in checker.findings])
    caplog.clear()


def test_rss_as_windows_asks_for_it_is_no_finding(checked: Loopback) -> None:
    """Tables of any power of two; off, by sizes without anything else; nothing at all."""
    driver = checked.driver
    driver.probe()
    driver.open(rx_queues=4, ring_entries=256)
    for size in (1, 16, 64, 128):
        driver.set_rss(None, [entry % 4 for entry in range(size)])
    driver.admin(Opcode.CONFIGURE_RSS, key_size=40, lut_size=128)
    driver.admin(Opcode.CONFIGURE_RSS)
    assert checked.findings == []


def test_what_windows_does_is_no_finding(checked: Loopback) -> None:
    """*Steps*: Google's driver for Windows: 200 bytes of the description, no queue format, blocks of 256 bytes, page
    lists whose numbers have their highest bit, no sizes of pages, rings and buffers, receive buffers a page apart.
    *Verify*: there is a group of receive queues; a frame comes and goes; all ends in order.
    """
    driver, ram = checked.driver, checked.driver.ram
    driver.probe()
    driver.release()
    driver.setup_adminq()
    place = ram.allocate_zeroed(PAGE)
    driver.admin(Opcode.DESCRIBE_DEVICE, descriptor_address=place, version=1, available_length=200)
    descriptor = np.frombuffer(ram.read(place, DEVICE_DESCRIPTOR.itemsize), DEVICE_DESCRIPTOR)[0]
    assert descriptor["rx_groups"] == 1  # as many receive queues as there are queues in a group
    blocks, stride = 4, 256
    counters, indexes = ram.allocate_zeroed(PAGE), ram.allocate_zeroed(blocks * stride)
    driver.admin(
        Opcode.CONFIGURE_DEVICE_RESOURCES, counter_array=counters, irq_doorbell_address=indexes,
        num_counters=int(descriptor["counters"]), num_irq_doorbells=blocks, irq_doorbell_stride=stride,
    )  # fmt: skip
    entries = int(descriptor["rx_queue_entries"])
    rx_list, tx_list = 1 << 31, 0
    rx_pages, tx_pages = ram.allocate_zeroed(entries * PAGE), ram.allocate_zeroed(PAGE)
    for number, first, count in ((rx_list, rx_pages, entries), (tx_list, tx_pages, 1)):
        pages = ram.allocate_zeroed(8 * count)
        ram.write(pages, (first + PAGE * np.arange(count)).astype(">u8").tobytes())
        driver.admin(Opcode.REGISTER_PAGE_LIST, page_list_id=number, num_pages=count, list_address=pages)
    resources, rings = ram.allocate_zeroed(PAGE), [ram.allocate_zeroed(entries * size) for size in (64, 8, 16)]
    driver.admin(
        Opcode.CREATE_RX_QUEUE, notification_block=2, queue_resources_address=resources, page_list_id=rx_list,
        completion_ring_address=rings[0], buffer_ring_address=rings[1],
    )  # fmt: skip
    driver.admin(
        Opcode.CREATE_TX_QUEUE, queue_resources_address=resources + 64, page_list_id=tx_list, ring_address=rings[2]
    )
    slots = np.zeros(entries, GQI_RX_SLOT)
    slots["address"] = PAGE * np.arange(entries)
    ram.write(rings[1], slots.tobytes())
    rx, tx = (int.from_bytes(ram.read(resources + at, 4), "big") for at in (0, 64))
    driver.client.region_write(r.Bar.DOORBELLS, 4 * rx, entries.to_bytes(4, "big"))
    frame = udp(500)
    checked.receive(frame)
    assert ram.read(rx_pages + 2, len(frame)) == frame
    ram.write(tx_pages, frame)
    ram.write(rings[2], np.array((0, 0, 0, 1, len(frame), len(frame), 0), GQI_TX_PACKET).tobytes())
    driver.client.region_write(r.Bar.DOORBELLS, 4 * tx, (1).to_bytes(4, "big"))
    checked.run()
    assert checked.wire.take() == [frame] and ram.read(counters, 4) == (1).to_bytes(4, "big")
    driver.admin(Opcode.DESTROY_TX_QUEUE)
    driver.admin(Opcode.DESTROY_RX_QUEUE)
    for number in (rx_list, tx_list):
        driver.admin(Opcode.UNREGISTER_PAGE_LIST, page_list_id=number)
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    driver.release()
    assert checked.findings == []


def test_statistics_have_room_for_the_queues_in_use(checked: Loopback) -> None:
    """A driver's region need not be for all queues that the device has; but then it cannot have more of them."""
    driver = checked.driver
    driver.probe()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=256)
    length = STATS_HEADER_SIZE + 2 * (STATS_DRIVER_TX + STATS_DRIVER_RX + STATS_DEVICE_RX) * STATS_ENTRY.itemsize
    region = driver.ram.allocate_zeroed(PAGE)
    driver.admin(Opcode.REPORT_STATS, address=region, length=length, interval_ms=20_000)
    driver.close()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=256)
    assert checked.findings == []
    driver.close()
    driver.open(rx_queues=2, tx_queues=3, ring_entries=256)
    assert names(checked) == ["ADM-RES-010"]


def test_what_ipxe_does_is_no_finding(checked: Loopback) -> None:
    """It tells of its admin queue in both ways, its length by 4 bytes, and takes the header of the description only."""
    driver = checked.driver
    driver.probe()
    driver.release()
    page = driver.ram.allocate_zeroed(PAGE)
    for register, data in (
        (r.ADMINQ_PFN, (page // PAGE).to_bytes(4, "big")),
        (r.ADMINQ_BASE_LO, (page & 0xFFFF_FFFF).to_bytes(4, "big")),
        (r.ADMINQ_BASE_HI, (page >> 32).to_bytes(4, "big")),
        (r.ADMINQ_LENGTH, PAGE.to_bytes(2, "big") + bytes(2)),
        (r.DRIVER_STATUS, int(r.DriverStatus.RUN).to_bytes(4, "big")),
    ):
        driver.client.region_write(r.Bar.REGISTERS, register.offset, data)
    answer = driver.ram.allocate_zeroed(PAGE)
    asked = encode_command(
        Opcode.DESCRIBE_DEVICE, descriptor_address=answer, version=1, available_length=DEVICE_DESCRIPTOR.itemsize
    )
    driver.ram.write(page, asked)
    driver.client.region_write(r.Bar.REGISTERS, r.ADMINQ_DOORBELL.offset, (1).to_bytes(4, "big"))
    assert driver.ram.read(answer + DEVICE_DESCRIPTOR.itemsize - 8, 8) != bytes(8)
    assert checked.findings == []
    # After its first command the queue is in use: now it has to be released first.
    driver.client.region_write(r.Bar.REGISTERS, r.DRIVER_STATUS.offset, int(r.DriverStatus.RUN).to_bytes(4, "big"))
    assert names(checked) == ["REG-007"]


def test_findings_do_not_grow_with_what_a_guest_names(checked: Loopback) -> None:
    open_queues(checked.driver)
    for queue in range(100, 400):
        with pytest.raises(AdminError):
            checked.driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=queue)
    [finding] = checked.findings
    assert (finding.rule.name, finding.queue, finding.count) == ("ADM-QUE-004", None, 300)
    assert checked.checker is not None and len(checked.checker._journal._events) <= 17


def test_findings_beyond_a_number_are_counted() -> None:
    journal = Journal("nic", lambda: 0, RULES, None)
    for number in range(MAX_FINDINGS + 50):
        for _ in range(2):
            journal.report("DBL-005", "too far", f"rx{number}")
    *kept, more = journal.findings
    assert len(kept) == MAX_FINDINGS and {finding.count for finding in kept} == {2}
    assert (more.rule.name, more.count) == ("CHECKER-002", 100)


def test_what_is_kept_of_a_queue_does_not_grow(checked: Loopback) -> None:
    """A driver that goes round and round, posts one address again and again, or never ends its version."""
    open_queues(checked.driver)
    checked.wire.room = 0
    driver, checker = checked.driver, checked.checker
    assert checker is not None
    for number in range(40):
        driver.doorbells.ring(driver.tx[0].doorbell_index, 100 * number % driver.tx[0].entries)
        driver.doorbells.ring(driver.rx[0].doorbell_index, 100 * number % driver.tx[0].entries)
    for _ in range(1000):
        driver.registers.write(DRIVER_VERSION, 7)
    driver.device_status()
    assert not checker.failed
    queue = checker._tx._queues[0]
    for kept in (queue.open, queue.waiting, queue.packets, queue.refused):
        assert len(kept) <= driver.tx[0].entries
    assert max(map(len, checker._rx._buffers._pages.values()), default=0) <= 256
    assert len(checker._registers._version) <= 128
    json.dumps([finding.as_dict() for finding in checker.findings])


def test_faults_on_demand_are_not_the_driver_s(checked: Loopback) -> None:
    """*Steps*: memory of posted buffers is out of the device's reach; interrupts are lost; the driver gives up.
    *Verify*: nothing is found, though each looks like a broken rule.
    """
    open_queues(checked.driver)
    buffers = checked.driver.rx[0].payloads
    checked.faults.add("dma-fault", address=buffers, size=256 * 2048)
    checked.faults.add("irq-lost")
    checked.driver.set_rss(table=[0] * 128)
    checked.receive(tcp(100), tcp(101))
    assert checked.nic.state.device["faults"][0] > 0
    for _ in range(60):
        checked.advance(1_000_000_000)
        checked.driver.nic_timestamp()
        checked.receive(tcp(100))
    checked.driver.release()
    assert names(checked) == []


BROKEN_TESTS = """
import pytest

pytestmark = pytest.mark.contract


def test_good(nic, driver, link):
    driver.open()
    link[0].driver.open()


def test_bad(nic, driver):
    driver.doorbells.ring(0, 1)
    assert [finding.rule.name for finding in nic.findings] == ["DBL-002"]


def test_bad_end(link):
    link[1].driver.doorbells.ring(0, 1)
"""


def test_the_marker_makes_a_test_fail(tmp_path: Path) -> None:
    file = tmp_path / "test_example.py"
    file.write_text(BROKEN_TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "nicmodel.testing.plugin", "-p", "no:cacheprovider", str(file)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert " 3 passed, 2 errors in " in said, said
    assert "the driver breaks the contract" in said and "DBL-002 error: nic" in said


def test_giving_up_on_a_device_that_hangs_is_no_fault(checked: Loopback) -> None:
    """As Linux' gve_tx_timeout does: the admin queue is released without a word."""
    open_queues(checked.driver)
    checked.wire.room = 0
    for _ in range(2):  # the second stays in the ring
        checked.driver.send(0, tcp(100))
        checked.run()
    checked.driver.release()
    assert names(checked) == []
