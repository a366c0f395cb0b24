"""The ladder of a gVNIC: its steps, in the order in which a driver takes them.

What a driver has to do is what Linux drivers/net/ethernet/google/gve does from gve_probe to its first packets; whether
it is done is read from the NIC's state, or from what `GvnicLife` remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.bringup.life import GvnicLife
from nicmodel.gvnic.commands import Inner, Opcode, OptionId, QueueFormat
from nicmodel.gvnic.device import Nic
from nicmodel.observe.ladder import Example, Ladder, Need, Step
from nicmodel.pci.config import COMMAND, Command

Telling = Callable[[GvnicLife], str]
Asking = Callable[[GvnicLife], bool]

_DRIVER = "nicmodel/gvnic/testing/driver.py"
_ADMINQ = "nicmodel/gvnic/testing/adminq.py"
_GQI = "nicmodel/gvnic/testing/gqi.py"
_RX = "nicmodel/gvnic/testing/rx.py"
_TX = "nicmodel/gvnic/testing/tx.py"
#: The largest MTU of Ethernet without jumbo frames.
_ETHERNET_MTU = 1500
#: Queues of which something is told by number, so that a line stays a line.
_FEW = 4


# What the device waits for.


def _text(text: str) -> Telling:
    return lambda _: text


def _at(register: r.Register) -> str:
    return f"{register.name} (BAR 0, offset {register.offset:#x})"


def _command(opcode: Opcode) -> Telling:
    return _text(f"the admin command {opcode.name} ({opcode:#x}), handed over by a write of {_at(r.ADMINQ_DOORBELL)}")


def _admin_queue(life: GvnicLife) -> str:
    missing = [one for one in (r.ADMINQ_LENGTH, r.ADMINQ_BASE_HI, r.ADMINQ_BASE_LO) if one.name not in life.written]
    first = "".join(f"{one.name} (offset {one.offset:#x}), " for one in missing)
    pfn = f"the page number in {r.ADMINQ_PFN.name} (offset {r.ADMINQ_PFN.offset:#x})"
    return f"{first}then RUN in {_at(r.DRIVER_STATUS)}; or for {pfn}"


def _queue_doorbell(way: str, to_do: str) -> Telling:
    def tell(life: GvnicLife) -> str:
        doorbells = life.nic.doorbells
        where = doorbells.tx if way == "tx" else doorbells.rx
        names = life.queues(way)[:_FEW] or [f"{way}0"]
        places = ", ".join(f"{name} {4 * where(int(name[2:])):#x}" for name in names)
        return f"{to_do}, then a write of the queue's doorbell (BAR 2, offset: {places})"

    return tell


def _interrupt_doorbell(to_do: str) -> Telling:
    def tell(life: GvnicLife) -> str:
        doorbells, state = life.nic.doorbells, life.nic.state
        places = [
            f"{name} {4 * doorbells.irq(int(queues[int(name[2:])]['vector'])):#x}"
            for way, queues in (("tx", state.tx), ("rx", state.rx))
            for name in life.queues(way)[: _FEW // 2]
        ] or [f"block 0 {4 * doorbells.irq(0):#x}"]
        return f"{to_do} the interrupt doorbell of a queue's block (BAR 2, offset: {', '.join(places)})"

    return tell


# What is so now, and why not.


def _passed(opcode: Opcode) -> Asking:
    return lambda life: life.commands[opcode.name] > 0


def _times(opcode: Opcode) -> Telling:
    def tell(life: GvnicLife) -> str:
        times = life.commands[opcode.name]
        return f"{times:,} times" if times > 1 else ""

    return tell


def _command_flags(life: GvnicLife) -> str:
    on = [bit.name or "" for bit in (Command.MEMORY, Command.BUS_MASTER) if bit in life.command_register]
    return f"command register: {', '.join(on).lower().replace('_', ' ') or 'all off'}"


def _has(bit: Command) -> Asking:
    return lambda life: bit in life.command_register


def _no_bus_master(life: GvnicLife) -> str:
    if life.nic.configured:
        return "the device is set up, but moves no packet and raises no interrupt while bus mastering is off"
    waiting = "commands were handed over, which the device cannot read while bus mastering is off"
    return waiting if life.nic.admin.waiting else ""


def _read_back(life: GvnicLife) -> str:
    admin = life.nic.admin
    return f"{admin.slots} slots at {admin.base:#x}" if admin.base else "none"


def _no_admin_queue(life: GvnicLife) -> str:
    return "the driver has asked the device to run with an admin queue at address 0" if life.asked_to_run else ""


def _no_command(life: GvnicLife) -> str:
    if life.count("admin_queue_fault"):
        admin = life.nic.admin
        return f"the admin queue at {admin.base:#x}, {admin.slots} slots, is not in shared memory"
    return ""


def _commands(life: GvnicLife) -> str:
    return f"{life.nic.admin.counter:,} completed"


def _no_vectors(life: GvnicLife) -> str:
    return "" if life.nic.link is None else "no vector has an eventfd: the MSI-X capability was not enabled"


def _resources(life: GvnicLife) -> str:
    nic = life.nic
    return f"{nic.queue_format.name}, {nic.interrupts.count} blocks" if nic.configured else "none"


def _dqo(life: GvnicLife) -> bool:
    return not life.nic.configured or not life.nic.gqi


def _with_page_lists(life: GvnicLife) -> bool:
    return life.nic.configured and life.nic.queue_format in (QueueFormat.GQI_QPL, QueueFormat.DQO_QPL)


def _page_lists(life: GvnicLife) -> str:
    pages = life.nic.pages
    return f"{len(pages)} lists, {pages.pages:,} pages"


def _queues(way: str) -> Telling:
    def tell(life: GvnicLife) -> str:
        names = life.queues(way)
        return "none" if not names else ", ".join(names) if len(names) <= _FEW else f"{names[0]} to {names[-1]}"

    return tell


def _posted(life: GvnicLife) -> bool:
    rx = life.nic.state.rx
    moved = (rx["active"] != 0) & ((rx["buffer_tail"] != 0) | (rx["buffer_head"] != 0))
    return bool(moved.any()) or life.since("rx", "frames") > 0


def _buffers(life: GvnicLife) -> str:
    posted = life.posted()
    told = [f"{name} {count:,} of {entries:,}" for name, (count, entries) in list(posted.items())[:_FEW]]
    return ", ".join(told) + (", ..." if len(posted) > _FEW else "")


def _starved(life: GvnicLife) -> str:
    held = int(life.nic.state.rx["held"].sum())
    return f"frames that wait for buffers: {held:,}" if held else ""


def _unmasked(life: GvnicLife) -> bool:
    vectors = life.nic.state.vectors
    return bool(((vectors["enabled"] != 0) | (vectors["fires"] > 0)).any())


def _vectors(life: GvnicLife) -> str:
    vectors = life.nic.state.vectors[: life.nic.interrupts.count]
    return f"{int((vectors['enabled'] != 0).sum())} enabled, {int(vectors['fires'].sum()):,} interrupts"


def _masked(life: GvnicLife) -> str:
    vectors = life.nic.state.vectors
    stuck = np.flatnonzero((vectors["pending"] != 0) & (vectors["enabled"] == 0))
    return (
        f"vectors with something to tell are masked: {', '.join(map(str, stuck[:_FEW].tolist()))}" if len(stuck) else ""
    )


def _link(life: GvnicLife) -> str:
    return "link up" if life.nic.link_up else "link down"


def _no_link(life: GvnicLife) -> str:
    return "" if life.nic.link_up else "the link is down: the wire is, or its cable was pulled (nicmodel link up)"


def _tx_posted(life: GvnicLife) -> bool:
    tx = life.nic.state.tx
    return (
        bool(((tx["active"] != 0) & ((tx["tail"] != 0) | (tx["head"] != 0))).any()) or life.since("tx", "packets") > 0
    )


def _sent(life: GvnicLife) -> str:
    return f"{life.since('tx', 'packets'):,} packets, {life.since('tx', 'segments'):,} frames"


def _not_sent(life: GvnicLife) -> str:
    packets = life.since("tx", "packets")
    if packets:
        return f"packets were handed over, and all dropped: {packets:,}"
    unfinished = "what the doorbells cover is no whole packet: no descriptor has end_of_packet"
    return _not_running(life) or (unfinished if _tx_posted(life) else "")


def _not_running(life: GvnicLife) -> str:
    if life.nic.halted:
        return "the device is halted by a fault on demand"
    return "" if Command.BUS_MASTER in life.command_register else "bus mastering is off"


def _received(life: GvnicLife) -> str:
    starved = _starved(life)
    return f"{life.since('rx', 'frames'):,} frames{starved and f', {starved}'}"


def _not_received(life: GvnicLife) -> str:
    if starved := _starved(life):
        return starved
    if life.drops():
        return ""
    return "no frame has come from the wire yet: send one, or have one made by nicmodel inject"


def _not_acknowledged(life: GvnicLife) -> str:
    return _masked(life) or (
        "" if life.nic.state.vectors["fires"].any() else "no vector has fired: nothing was there to tell"
    )


def _not_handed_back(life: GvnicLife) -> str:
    return f"the device has {_buffers(life)} buffers left; drivers hand them back in portions, Linux 32 at a time"


def _rss(life: GvnicLife) -> str:
    return "set by the driver" if life.nic.rss.configured else "the device's own"


def _rules(life: GvnicLife) -> str:
    rules = life.nic.state.rules
    there = life.nic.rules.locations()
    return f"{len(there)} rules, {int(rules['hits'][there].sum()):,} hits"


def _splits(life: GvnicLife) -> str:
    return f"{life.since('rx', 'split'):,} frames split"


def _merged(life: GvnicLife) -> str:
    return f"{life.since('rx', 'aggregated'):,} packets merged"


def _moderated(life: GvnicLife) -> str:
    intervals = life.nic.state.vectors["interval"]
    most = int(intervals.max())
    return f"up to {most / 1000:g} us" if most else "none"


def _mtu(life: GvnicLife) -> str:
    return f"MTU {life.mtu}" if life.mtu else ""


def _round(life: GvnicLife) -> bool:
    tx = life.nic.state.tx
    entries = tx["entries"][tx["active"] != 0]
    return len(entries) > 0 and life.since("tx", "packets") >= int(entries.sum())


def _asks(what: str) -> Asking:
    return lambda life: what in life.asked_of_transmit()


def _segments(life: GvnicLife) -> str:
    more = life.since("tx", "segments") - life.since("tx", "packets")
    return f"{more:,} frames more than packets" if more > 0 else ""


def _removed(life: GvnicLife) -> bool:
    return life.released and not life.nic.configured and not life.queues()


def _not_removed(life: GvnicLife) -> str:
    queues = life.queues()
    left = [f"{len(queues)} queues"] if queues else []
    return (
        " and ".join(left + (["the resources"] if life.nic.configured else [])) + " still there" if life.at_work else ""
    )


def _offers(option: OptionId) -> Asking:
    return lambda life: option.option.offered(life.nic.profile)


_PCI = "index.md#pci"
_ORDER = "index.md#what-a-driver-does-from-probe-to-the-first-packet"
_INTERRUPTS = "interrupts.md#doorbells-and-interrupts"


def _way() -> Iterator[Step[GvnicLife]]:
    """The steps to the first packets."""
    required, usual = Need.REQUIRED, Need.USUAL
    yield Step(
        name="identity", title="PCI identity read", need=usual,
        shows="vendor and device were read in the configuration space",
        waits=_text("a read of vendor and device (configuration space, offset 0x0)"),
        does="finds 1ae0:0042 there, or is called by its bus which has",
        example=Example(_DRIVER, "self.client.region_read(PciRegion.CONFIG, 0, 4)"),
        datasheet=_PCI, reached=lambda life: life.identified,
    )  # fmt: skip
    yield Step(
        name="memory", title="BARs enabled", need=required,
        shows="the memory bit of the PCI command register is set",
        waits=_text(f"bit {Command.MEMORY:#x} of the PCI command register (configuration space, offset {COMMAND:#x})"),
        does="enables the device, so that it answers at its BARs",
        example=Example(_DRIVER, "command = Command.MEMORY"),
        datasheet=_PCI, reached=_has(Command.MEMORY), now=_command_flags,
    )  # fmt: skip
    yield Step(
        name="bus_master", title="bus mastering on", need=required,
        shows="the bus master bit of the PCI command register is set",
        waits=_text(
            f"bit {Command.BUS_MASTER:#x} of the PCI command register (configuration space, offset {COMMAND:#x})"
        ),
        does="allows the device DMA and interrupts of its own, before it hands over anything",
        example=Example(_DRIVER, "Command.BUS_MASTER if on"),
        datasheet=_PCI, rules=("REG-011",), reached=_has(Command.BUS_MASTER), amiss=_no_bus_master,
    )  # fmt: skip
    yield Step(
        name="version", title="driver version written", need=usual,
        shows="a line has come by driver_version",
        waits=_text(f"a write of {_at(r.DRIVER_VERSION)}: text, a byte at a time, that ends in a newline"),
        does="writes its name and version, before anything else",
        example=Example(_DRIVER, "self.registers.write(DRIVER_VERSION, byte)"),
        datasheet="registers.md#registers", rules=("REG-012",),
        reached=lambda life: life.version.endswith("\n"), now=lambda life: life.version.strip(),
        amiss=lambda life: "the line has no newline yet" if life.version and not life.version.endswith("\n") else "",
    )  # fmt: skip
    yield Step(
        name="admin_queue", title="admin queue set up", need=required,
        shows="the device has been given an admin queue, and told to run",
        waits=_admin_queue,
        does="gives a zeroed page: its length and address, then RUN; at PCI revision 0 its page number",
        example=Example(_ADMINQ, "write(DRIVER_STATUS, DriverStatus.RUN)"),
        datasheet="registers.md#driver-status", rules=("REG-004", "REG-005", "REG-006", "REG-007"),
        reached=lambda life: life.nic.admin.base != 0, now=_read_back, amiss=_no_admin_queue,
    )  # fmt: skip
    yield Step(
        name="command", title="first admin command executed", need=required,
        shows="a command was fetched from the admin queue",
        waits=_text(f"a command in the first slot, then a write of {_at(r.ADMINQ_DOORBELL)}: how many there are"),
        does=f"writes the doorbell, then reads {_at(r.ADMINQ_EVENT_COUNTER)} until it says as much, then the status",
        example=Example(_ADMINQ, "write(ADMINQ_DOORBELL, self.produced)"),
        datasheet="admin.md#admin-queue", rules=("REG-006", "REG-008", "REG-009"),
        reached=lambda life: life.fetched > 0, now=_commands, amiss=_no_command,
    )  # fmt: skip
    yield Step(
        name="compatibility", title="driver announced", need=usual,
        shows="VERIFY_DRIVER_COMPATIBILITY has passed",
        waits=_command(Opcode.VERIFY_DRIVER_COMPATIBILITY),
        does="tells its system, its version and what it can do; one that is refused goes on as an older one",
        example=Example(_DRIVER, "_with_answer(Opcode.VERIFY_DRIVER_COMPATIBILITY"),
        datasheet="admin.md#verify_driver_compatibility", rules=("ADM-CMD-006",),
        reached=_passed(Opcode.VERIFY_DRIVER_COMPATIBILITY),
        now=lambda life: str(life.about()["system"]),
    )  # fmt: skip
    yield Step(
        name="describe", title="device described", need=usual,
        shows="DESCRIBE_DEVICE has passed, since the device was last as after power-on",
        waits=_command(Opcode.DESCRIBE_DEVICE),
        does="reads what the device is and which options it offers",
        example=Example(_DRIVER, "Opcode.DESCRIBE_DEVICE, "),
        datasheet="admin.md#describe_device", rules=("ADM-CMD-007", "ADM-RES-009"),
        reached=lambda life: life.described,
    )  # fmt: skip
    yield Step(
        name="vectors", title="MSI-X enabled", need=usual,
        shows="vectors have eventfds",
        waits=_text("MSI-X: its table (BAR 1) filled, and its enable bit in the configuration space"),
        does="asks for a vector for each notification block and one for management; one that polls needs none",
        example=Example(_DRIVER, "self.client.set_irqs(PciIrq.MSIX, 0, self.eventfds)"),
        datasheet="pci.md#configuration-space", rules=("ADM-RES-003",),
        reached=lambda life: life.vectors() > 0,
        now=lambda life: f"{life.vectors()} of {life.nic.profile.vectors} vectors", amiss=_no_vectors, sampled=True,
    )  # fmt: skip
    yield Step(
        name="resources", title="device resources configured", need=required,
        shows="the device has counters, doorbells for notification blocks and a queue format",
        waits=_command(Opcode.CONFIGURE_DEVICE_RESOURCES),
        does="gives the counter array and a place for the doorbells' indices, and chooses one of the formats offered",
        example=Example(_DRIVER, "Opcode.CONFIGURE_DEVICE_RESOURCES,"),
        datasheet="admin.md#configure_device_resources",
        rules=("ADM-RES-001", "ADM-RES-002", "ADM-RES-003", "ADM-RES-006"),
        reached=lambda life: life.nic.configured, now=_resources,
    )  # fmt: skip
    yield Step(
        name="ptypes", title="packet types read", need=usual,
        shows="GET_PTYPE_MAP has passed",
        waits=_command(Opcode.GET_PTYPE_MAP),
        does="learns which protocols the numbers in receive completions stand for",
        example=Example(_DRIVER, "_with_answer(Opcode.GET_PTYPE_MAP"),
        datasheet="admin.md#get_ptype_map", reached=_passed(Opcode.GET_PTYPE_MAP), applies=_dqo,
    )  # fmt: skip
    yield Step(
        name="page_lists", title="page lists registered", need=required,
        shows="there is a page list",
        waits=_command(Opcode.REGISTER_PAGE_LIST),
        does="registers a list of pages for each queue of a QPL format before it creates the queue",
        example=Example(_GQI, "Opcode.REGISTER_PAGE_LIST, "),
        datasheet="admin.md#register_page_list", rules=("ADM-PGL-001", "ADM-PGL-004", "ADM-PGL-005"),
        reached=lambda life: len(life.nic.pages) > 0, now=_page_lists, applies=_with_page_lists,
    )  # fmt: skip
    yield Step(
        name="tx_queue", title="transmit queue created", need=required,
        shows="there is a transmit queue",
        waits=_command(Opcode.CREATE_TX_QUEUE),
        does="gives a descriptor ring and a completion ring, both zeroed, and a notification block",
        example=Example(_DRIVER, "self.admin_batch(queue.create_command() for queue in self.tx.values())"),
        datasheet="admin.md#create_tx_queue", rules=("ADM-QUE-001", "ADM-QUE-005", "ADM-QUE-007", "ADM-QUE-008"),
        reached=lambda life: bool(life.queues("tx")), now=_queues("tx"),
    )  # fmt: skip
    yield Step(
        name="rx_queue", title="receive queue created", need=required,
        shows="there is a receive queue",
        waits=_command(Opcode.CREATE_RX_QUEUE),
        does="gives a buffer ring and a completion ring, both zeroed, a notification block and a buffer size",
        example=Example(_DRIVER, "self.admin_batch(queue.create_command() for queue in self.rx.values())"),
        datasheet="admin.md#create_rx_queue", rules=("ADM-QUE-001", "ADM-QUE-008", "ADM-QUE-012", "ADM-QUE-013"),
        reached=lambda life: bool(life.queues("rx")), now=_queues("rx"),
    )  # fmt: skip
    yield Step(
        name="buffers", title="receive buffers posted", need=required,
        shows="a receive queue's doorbell has moved",
        waits=_queue_doorbell("rx", "buffers in a buffer ring"),
        does="fills the ring but for one entry, and writes the index behind the last buffer, at multiples of 32",
        example=Example(_RX, "self.ring(reached & mask)"),
        datasheet="receive.md#buffer", rules=("DBL-002", "DBL-005", "RX-RNG-001", "RX-BUF-001"),
        reached=_posted, now=_buffers, amiss=_starved, sampled=True,
    )  # fmt: skip
    yield Step(
        name="unmasked", title="interrupts enabled", need=usual,
        shows="a queue's vector is enabled, or has fired",
        waits=_interrupt_doorbell("the enable bit in"),
        does="enables the vector of each queue and sets its interval; one that polls does not",
        example=Example(_DRIVER, "self.doorbells.ring(self.irq_doorbells[vector]"),
        datasheet=_INTERRUPTS, rules=("INT-001", "INT-004"),
        reached=_unmasked, now=_vectors, amiss=_masked, sampled=True,
    )  # fmt: skip
    yield Step(
        name="link", title="link seen", need=usual,
        shows="device_status was read while the link was up, since there are resources",
        waits=_text(f"a read of {_at(r.DEVICE_STATUS)} with the link up"),
        does="reads the status once its queues are there, and again at each management interrupt",
        example=Example(_DRIVER, "return DeviceStatus(self.registers.read(DEVICE_STATUS))"),
        datasheet="registers.md#device-status", reached=lambda life: life.saw_link, now=_link, amiss=_no_link,
    )  # fmt: skip
    yield Step(
        name="tx_posted", title="first packet handed over", need=required,
        shows="a transmit queue's doorbell has moved",
        waits=_queue_doorbell("tx", "descriptors of a packet in a transmit ring"),
        does="writes the index behind the last descriptor of the packet",
        example=Example(_TX, "self._ring_doorbell(self.doorbell_index, int(self.state.tail))"),
        datasheet="transmit.md#packet-descriptor", rules=("DBL-002", "DBL-005", "TX-RNG-001"),
        reached=_tx_posted, now=_sent, amiss=_not_running, sampled=True,
    )  # fmt: skip
    yield Step(
        name="transmit", title="first packet sent", need=required,
        shows="a frame has left, and its completion was written",
        waits=_text("descriptors that are a whole packet: data in shared memory, and end_of_packet in the last"),
        does="describes each piece of a packet by a descriptor, and takes the packet's memory back by its completion",
        example=Example(_TX, "TX_PACKET.encode("),
        datasheet="transmit.md#packet-descriptor", rules=("TX-DSC-001", "TX-DSC-003", "TX-PKT-003", "TX-PKT-004"),
        reached=lambda life: life.since("tx", "segments") > 0, now=_sent, amiss=_not_sent, sampled=True,
    )  # fmt: skip
    yield Step(
        name="receive", title="first frame received", need=required,
        shows="a frame was written to posted buffers, and its completion to the ring",
        waits=_text("a frame from the wire, and buffers in memory that it can write"),
        does="finds the completion by its generation bit, and the bytes in the buffer that it names",
        example=Example(_RX, "if RX_COMPLETION.generation.get(raw) == state.generation:"),
        datasheet="receive.md#completion", rules=("RX-BUF-001", "ADM-QUE-012"),
        reached=lambda life: life.since("rx", "frames") > 0, now=_received, amiss=_not_received, sampled=True,
    )  # fmt: skip
    yield Step(
        name="acknowledged", title="interrupt taken, enabled again", need=usual,
        shows="a vector is enabled after it has fired",
        waits=_interrupt_doorbell("the enable bit, after an interrupt, in"),
        does="enables the vector again when it has handled all completions; it has masked itself when it fired",
        example=Example(_DRIVER, "value = IRQ_DOORBELL.encode(enable=1, itr_index=ITR_NO_UPDATE)"),
        datasheet=_INTERRUPTS, rules=("INT-005",),
        reached=lambda life: life.acknowledged, now=_vectors, amiss=_not_acknowledged, sampled=True,
    )  # fmt: skip
    yield Step(
        name="handed_back", title="receive buffers handed back", need=required,
        shows="the device was given more buffers than its frames have left it",
        waits=_queue_doorbell("rx", "the buffers of received frames in the ring again"),
        does="posts a buffer again, or another, for each that a completion has returned",
        example=Example(_RX, "def post(self, count: int | None = None)"),
        datasheet="receive.md#receive-dqo-formats", rules=("RX-RNG-001", "RX-RNG-002", "RX-BUF-003"),
        reached=lambda life: life.handed_back, now=_buffers, amiss=_not_handed_back, sampled=True,
    )  # fmt: skip


def _features() -> Iterator[Step[GvnicLife]]:
    """What a driver may do besides."""
    feature = Need.FEATURE
    yield Step(
        name="tx_round", title="transmit ring went round", need=feature,
        shows="as many packets were sent as the transmit rings have entries",
        waits=_text("packets, more than a ring holds"),
        does="gives ring entries back by descriptor completions, which it asks for by report_event",
        example=Example(_TX, "report_event=last and self._report(report_event)"),
        datasheet="transmit.md#completion", rules=("TX-RNG-001", "TX-PKT-005", "TX-PKT-006"),
        reached=_round, sampled=True,
    )  # fmt: skip
    yield Step(
        name="rss", title="RSS configured", need=feature,
        shows="the table from hash to queue is the driver's",
        waits=_command(Opcode.CONFIGURE_RSS),
        does="gives key, table and hash types",
        example=Example(_DRIVER, "self.admin(Opcode.CONFIGURE_RSS, **fields)"),
        datasheet="admin.md#configure_rss", rules=("ADM-RSS-001", "ADM-RSS-002", "ADM-RSS-003"),
        reached=lambda life: life.nic.rss.configured, now=_rss,
    )  # fmt: skip
    yield Step(
        name="flow_rules", title="flow rules", need=feature,
        shows="there is a flow rule",
        waits=_text(
            f"{Inner.CONFIGURE_FLOW_RULE.name} ({Inner.CONFIGURE_FLOW_RULE:#x}), which "
            f"{Opcode.EXTENDED_COMMAND.name} ({Opcode.EXTENDED_COMMAND:#x}) carries"
        ),
        does="adds a rule at a location, the lowest is looked at first",
        example=Example(_DRIVER, "self.extended(Inner.CONFIGURE_FLOW_RULE, command)"),
        datasheet="admin.md#configure_flow_rule", rules=("ADM-CMD-008", "ADM-RUL-001", "ADM-RUL-003"),
        reached=lambda life: len(life.nic.rules) > 0, now=_rules, applies=_offers(OptionId.FLOW_STEERING),
    )  # fmt: skip
    yield Step(
        name="header_split", title="header split", need=feature,
        shows="a frame was split",
        waits=_text("a receive queue with header_buffer_size, header buffers in its descriptors, and a TCP frame"),
        does="gives a header buffer with each data buffer",
        example=Example(_RX, "header_buffer_size=self.config.header_size,"),
        datasheet="admin.md#create_rx_queue", rules=("ADM-QUE-014", "RX-BUF-002"),
        reached=lambda life: life.since("rx", "split") > 0, now=_splits, sampled=True,
        applies=lambda life: life.nic.profile.header_buffer_size > 0 and _dqo(life),
    )  # fmt: skip
    yield Step(
        name="jumbo", title="jumbo frames", need=feature,
        shows="an MTU of more than 1500 was set",
        waits=_text(f"SET_DRIVER_PARAMETER ({Opcode.SET_DRIVER_PARAMETER:#x}) with an MTU of more than 1500"),
        does="sets the MTU when its user does",
        example=Example(_DRIVER, "self.admin(Opcode.SET_DRIVER_PARAMETER"),
        datasheet="admin.md#set_driver_parameter", rules=("ADM-CMD-009",),
        reached=lambda life: life.mtu > _ETHERNET_MTU, now=_mtu,
        applies=lambda life: life.nic.profile.max_mtu > _ETHERNET_MTU,
    )  # fmt: skip
    yield Step(
        name="coalescing", title="receive coalescing", need=feature,
        shows="a packet was delivered that consists of several segments",
        waits=_text("a receive queue with enable_rsc, and segments of one flow that come together"),
        does="sets enable_rsc, and takes a completion with rsc for a packet of several segments",
        example=Example(_RX, "enable_rsc=self.config.rsc,"),
        datasheet="admin.md#create_rx_queue", rules=("ADM-QUE-016",),
        reached=lambda life: life.since("rx", "aggregated") > 0, now=_merged, sampled=True, applies=_dqo,
    )  # fmt: skip
    yield Step(
        name="moderation", title="interrupt moderation", need=feature,
        shows="a vector has an interval",
        waits=_interrupt_doorbell("an interval in"),
        does="sets the interval of each vector, in units of two microseconds",
        example=Example(_DRIVER, "value = IRQ_DOORBELL.encode(enable=1, interval="),
        datasheet="interrupts.md#interrupt-doorbell-of-the-dqo-formats", rules=("INT-003",),
        reached=lambda life: bool(life.nic.state.vectors["interval"].any()), now=_moderated, sampled=True, applies=_dqo,
    )  # fmt: skip
    yield Step(
        name="checksum", title="transmit checksum offload", need=feature,
        shows="a descriptor in a transmit ring asks for the checksum",
        waits=_text("a packet descriptor with its checksum bit"),
        does="leaves the checksum of TCP and UDP to the device",
        example=Example(_TX, "checksum=checksum,"),
        datasheet="transmit.md#packet-descriptor", rules=("TX-GQI-004",),
        reached=_asks("checksum"), sampled=True, costly=True,
    )  # fmt: skip
    yield Step(
        name="segmentation", title="segmentation offload (TSO)", need=feature,
        shows="a descriptor in a transmit ring asks for segmentation",
        waits=_text("a TSO context descriptor before a packet's data"),
        does="gives MSS and header length in a context, and the large packet behind it",
        example=Example(_TX, "TX_TSO_CONTEXT.encode("),
        datasheet="transmit.md#tso-context", rules=("TX-TSO-001", "TX-TSO-002", "TX-TSO-003"),
        reached=_asks("segmentation"), now=_segments, sampled=True, costly=True,
    )  # fmt: skip
    yield Step(
        name="statistics", title="statistics region given", need=feature,
        shows="REPORT_STATS has passed",
        waits=_command(Opcode.REPORT_STATS),
        does="gives memory in which the device writes its counters at an interval",
        example=Example(_DRIVER, "self.admin(Opcode.REPORT_STATS, address="),
        datasheet="admin.md#report_stats", rules=("ADM-RES-010",),
        reached=_passed(Opcode.REPORT_STATS),
    )  # fmt: skip
    yield Step(
        name="link_speed", title="link speed asked for", need=feature,
        shows="REPORT_LINK_SPEED has passed",
        waits=_command(Opcode.REPORT_LINK_SPEED),
        does="asks when its user does",
        example=Example(_DRIVER, "self._with_answer(Opcode.REPORT_LINK_SPEED"),
        datasheet="admin.md#report_link_speed", reached=_passed(Opcode.REPORT_LINK_SPEED),
    )  # fmt: skip
    yield Step(
        name="timestamps", title="NIC's clock read", need=feature,
        shows="REPORT_NIC_TIMESTAMP has passed",
        waits=_command(Opcode.REPORT_NIC_TIMESTAMP),
        does="asks for the time often enough to expand the 32 bits in completions",
        example=Example(_DRIVER, "Opcode.REPORT_NIC_TIMESTAMP, "),
        datasheet="admin.md#report_nic_timestamp",
        reached=_passed(Opcode.REPORT_NIC_TIMESTAMP), now=_times(Opcode.REPORT_NIC_TIMESTAMP),
        applies=_offers(OptionId.NIC_TIMESTAMP),
    )  # fmt: skip
    yield Step(
        name="restart", title="one queue restarted", need=feature,
        shows="a queue was destroyed and created again while others went on",
        waits=_text("the destruction of one queue, and its creation with other memory"),
        does="exchanges a queue's buffers so, as binding a dma-buf to it does",
        example=Example(_DRIVER, "new = self.make_rx(number, old.config, payload_memory)"),
        datasheet="admin.md#destroy_rx_queue", rules=("ADM-QUE-003", "ADM-QUE-017", "DBL-004"),
        reached=lambda life: bool(life.restarted), now=lambda life: ", ".join(sorted(life.restarted)[:_FEW]),
    )  # fmt: skip
    yield Step(
        name="reset", title="reset, and set up again", need=feature,
        shows="the admin queue was released and set up again, with no reset of the PCI function between",
        waits=_text(f"RESET in {_at(r.DRIVER_STATUS)}, or 0 in {r.ADMINQ_PFN.name}, and another admin queue"),
        does="lets go of everything and starts again, when the device asks for it in device_status",
        example=Example(_ADMINQ, "write(DRIVER_STATUS, DriverStatus.RESET)"),
        datasheet="registers.md#driver-status", rules=("REG-007", "REG-010"),
        reached=lambda life: life.releases > 0 and life.nic.admin.base != 0,
    )  # fmt: skip
    yield Step(
        name="removal", title="clean removal", need=feature,
        shows="the admin queue was released with no queues and no resources left",
        waits=_text(f"the destruction of all queues, {Opcode.DECONFIGURE_DEVICE_RESOURCES.name} "
                    f"({Opcode.DECONFIGURE_DEVICE_RESOURCES:#x}), then RESET in {r.DRIVER_STATUS.name}"),
        does="takes back all that it has set up, in the opposite order",
        example=Example(_DRIVER, "self.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)"),
        datasheet=_ORDER, rules=("REG-010", "ADM-RES-007"),
        reached=_removed, now=lambda life: "" if _removed(life) or not life.released else _not_removed(life),
    )  # fmt: skip


#: All steps: those to the first packets in their order, then features.
STEPS = (*_way(), *_features())


def ladder(nic: Nic) -> Ladder[GvnicLife]:
    """Watch the driver of a gVNIC climb, from now on."""
    return Ladder(nic, STEPS, lambda before: GvnicLife(nic, before))
