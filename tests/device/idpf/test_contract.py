"""The contract checker of an idpf: each rule broken is found, and only that; who keeps the contract hears nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.contract.checker import Checker
from nicmodel.idpf.contract.rules import AREAS, RULES
from nicmodel.idpf.profile import Profile
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.mailbox import Refused, one
from nicmodel.idpf.testing.misbehave import misbehave, open_queues, profile, rules
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.idpf.virtchnl import Op, QueueType, Scheduling, TxFlag
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.wire import TestWire

from ..frames import icmp, tcp, udp

Lab = tuple[TestNic, Driver]


@pytest.fixture
def make() -> Iterator[Callable[..., Lab]]:
    """Makes a NIC whose driver is watched, and the driver; nothing has been done to it."""
    with ExitStack() as stack:

        def make(profile: Profile, *, check: bool = True) -> Lab:
            nic = stack.enter_context(TestNic(profile, clock=VirtualClock(), check=check))
            ram = stack.enter_context(GuestMemory("ram", size=32 << 20))
            return nic, stack.enter_context(nic.connect(ram=ram))

        yield make


@pytest.fixture
def lab(make: Callable[..., Lab]) -> Lab:
    return make(profile())


def names(nic: TestNic) -> list[str]:
    return [finding.rule.name for finding in nic.findings]


def test_every_rule_can_be_broken_on_request() -> None:
    assert sorted(rules()) == sorted(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_found_and_no_other(make: Callable[..., Lab], rule: str) -> None:
    nic, driver = make(profile(rule))
    open_queues(driver)
    assert names(nic) == []
    misbehave(nic, driver, rule)
    assert names(nic) == [rule], "\n".join(map(str, nic.findings))
    json.dumps([finding.as_dict() for finding in nic.findings])


def test_rules_are_told_in_full() -> None:
    assert len(RULES) >= 60
    assert {rule.area for rule in RULES.values()} == set(AREAS)
    for rule in RULES.values():
        assert rule.says.endswith(".") and rule.why.endswith(".")
        assert any(source in rule.source for source in ("idpf_", "OASIS", "virtchnl2", "controlq", "idpf.h")), rule.name


def exercise(nic: TestNic, driver: Driver) -> None:
    """What a driver does in its life, in order."""
    assert nic.clock is not None
    driver.probe()
    for split, scheduling in ((True, Scheduling.FLOW), (False, Scheduling.QUEUE)):
        driver.open(queues=3, ring_entries=192, header_split=split, rsc=split, scheduling=scheduling)
        for number in range(40):
            for frame in (tcp(100 + number), udp(number), icmp(300), tcp(3000, v=6)):
                nic.inject(frame)
            for queue in driver.rx:
                driver.poll(queue)
                if driver.fired(driver.vector(queue)):
                    driver.rearm(queue)
            driver.send(number % 3, tcp(1400), checksum=True)
            driver.tx[1].send(tcp(8000), tso=(1400, 54), fragments=[54, 4000])
            nic.clock.advance(100_000)
            for queue in driver.tx:
                driver.poll_tx(queue)
        driver.set_vector(1, 0)
        driver.send(1, tcp(10))
        driver.rearm(1)
        driver.add_addresses(["33:33:00:00:00:01"])
        driver.delete_addresses(["33:33:00:00:00:01"])
        driver.close()
    driver.exchange_queues(tx=2, rx=1)
    driver.open(queues=1)
    nic.call(nic.device.request_reset)
    driver.send(0, tcp(10))  # it does not know yet
    driver.set_vectors(0)
    driver.free_queues()
    driver.set_up()
    driver.open()
    nic.inject(tcp(100))
    driver.remove()


def test_a_driver_that_keeps_the_contract(lab: Lab) -> None:
    exercise(*lab)
    assert names(lab[0]) == []


@pytest.mark.parametrize("step", [1, -1])
def test_queues_may_be_enabled_one_by_one(lab: Lab, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DPDK does it, who has a transmit queue before its completion queue; or the other way round."""
    nic, driver = lab

    def enable() -> None:
        for chunk in driver._of_each_queue()[::step]:
            driver._several(Op.ENABLE_QUEUES, [chunk])

    monkeypatch.setattr(driver, "enable_queues", enable)
    exercise(nic, driver)
    assert names(nic) == []


