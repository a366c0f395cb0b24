"""The ladder: a driver that stops at a step, or goes wrong there, is told where it stands and why.

The driver is the one in Python, taken step by step; the ladder sees only what the device sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nicmodel.client.bringup import split
from nicmodel.gvnic import registers as r
from nicmodel.gvnic.bringup.steps import STEPS
from nicmodel.gvnic.commands import PTYPE, PTYPE_COUNT, Opcode, QueueFormat
from nicmodel.gvnic.descriptors import TX_GENERAL_CONTEXT, TX_PACKET, TxType
from nicmodel.gvnic.registers import Bar, DriverStatus
from nicmodel.gvnic.testing.adminq import AdminError, AdminTimeout
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.gqi import RX_LIST, TX_LIST, GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.observe.ladder import Need
from nicmodel.pci.config import COMMAND, Command
from nicmodel.vfio_user.protocol import PciRegion

from .frames import tcp

#: Where no memory is.
NOWHERE = 0xDEAD_0000_0000
MS = 1_000_000
RING = 256


def report(lab: Loopback) -> dict[str, Any]:
    return lab.call(lab.host.ladders["nic"].report)


def newest(lab: Loopback) -> dict[str, Any]:
    life: dict[str, Any] = report(lab)["lives"][0]
    return life


def steps(life: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in life["steps"]}


def stages(life: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["stage"] for step in life["steps"]}


# The way, a function for each step.


def memory(lab: Loopback) -> None:
    lab.driver.client.region_write(PciRegion.CONFIG, COMMAND, Command.MEMORY.to_bytes(2, "little"))


def version(lab: Loopback) -> None:
    for byte in b"mine-0.1\n":
        lab.driver.registers.write(r.DRIVER_VERSION, byte)


def command(lab: Loopback) -> None:
    """A command that nothing waits for."""
    lab.driver.report_link_speed()


def vectors(lab: Loopback) -> None:
    lab.driver.max_tx_queues = lab.driver.max_rx_queues = 2
    lab.driver._provide_vectors()


def ptypes(lab: Loopback) -> None:
    size = PTYPE_COUNT * PTYPE.itemsize
    lab.driver._with_answer(Opcode.GET_PTYPE_MAP, "address", size, length=size)


def tx_queue(lab: Loopback) -> None:
    queue = lab.driver.tx[0] = lab.driver.make_tx(0, RING)
    lab.driver.admin_batch([queue.create_command()])


def rx_queue(lab: Loopback) -> None:
    queue = lab.driver.rx[0] = lab.driver.make_rx(0, RxConfig(entries=RING))
    lab.driver.admin_batch([queue.create_command()])


def half_a_packet(lab: Loopback) -> None:
    """A context without the data that it is for."""
    lab.driver.tx[0].put(TX_GENERAL_CONTEXT.encode(dtype=TxType.GENERAL_CONTEXT))
    lab.driver.tx[0].kick()


def hand_back(lab: Loopback) -> None:
    for _ in range(40):
        lab.receive(tcp(10))
        lab.driver.poll(0)


WAY: dict[str, Callable[[Loopback], object]] = {
    "identity": lambda lab: lab.driver.identify(),
    "memory": memory,
    "bus_master": lambda lab: lab.driver.set_bus_master(),
    "version": version,
    "admin_queue": lambda lab: lab.driver.setup_adminq(),
    "command": command,
    "compatibility": lambda lab: lab.driver.verify_compatibility(),
    "describe": lambda lab: lab.driver.describe(),
    "vectors": vectors,
    "resources": lambda lab: lab.driver.configure_resources(),
    "ptypes": ptypes,
    "tx_queue": tx_queue,
    "rx_queue": rx_queue,
    "buffers": lambda lab: lab.driver.rx[0].post(),
    "unmasked": lambda lab: lab.driver._enable_all(),
    "link": lambda lab: lab.driver.device_status(),
    "tx_posted": half_a_packet,
    "transmit": lambda lab: lab.driver.send(0, tcp(10)),
    "receive": lambda lab: lab.receive(tcp(10)),
    "acknowledged": lambda lab: lab.driver.enable(lab.driver.rx_block(0)),
    "handed_back": hand_back,
}

#: What the device says that it waits for, of each step.
WAITS = {
    "identity": "configuration space, offset 0x0",
    "memory": "bit 0x2 of the PCI command register (configuration space, offset 0x4)",
    "bus_master": "bit 0x4 of the PCI command register (configuration space, offset 0x4)",
    "version": "driver_version (BAR 0, offset 0x1f)",
    "admin_queue": "adminq_length (offset 0x28), adminq_base_address_hi (offset 0x20), adminq_base_address_lo (offset "
    "0x24), then RUN in driver_status (BAR 0, offset 0x4); or for the page number in adminq_pfn (offset 0x10)",
    "command": "adminq_doorbell (BAR 0, offset 0x14)",
    "compatibility": "VERIFY_DRIVER_COMPATIBILITY (0xf)",
    "describe": "DESCRIBE_DEVICE (0x1)",
    "vectors": "MSI-X",
    "resources": "CONFIGURE_DEVICE_RESOURCES (0x2)",
    "ptypes": "GET_PTYPE_MAP (0xe)",
    "tx_queue": "CREATE_TX_QUEUE (0x5)",
    "rx_queue": "CREATE_RX_QUEUE (0x6)",
    "buffers": "BAR 2, offset: rx0 0x64",
    "unmasked": "BAR 2, offset: tx0 0x4, rx0 0x24",
    "link": "a read of device_status (BAR 0, offset 0x0)",
    "tx_posted": "BAR 2, offset: tx0 0x44",
    "transmit": "end_of_packet",
    "receive": "a frame from the wire",
    "acknowledged": "BAR 2, offset: tx0 0x4, rx0 0x24",
    "handed_back": "BAR 2, offset: rx0 0x64",
}


def go(lab: Loopback, *, to: str = "", without: tuple[str, ...] = ()) -> None:
    """Take the steps before one, or all; each a millisecond after the one before."""
    for name, take in WAY.items():
        if name == to:
            return
        if name not in without:
            take(lab)
            lab.run()
            lab.advance(MS)


def test_every_step_of_the_way_is_taken_here() -> None:
    way = [step.name for step in STEPS if step.need is not Need.FEATURE and step.name != "page_lists"]
    assert way == list(WAY) == list(WAITS)


@pytest.mark.parametrize("step", WAY)
def test_a_driver_that_stops(make_lab: Callable[..., Loopback], step: str) -> None:
    """*Steps*: stop before a step. *Verify*: it stands there, all before it is reached and nothing after it."""
    lab = make_lab()
    go(lab, to=step)
    life = newest(lab)
    assert life["stands"] == step
    way, _ = split(life)
    names = [one["name"] for one in way]
    place = names.index(step)
    assert [one["stage"] for one in way] == ["reached"] * place + ["here"] + ["missing"] * (len(way) - place - 1)
    orders = [one["order"] for one in way[:place]]
    assert orders == sorted(orders)
    assert WAITS[step] in steps(life)[step]["waits"]


def test_a_driver_that_works(lab: Loopback) -> None:
    """*Verify*: each step is dated with when it was taken, from the first write to a register on."""
    go(lab)
    life = newest(lab)
    assert life["stands"] is None and life["ended"] is None
    way, _ = split(life)
    assert {step["stage"] for step in way} == {"reached"}
    names = list(WAY)
    first = names.index("version")
    after = {step["name"]: step["after_ns"] for step in way}
    for place, name in enumerate(names):
        # What the control path does not show is seen when something else happens there, or when somebody asks.
        if not steps(life)[name]["sampled"]:
            assert after[name] == (None if place < first else (place - first) * MS), name
    assert life["driver"] == "mine-0.1" and life["system"] == "LINUX nicmodel" and life["queue_format"] == "DQO_RDA"
    assert steps(life)["buffers"]["now"].startswith("rx0 ")


def test_asking_dates_what_packets_show(lab: Loopback) -> None:
    go(lab, to="tx_posted")
    assert stages(newest(lab))["tx_posted"] == "here"
    lab.advance(5 * MS)
    lab.driver.send(0, tcp(10))
    begun = newest(lab)["began"]
    sent = steps(newest(lab))["transmit"]
    assert sent["sampled"] and begun + sent["after_ns"] == lab.now
    lab.advance(5 * MS)
    assert steps(newest(lab))["transmit"] == sent


def test_page_lists(make_lab: Callable[..., Loopback]) -> None:
    """The QPL formats have a step more, and GQI has no packet types."""
    lab = make_lab()
    driver = lab.driver
    driver.identify()
    driver.set_bus_master()
    version(lab)
    driver.setup_adminq()
    driver.verify_compatibility()
    driver.describe()
    driver.max_tx_queues = driver.max_rx_queues = 2
    driver._provide_vectors()
    driver.configure_resources(QueueFormat.GQI_QPL)
    life = newest(lab)
    assert life["stands"] == "page_lists" and "ptypes" not in stages(life)
    assert "REGISTER_PAGE_LIST (0x3)" in steps(life)["page_lists"]["waits"]
    queues = GqiQueues(driver, qpl=True, entries=64)
    life = newest(lab)
    assert life["stands"] == "tx_posted" and stages(life)["buffers"] == "reached"
    assert steps(life)["page_lists"]["now"] == f"2 lists, {len(queues.rx_pages) + len(queues.tx_pages)} pages"
    queues.enable()
    queues.send(tcp(10), checksum=True)
    lab.run()
    lab.receive(tcp(10))
    queues.receive()
    queues.enable()
    queues.fill(1)
    life = newest(lab)
    assert life["stands"] is None, life
    assert stages(life)["checksum"] == "reached" and stages(life)["segmentation"] == "missing"
    assert RX_LIST != TX_LIST


def test_the_older_admin_queue(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(scheme="pfn")
    go(lab, to="handed_back")
    assert newest(lab)["stands"] == "handed_back"
    lab.driver.remove()
    [life] = report(lab)["lives"]
    assert life["ended"]["how"] == "the driver released the admin queue" and stages(life)["removal"] == "reached"


@pytest.mark.parametrize("step", ["identity", "version", "compatibility", "describe", "vectors", "ptypes", "link"])
def test_steps_that_nothing_waits_for(lab: Loopback, step: str) -> None:
    """A driver that goes on without them does not stand there."""
    if step == "describe":
        go(lab, to=step)
        lab.driver.describe()  # the driver in Python cannot go on without, so the ladder is what has not seen it
        lab.host.ladders["nic"]._climb.life.described = False
        lab.host.ladders["nic"]._climb._reached.pop(step, None)
        for name in list(WAY)[list(WAY).index(step) + 1 :]:
            WAY[name](lab)
            lab.run()
    elif step == "vectors":
        go(lab, to=step)
        lab.driver.max_tx_queues = lab.driver.max_rx_queues = 2
        lab.driver.blocks = 16  # it polls, and has no eventfds
        for name in list(WAY)[list(WAY).index(step) + 1 :]:
            WAY[name](lab)
            lab.run()
    else:
        go(lab, without=(step,))
    life = newest(lab)
    assert stages(life)[step] == "skipped" and life["stands"] is None


# Drivers that go wrong.


def problem(lab: Loopback, stands: str, *parts: str) -> None:
    life = newest(lab)
    assert life["stands"] == stands, life["stands"]
    for part in parts:
        assert any(part in one for one in life["problems"]), life["problems"]


def set_up(driver: Driver, address: int) -> None:
    for register, value in (
        (r.ADMINQ_LENGTH, r.ADMINQ_PAGE), (r.ADMINQ_BASE_HI, address >> 32), (r.ADMINQ_BASE_LO, address & 0xFFFF_FFFF),
        (r.DRIVER_STATUS, DriverStatus.RUN),
    ):  # fmt: skip
        driver.registers.write(register, value)


def test_admin_queue_nowhere(lab: Loopback) -> None:
    go(lab, to="admin_queue")
    set_up(lab.driver, NOWHERE)
    lab.driver.registers.write(r.ADMINQ_DOORBELL, 1)
    problem(
        lab, "command", f"the admin queue at {NOWHERE:#x}, 64 slots, is not in shared memory", "not in shared memory: 1"
    )


def test_admin_queue_at_0(lab: Loopback) -> None:
    go(lab, to="admin_queue")
    set_up(lab.driver, 0)
    lab.driver.registers.write(r.ADMINQ_DOORBELL, 1)
    problem(
        lab, "admin_queue", "run with an admin queue at address 0", "as there is no admin queue, or a shorter one: 1"
    )


def test_version_without_end(lab: Loopback) -> None:
    go(lab, to="version")
    for byte in b"mine":
        lab.driver.registers.write(r.DRIVER_VERSION, byte)
    problem(lab, "version", "no newline")


def test_format_that_is_not_offered(lab: Loopback) -> None:
    go(lab, to="resources")
    with pytest.raises(AdminError):
        lab.driver.configure_resources(QueueFormat.GQI_RDA)
    problem(lab, "resources", "CONFIGURE_DEVICE_RESOURCES, was refused: INVALID_ARGUMENT, queue format 1")
    lab.driver.configure_resources()
    assert newest(lab)["stands"] == "ptypes" and not newest(lab)["problems"]


def test_queue_before_resources(lab: Loopback) -> None:
    go(lab, to="resources")
    with pytest.raises(AdminError):
        tx_queue(lab)
    problem(lab, "resources", "CREATE_TX_QUEUE, was refused: FAILED_PRECONDITION, no device resources configured")


def test_queue_of_no_such_block(lab: Loopback) -> None:
    go(lab, to="rx_queue")
    queue = lab.driver.make_rx(0, RxConfig(entries=RING))
    queue.block = 99
    with pytest.raises(AdminError):
        lab.driver.admin_batch([queue.create_command()])
    problem(lab, "rx_queue", "CREATE_RX_QUEUE, was refused: INVALID_ARGUMENT, notification block 99")


def test_no_bus_master(lab: Loopback) -> None:
    """It is never switched on: no command is read. When it is, what was handed over is executed."""
    with pytest.raises(AdminTimeout):
        go(lab, to="link", without=("bus_master",))
    problem(lab, "bus_master", "commands were handed over, which the device cannot read while bus mastering is off")
    assert stages(newest(lab))["admin_queue"] == "reached" and stages(newest(lab))["command"] == "missing"
    lab.driver.set_bus_master()
    lab.run()
    assert stages(newest(lab))["command"] == "reached"


def test_bus_mastering_goes(lab: Loopback) -> None:
    """It is switched off again. All else is done, and reached as far as it can be."""
    go(lab, to="link")
    lab.driver.set_bus_master(False)
    lab.driver.device_status()
    lab.driver.send(0, tcp(10))
    problem(lab, "transmit", "bus mastering is off")
    assert stages(newest(lab))["tx_posted"] == "reached"
    lab.driver.set_bus_master()
    lab.run()
    assert newest(lab)["stands"] == "receive"


def test_no_buffers(lab: Loopback) -> None:
    go(lab, to="receive", without=("buffers",))
    lab.receive(tcp(10))
    problem(lab, "buffers", "frames that wait for buffers: 1")


def test_doorbell_in_the_wrong_byte_order(lab: Loopback) -> None:
    go(lab, to="buffers")
    index = lab.driver.rx[0].doorbell_index
    lab.driver.client.region_write(Bar.DOORBELLS, 4 * index, (224).to_bytes(4, "big"), posted=True)
    problem(lab, "buffers", "beyond the ring (DQO is little-endian, GQI big-endian): 1")


def test_doorbell_at_an_offset_that_is_the_index(lab: Loopback) -> None:
    go(lab, to="buffers")
    index = lab.driver.rx[0].doorbell_index
    lab.driver.client.region_write(Bar.DOORBELLS, index, (224).to_bytes(4, "little"), posted=True)
    problem(
        lab, "buffers", "writes to BAR 2 at no doorbell that the device has given (its indices count 32-bit words): 1"
    )


def test_interrupts_never_enabled(lab: Loopback) -> None:
    """A driver that waits for interrupts, and has not enabled them, has taken packets for the last time."""
    go(lab, to="acknowledged", without=("unmasked",))
    problem(lab, "acknowledged", "vectors with something to tell are masked: 0, 8")
    assert stages(newest(lab))["unmasked"] == "skipped"


def test_interrupts_not_enabled_again(lab: Loopback) -> None:
    go(lab, to="acknowledged")
    lab.receive(tcp(10))
    problem(lab, "acknowledged", "vectors with something to tell are masked: 8")


def test_buffers_that_are_not_memory(lab: Loopback) -> None:
    go(lab, to="buffers")
    lab.driver.rx[0].descriptors[:, 1] = NOWHERE
    for name in ("buffers", "unmasked", "link", "tx_posted", "transmit"):
        WAY[name](lab)
    lab.receive(tcp(10))
    problem(lab, "receive", f"DMA faults: 1; the last at {NOWHERE:#x}", "dropped: dma_fault 1")


def test_packet_that_is_not_memory(lab: Loopback) -> None:
    go(lab, to="tx_posted")
    queue = lab.driver.tx[0]
    queue.put(
        TX_PACKET.encode(
            dtype=TxType.PACKET,
            buffer_address=NOWHERE,
            buffer_size=60,
            end_of_packet=1,
            completion_tag=queue.take_tag(),
        )
    )
    queue.kick()
    problem(lab, "transmit", "all dropped: 1", "DMA faults: 1")


def test_half_a_packet(lab: Loopback) -> None:
    go(lab, to="transmit")
    problem(lab, "transmit", "no whole packet: no descriptor has end_of_packet")


def test_no_frame_has_come(lab: Loopback) -> None:
    go(lab, to="receive")
    problem(lab, "receive", "no frame has come from the wire yet")


def test_link_down(lab: Loopback) -> None:
    lab.set_link(False)
    go(lab, to="tx_posted")
    problem(lab, "link", "the link is down")


def test_buffers_not_handed_back(lab: Loopback) -> None:
    go(lab, to="handed_back")
    problem(lab, "handed_back", "the device has rx0 223 of 256 buffers left")


def test_broken_rules_of_this_life_are_told() -> None:
    with Loopback(check=True) as lab:
        go(lab, to="resources")
        lab.driver.registers.write(r.MAX_RX_QUEUES, 1)
        lab.run()
        control = lab.host.open_control(str(lab.path.with_name("control")))
        [told] = [one for one in _ask(lab, control)["lives"][0]["problems"] if one.startswith("rule ")]
        assert told == "rule REG-002, device: max_rx_queues is written"
        lab.driver.release()
        lab.advance(MS)
        lab.driver.setup_adminq()
        lab.run()
        assert not [one for one in _ask(lab, control)["lives"][0]["problems"] if one.startswith("rule ")]


def _ask(lab: Loopback, control: Any) -> dict[str, Any]:
    """What the control server answers, by its own handler."""
    from nicmodel.observe.control_server import _Client

    client = _Client.__new__(_Client)
    client._server = control
    answer: dict[str, Any] = client._bringup({})
    return answer


# Features.


def test_features(make_lab: Callable[..., Loopback]) -> None:
    """*Steps*: use all that the driver in Python can. *Verify*: each is seen, those that were not used are not."""
    lab = make_lab(coalesce=True, coalesce_usecs=0)
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=RING, header_split=True, rsc=True, buffer_size=2048)
    life = newest(lab)
    used = {name for name in stages(life) if steps(life)[name]["need"] == "feature" and stages(life)[name] == "reached"}
    assert used == {"rss", "statistics", "timestamps", "moderation"}
    driver.add_flow_rule(TCPv4(dst_port=5201), queue=1)
    lab.receive(tcp(10, dport=5201))
    driver.set_mtu(4000)
    driver.report_link_speed()
    driver.send(0, tcp(100), checksum=True)
    driver.send(1, tcp(3000), tso=(1000, 54))
    driver.restart_rx(1)
    lab.run()
    life = newest(lab)
    missing = {name for name, stage in stages(life).items() if stage == "missing"}
    assert missing == {"handed_back", "tx_round", "coalescing", "reset", "removal"} - {"handed_back"}, missing
    assert steps(life)["flow_rules"]["now"] == "1 rules, 1 hits"
    assert steps(life)["header_split"]["now"] == "1 frames split"
    assert steps(life)["restart"]["now"] == "rx1" and steps(life)["jumbo"]["now"] == "MTU 4000"


def test_the_ring_went_round(lab: Loopback) -> None:
    go(lab)
    for _ in range(RING):
        lab.driver.send(0, tcp(10), report_event=True)
        lab.run()
        lab.driver.poll_tx(0)
    assert stages(newest(lab))["tx_round"] == "reached"


def test_a_device_without_them_has_no_such_steps(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(max_flow_rules=0, timestamps=False, header_buffer_size=0, max_mtu=1500)
    assert not {"flow_rules", "timestamps", "header_split", "jumbo"} & stages(newest(lab)).keys()


# Lives.


def test_after_the_driver_has_gone(lab: Loopback) -> None:
    """*Steps*: a driver comes to the queues and is removed, the next gives up at the resources. *Verify*: both are
    there, as they were; what the first had learnt of the device still counts, what it had set up does not.
    """
    go(lab, to="buffers")
    lab.driver.remove()
    lab.advance(MS)
    found = report(lab)
    assert not found["at_work"]
    [first] = found["lives"]
    assert (first["number"], first["stands"], first["ended"]["how"]) == (
        1, "buffers", "the driver released the admin queue",
    )  # fmt: skip
    assert stages(first)["removal"] == "reached" and first["queue_format"] == "DQO_RDA"
    lab.driver.setup_adminq()
    lab.driver.verify_compatibility()
    found = report(lab)
    assert found["at_work"]
    second, before = found["lives"]
    assert before == first
    assert (second["number"], second["ended"], second["stands"]) == (2, None, "vectors")
    assert stages(second)["reset"] == "reached" and stages(second)["version"] == "reached"
    lab.driver.disconnect()
    lab.run()
    second, before = report(lab)["lives"]
    assert (second["number"], second["ended"]["how"], second["stands"]) == (2, "the device was reset", "vectors")
    lab.driver = lab.connect()
    go(lab, to="version")
    assert len(report(lab)["lives"]) == 2  # no register was written yet
    version(lab)
    found = report(lab)
    assert [life["number"] for life in found["lives"]] == [3, 2, 1]
    assert found["lives"][0]["stands"] == "admin_queue" and stages(found["lives"][0])["identity"] == "reached"


def test_only_the_last_lives_are_kept(lab: Loopback) -> None:
    go(lab, to="command")
    for _ in range(5):
        lab.driver.release()
        lab.driver.setup_adminq()
    assert [life["number"] for life in report(lab)["lives"]] == [6, 5, 4]


def test_a_recovery_is_a_life_that_works(lab: Loopback) -> None:
    """After a reset that the device has asked for, the driver describes nothing anew, and takes all other steps."""
    go(lab)
    lab.driver.reset()
    WAY["tx_queue"](lab)
    WAY["rx_queue"](lab)
    for name in list(WAY)[list(WAY).index("buffers") :]:
        WAY[name](lab)
        lab.run()
    second, first = report(lab)["lives"]
    assert second["stands"] is None and first["stands"] is None
    assert stages(second)["describe"] == "reached" and steps(second)["describe"]["after_ns"] is None


def test_removal_that_leaves_something(lab: Loopback) -> None:
    go(lab, to="buffers")
    lab.driver.release()
    [life] = report(lab)["lives"]
    assert (
        stages(life)["removal"] == "missing"
        and steps(life)["removal"]["now"] == "2 queues and the resources still there"
    )


def test_set_up_over_another_admin_queue(lab: Loopback) -> None:
    """The device releases the old one first; so it is another life."""
    go(lab, to="tx_queue")
    lab.driver.setup_adminq()
    second, first = report(lab)["lives"]
    assert first["stands"] == "tx_queue" and second["stands"] == "command"


def test_a_reset_in_the_midst_of_it(lab: Loopback) -> None:
    go(lab, to="tx_queue")
    lab.driver.client.reset()
    [life] = report(lab)["lives"]
    assert life["ended"]["how"] == "the device was reset" and life["stands"] == "tx_queue"
    assert not report(lab)["at_work"]


# What it costs, and what it bears.


def test_packets_are_not_told_of(lab: Loopback) -> None:
    """The ladder hears the control path only: neither doorbells nor packets make an event."""
    go(lab)
    assert not lab.nic.diagnostics.observers
    heard: list[object] = []
    lab.nic.diagnostics.watch_control(heard.append)
    lab.driver.send(0, tcp(10))
    lab.receive(tcp(10))
    lab.driver.poll(0)
    lab.driver.enable(lab.driver.rx_block(0))
    lab.run()
    assert not heard


def test_asking_books_no_dma(lab: Loopback) -> None:
    go(lab)
    before = lab.nic.state.ledger.copy()
    report(lab)
    assert (lab.nic.state.ledger == before).all()


def test_the_ladder_fails_alone(
    lab: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError

    ladder = lab.host.ladders["nic"]
    with monkeypatch.context() as broken:
        broken.setattr(ladder._climb.life, "hear", fail)
        go(lab, to="handed_back")
    assert len([record for record in caplog.records if "the ladder failed" in record.message]) == 1
    caplog.clear()
    assert lab.nic.state.tx[0]["packets"] == 1


def test_timeouts_are_not_hidden(lab: Loopback) -> None:
    """A doorbell without an admin queue."""
    go(lab, to="admin_queue")
    lab.driver.setup_adminq()
    assert lab.driver.adminq is not None
    lab.driver.registers.write(r.DRIVER_STATUS, DriverStatus.RESET)
    with pytest.raises(AdminTimeout):
        lab.driver.report_link_speed()
    problem(lab, "admin_queue", "as there is no admin queue, or a shorter one: 1")


def test_words_of_the_driver_are_kept_as_they_are(lab: Loopback) -> None:
    """JSON escapes; who prints them makes them harmless."""
    go(lab, to="version")
    for byte in b"\x1b[2J\n":
        lab.driver.registers.write(r.DRIVER_VERSION, byte)
    assert newest(lab)["driver"] == "\x1b[2J"