def test_miss_completions_may_be_welcome(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Intel's driver outside of the kernel says of its completion queues."""
    nic, driver = lab
    several = driver._several

    def welcome(op: Op, records: Sequence[np.void], *rest: Any) -> Any:
        if op == Op.CONFIG_TX_QUEUES:
            records = [record.copy() for record in records]
            for record in records:
                if record["type"] == QueueType.TX_COMPLETION:
                    record["qflags"] = TxFlag.MISS_COMPLETIONS
        return several(op, records, *rest)

    monkeypatch.setattr(driver, "_several", welcome)
    exercise(nic, driver)
    assert names(nic) == []


def test_results_are_the_same_with_and_without(make: Callable[..., Lab]) -> None:
    """All of guest memory: frames, completions, replies; and what was sent, and every interrupt."""

    def results(check: bool) -> tuple[bytes, list[bytes], list[int]]:
        nic, driver = make(profile(), check=check)
        exercise(nic, driver)
        fires = nic.device.state.vectors["fires"].tolist()
        return driver.ram.bytes.tobytes(), [bytes(frame) for frame in nic.take()], fires

    assert results(False) == results(True)


def test_a_checker_that_comes_late_goes_on(lab: Lab) -> None:
    """What it does not know it does not judge; what comes later it does."""
    nic, driver = lab
    open_queues(driver)
    assert isinstance(nic.checker, Checker)
    nic.checker.close()
    late = Checker(nic.device)
    for number in range(200):
        nic.inject(tcp(number))
        driver.poll(0)
        driver.send(0, tcp(number))
        nic.run()
        driver.poll_tx(0)
    driver.statistics()
    assert late.findings == [] and not late.failed
    driver.registers.write(r.TX_TAIL, 5000, 0)
    nic.run()
    assert [finding.rule.name for finding in late.findings] == ["DBL-002"]


def test_a_checker_that_fails_says_so_and_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of its own neither disturbs the NIC nor passes for a driver without fault."""
    nic, driver = lab
    open_queues(driver)
    assert isinstance(nic.checker, Checker)

    def fail(*_: object) -> None:
        raise KeyError("no entry")

    monkeypatch.setitem(nic.checker._messages._checks, Op.GET_STATS, fail)
    for _ in range(3):
        driver.statistics()
    with pytest.raises(RuntimeError, match="has failed"):
        _ = nic.findings
    [failed] = nic.checker.findings
    assert (failed.rule.name, failed.count) == ("CHECKER-001", 3)
    assert "checker failed at CommandFetched" in caplog.text
    caplog.clear()


def test_findings_do_not_grow_with_what_a_guest_names(lab: Lab) -> None:
    nic, driver = lab
    open_queues(driver)
    for vport in range(1, 300):
        with suppress(Refused):
            driver.request(Op.ENABLE_VPORT, one(v.VPORT, vport_id=vport))
    [finding] = nic.findings
    assert (finding.rule.name, finding.count) == ("VPT-001", 299)


def test_what_is_kept_of_a_queue_does_not_grow(lab: Lab) -> None:
    """A driver that goes round and round, before a wire that takes nothing."""
    nic, driver = lab
    open_queues(driver)
    assert isinstance(nic.wire, TestWire) and isinstance(nic.checker, Checker)
    nic.wire.room = 0
    for number in range(60):
        driver.registers.write(r.TX_TAIL, 50 * number % 128, 0)
        driver.registers.write(r.RX_BUFFER_TAIL, 50 * number % 64, 0)
        driver.registers.write(r.ARQ_TAIL, 50 * number % 64)
    nic.run()
    assert not nic.checker.failed
    queue = nic.checker._tx._queues[0]
    for kept in (queue.open, queue.waiting, queue.packets, queue.refused):
        assert len(kept) <= driver.tx[0].entries
    for spans in (nic.checker._rx._buffers, nic.checker._registers._buffers):
        assert max(map(len, spans._pages.values()), default=0) <= 256


def test_faults_on_demand_are_not_the_driver_s(lab: Lab) -> None:
    """*Steps*: memory of posted buffers is out of the device's reach; interrupts are lost; the device asks for a reset.
    *Verify*: nothing is found, though each looks like a broken rule.
    """
    nic, driver = lab
    assert nic.clock is not None
    open_queues(driver)
    nic.faults.add("dma-fault", address=driver.rx[0].buffers[0]._buffers, size=64 * 2048)
    nic.faults.add("irq-lost")
    for _ in range(60):
        nic.inject(tcp(1500))
        nic.clock.advance(1_000_000_000)
        driver.statistics()
    assert nic.device.state.device["faults"][0] > 0
    nic.call(nic.device.request_reset)
    driver.send(0, tcp(10))
    driver.rearm(0)
    assert names(nic) == []
